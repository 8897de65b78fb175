"""A token server for a docker-registry with `auth: token`; a program, as it runs inside a test bed.

    python token_server.py --listen 127.0.0.1:5002 --key KEY.pem --certificate CERT.pem --user me:secret
                           --identity-token TEXT --log FILE

GET with Basic credentials, or POST with the refresh token (https://distribution.github.io/distribution/spec/auth/).
Without credentials, repositories below `public/` are granted. Tokens are signed by the openssl program.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import secrets
import subprocess
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Handler(BaseHTTPRequestHandler):
    """Gives tokens."""

    protocol_version = "HTTP/1.1"
    arguments: argparse.Namespace

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        expected = "Basic " + base64.b64encode(self.arguments.user.encode()).decode()
        shown = self.headers.get("Authorization", "")
        self._answer(query, known=shown == expected, refused=bool(shown) and shown != expected)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        known = form.get("refresh_token") == [self.arguments.identity_token]
        self._answer(form, known=known, refused=not known)

    def _answer(self, query: dict[str, list[str]], *, known: bool, refused: bool) -> None:
        scope = query.get("scope", [""])[0]
        with self.arguments.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"method": self.command, "scope": scope, "known": known}) + "\n")
        match = re.fullmatch(r"repository:([^:]+):pull", scope)
        granted = match is not None and (known or match[1].startswith("public/"))
        access = [{"type": "repository", "name": match[1], "actions": ["pull"]}] if match and granted else []
        name = "access_token" if self.command == "POST" else "token"
        body = b"{}" if refused else json.dumps({name: self._token(query["service"][0], access)}).encode()
        self.send_response(401 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _token(self, service: str, access: list[dict[str, Any]]) -> str:
        pem = self.arguments.certificate.read_text(encoding="ascii")
        chain = ["".join(pem.split("-----")[2].split())]
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": chain}
        claims = {
            "iss": "test-issuer",
            "sub": "test",
            "aud": service,
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self.arguments.key)],
            input=signed.encode(),
            capture_output=True,
            check=True,
        ).stdout
        return f"{signed}.{_base64url(signature)}"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: there is a log of our own."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    for name in ("--key", "--certificate", "--log"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--identity-token", required=True)
    Handler.arguments = parser.parse_args()
    host, _, port = Handler.arguments.listen.rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), Handler)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

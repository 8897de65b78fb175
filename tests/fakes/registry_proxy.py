"""A reverse proxy before a registry that goes wrong on demand; a program, as it runs inside a test bed.

    python registry_proxy.py --listen 127.0.0.1:5001 --upstream 127.0.0.1:5000 --rules FILE --log FILE

FILE holds a JSON list of rules and is read again for each request. The first rule whose `path` (a regular
expression, searched) and `method` fit, and that was not used `times` times yet, decides:

    {"do": "status", "status": 503, "retry_after": "1", "authenticate": "Basic realm=x"}
    {"do": "corrupt"}                  one byte of the body is another one
    {"do": "cut", "after": 1000}       the connection is closed after so many bytes of the body
    {"do": "stall", "after": 1000}     nothing comes after so many bytes of the body
    {"do": "short", "after": 1000}     a well-formed answer with only so many bytes
    {"do": "whole"}                    a Range is ignored
    {"do": "redirect", "to": "http://…"}   the request's path is appended
    {"do": "answer", "body": "…", "type": "text/html"}

The log gets a JSON line for each request: method, path, range, what kind of Authorization came, the rule's `do`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_PASSED = ("Accept", "Authorization", "Range")
_RETURNED = (
    "Content-Type",
    "Content-Length",
    "Content-Range",
    "Docker-Content-Digest",
    "WWW-Authenticate",
    "Accept-Ranges",
    "Location",
)
CHUNK = 64 << 10


class Rules:
    """The rules file and how often each rule was used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ""
        self._used: dict[int, int] = {}
        self._lock = threading.Lock()

    def take(self, method: str, path: str) -> dict[str, Any]:
        """The rule for this request, {} for none."""
        with self._lock:
            text = self._path.read_text(encoding="utf-8") if self._path.exists() else "[]"
            if text != self._text:
                self._text, self._used = text, {}
            for number, rule in enumerate(json.loads(text)):
                used = self._used.get(number, 0)
                fits = re.search(rule.get("path", ""), path) and rule.get("method", method) == method
                if fits and used < rule.get("times", 1 << 30):
                    self._used[number] = used + 1
                    found: dict[str, Any] = rule
                    return found
        return {}


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    rules: Rules
    upstream: str
    log_file: Path
    ended = threading.Event()

    def do_GET(self) -> None:
        rule = self.rules.take(self.command, self.path)
        with self.log_file.open("a", encoding="utf-8") as log:
            line = {
                "method": self.command,
                "path": self.path,
                "range": self.headers.get("Range", ""),
                "authorization": self.headers.get("Authorization", "").partition(" ")[0],
                "headers": sorted(name.lower() for name in self.headers),
                "do": rule.get("do", ""),
            }
            log.write(json.dumps(line) + "\n")
        match rule.get("do", ""):
            case "status":
                self._plain(rule)
            case "redirect":
                self.send_response(307)
                self.send_header("Location", rule["to"] + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
            case "answer":
                self._plain({"status": 200, **rule})
            case _:
                self._forward(rule)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _plain(self, rule: dict[str, Any]) -> None:
        body = str(rule.get("body", "")).encode()
        self.send_response(rule["status"])
        if "retry_after" in rule:
            self.send_header("Retry-After", str(rule["retry_after"]))
        if "authenticate" in rule:
            self.send_header("WWW-Authenticate", rule["authenticate"])
        self.send_header("Content-Type", rule.get("type", "text/plain"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _forward(self, rule: dict[str, Any]) -> None:
        what, after = rule.get("do", ""), rule.get("after", 0)
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        passed = {name: self.headers[name] for name in _PASSED if name in self.headers}
        if what == "whole":
            passed.pop("Range", None)
        connection.request(self.command, self.path, headers=passed)
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name in _RETURNED:
            for value in answer.headers.get_all(name, []):
                self.send_header(name, str(after) if what == "short" and name == "Content-Length" else value)
        if "Content-Length" not in answer.headers:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        sent = 0
        while self.command != "HEAD" and (data := answer.read(CHUNK)):
            if what == "corrupt" and sent == 0:
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            if what in ("cut", "stall", "short") and sent + len(data) >= after:
                self.wfile.write(data[: after - sent])
                self.wfile.flush()
                if what == "stall":
                    self.ended.wait(600)
                self.close_connection = what != "short"
                break
            self.wfile.write(data)
            sent += len(data)
        connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: there is a log of our own."""


class Server(ThreadingHTTPServer):
    """Answers each connection in a thread that does not keep the program alive."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what the tests are about."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--rules", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    arguments = parser.parse_args()
    Handler.rules = Rules(arguments.rules)
    Handler.upstream = arguments.upstream
    Handler.log_file = arguments.log
    host, _, port = arguments.listen.rpartition(":")
    server = Server((host, int(port)), Handler)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

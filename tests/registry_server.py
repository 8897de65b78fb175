"""A real registry (Debian's docker-registry) in a test bed, and images written directly to its storage.

The storage has the registry's own file layout, so that a test can publish what no honest client would: blobs that do
not match their digests, manifests that lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes import LIMIT, Inside, until
from tests.testbed import ROOT, BedFailed, Testbed

FAKES = ROOT / "tests" / "fakes"

USER, PASSWORD = "puller", "correct horse"
# bcrypt of PASSWORD, the only scheme that docker-registry accepts in an htpasswd file; cost 4, for speed.
HTPASSWD = f"{USER}:$2b$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e\n"

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def start_program(bed: Testbed, argv: Sequence[str], *, within: float = LIMIT) -> Inside:
    """Start one of the fakes and wait until it says that it is ready."""
    process = bed.popen(argv)
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], within)
    if not readable or process.stdout.readline() != "ready\n":
        process.kill()
        raise BedFailed(f"{argv[1]} did not start: {process.communicate(timeout=10)[1]}")
    return process


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A registry's storage directory, written from outside."""

    root: Path

    def blob(self, data: bytes, digest: str = "") -> str:
        """Store a blob, under a digest that need not be its own; returns the digest."""
        digest = digest or digest_of(data)
        place = self._blob(digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return digest

    def manifest(self, repository: str, document: Mapping[str, Any] | bytes, tag: str = "") -> str:
        """Store a manifest with links to everything it names, and a tag; return its digest."""
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = self.blob(data)
        self._link(repository, f"_manifests/revisions/{self._split(digest)}", digest)
        if tag:
            self._link(repository, f"_manifests/tags/{tag}/current", digest)
            self._link(repository, f"_manifests/tags/{tag}/index/{self._split(digest)}", digest)
        parsed = json.loads(data)
        for item in (parsed.get("config"), *(parsed.get("layers") or ())):
            if item:
                self._link(repository, f"_layers/{self._split(item['digest'])}", item["digest"])
        return digest

    def publish(self, layout: Path, repository: str, tag: str) -> str:
        """Store the first image of an OCI layout; return its manifest's digest."""
        for source in (layout / "blobs" / "sha256").iterdir():
            place = self._blob(f"sha256:{source.name}")
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                try:
                    os.link(source, place)
                except OSError:
                    shutil.copyfile(source, place)
        index = json.loads((layout / "index.json").read_text(encoding="utf-8"))
        top = self._blob(index["manifests"][0]["digest"])
        return self.manifest(repository, top.read_bytes(), tag)

    def read(self, digest: str) -> bytes:
        return self._blob(digest).read_bytes()

    def _blob(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self.root / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"

    def _link(self, repository: str, path: str, digest: str) -> None:
        place = self.root / "docker/registry/v2/repositories" / repository / path / "link"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(digest, encoding="ascii")

    def _split(self, digest: str) -> str:
        return digest.replace(":", "/")


@dataclass(slots=True, kw_only=True)
class RegistryServer:
    """A docker-registry that runs in the bed until the bed ends."""

    bed: Testbed
    port: int
    storage: Storage
    process: Inside

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


def start_registry(
    bed: Testbed,
    port: int,
    *,
    storage: Storage | None = None,
    auth: Mapping[str, Any] | None = None,
    certificate: tuple[Path, Path] | None = None,
) -> RegistryServer:
    """Start a registry on the bed's loopback. `certificate` is (certificate, key): then it speaks TLS only."""
    place = bed.base / f"registry-{port}"
    place.mkdir()
    storage = storage or Storage(root=place / "storage")
    storage.root.mkdir(exist_ok=True)
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(storage.root), "maxthreads": 100}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "of a test"},
    }
    if auth:
        config["auth"] = dict(auth)
    if certificate:
        config["http"]["tls"] = {"certificate": str(certificate[0]), "key": str(certificate[1])}
    # JSON is YAML.
    (place / "config.yml").write_text(json.dumps(config), encoding="utf-8")
    log = place / "log"
    with log.open("w") as output:
        process = bed.popen(["docker-registry", "serve", str(place / "config.yml")], stdout=output, stderr=output)

    def listening() -> bool:
        if process.poll() is not None:
            raise BedFailed(f"docker-registry ended: {log.read_text('utf-8')[-1000:]}")
        return "listening on" in log.read_text("utf-8")

    until(listening, what=f"docker-registry listens on port {port}")
    return RegistryServer(bed=bed, port=port, storage=storage, process=process)


def htpasswd(bed: Testbed) -> Mapping[str, Any]:
    """Basic authentication with USER and PASSWORD."""
    file = bed.base / "htpasswd"
    file.write_text(HTPASSWD, encoding="ascii")
    return {"htpasswd": {"realm": "test", "path": str(file)}}


@dataclass(slots=True, kw_only=True)
class FaultProxy:
    """The fault-injecting proxy, in the bed. Without rules it changes nothing."""

    port: int
    rules_file: Path
    log_file: Path
    process: Inside
    _read: int = field(default=0)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def rules(self, *rules: Mapping[str, Any]) -> None:
        """Replace the rules, and restart the log."""
        temporary = self.rules_file.with_suffix(".new")
        temporary.write_text(json.dumps(rules), encoding="utf-8")
        temporary.replace(self.rules_file)
        self._read = len(self._lines())

    def requests(self) -> list[dict[str, Any]]:
        """The requests since the rules were set."""
        return [json.loads(line) for line in self._lines()[self._read :]]

    def _lines(self) -> list[str]:
        return self.log_file.read_text("utf-8").splitlines() if self.log_file.exists() else []


def start_proxy(bed: Testbed, port: int, upstream: str) -> FaultProxy:
    """Start the fault-injecting proxy before `upstream`, a host and port of the bed's loopback."""
    rules, log = bed.base / f"proxy-{port}.json", bed.base / f"proxy-{port}.log"
    argv = [sys.executable, str(FAKES / "registry_proxy.py"), "--listen", f"127.0.0.1:{port}"]
    process = start_program(bed, [*argv, "--upstream", upstream, "--rules", str(rules), "--log", str(log)])
    return FaultProxy(port=port, rules_file=rules, log_file=log, process=process)


def make_certificates(directory: Path, *, expired: bool = False) -> tuple[Path, Path, Path]:
    """(authority, certificate, key) for 127.0.0.1 and localhost, made with the openssl program."""
    directory.mkdir(parents=True, exist_ok=True)
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    certificate, key, request = directory / "server.pem", directory / "server.key", directory / "server.csr"
    extensions = directory / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n", encoding="ascii")
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256"]
    sign = ["openssl", "x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(ca_key), "-sha256"]
    period = ["-days", "-1"] if expired else ["-days", "2"]
    for argv in (
        [*new, "-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", str(ca_key), "-out", str(ca)],
        [*new, "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(request)],
        [*sign, "-set_serial", "1", *period, "-extfile", str(extensions), "-out", str(certificate)],
    ):
        subprocess.run(argv, check=True, capture_output=True, timeout=30)
    return ca, certificate, key


def make_signing_key(directory: Path) -> tuple[Path, Path]:
    """(certificate, RSA key) with which a token server signs, made with the openssl program."""
    directory.mkdir(parents=True, exist_ok=True)
    certificate, key = directory / "token.pem", directory / "token.key"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "2"]
    argv += ["-subj", "/CN=tokens", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
    return certificate, key

"""Images in the making: their layers, documents and archives, and a registry that serves them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sandboxd.errors import NotFound, SandboxdError, Unavailable
from sandboxd.oci import image as oci
from sandboxd.registry.client import Manifest as Served
from sandboxd.registry.hosts import Endpoint

PIECE = 1 << 16  # bytes in which a blob is served
SERVER = Endpoint(scheme="https", host="registry.test")


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(text: str, more: bytes = b"") -> bytes:
    """A tar with one file."""
    return packed({text: text.encode() + more})


def packed(files: dict[str, bytes]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return output.getvalue()


@dataclass(frozen=True, kw_only=True)
class Parts:
    """An image. `documents` are those above the manifest, the topmost first."""

    layers: tuple[bytes, ...]
    config: bytes
    manifest: bytes
    documents: tuple[bytes, ...] = ()

    @property
    def top(self) -> bytes:
        return (*self.documents, self.manifest)[0]

    @property
    def blobs(self) -> dict[str, bytes]:
        everything = (*self.layers, self.config, self.manifest, *self.documents)
        return {digest(data): data for data in everything}

    def served(self, media_type: str = "") -> Served:
        return Served(data=self.top, digest=digest(self.top), media_type=media_type)

    def below(self, depth: int, architecture: str = "amd64") -> Parts:
        """The same image below so many indexes."""
        documents = list(self.documents)
        for _ in range(depth):
            data = (*documents, self.manifest)[0]
            kind = oci.OCI_INDEX if documents else oci.OCI_MANIFEST
            entry = described(kind, data) | {"platform": {"os": "linux", "architecture": architecture}}
            documents.insert(0, encoded({"schemaVersion": 2, "manifests": [entry]}))
        return Parts(layers=self.layers, config=self.config, manifest=self.manifest, documents=tuple(documents))


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def described(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def image(
    *layers: bytes,
    compress: bool = False,
    media_type: str = "",
    architecture: str = "amd64",
    os: str = "linux",
    diff_ids: Sequence[str] | None = None,
) -> Parts:
    """An image of these uncompressed layers."""
    stored = tuple(gzip.compress(data, mtime=0) if compress else data for data in layers)
    media_type = media_type or oci.OCI_LAYER + ("+gzip" if compress else "")
    config = encoded(
        {
            "os": os,
            "architecture": architecture,
            "config": {"Cmd": ["sh"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [digest(data) for data in layers] if diff_ids is None else list(diff_ids),
            },
        }
    )
    manifest = encoded(
        {
            "schemaVersion": 2,
            "config": described(oci.OCI_CONFIG, config),
            "layers": [described(media_type, data) for data in stored],
        }
    )
    return Parts(layers=stored, config=config, manifest=manifest)


def archive(*images: tuple[str, Parts]) -> bytes:
    """An OCI layout with these images; a name "" is none."""
    files = {"oci-layout": encoded({"imageLayoutVersion": "1.0.0"})}
    listed = []
    for name, parts in images:
        files |= {f"blobs/{key.replace(':', '/')}": data for key, data in parts.blobs.items()}
        kind = oci.OCI_INDEX if parts.documents else oci.OCI_MANIFEST
        annotations = {"annotations": {oci.NAME_ANNOTATION: name}} if name else {}
        listed.append(described(kind, parts.top) | annotations)
    return packed({**files, "index.json": encoded({"schemaVersion": 2, "manifests": listed})})


class Registry:
    """A repository with the blobs of some images. `asked` has the digest and offset of each request for a blob."""

    def __init__(self, *images: Parts) -> None:
        self.blobs = {key: data for parts in images for key, data in parts.blobs.items()}
        self.wrong: dict[str, bytes] = {}  # what is served instead, once
        self.missing: type[SandboxdError] = Unavailable  # what a blob that is not there raises
        self.mirrors = 1  # servers that can still be distrusted
        self.asked: list[tuple[str, int]] = []

    async def manifest(self, name: str) -> Served:
        if name not in self.blobs:
            raise NotFound(f"{name} is not in the registry")
        return Served(data=self.blobs[name], digest=name, media_type="")

    async def blob(
        self, name: str, size: int, offset: int, sink: Callable[[bytes], Awaitable[None]]
    ) -> tuple[Endpoint, ...]:
        self.asked.append((name, offset))
        if name not in self.blobs:
            raise self.missing(f"{name} is not served")
        data = self.wrong.pop(name, self.blobs[name])
        for start in range(offset, size, PIECE):
            await sink(data[start : min(size, start + PIECE)])
        return (SERVER,)

    def distrust(self, endpoints: Sequence[Endpoint]) -> bool:
        if not self.mirrors:
            return False
        self.mirrors -= 1
        return True

"""Images that tests make: honest ones, and such as no honest client would make."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.registry_server import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Storage, digest_of


def layer_of(entries: Sequence[tuple[str, bytes, str]]) -> bytes:
    """A plain tar of (name, content, link target)."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content, target in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            if target:
                entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry, io.BytesIO(content))
    return output.getvalue()


def special(name: str, kind: bytes, linkname: str = "") -> bytes:
    """A plain tar with one entry that is neither a file nor a symbolic link."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.devmajor, entry.devminor = kind, linkname, 1, 3
        tar.addfile(entry)
    return output.getvalue()


def make_image(
    storage: Storage,
    repository: str,
    layers: Sequence[bytes],
    *,
    diff_ids: Sequence[str] = (),
    layer_type: str = "application/vnd.oci.image.layer.v1.tar",
    architecture: str = "",
    config: Mapping[str, Any] | None = None,
    changes: Callable[[dict[str, Any]], None] = lambda manifest: None,
    tag: str = "v1",
) -> str:
    """Publish an image of these layers, honest but for what is said; returns the manifest's digest."""
    document = json.dumps(
        {
            "os": "linux",
            "architecture": architecture or host_architecture(),
            "config": {"Labels": {"repository": repository}, **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids) or [digest_of(layer) for layer in layers]},
        }
    ).encode()
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": storage.blob(document), "size": len(document)},
        "layers": [{"mediaType": layer_type, "digest": storage.blob(layer), "size": len(layer)} for layer in layers],
    }
    changes(manifest)
    return storage.manifest(repository, manifest, tag)


def index_of(storage: Storage, repository: str, platforms: Mapping[str, str]) -> str:
    """Publish an index of (architecture to manifest digest) as REPOSITORY:v1; returns its digest."""
    manifests = []
    for architecture, digest in platforms.items():
        data = storage.read(digest)
        platform = {"os": "linux", "architecture": architecture}
        manifests.append({"mediaType": OCI_MANIFEST, "digest": digest, "size": len(data), "platform": platform})
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return storage.manifest(repository, document, "v1")


def host_architecture() -> str:
    """This machine's, as images call it."""
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}.get(os.uname().machine, "")


def with_volumes(base: Path, out: Path, volumes: Sequence[str], content: bytes, name: str) -> Path:
    """The image of the archive `base` by another name, with another layer and these volumes, as the archive `out`."""
    with tarfile.open(base) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers() if member.isfile()}
        blobs = {name: file.read() for name, file in files.items() if file is not None}

    def add(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    def blob(descriptor: dict[str, Any]) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(blobs["blobs/" + descriptor["digest"].replace(":", "/")])
        return parsed

    index = json.loads(blobs["index.json"])
    manifest = blob(index["manifests"][0])
    config = blob(manifest["config"])
    added = add("layer.v1.tar", content)
    config["rootfs"]["diff_ids"].append(added["digest"])
    config["config"]["Volumes"] = {path: {} for path in volumes}
    config.pop("history", None)
    manifest["layers"].append(added)
    manifest["config"] = add("config.v1+json", json.dumps(config).encode())
    top = add("manifest.v1+json", json.dumps(manifest).encode())
    top["annotations"] = {"io.containerd.image.name": name}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    with tarfile.open(out, "w") as tar:
        for path, data in sorted(blobs.items()):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out

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


class _Layout:
    """The blobs of an archive, to make another one of."""

    def __init__(self, archive: Path) -> None:
        with tarfile.open(archive) as tar:
            files = {member.name: tar.extractfile(member) for member in tar.getmembers() if member.isfile()}
            self.blobs = {name: file.read() for name, file in files.items() if file is not None}
        self.manifest = self.document(json.loads(self.blobs["index.json"])["manifests"][0])
        self.config = self.document(self.manifest["config"])

    def document(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.blobs["blobs/" + descriptor["digest"].replace(":", "/")])
        return parsed

    def add(self, kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    def image(self, name: str, manifest: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
        """The descriptor of another image."""
        described = {**manifest, "config": self.add("config.v1+json", json.dumps(config).encode())}
        top = self.add("manifest.v1+json", json.dumps(described).encode())
        return {**top, "annotations": {"io.containerd.image.name": name}}

    def write(self, out: Path, images: Sequence[dict[str, Any]]) -> Path:
        self.blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": images}).encode()
        with tarfile.open(out, "w") as tar:
            for path, data in sorted(self.blobs.items()):
                entry = tarfile.TarInfo(path)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        return out


def with_configs(base: Path, out: Path, configs: Mapping[str, Mapping[str, Any]]) -> Path:
    """An archive with the image of the archive `base` once for each name, with these changes of its config."""
    layout = _Layout(base)
    images = [
        layout.image(name, layout.manifest, {**layout.config, "config": {**layout.config["config"], **changes}})
        for name, changes in configs.items()
    ]
    return layout.write(out, images)


def with_volumes(base: Path, out: Path, volumes: Sequence[str], content: bytes, name: str) -> Path:
    """The image of the archive `base` by another name, with another layer and these volumes, as the archive `out`."""
    layout = _Layout(base)
    added = layout.add("layer.v1.tar", content)
    config = layout.config
    config["rootfs"]["diff_ids"].append(added["digest"])
    config["config"]["Volumes"] = {path: {} for path in volumes}
    config.pop("history", None)
    manifest = {**layout.manifest, "layers": [*layout.manifest["layers"], added]}
    return layout.write(out, [layout.image(name, manifest, config)])

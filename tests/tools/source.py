"""The image that `make test-tools` starts from, written by our own hand: its layers, its config, its OCI layout."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxd.oci.image import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest
from tests.images import host_architecture
from tests.tools import tree

SAYS = "from the image"
CONFIG: dict[str, Any] = {
    "User": "app",
    "Env": ["PATH=/bin", "GREETING=hello world"],
    "Entrypoint": ["/bin/busybox"],
    "Cmd": ["echo", SAYS],
    "WorkingDir": "/srv/shared",
    "ExposedPorts": {"8080/tcp": {}},
    "Volumes": {"/data": {}},
    "Labels": {"of": "test-tools"},
    "StopSignal": "SIGUSR1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The two layers as plain tars, and the trees that one and both of them are, as `tree.show` shows them."""

    layers: tuple[bytes, bytes]
    first: Mapping[str, Any]
    both: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A layer as a blob, with the type that its descriptor gives."""

    plain: bytes
    data: bytes
    media_type: str


def make_source(place: Path) -> Source:
    """Make the tree in an empty directory, and of it the layers."""
    tree.make(place)
    first, shown = layer_of_tree(place, ["."]), tree.show(place)
    tree.change(place)
    return Source(layers=(first, layer_of_changes(place)), first=shown, both=tree.show(place))


def layer_of_tree(root: Path, names: Iterable[str]) -> bytes:
    """A layer of everything below these names."""
    paths: list[str] = []
    for name in names:
        for directory, below, files in os.walk(root / name):
            below.sort()
            links = [each for each in below if os.path.islink(os.path.join(directory, each))]
            paths += [os.path.relpath(os.path.join(directory, each), root) for each in (".", *links, *sorted(files))]
    return _tar(root, paths, ())


def layer_of_changes(root: Path) -> bytes:
    """The second layer, with its whiteouts."""
    opaque = [f"{name}/.wh..wh..opq" for name in tree.OPAQUE]
    gone = [os.path.join(os.path.dirname(name), f".wh.{os.path.basename(name)}") for name in tree.GONE]
    return _tar(root, (*tree.PARENTS, *tree.REPLACED), (*gone, *opaque))


def gzipped(plain: bytes) -> Packed:
    return Packed(plain=plain, data=gzip.compress(plain, 1, mtime=0), media_type=f"{OCI_LAYER}+gzip")


def uncompressed(plain: bytes) -> Packed:
    return Packed(plain=plain, data=plain, media_type=OCI_LAYER)


def config_of(layers: Sequence[Packed], architecture: str = "") -> bytes:
    document = {
        "os": "linux",
        "architecture": architecture or host_architecture(),
        "config": CONFIG,
        "rootfs": {"type": "layers", "diff_ids": [digest(layer.plain) for layer in layers]},
        "history": [{"created_by": f"layer {number}"} for number, _ in enumerate(layers)],
    }
    return json.dumps(document).encode()


class Layout:
    """An OCI layout in a directory (image-spec, image-layout.md)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._entries: list[dict[str, Any]] = []
        (root / "blobs/sha256").mkdir(parents=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def blob(self, media_type: str, data: bytes) -> dict[str, Any]:
        """Store a blob; its descriptor."""
        name = digest(data)
        (self.root / "blobs" / name.replace(":", "/")).write_bytes(data)
        return {"mediaType": media_type, "digest": name, "size": len(data)}

    def document(self, document: Mapping[str, Any]) -> dict[str, Any]:
        return self.blob(str(document["mediaType"]), json.dumps(document).encode())

    def image(self, layers: Sequence[Packed], architecture: str = "") -> dict[str, Any]:
        """Store an image; its manifest's descriptor."""
        config = self.blob(OCI_CONFIG, config_of(layers, architecture))
        descriptors = [self.blob(layer.media_type, layer.data) for layer in layers]
        return self.document({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": descriptors})

    def index(self, images: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Store an index of (architecture to manifest's descriptor)."""
        manifests = [{**each, "platform": {"os": "linux", "architecture": name}} for name, each in images.items()]
        return self.document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})

    def name(self, descriptor: Mapping[str, Any], ref: str) -> None:
        """List it in index.json by this name, none when it is empty."""
        annotations = {"annotations": {"org.opencontainers.image.ref.name": ref}} if ref else {}
        self._entries.append({**descriptor, **annotations})
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self._entries}
        (self.root / "index.json").write_text(json.dumps(index))


def packed_directory(directory: Path, archive: Path, mode: str = "w") -> Path:
    """A directory as a tar, with names as `tar -C DIRECTORY -c .` gives them."""
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        tar.add(directory, ".")
    return archive


def _tar(root: Path, names: Iterable[str], whiteouts: Iterable[str]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in whiteouts:
            tar.addfile(tarfile.TarInfo(name))
        for name in dict.fromkeys(map(os.path.normpath, names)):
            path = root / name
            entry = tar.gettarinfo(path, arcname=name)
            entry.uname = entry.gname = ""
            entry.mtime = int(entry.mtime)
            entry.pax_headers = {
                f"SCHILY.xattr.{each}": os.getxattr(path, each, follow_symlinks=False).decode(
                    "utf-8", "surrogateescape"
                )
                for each in os.listxattr(path, follow_symlinks=False)
            }
            if entry.isreg():
                with path.open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
        end = tar.offset
    # Two blocks end it, as in a layer that Go wrote; Python fills a record.
    return output.getvalue()[:end] + bytes(2 * tarfile.BLOCKSIZE)

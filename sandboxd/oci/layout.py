"""Writing an image archive: one tar that is both an OCI layout and what `docker save` writes.

    oci-layout, index.json        image-spec, image-layout.md; a descriptor for each name, annotated with it
    manifest.json                 [{Config, RepoTags, Layers}], for docker; the same blobs under their paths
    blobs/sha256/<hex>            each blob once

The same images give the same bytes: no time, owner or order of the machine enters. `oci.archive` reads it.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sandboxd.oci.image import NAME_ANNOTATION, OCI_INDEX, REF_ANNOTATION, Descriptor, Manifest

LAYOUT = ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
BLOCK_BYTES = 512  # of a tar
END = bytes(2 * BLOCK_BYTES)  # of a tar


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """An image and the full names to save it under; `target` is its manifest or the index that leads to it."""

    names: tuple[str, ...]
    target: Descriptor
    manifest: Manifest


def documents(images: Iterable[Named]) -> tuple[tuple[str, bytes], ...]:
    """The archive's files other than blobs: (path, content) of each."""
    images = tuple(images)
    entries = [_entry(image.target, name) for image in images for name in image.names or ("",)]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return (
        LAYOUT,
        ("index.json", _json(index)),
        ("manifest.json", _json([_docker_item(image) for image in images])),
    )


def blob_path(digest: str) -> str:
    """The path of a blob in the archive."""
    return f"blobs/{digest.replace(':', '/', 1)}"


def header(path: str, size: int) -> bytes:
    """The tar header of a file of `size` bytes, in GNU's format: others have no room for more than 8 GiB."""
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = size, 0o444
    return entry.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """The padding after a file of `size` bytes."""
    return bytes(-size % BLOCK_BYTES)


def archive_size(sizes: Iterable[int]) -> int:
    """The size in bytes of an archive of files of these sizes."""
    return sum(BLOCK_BYTES + size + -size % BLOCK_BYTES for size in sizes) + len(END)


def _entry(target: Descriptor, name: str) -> Mapping[str, Any]:
    entry: dict[str, Any] = {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
    if name:
        entry["annotations"] = {NAME_ANNOTATION: name}
        if tag := _tag(name):
            entry["annotations"][REF_ANNOTATION] = tag
    return entry


def _docker_item(image: Named) -> Mapping[str, Any]:
    return {
        "Config": blob_path(image.manifest.config.digest),
        "RepoTags": [name for name in image.names if _tag(name)],
        "Layers": [blob_path(layer.digest) for layer in image.manifest.layers],
    }


def _tag(name: str) -> str:
    """The tag of a full name; "" for one that ends in a digest."""
    return "" if "@" in name else name.rpartition(":")[2]


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()

"""What a namespace of containerd's holds, and archives to fill it."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from sandboxd.images.store import ImageStore
from sandboxd.oci import image as oci
from sandboxd.oci import platforms
from tests.root.conftest import Private


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Everything a namespace holds."""

    images: frozenset[str]
    content: frozenset[str]
    snapshots: frozenset[str]
    leases: frozenset[str]
    transfers: str


NOTHING = Held(images=frozenset(), content=frozenset(), snapshots=frozenset(), leases=frozenset(), transfers="")


async def held(private: Private, store: ImageStore) -> Held:
    """What is there after a whole garbage collection."""
    await store.leases.create("collect", seconds=60)
    await store.leases.delete("collect", sync=True)
    return Held(
        images=frozenset(image.name for image in await store.images.list()),
        content=frozenset(info.digest for info in await store.content.list()),
        snapshots=frozenset(snapshot.name for snapshot in await store.snapshots.list()),
        leases=frozenset(await store.leases.ids()),
        # Without the header, and without the ages.
        transfers="\n".join(
            "\t".join(line.split("\t")[:2])
            for line in private.run_ctr(store.client.namespace, "content", "active").splitlines()[1:]
        ),
    )


def pack(files: dict[str, bytes]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return output.getvalue()


def save(path: Path, *images: tuple[str | None, list[bytes]]) -> Path:
    """A `docker save` archive of (tag, layers)."""
    files: dict[str, bytes] = {}
    listed = []
    platform = {"os": "linux", "architecture": platforms.normal_architecture(os.uname().machine)}
    for tag, layers in images:
        diff_ids = [oci.digest(layer) for layer in layers]
        document = {**platform, "config": {"User": "7"}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        config = json.dumps(document).encode()
        files[f"{oci.digest(config)[7:]}.json"] = config
        paths = [f"{diff_id[7:]}/layer.tar" for diff_id in diff_ids]
        files |= dict(zip(paths, layers, strict=True))
        name = f"{oci.digest(config)[7:]}.json"
        listed.append({"Config": name, "RepoTags": [tag] if tag else None, "Layers": paths})
    path.write_bytes(pack({**files, "manifest.json": json.dumps(listed).encode()}))
    return path

"""What is written is read again: by our own reader as OCI and as docker's format, and by Python's tarfile."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from sandboxd.oci import image as oci
from sandboxd.oci import layout
from sandboxd.oci.archive import Archive, ImageContent, manifest_blob
from sandboxd.oci.image import Descriptor, Manifest, Platform
from sandboxd.oci.layout import Named

HOST = Platform(os="linux", architecture="amd64")
TAG = "docker.io/library/web:1"
DIGEST = f"docker.io/library/web@sha256:{'1' * 64}"


def image(text: bytes, *names: str) -> tuple[Named, dict[str, bytes]]:
    """An image of one layer that holds `text`, and its blobs by digest."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    layer = output.getvalue()
    rootfs = {"type": "layers", "diff_ids": [oci.digest(layer)]}
    config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).encode()
    layer_at = Descriptor(media_type=oci.OCI_LAYER, digest=oci.digest(layer), size=len(layer))
    config_at = Descriptor(media_type=oci.OCI_CONFIG, digest=oci.digest(config), size=len(config))
    top = manifest_blob(config_at, [layer_at])
    manifest = Manifest(media_type=oci.OCI_MANIFEST, config=config_at, layers=(layer_at,))
    blobs = {layer_at.digest: layer, config_at.digest: config, top.descriptor.digest: top.open().read()}
    return Named(names=names, target=top.descriptor, manifest=manifest), blobs


def archive(documents: tuple[tuple[str, bytes], ...], blobs: Mapping[str, bytes]) -> bytes:
    data = b""
    for path, content in (*documents, *((layout.blob_path(digest), blob) for digest, blob in blobs.items())):
        data += layout.header(path, len(content)) + content + layout.padding(len(content))
    return data + layout.END


def read(tmp_path: Path, data: bytes) -> tuple[ImageContent, ...]:
    path = tmp_path / "archive.tar"
    path.write_bytes(data)
    with Archive(path) as opened:
        return opened.images(HOST)


def test_what_is_written_is_read_with_all_names_and_digests(tmp_path: Path) -> None:
    web, web_blobs = image(b"web", TAG, "docker.io/library/web:latest")
    db, db_blobs = image(b"db", "example.org:5000/db:1")

    found = read(tmp_path, archive(layout.documents([web, db]), web_blobs | db_blobs))

    assert [content.names for content in found] == [web.names, db.names]
    assert [content.manifest.descriptor.digest for content in found] == [web.target.digest, db.target.digest]


def test_docker_reads_the_same_image_under_its_tags(tmp_path: Path) -> None:
    web, blobs = image(b"web", TAG, DIGEST)
    documents = tuple(document for document in layout.documents([web]) if document[0] == "manifest.json")

    (found,) = read(tmp_path, archive(documents, blobs))

    assert found.names == (TAG,)
    assert found.config.descriptor.digest == web.manifest.config.digest


def test_each_name_is_annotated_as_containerd_reads_it() -> None:
    web, _ = image(b"web", TAG, DIGEST)
    files = dict(layout.documents([web]))

    by_tag, by_digest = json.loads(files["index.json"])["manifests"]
    assert by_tag["annotations"] == {"io.containerd.image.name": TAG, "org.opencontainers.image.ref.name": "1"}
    assert by_digest["annotations"] == {"io.containerd.image.name": DIGEST}
    assert by_tag["digest"] == by_digest["digest"] == web.target.digest


def test_an_image_without_a_name_is_there_all_the_same(tmp_path: Path) -> None:
    web, blobs = image(b"web")

    (found,) = read(tmp_path, archive(layout.documents([web]), blobs))

    assert found.names == ()
    assert found.manifest.descriptor.digest == web.target.digest


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 9 << 30])
def test_headers_and_sizes_are_those_of_a_tar(size: int) -> None:
    path = layout.blob_path("sha256:" + "ab" * 32)

    entry = tarfile.TarInfo.frombuf(layout.header(path, size), "utf-8", "strict")

    assert (entry.name, entry.size, entry.mtime, entry.uid) == (path, size, 0, 0)
    assert layout.archive_size([size]) == 512 + size + len(layout.padding(size)) + len(layout.END)
    assert layout.archive_size([size]) % 512 == 0


def test_the_same_images_give_the_same_bytes() -> None:
    (web, blobs), (again, _) = image(b"web", TAG), image(b"web", TAG)

    assert archive(layout.documents([web]), blobs) == archive(layout.documents([again]), blobs)

"""Which images and blobs an archive gets, and that nothing damaged passes for whole."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sandboxd.containerd.content import ContentInfo
from sandboxd.containerd.images import Image
from sandboxd.errors import InvalidRequest, NotFound, NotReady
from sandboxd.images import save as saving
from sandboxd.images import store as image_store
from sandboxd.images.store import ImageStore
from sandboxd.model import ImageRecord
from sandboxd.oci import image as oci
from sandboxd.oci.archive import Archive
from sandboxd.oci.image import Descriptor, Platform
from tests.unit.oci.test_layout import image as make_image

HOST = Platform(os="linux", architecture="amd64")


class FakeStore:
    """Images and blobs in memory, with the face of ImageStore as far as saving needs it."""

    def __init__(self) -> None:
        self.platform = HOST
        self.blobs: dict[str, bytes] = {}
        self.listed: list[Image] = []
        self.records: list[ImageRecord] = []
        self.kept: set[str] = set()
        self.images = SimpleNamespace(list=self._list_images)
        self.content = SimpleNamespace(list=self._list_content, read=self._read)
        self.leases = SimpleNamespace(held=self._held, add_content=self._add_content)
        self.client = self

    def add(
        self,
        text: bytes,
        *names: str,
        before: tuple[dict[str, Any], ...] = (),
        after: tuple[dict[str, Any], ...] = (),
    ) -> str:
        """An image under containerd's `names`, in an index where `before` and `after` name others; returns its id."""
        named, blobs = make_image(text)
        self.blobs |= blobs
        target = named.target
        if before or after:
            entry = {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
            document = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [*before, entry, *after]}
            target = self.put(oci.OCI_INDEX, json.dumps(document).encode())
        images = [Image(name=name, target=target) for name in names]
        self.listed += images
        parsed = image_store._Parsed(
            descriptor=named.target,
            manifest=named.manifest,
            config=oci.parse_config(blobs[named.manifest.config.digest]),
        )
        self.records.append(image_store._record(named.manifest.config.digest, images, {target.digest: parsed}))
        return named.manifest.config.digest

    def put(self, media_type: str, data: bytes) -> Descriptor:
        digest = oci.digest(data)
        self.blobs[digest] = data
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def resolve(self, text: str) -> ImageRecord:
        return image_store.find(self.records, text)

    async def _list_images(self) -> list[Image]:
        return self.listed

    async def _list_content(self) -> list[ContentInfo]:
        return [ContentInfo(digest=digest, size=len(data), labels={}) for digest, data in self.blobs.items()]

    async def _read(self, digest: str, most: int) -> bytes:
        return self.blobs[digest]

    @asynccontextmanager
    async def _held(self, purpose: str, *, seconds: float) -> AsyncIterator[str]:
        yield "lease"
        self.kept.clear()

    async def _add_content(self, lease: str, digest: str) -> None:
        self.kept.add(digest)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    made = FakeStore()

    async def read(client: Any, digest: str) -> AsyncIterator[bytes]:
        data = client.blobs[digest]
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    monkeypatch.setattr("sandboxd.containerd.ingest.read", read)
    return made


async def save(store: FakeStore, *references: str) -> bytes:
    async with saving.saving(cast(ImageStore, store), references) as archive:
        data = b"".join([chunk async for chunk in archive.chunks()])
        assert len(data) == archive.size
        return data


def names_in(data: bytes) -> list[tuple[str, ...]]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with Archive(Path(file.name)) as opened:
            return [content.names for content in opened.images(HOST)]


BOTH = ("docker.io/library/web:1", "docker.io/library/web:latest")


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (["web:1"], [BOTH[:1]]),
        (["web:1", "docker.io/library/web"], [BOTH]),
        (["web:1", "web:1"], [BOTH[:1]]),
        (["ID"], [BOTH]),
        (["SHORT"], [BOTH]),
        (["db:1", "web:1"], [("example.org/db:1",), BOTH[:1]]),
    ],
)
async def test_an_image_is_saved_under_the_names_that_were_asked_for(
    store: FakeStore, asked: list[str], names: list[tuple[str, ...]]
) -> None:
    identity = store.add(b"web", *BOTH)
    store.add(b"db", "example.org/db:1")
    replaced = {"ID": identity, "SHORT": identity[7:17], "db:1": "example.org/db:1"}

    assert names_in(await save(store, *[replaced.get(each, each) for each in asked])) == names


async def test_an_image_that_has_only_digests_is_saved_under_them(store: FakeStore) -> None:
    named, _ = make_image(b"web")
    identity = store.add(b"web", f"docker.io/library/web@{named.target.digest}")

    assert names_in(await save(store, identity)) == [(f"docker.io/library/web@{named.target.digest}",)]


async def test_a_tag_can_be_asked_for_by_its_digest(store: FakeStore) -> None:
    named, _ = make_image(b"web")
    store.add(b"web", "docker.io/library/web:1")

    data = await save(store, f"web:other@{named.target.digest}")

    assert names_in(data) == [(f"docker.io/library/web@{named.target.digest}",)]


async def test_an_image_without_a_name_is_saved_by_its_id(store: FakeStore) -> None:
    named, _ = make_image(b"web")
    identity = store.add(b"web", named.manifest.config.digest)

    assert names_in(await save(store, identity)) == [()]


async def test_of_an_index_the_platforms_that_are_here_are_saved(store: FakeStore) -> None:
    absent = {"mediaType": oci.OCI_MANIFEST, "digest": "sha256:" + "1" * 64, "size": 5}
    layers = [{"mediaType": oci.OCI_LAYER, "digest": "sha256:" + "2" * 64, "size": 5}]
    config = {"mediaType": oci.OCI_CONFIG, "digest": "sha256:" + "3" * 64, "size": 5}
    unfinished = store.put(
        oci.OCI_MANIFEST, json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode()
    )
    artifact = store.put(
        oci.OCI_MANIFEST,
        json.dumps({"schemaVersion": 2, "config": config | {"mediaType": "x"}, "layers": []}).encode(),
    )
    others = [
        {"mediaType": each.media_type, "digest": each.digest, "size": each.size} for each in (unfinished, artifact)
    ]
    platform = {"platform": {"os": "linux", "architecture": "s390x"}}
    store.add(b"web", BOTH[0], before=(absent | platform, *(other | platform for other in others)))

    data = await save(store, "web:1")

    assert names_in(data) == [BOTH[:1]]
    assert unfinished.digest[7:].encode() not in data.replace(store.blobs[store.listed[0].target.digest], b"")
    assert store.listed[0].target.digest[7:].encode() in data


async def test_each_document_is_read_once_however_often_indexes_name_it(store: FakeStore) -> None:
    """An index that names another one a hundred times, which does the same, four deep."""
    store.add(b"web", BOTH[0])
    (listed,) = store.listed
    target = listed.target
    for _ in range(4):
        entry = {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
        document = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": [entry] * 100}
        target = store.put(oci.OCI_INDEX, json.dumps(document).encode())
    store.listed[:] = [Image(name=listed.name, target=target)]
    reads: list[str] = []
    read = store.content.read

    async def counted(digest: str, most: int) -> bytes:
        reads.append(digest)
        return bytes(await read(digest, most))

    store.content.read = counted
    with tarfile.open(fileobj=io.BytesIO(await save(store, "web:1"))) as tar:
        assert f"blobs/sha256/{listed.target.digest[7:]}" in tar.getnames()
    assert sorted(reads) == sorted(set(reads))


async def test_of_several_platforms_docker_gets_this_machines(store: FakeStore) -> None:
    other, blobs = make_image(b"other")
    store.blobs |= blobs
    entry = {"mediaType": other.target.media_type, "digest": other.target.digest, "size": other.target.size}
    platform = {"platform": {"os": "linux", "architecture": "s390x"}}
    for position in ("before", "after"):
        name = f"docker.io/library/{position}:1"
        identity = store.add(position.encode(), name, **{position: (entry | platform,)})

        with tarfile.open(fileobj=io.BytesIO(await save(store, name))) as tar:
            listed = tar.extractfile("manifest.json")
            assert listed is not None
            (item,) = json.load(listed)
            assert item["Config"] == f"blobs/sha256/{identity[7:]}"
            assert f"blobs/sha256/{other.target.digest[7:]}" in tar.getnames()


def repacked(store: FakeStore, text: bytes, *names: str, kind: str = oci.DOCKER_MANIFEST) -> Descriptor:
    """The image of `text`, which is there, under another manifest: the same config, its layer packed differently."""
    named, blobs = make_image(text)
    layer = store.put(oci.OCI_LAYER + "+gzip", gzip.compress(blobs[named.manifest.layers[0].digest]))
    parts = [{"mediaType": each.media_type, "digest": each.digest, "size": each.size} for each in (layer,)]
    config = named.manifest.config
    described = {"mediaType": config.media_type, "digest": config.digest, "size": config.size}
    document = {"schemaVersion": 2, "mediaType": kind, "config": described, "layers": parts}
    target = store.put(kind, json.dumps(document).encode())
    images = [Image(name=name, target=target) for name in names]
    store.listed += images
    records = [record for record in store.records if record.id == config.digest]
    manifest = oci.parse_manifest(store.blobs[target.digest])
    assert isinstance(manifest, oci.Manifest)
    inner = oci.parse_config(store.blobs[config.digest])
    parsed = {
        named.target.digest: image_store._Parsed(descriptor=named.target, manifest=named.manifest, config=inner),
        target.digest: image_store._Parsed(descriptor=target, manifest=manifest, config=inner),
    }
    listed = [image for image in store.listed if image.target.digest in parsed]
    for record in records:
        store.records.remove(record)
    store.records.append(image_store._record(config.digest, listed, parsed))
    return target


@pytest.mark.parametrize("asked", ["web:1", "again.test/web:2", "ID", "DIGEST"])
async def test_an_image_under_two_manifests_is_saved_whichever_is_asked_for(store: FakeStore, asked: str) -> None:
    """gzip and zstd, OCI and docker, a mirror and its registry: the config is the same."""
    identity = store.add(b"web", BOTH[0])
    target = repacked(store, b"web", "again.test/web:2")
    reference = {"ID": identity, "DIGEST": f"again.test/web@{target.digest}"}.get(asked, asked)

    data = await save(store, reference)

    names = [name for (name,) in names_in(data)]
    assert (
        names
        == {
            "web:1": [BOTH[0]],
            "again.test/web:2": ["again.test/web:2"],
            "ID": ["again.test/web:2", BOTH[0]],
            "DIGEST": [f"again.test/web@{target.digest}"],
        }[asked]
    )


async def test_of_an_image_under_two_manifests_what_is_complete_is_saved_by_its_id(store: FakeStore) -> None:
    """A part of the other one is gone; asked for by that name it is missed."""
    identity = store.add(b"web", BOTH[0])
    target = repacked(store, b"web", "again.test/web:2")
    manifest = oci.parse_manifest(store.blobs[target.digest])
    assert isinstance(manifest, oci.Manifest)
    del store.blobs[manifest.layers[0].digest]

    assert names_in(await save(store, identity)) == [BOTH[:1]]
    with pytest.raises(NotReady, match="pull it again"):
        await save(store, "again.test/web:2")


async def test_a_layer_that_is_not_here_is_missed_before_a_byte_is_sent(store: FakeStore) -> None:
    named, _ = make_image(b"web")
    store.add(b"web", BOTH[0])
    del store.blobs[named.manifest.layers[0].digest]

    with pytest.raises(NotReady, match="pull it again"):
        async with saving.saving(cast(ImageStore, store), ["web:1"]):
            pytest.fail("nothing can be sent")


@pytest.mark.parametrize("change", [lambda data: data[:-1] + b"x", lambda data: data + b"x", lambda data: data[:-1]])
async def test_a_damaged_blob_ends_the_archive_with_an_error(store: FakeStore, change: Any) -> None:
    named, _ = make_image(b"web")
    store.add(b"web", BOTH[0])
    layer = named.manifest.layers[0].digest

    async with saving.saving(cast(ImageStore, store), ["web:1"]) as archive:
        store.blobs[layer] = change(store.blobs[layer])
        with pytest.raises(NotReady, match=f"{layer} is damaged"):
            async for _ in archive.chunks():
                pass


async def test_what_is_saved_is_kept_meanwhile(store: FakeStore) -> None:
    named, _ = make_image(b"web")
    store.add(b"web", BOTH[0])

    async with saving.saving(cast(ImageStore, store), ["web:1"]):
        assert store.kept == {named.target.digest}
    assert store.kept == set()


@pytest.mark.parametrize(
    ("asked", "error"),
    [([], InvalidRequest), (["nosuch"], NotFound), (["A b"], InvalidRequest), (["web:1", "x"], NotFound)],
)
async def test_what_cannot_be_saved_is_said_before_anything_is_sent(
    store: FakeStore, asked: list[str], error: type[Exception]
) -> None:
    store.add(b"web", BOTH[0])

    with pytest.raises(error):
        await save(store, *asked)


async def test_an_image_that_was_removed_meanwhile_is_not_found(store: FakeStore) -> None:
    store.add(b"web", BOTH[0])
    store.listed.clear()

    with pytest.raises(NotFound, match="removed during the request"):
        await save(store, "web:1")

"""Large blobs written as files, on a real containerd: it has them as if they had gone through its own writer."""

from __future__ import annotations

import asyncio
import io
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandboxd.containerd import blob_files
from sandboxd.containerd.blob_files import BlobFile
from sandboxd.containerd.client import Containerd
from sandboxd.containerd.content import Content
from sandboxd.containerd.ingest import MESSAGE_BYTES, TRANSFER_PREFIX, Ingest, writing
from sandboxd.containerd.leases import Leases
from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.oci import image as oci
from sandboxd.oci.image import Descriptor
from tests.root.conftest import Private

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.images]

LEASE = "of a test"
LABELS = {"kind": "test"}


def blob(text: str) -> tuple[Descriptor, bytes]:
    data = (text.encode() * MESSAGE_BYTES)[: MESSAGE_BYTES + 1001]
    return Descriptor(media_type="x", digest=oci.digest(data), size=len(data)), data


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=2) as made:
        yield made


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[BlobFile | None]:
    """What the writers of this test wrote into."""
    found: list[BlobFile | None] = []
    begun = blob_files.begun

    async def noted(*args: object) -> BlobFile | None:
        found.append(await begun(*args))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(blob_files, "begun", noted)
    return found


@pytest.fixture
async def root(client: Containerd) -> Path:
    """Where this containerd has its content; a first blob tells that the file system seals none."""
    leases = Leases(client)
    await leases.create(LEASE, seconds=600)
    small = b"small"
    await Content(client, LEASE).write(
        Descriptor(media_type="x", digest=oci.digest(small), size=len(small)), io.BytesIO(small)
    )
    return Path(await blob_files._root(client))


async def write(client: Containerd, descriptor: Descriptor, data: bytes, executor: ThreadPoolExecutor | None) -> None:
    async with writing(client, LEASE, descriptor, executor=executor) as writer:
        assert writer.offset == 0
        await writer.write(data)
        await writer.commit(LABELS)


def place(root: Path, descriptor: Descriptor) -> Path:
    return root / "blobs" / "sha256" / descriptor.digest.removeprefix("sha256:")


def ingests(root: Path) -> list[str]:
    return [path.name for path in (root / "ingest").iterdir()]


async def test_a_blob_is_as_if_it_had_gone_through_containerd(
    private: Private, client: Containerd, executor: ThreadPoolExecutor, files: list[BlobFile | None], root: Path
) -> None:
    (ours, data), (theirs, other) = blob("ours"), blob("theirs")

    await write(client, ours, data, executor)
    await write(client, theirs, other, None)

    assert len(files) == 1 and files[0] is not None
    assert ingests(root) == []
    content = Content(client)
    for descriptor, bytes_ in ((ours, data), (theirs, other)):
        copied = io.BytesIO()
        await content.copy(descriptor.digest, copied)
        assert copied.getvalue() == bytes_
    infos = [await content.info(descriptor.digest) for descriptor in (ours, theirs)]
    assert [(info.size, dict(info.labels)) for info in infos] == [(ours.size, LABELS)] * 2
    found = [place(root, descriptor).stat() for descriptor in (ours, theirs)]
    described = [(stat.filemode(each.st_mode), each.st_uid, each.st_gid, each.st_nlink) for each in found]
    assert described[0] == described[1]
    assert {ours.digest, theirs.digest} <= await Leases(client).content(LEASE)


async def test_it_goes_with_its_lease(
    client: Containerd, executor: ThreadPoolExecutor, files: list[BlobFile | None], root: Path
) -> None:
    whole, data = blob("goes")
    cut, other = blob("cut")
    await write(client, whole, data, executor)
    async with writing(client, LEASE, cut, executor=executor) as writer:
        await writer.write(other[:5000])
        await writer.flush()
    assert None not in files and len(ingests(root)) == 1

    await Leases(client).delete(LEASE, sync=True)

    assert not place(root, whole).exists()
    assert ingests(root) == []
    with pytest.raises(NotFound):
        await Content(client).info(whole.digest)


async def test_what_was_cut_off_is_gone_on_from(
    client: Containerd, executor: ThreadPoolExecutor, files: list[BlobFile | None], root: Path
) -> None:
    whole, data = blob("in two parts")
    with pytest.raises(asyncio.CancelledError):
        async with writing(client, LEASE, whole, executor=executor) as writer:
            await writer.write(data[:-7])
            raise asyncio.CancelledError

    async with writing(client, LEASE, whole, executor=executor) as writer:
        assert writer.offset == whole.size - 7
        await writer.write(data[-7:])
        await writer.commit(LABELS)

    assert len(files) == 1, "the second one goes through containerd, which has hashed what was there"
    assert place(root, whole).read_bytes() == data


async def test_a_name_that_a_collection_took_is_given_by_containerd(
    client: Containerd,
    executor: ThreadPoolExecutor,
    files: list[BlobFile | None],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, data = blob("collected")
    named = BlobFile.named

    async def collected(self: BlobFile) -> None:
        await named(self)
        await Leases(client).collect()
        place(root, whole).unlink(missing_ok=True)  # it may have had nothing to do

    monkeypatch.setattr(BlobFile, "named", collected)

    await write(client, whole, data, executor)

    assert None not in files
    assert place(root, whole).read_bytes() == data
    assert ingests(root) == []
    assert (await Content(client).info(whole.digest)).labels == LABELS


async def test_the_next_attempt_finds_what_was_named_before_its_record(
    client: Containerd, executor: ThreadPoolExecutor, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two: the next writer has nothing to write."""
    whole, data = blob("killed")

    async def killed(self: Ingest, file: BlobFile, labels: object) -> None:
        await self._pass_on()
        await file.named()
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(Ingest, "_commit_file", killed)
        with pytest.raises(asyncio.CancelledError):
            await write(client, whole, data, executor)

    async with writing(client, LEASE, whole, executor=executor) as writer:
        assert writer.offset == whole.size
        await writer.commit(LABELS)
    await Leases(client).collect()

    assert place(root, whole).read_bytes() == data
    assert (await Content(client).info(whole.digest)).labels == LABELS


async def test_wrong_bytes_are_never_named(
    client: Containerd, executor: ThreadPoolExecutor, files: list[BlobFile | None], root: Path
) -> None:
    whole, data = blob("wrong")

    with pytest.raises(InvalidRequest, match="wrong digest"):
        await write(client, whole, data[:-1] + b"?", executor)

    assert None not in files
    assert not place(root, whole).exists()


async def test_a_restarted_attempt_begins_again(
    client: Containerd, executor: ThreadPoolExecutor, files: list[BlobFile | None], root: Path
) -> None:
    whole, data = blob("again")

    async with writing(client, LEASE, whole, executor=executor) as writer:
        await writer.write(b"?" * whole.size)
        with pytest.raises(InvalidRequest):
            await writer.commit({})
        await writer.restart()
        assert writer.offset == 0
        await writer.write(data)
        await writer.commit(LABELS)

    assert len(files) == 2 and None not in files
    assert place(root, whole).read_bytes() == data
    assert f"{TRANSFER_PREFIX}{whole.digest}" not in await Content(client).transfers()

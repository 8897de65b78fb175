"""Archives on their way in: spooled, imported by a job, removed in any case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from sandboxd.errors import Exhausted, InvalidRequest
from sandboxd.images import load, uploads
from sandboxd.images.load import Loaded
from sandboxd.images.store import ImageStore
from sandboxd.images.uploads import LOADS_AT_ONCE, Uploads
from sandboxd.jobs import Jobs
from sandboxd.model import Progress, Report, Stage

SECONDS = 20  # after which something that does not happen is a failed test
IMAGE = Loaded(names=("web:latest",), image_id="sha256:id", digest="sha256:manifest", size=7)


class Loading:
    """Stands for `load.load`: notes what it was given, reports once, and waits for `release`."""

    def __init__(self) -> None:
        self.read: list[bytes] = []
        self.release = asyncio.Event()
        self.release.set()

    async def __call__(self, store: ImageStore, path: Path, report: Report) -> list[Loaded]:
        self.read.append(path.read_bytes())
        report(Progress(stage=Stage.VERIFY, done=1, total=2))
        await self.release.wait()
        return [IMAGE]


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Loading:
    loading = Loading()
    monkeypatch.setattr(load, "load", loading)
    return loading


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def subject(tmp_path: Path, jobs: Jobs, loading: Loading) -> Uploads:
    return Uploads(cast(ImageStore, None), jobs, str(tmp_path / "uploads"))


async def chunks(*data: bytes) -> AsyncIterator[bytes]:
    for chunk in data:
        yield chunk


async def events(call: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in call]


def stored(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "uploads").iterdir())


async def test_an_archive_is_imported_whole_and_not_kept(
    subject: Uploads, loading: Loading, jobs: Jobs, tmp_path: Path
) -> None:
    assert await events(subject.load(chunks(b"arch", b"", b"ive"))) == [
        Progress(stage=Stage.VERIFY, done=1, total=2), IMAGE,
    ]  # fmt: skip
    assert loading.read == [b"archive"]
    assert stored(tmp_path) == []


async def test_the_import_goes_on_when_the_client_leaves(
    subject: Uploads, loading: Loading, jobs: Jobs, tmp_path: Path
) -> None:
    loading.release.clear()
    call = subject.load(chunks(b"archive"))
    assert await anext(call) == Progress(stage=Stage.VERIFY, done=1, total=2)
    await call.aclose()
    (job,) = jobs.in_flight()
    assert isinstance(job, tuple) and job[0] == "LoadImage"
    assert len(stored(tmp_path)) == 1

    loading.release.set()
    assert await jobs.drain(SECONDS) == ()
    assert stored(tmp_path) == []


async def test_a_client_that_leaves_in_the_middle_of_sending_leaves_nothing(
    subject: Uploads, loading: Loading, jobs: Jobs, tmp_path: Path
) -> None:
    sending, never = asyncio.Event(), asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield b"arch"
        sending.set()
        await never.wait()

    call = asyncio.create_task(events(subject.load(stalled())))
    await sending.wait()
    assert len(stored(tmp_path)) == 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    assert stored(tmp_path) == []
    assert jobs.in_flight() == () and not loading.read


async def test_an_archive_that_is_empty_or_too_large_is_refused_and_not_kept(
    subject: Uploads, loading: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_ARCHIVE_BYTES", 6)
    with pytest.raises(InvalidRequest, match="the archive is empty"):
        await events(subject.load(chunks()))
    with pytest.raises(InvalidRequest, match="larger than 6 bytes"):
        await events(subject.load(chunks(b"arch", b"ive")))

    assert stored(tmp_path) == []
    assert not loading.read


async def test_a_full_disk_is_reported_as_that_however_little_is_sent() -> None:
    """Also by a chunk that a buffer would have held until the file is closed."""
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(Exhausted, match="No space left on device"):
        await uploads.spool(chunks(b"x"), full)


async def test_what_an_earlier_daemon_was_sent_is_found_and_removed_and_nothing_else(tmp_path: Path) -> None:
    """It died in the middle of reading it."""
    secret = tmp_path / "elsewhere"
    secret.write_text("stays")
    (tmp_path / "uploads" / "archive-directory").mkdir(parents=True)
    (tmp_path / "uploads" / "archive-left").write_text("half an archive")
    (tmp_path / "uploads" / "archive-link").symlink_to(secret)
    (tmp_path / "uploads" / "notes").touch()

    archives = uploads.left(str(tmp_path / "uploads"))
    assert [path.name for path in archives] == ["archive-directory", "archive-left", "archive-link"]
    (tmp_path / "uploads" / "archive-new").touch()  # it was sent to this daemon, since
    await uploads.remove(archives)

    assert stored(tmp_path) == ["archive-directory", "archive-new", "notes"], "one that cannot go keeps no other"
    assert secret.read_text() == "stays"


async def test_where_there_was_no_archive_nothing_is_left(tmp_path: Path) -> None:
    assert uploads.left(str(tmp_path / "uploads")) == []


async def test_only_so_many_are_imported_at_once_and_the_others_wait(
    subject: Uploads, loading: Loading, jobs: Jobs, tmp_path: Path
) -> None:
    loading.release.clear()
    calls = []
    for number in range(LOADS_AT_ONCE + 1):
        calls.append(asyncio.create_task(events(subject.load(chunks(b"%d" % number)))))
        for _ in range(10):  # turns in which it begins, if it may
            await asyncio.sleep(0)
    assert len(loading.read) == LOADS_AT_ONCE
    assert len(stored(tmp_path)) == LOADS_AT_ONCE + 1

    loading.release.set()
    assert [answers[-1] for answers in await asyncio.gather(*calls)] == [IMAGE] * (LOADS_AT_ONCE + 1)
    assert stored(tmp_path) == []

"""What a daemon that died has left of work on images, on a real containerd: the next one finds it, and it goes.

A daemon's death is a channel that is closed: nothing that is called afterwards, to clean up, gets through.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandboxd.containerd import ingest
from sandboxd.containerd.client import Containerd
from sandboxd.containerd.images import Image
from sandboxd.errors import SandboxdError
from sandboxd.images import load
from sandboxd.images.leftovers import clear
from sandboxd.images.store import ImageStore
from sandboxd.jobs import Jobs
from sandboxd.oci import image as oci
from sandboxd.oci.image import Descriptor
from tests.fakes.points import Point, Points
from tests.root.conftest import NAMESPACES, Private
from tests.root.holdings import NOTHING, Held, held, pack, save
from tests.root.test_image_rollback import points

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.images]

__all__ = ["points"]  # a fixture

OURS, THEIRS = "our root", "another daemon's root"


@asynccontextmanager
async def daemon(private: Private, namespace: str, owner: str = OURS) -> AsyncIterator[ImageStore]:
    """A daemon's view of the images in a namespace."""
    client = Containerd(private.socket, namespace, owner)
    try:
        await client.wait_until_serving(30)
        yield ImageStore(client, "overlayfs")
    finally:
        await client.close()


def blob(text: str) -> tuple[Descriptor, bytes]:
    data = text.encode() * 1000
    return Descriptor(media_type=oci.OCI_LAYER, digest=oci.digest(data), size=len(data)), data


async def half_done(store: ImageStore, lease: str, text: str) -> str:
    """Under a new lease a blob, the beginning of another one, and a draft on nothing; the blob's digest."""
    await store.leases.create(lease, seconds=3600)
    leased = store.under(lease)
    whole, data = blob(text)
    await leased.content.write(whole, io.BytesIO(data))
    cut, data = blob(f"{text}, cut")
    async with ingest.writing(store.client, lease, cut) as writer:
        await writer.write(data[:5000])
        await writer.flush()
    await leased.snapshots.begin(f"{whole.digest}-layer", "")
    return whole.digest


async def die(store: ImageStore, work: asyncio.Task[object]) -> None:
    """The daemon dies in the middle of what it does."""
    await store.client.close()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def test_a_load_that_was_killed_at_any_call_leaves_nothing_or_the_image_and_can_be_repeated(
    private: Private, points: Points, tmp_path: Path
) -> None:
    archive = save(tmp_path / "x.tar", ("x:1", [pack({"a": b"a" * 5000}), pack({"b": b"b"})]))
    async with daemon(private, f"test-{next(NAMESPACES)}") as store:
        points.reset()
        await load.load(store, archive)
        passed = list(points.passed)
        whole = await held(private, store)
    assert len(passed) >= 10
    for point in passed:
        for after in (False, True):
            await killed_at(private, points, archive, point, after, whole)


async def killed_at(private: Private, points: Points, archive: Path, point: Point, after: bool, whole: Held) -> None:
    where = f"killed {'after' if after else 'before'} {point}"
    namespace = f"test-{next(NAMESPACES)}"
    async with daemon(private, namespace) as dead:
        points.reset()
        points.hang(point, after=after)
        work: asyncio.Task[object] = asyncio.ensure_future(load.load(dead, archive))
        await points.hangs.wait()
        await die(dead, work)
    points.reset()
    async with daemon(private, namespace) as store:
        await clear(store, Jobs())
        left = await held(private, store)
        assert left == (whole if left.images == whole.images else NOTHING), where
        await load.load(store, archive)
        assert await held(private, store) == whole, where


@pytest.mark.parametrize("purpose", ["import", "unpack", "save"])
async def test_what_was_left_goes_and_what_others_have_stays(private: Private, purpose: str) -> None:
    namespace = f"test-{next(NAMESPACES)}"
    id_ = "0123456789abcdef"
    async with daemon(private, namespace, THEIRS) as other, daemon(private, namespace) as dead:
        await half_done(other, f"sandboxd-{purpose}-{id_}", "theirs")
        private.run_ctr(namespace, "leases", "create", "--id", "somebody's")
        await dead.under("somebody's").snapshots.prepare("somebody's", "")
        before = await held(private, other)
        await half_done(dead, f"sandboxd-{purpose}-fedcba9876543210", "ours")
    elsewhere = f"test-{next(NAMESPACES)}"
    async with daemon(private, elsewhere) as apart:
        await half_done(apart, f"sandboxd-{purpose}-{id_}", "in another namespace")
        untouched = await held(private, apart)

        async with daemon(private, namespace) as store:
            assert await held(private, store) != before
            await clear(store, Jobs())
            assert await held(private, store) == before

        assert await held(private, apart) == untouched


async def test_what_a_daemon_of_an_earlier_version_left_without_a_mark_goes(private: Private) -> None:
    namespace = f"test-{next(NAMESPACES)}"
    async with daemon(private, namespace, "") as dead:
        await half_done(dead, "sandboxd-import-0123456789abcdef", "old")
    async with daemon(private, namespace) as store:
        await clear(store, Jobs())
        assert await held(private, store) == NOTHING


async def test_of_a_pull_that_was_cut_off_the_next_attempt_has_all_but_the_draft_until_there_is_a_name(
    private: Private,
) -> None:
    namespace = f"test-{next(NAMESPACES)}"
    lease = f"sandboxd-pull-0123456789abcdef-{int(time.time() + 3600):x}-0"
    async with daemon(private, namespace) as dead:
        digest = await half_done(dead, lease, "pulled")
    async with daemon(private, namespace) as store:
        await clear(store, Jobs())
        left = await held(private, store)
        assert (left.leases, left.content, left.snapshots) == (frozenset({lease}), frozenset({digest}), frozenset())
        assert left.transfers

        target = Descriptor(media_type=oci.OCI_MANIFEST, digest=digest, size=(await store.content.info(digest)).size)
        await store.images.put(Image(name="r.example/x:1", target=target))
        await clear(store, Jobs())
        left = await held(private, store)
        assert (left.leases, left.content, left.transfers) == (frozenset(), frozenset({digest}), "")


async def test_what_work_under_way_here_holds_stays(private: Private) -> None:
    async with daemon(private, f"test-{next(NAMESPACES)}") as store:
        layer, _ = blob("under way")
        async with store.leases.held("import", seconds=60) as lease:
            draft = await store.under(lease).snapshots.begin(layer.digest, "")
            before = await held(private, store)
            await clear(store, Jobs())
            assert await held(private, store) == before and before.snapshots
            await draft.discard()
        assert await held(private, store) == NOTHING


async def test_what_could_not_be_removed_while_containerd_was_away_goes_later(
    private: Private, points: Points
) -> None:
    async with daemon(private, f"test-{next(NAMESPACES)}") as store:
        points.reset()
        points.fail_always("leases.delete", SandboxdError("containerd is away"))
        with pytest.raises(ValueError, match="the work fails"):
            async with store.leases.held("import", seconds=60):
                raise ValueError("the work fails")
        points.reset()
        assert await store.leases.ids()
        await clear(store, Jobs())
        assert await held(private, store) == NOTHING

"""A layer is examined while it arrives, with bounded memory and without waiting for ever."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.errors import Exhausted, InvalidRequest, Unavailable
from sandboxd.images.examine import AHEAD, LEAST_AHEAD, Backlog, LayerCheck, WholeCheck
from sandboxd.oci import layers
from sandboxd.oci.layers import Visitor


def tar(name: str = "file", size: int = 3_000_000) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = size
        archive.addfile(entry, io.BytesIO(bytes(range(256)) * (size // 256 + 1)))
    return output.getvalue()


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def alone(executor: ThreadPoolExecutor, what: str, visitor: Visitor | None = None) -> LayerCheck:
    """The examination of a layer that shares with no other."""
    return LayerCheck(executor, what, visitor, backlog=Backlog())


Kind = Callable[..., LayerCheck | WholeCheck]
KINDS = pytest.mark.parametrize("kind", [alone, WholeCheck])


async def check(executor: ThreadPoolExecutor, pieces: list[bytes], kind: Kind = alone) -> layers.Scan:
    examined = kind(executor, "layer")
    try:
        for piece in pieces:
            await examined.feed(piece)
        return await examined.finish()
    finally:
        await examined.stop()


@pytest.mark.parametrize("data", [tar(), gzip.compress(tar(), 1), b""], ids=["plain", "gzip", "empty"])
@pytest.mark.parametrize("piece", [1 << 20, 70_001])
@KINDS
async def test_pieces_give_what_the_whole_gives(
    executor: ThreadPoolExecutor, data: bytes, piece: int, kind: Kind
) -> None:
    pieces = [data[start : start + piece] for start in range(0, len(data), piece)]

    assert await check(executor, pieces, kind) == layers.scan(io.BytesIO(data), digest=False)


@given(st.lists(st.integers(1, 700), max_size=8))
@settings(max_examples=30, deadline=None)
def test_any_cut_gives_what_the_whole_gives(cuts: list[int]) -> None:
    data = gzip.compress(tar(size=600))
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    with ThreadPoolExecutor(1) as executor:
        found = asyncio.run(check(executor, [*pieces, data[at:]]))

    assert found == layers.scan(io.BytesIO(data), digest=False)


@KINDS
async def test_what_deletes_its_root_is_refused_and_the_rest_may_still_be_fed(
    executor: ThreadPoolExecutor, kind: Kind
) -> None:
    data = tar(".wh..", 20_000_000)
    with pytest.raises(InvalidRequest, match="delete a directory"):
        await check(executor, [data[start : start + 1_000_000] for start in range(0, len(data), 1_000_000)], kind)


@KINDS
async def test_a_layer_that_ends_early_is_damaged(executor: ThreadPoolExecutor, kind: Kind) -> None:
    with pytest.raises(InvalidRequest, match="damaged"):
        await check(executor, [gzip.compress(tar())[:5000]], kind)


async def test_stopping_frees_the_thread() -> None:
    executor = ThreadPoolExecutor(1)
    try:
        examined = alone(executor, "layer")
        await examined.feed(tar()[:600])
        await examined.stop()
        assert (await check(executor, [tar()])).entries == 1
    finally:
        executor.shutdown(wait=True)


async def test_what_is_being_examined_is_waited_for_when_it_is_stopped(executor: ThreadPoolExecutor) -> None:
    """Its visitor writes, and whoever stops it throws away what was written."""
    reached, go_on = threading.Event(), threading.Event()
    visited: list[str] = []

    class Slow:
        def visit(self, *arguments: object) -> None:
            reached.set()
            go_on.wait(20)
            visited.append("entry")

        def finish(self) -> None: ...

    examined = WholeCheck(executor, "layer", Slow())
    await examined.stop()  # nothing was begun
    await examined.feed(tar())
    finishing = asyncio.create_task(examined.finish())
    await asyncio.to_thread(reached.wait, 20)
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    stopping = asyncio.create_task(examined.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    go_on.set()
    await stopping
    assert visited == ["entry"]


@KINDS
async def test_a_thread_at_work_stops_at_the_next_entry(executor: ThreadPoolExecutor, kind: Kind) -> None:
    """All of the layer is there already: nothing but the flag ends its examination."""
    reached, go_on = threading.Event(), threading.Event()
    visited: list[str] = []

    class Slow:
        def visit(self, entry: tarfile.TarInfo, *arguments: object) -> None:
            visited.append(entry.name)
            reached.set()
            go_on.wait(20)

        def finish(self) -> None: ...

    examined = kind(executor, "layer", Slow())
    await examined.feed(tar("one", 100)[:1024] + tar("two", 100)[:1024] + tar("three", 100))
    finishing = asyncio.create_task(examined.finish())
    await asyncio.to_thread(reached.wait, 20)
    stopping = asyncio.create_task(examined.stop())
    await asyncio.sleep(0)
    go_on.set()
    await stopping
    with pytest.raises((InvalidRequest, Unavailable), match=r"stopped|not read to its end"):
        await finishing
    assert visited == ["one"]


async def test_another_reason_than_the_layer_ends_it_at_once(executor: ThreadPoolExecutor) -> None:
    """A full disk, say: there is no use in the rest."""

    class Full:
        def visit(self, *arguments: object) -> None:
            raise Exhausted("no space")

        def finish(self) -> None: ...

    examined = alone(executor, "layer", Full())
    try:
        with pytest.raises(Exhausted):
            for _ in range(1000):
                await examined.feed(tar())
    finally:
        await examined.stop()


class Held:
    """A visitor that waits."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def visit(self, *arguments: object) -> None:
        self.go_on.wait(20)

    def finish(self) -> None: ...


async def accepted(examined: LayerCheck, most: int) -> int:
    """How many bytes are taken at once while the thread reads nothing more, `most` at the most."""
    piece, count = bytes(1 << 18), 0
    while count < most:
        feeding = asyncio.create_task(examined.feed(piece))
        await asyncio.sleep(0)
        count += len(piece)
        if not feeding.done():
            feeding.cancel()
            break
    return count


@pytest.mark.parametrize(("others", "least", "most"), [(0, AHEAD, AHEAD + (2 << 20)), (7, LEAST_AHEAD, AHEAD // 2)])
async def test_what_waits_for_the_thread_is_bounded_and_shared_by_all_layers(
    others: int, least: int, most: int
) -> None:
    visitor = Held()
    executor = ThreadPoolExecutor(1 + others)
    backlog = Backlog()
    checks = [LayerCheck(executor, "layer", visitor, backlog=backlog) for _ in range(1 + others)]
    try:
        await checks[0].feed(tar("file", 1)[:512])  # its one entry, which is held
        assert least <= await accepted(checks[0], 4 * AHEAD) <= most
    finally:
        visitor.go_on.set()
        for examined in checks:
            await examined.stop()
            await examined.stop()
        executor.shutdown(wait=True)
    assert backlog.layers == 0, "a layer keeps its share although it was stopped"

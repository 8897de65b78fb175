"""Unpacking one image's layers, each on top of the one below, as early as can be:

    as it arrives    when all below are unpacked: its entries are written as the examination meets them
    from memory      a small one that arrived before those below it were unpacked
    by containerd    everything else: large ones that came too early, what the content store had, and layers with
                     entries that are not ours to write (`containerd.extract`)

Of an image of more than `MANY` layers, small neighbours share a snapshot, named as that of the uppermost of them.
Each snapshot is committed when its layer is verified, and only then; a draft that is not goes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from sandboxd.containerd.extract import Extraction, directories_below, directory_of
from sandboxd.containerd.leases import Leases
from sandboxd.containerd.snapshots import Draft, Snapshots
from sandboxd.errors import AlreadyExists, InvalidRequest, NotFound
from sandboxd.images.examine import ended
from sandboxd.jobs import Jobs
from sandboxd.oci import image as oci
from sandboxd.oci.image import Descriptor
from sandboxd.oci.layers import Visitor
from sandboxd.oci.recording import Entry, Recording, merged, replay

log = structlog.get_logger(__name__)

SMALL_BYTES = 1 << 20  # compressed; what is larger is not held in memory
RECORDED_BYTES = 4 << 20  # of one layer, uncompressed
MEMORY_BYTES = 32 << 20  # of all recorded layers of all pulls
MANY = 20  # layers of an image; up to here each has a snapshot of its own, which other images may share
TOGETHER = 25  # small layers in one snapshot at most


@dataclass(slots=True)
class Memory:
    """What recorded layers may still take, in bytes."""

    left: int = MEMORY_BYTES

    def take(self, count: int) -> bool:
        """Have so many, or none."""
        if count > self.left:
            return False
        self.left -= count
        return True


class Unpacking:
    """The layers of one image, under one lease."""

    def __init__(
        self,
        *,
        snapshots: Snapshots,
        leases: Leases,
        lease: str,
        jobs: Jobs,
        executor: Executor,
        memory: Memory,
        layers: Sequence[Descriptor],
        diff_ids: Sequence[str],
    ) -> None:
        self._snapshots = snapshots
        self._leases = leases
        self._lease = lease
        self._jobs = jobs
        self._executor = executor
        self._memory = memory
        self._layers = layers
        self._diff_ids = diff_ids
        self._chain = oci.chain_ids(diff_ids)
        self._recorded: dict[int, Recording] = {}
        self._uppermost: Sequence[int] = ()
        self.count = 0  # how many are unpacked, from below

    async def find(self) -> None:
        """See how many layers are unpacked already; the lease keeps them from now on."""
        there = {snapshot.name for snapshot in await self._snapshots.list(self._chain)} if self._chain else set()
        number = next((n for n in reversed(range(len(self._chain))) if self._chain[n] in there), -1)
        self.count = number + 1 if number >= 0 and await self._keep(number) else 0
        self._uppermost = shared_snapshots([layer.size for layer in self._layers], self.count)

    async def _keep(self, number: int) -> bool:
        """Put another pull's snapshot under our lease; False if it has just been collected."""
        try:
            await self._leases.add_snapshot(self._lease, self._snapshots.snapshotter, self._chain[number])
        except NotFound:
            return False
        return True

    @asynccontextmanager
    async def arriving(self, number: int) -> AsyncIterator[Visitor | None]:
        """The time in which a layer arrives: yields who is to see its entries, if somebody is.

        The block ends without an error when the layer is verified, and when there is no visitor left.
        """
        layer = self._layers[number]
        alone = self._uppermost[number] == number and (number == 0 or self._uppermost[number - 1] != number)
        if number == self.count and alone:
            draft = await self._begin(number)
            if draft is None:
                yield None
            else:
                async with _discarding(draft), self._extraction(draft) as extraction:
                    yield extraction
                    if await self._commit(draft, extraction, number):
                        self.count = number + 1
        elif number >= self.count and layer.size <= SMALL_BYTES and self._memory.take(most := _room_for(layer)):
            recording = Recording(most)
            used = 0
            try:
                yield recording
                if not recording.unfit:
                    used = recording.held
                    self._recorded[number] = recording
            finally:
                self._memory.left += most - used
        else:
            yield None

    async def unpack(self, number: int) -> None:
        """Have a layer unpacked that is in the content store and examined, as are those below it."""
        if number < self.count or self._uppermost[number] != number:
            return  # it is unpacked, or will be with those above it
        # Another pull may be about to unpack the very same one.
        async with self._jobs.exclusive(f"layer {self._chain[number]}"):
            numbers = range(self.count, number + 1)
            if not await self._from_memory(numbers):
                for one in numbers:
                    if not await self._from_memory(range(one, one + 1)):
                        await self._by_containerd(one)
        for one in numbers:
            self._forget(one)

    def forget(self) -> None:
        """Release the memory of layers that will no longer be unpacked."""
        for number in tuple(self._recorded):
            self._forget(number)

    def _forget(self, number: int) -> None:
        if (recording := self._recorded.pop(number, None)) is not None:
            self._memory.left += recording.held

    async def _from_memory(self, numbers: range) -> bool:
        """Unpack recorded layers into one snapshot; False when they have to be unpacked in another way."""
        recorded = [self._recorded[number].entries for number in numbers if number in self._recorded]
        if len(recorded) < len(numbers):
            return False
        if len(recorded) == 1:
            entries: list[Entry] | None = recorded[0]
        else:
            work = self._executor.submit(merged, recorded, lowest=self.count == 0)
            entries = await asyncio.wrap_future(work)
        if entries is None:
            return False
        uppermost = numbers[-1]
        draft = await self._begin(uppermost)
        if draft is None:
            await self._keep(uppermost)
            self.count = uppermost + 1
            return True
        async with _discarding(draft), self._extraction(draft, shared=len(numbers) > 1) as extraction:
            if extraction is not None:
                stopped = threading.Event()
                writing = self._executor.submit(replay, entries, extraction, stopped.is_set)
                try:
                    await asyncio.wrap_future(writing)
                finally:
                    stopped.set()
                    await ended(writing)
            if not await self._commit(draft, extraction, uppermost):
                return False
        self.count = uppermost + 1
        return True

    async def _by_containerd(self, number: int) -> None:
        try:
            await self._snapshots.unpack_layer(
                self._layers[number], self._diff_ids[number], self._chain[number], self._below()
            )
        except InvalidRequest as exc:
            raise InvalidRequest(f"layer {number + 1} of {len(self._layers)}: {exc}") from exc
        except AlreadyExists:
            await self._keep(number)
        self.count = number + 1

    async def _begin(self, number: int) -> Draft | None:
        try:
            return await self._snapshots.begin(self._chain[number], self._below())
        except AlreadyExists:
            return None  # by another pull, a moment ago

    @asynccontextmanager
    async def _extraction(self, draft: Draft, *, shared: bool = False) -> AsyncIterator[Extraction | None]:
        lowest = self.count == 0
        directory = directory_of(draft.mounts, lowest=lowest)
        if not directory:
            yield None
            return
        below = directories_below(draft.mounts) if shared else None
        extraction = Extraction(directory, lowest=lowest, below=below)
        try:
            yield extraction
        finally:
            extraction.close()

    async def _commit(self, draft: Draft, extraction: Extraction | None, number: int) -> bool:
        """Commit what was written, if all could be; otherwise it is left to containerd."""
        if extraction is None or extraction.unfit:
            if extraction is not None:
                digest = self._layers[number].digest
                log.info("a layer is left to containerd to unpack", layer=digest, reason=extraction.unfit)
            return False
        try:
            await draft.commit()
        except AlreadyExists:
            return False
        return True

    def _below(self) -> str:
        return self._chain[self.count - 1] if self.count else ""


def shared_snapshots(sizes: Sequence[int], first: int) -> list[int]:
    """For each layer the uppermost of those that share its snapshot, itself where it shares it with none.

    `sizes` are compressed, in bytes; the layers below `first` are unpacked already.
    """
    uppermost = list(range(len(sizes)))
    if len(sizes) <= MANY:
        return uppermost
    while first < len(sizes):
        end = first
        while end < len(sizes) and end - first < TOGETHER and sizes[end] <= SMALL_BYTES:
            end += 1
        end = max(end, first + 1)  # a large one is alone
        uppermost[first:end] = [end - 1] * (end - first)
        first = end
    return uppermost


def _room_for(layer: Descriptor) -> int:
    """The memory that a small layer is given; what is packed more densely than usual does not fit."""
    return min(RECORDED_BYTES, (64 << 10) + layer.size * 8)


@asynccontextmanager
async def _discarding(draft: Draft) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await draft.discard()

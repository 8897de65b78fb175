"""Bringing one image's parts into containerd: fetched, verified, examined and unpacked, each part once.

    manifests   small; fetched whole, verified, then stored
    layers      streamed into the content store while they are examined, and unpacked too if that can be. Small ones
                are examined when they are whole, and stored in one message

A layer that was examined carries `CHECKED` in the content store. One without it (another tool's, or one whose
transfer was taken up in the middle) is read back and examined before it is unpacked.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from sandboxd.containerd import ingest
from sandboxd.containerd.content import CHILD_LABEL, child_labels, snapshot_label
from sandboxd.containerd.ingest import Ingest
from sandboxd.errors import AlreadyExists, Exhausted, InvalidRequest, NotFound, Unclassified, Unsupported
from sandboxd.images.examine import Backlog, LayerCheck, WholeCheck
from sandboxd.images.store import ImageStore, carried_out
from sandboxd.images.unpack import SMALL_BYTES, Memory, Unpacking
from sandboxd.jobs import Jobs
from sandboxd.model import Progress, Report, Stage
from sandboxd.oci import image as oci
from sandboxd.oci.image import Descriptor, ImageConfig, Index, Manifest
from sandboxd.oci.layers import Scan
from sandboxd.oci.selection import Selected, Wanted, search
from sandboxd.registry.client import Manifest as Served
from sandboxd.registry.client import Repository, first_cause
from sandboxd.registry.hosts import Endpoint

log = structlog.get_logger(__name__)

CHECKED = {"sandboxd.io/layer": "checked"}
ACCEPT = (*oci.MANIFESTS, *oci.INDEXES)
SMALL_AT_ONCE = 8  # small layers of one pull: what they take is round trips, not bandwidth


@dataclass(slots=True, kw_only=True)
class Counters:
    """What all pulls of this daemon did so far."""

    started: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    bytes_fetched: int = 0
    blobs_fetched: int = 0
    blobs_reused: int = 0  # there already, or brought by another pull at the same time
    blobs_resumed: int = 0  # begun by an attempt that did not finish
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all pulls of one daemon share."""

    store: ImageStore
    jobs: Jobs
    executor: Executor
    layers: asyncio.Semaphore  # layers under way at once, over all pulls
    counters: Counters
    memory: Memory
    backlog: Backlog = field(default_factory=Backlog)
    brought: set[str] = field(default_factory=set)  # digests, since there was no pull under way


@dataclass(slots=True, kw_only=True)
class Hold:
    """A lease in use. `written`: under it is a layer, or a part of one, that another attempt can go on from."""

    lease: str
    written: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a reference turned out to be. `chain` leads from the topmost document to the manifest.

    `config` is the image's config if it had to be read to choose it, else b"".
    """

    chain: tuple[tuple[Descriptor, bytes], ...]
    selected: Selected
    config: bytes = b""

    @property
    def manifest(self) -> Manifest:
        """The manifest for this machine."""
        return self.selected.manifest

    @property
    def target(self) -> Descriptor:
        """What the image's names point at: the index if there is one."""
        return self.chain[0][0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Layer:
    """A layer on its way. `arrived`: it is in the content store, and examined."""

    number: int
    blob: Descriptor
    diff_id: str
    unpacking: Unpacking
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class Damaged(InvalidRequest):
    """A layer is what its digest says, and unfit to be unpacked."""


async def find(store: ImageStore, repository: Repository, served: Served) -> Found:
    """Follow a document that the registry served down to the manifest for this platform. Nothing is stored yet.

    Raises Unsupported when there is none, InvalidRequest if it is malformed.
    """
    document = _parsed(served)
    target = Descriptor(media_type=document.media_type, digest=served.digest, size=len(served.data))
    seen = {served.digest: served.data}

    async def read(wanted: Wanted) -> bytes:
        digest = wanted.descriptor.digest
        if digest not in seen:
            seen[digest] = await _document(store, repository, wanted)
        return seen[digest]

    selected = await carried_out(search(target, store.platform), read)
    for word in selected.skipped:
        log.info("an entry of an index is passed over", image=served.digest, reason=word)
    return Found(
        chain=tuple((descriptor, seen[descriptor.digest]) for descriptor in selected.chain),
        selected=selected,
        config=seen.get(selected.manifest.config.digest, b""),
    )


async def _document(store: ImageStore, repository: Repository, wanted: Wanted) -> bytes:
    """What an index leads to, from the content store or the registry."""
    descriptor = wanted.descriptor
    try:
        data = await store.content.read(descriptor.digest, wanted.most)
    except NotFound:
        if wanted.is_config:
            return await _small_blob(repository, descriptor)
        data = (await repository.manifest(descriptor.digest)).data
    _check_size(descriptor, len(data))
    return data


def _check_size(descriptor: Descriptor, size: int) -> None:
    """Whatever is here already: an image is accepted everywhere or nowhere."""
    if size != descriptor.size:
        raise InvalidRequest(f"{descriptor.digest}: expected {descriptor.size} bytes, found {size}")


async def _small_blob(repository: Repository, descriptor: Descriptor) -> bytes:
    """A blob of the registry that fits into memory, verified."""
    data = bytearray()

    async def collect(piece: bytes) -> None:
        data.extend(piece)

    await repository.blob(descriptor.digest, descriptor.size, 0, collect)
    if (computed := oci.digest(bytes(data))) != descriptor.digest:
        raise InvalidRequest(f"the blob has a wrong digest: expected {descriptor.digest}, computed {computed}")
    return bytes(data)


def _check_type(layer: Descriptor, diff_id: str) -> None:
    """The same of a layer that is here, perhaps by another name: as a plain tar it has one digest."""
    if layer.media_type == oci.OCI_LAYER and layer.digest != diff_id:
        raise InvalidRequest(f"layer {layer.digest} is not the plain tar that its type says; its tar is {diff_id}")


class Fetch:
    """One image's parts, under one lease."""

    def __init__(self, shared: Shared, repository: Repository, hold: Hold, at_once: int, report: Report) -> None:
        self._shared = shared
        self._store = shared.store
        self._repository = repository
        self._hold = hold
        self._report = report
        self._large = asyncio.Semaphore(at_once)
        self._small = asyncio.Semaphore(max(at_once, SMALL_AT_ONCE))
        leased = shared.store.under(hold.lease)
        self._content, self._snapshots = leased.content, leased.snapshots
        self._under_way = asyncio.Event()  # layers come, or there are none to come

    def _tell(self, stage: Stage, layer: Descriptor, done: int = 0) -> None:
        self._report(Progress(stage=stage, digest=layer.digest, done=done, total=layer.size))

    # Documents.

    async def config(self, found: Found) -> tuple[ImageConfig, bytes]:
        """The image's config. Raises InvalidRequest when it does not fit the manifest, or no machine of this kind."""
        descriptor = found.manifest.config
        data = found.config
        if not data:
            try:
                data = await self._content.read(descriptor.digest, oci.MAX_CONFIG_BYTES)
            except NotFound:
                data = await _small_blob(self._repository, descriptor)
                self._shared.counters.bytes_fetched += len(data)
                self._shared.counters.blobs_fetched += 1
        _check_size(descriptor, len(data))
        parsed = oci.parse_config(data)
        if len(parsed.diff_ids) != len(found.manifest.layers):
            raise InvalidRequest(
                f"image config: {len(parsed.diff_ids)} diff_ids for {len(found.manifest.layers)} layers"
            )
        if words := found.selected.objection(parsed.platform, self._store.platform):
            log.warning("the image may not run here", image=found.target.digest, reason=words)
        return parsed, data

    async def keep_documents(self, found: Found, config: ImageConfig, data: bytes) -> None:
        """Store config (`data`), manifest and indexes, the lowest first, with the labels that keep what they name.

        That may not be there yet: the lease keeps everything until there is a name. To be called together with
        `layers`, which goes first: containerd's transactions wait for each other, and so would the first layer.
        """
        await self._under_way.wait()
        labels = snapshot_label(self._snapshots.snapshotter, config.chain_id) if config.chain_id else {}
        with no_space("storing the image's documents"):
            await self._content.write(found.manifest.config, io.BytesIO(data), labels)
            labels = child_labels(found.manifest.config, found.manifest.layers)
            for descriptor, document in reversed(found.chain):
                await self._content.write(descriptor, io.BytesIO(document), labels)
                labels = {f"{CHILD_LABEL}.m.0": descriptor.digest}

    # Layers.

    async def layers(self, manifest: Manifest, config: ImageConfig) -> None:
        """Fetch all layers and unpack them in order; one is unpacked while those above it are still under way."""
        unpacking = Unpacking(
            snapshots=self._snapshots,
            leases=self._store.leases,
            lease=self._hold.lease,
            jobs=self._shared.jobs,
            executor=self._shared.executor,
            memory=self._shared.memory,
            layers=manifest.layers,
            diff_ids=config.diff_ids,
        )
        await unpacking.find()
        there = unpacking.count
        stored = await self._content.list([layer.digest for layer in manifest.layers]) if manifest.layers else ()
        self._shared.brought.update(info.digest for info in stored)
        layers = [
            _Layer(number=number, blob=blob, diff_id=diff_id, unpacking=unpacking)
            for number, (blob, diff_id) in enumerate(zip(manifest.layers, config.diff_ids, strict=True))
        ]
        for layer in layers:
            self._tell(Stage.WAIT, layer.blob)

        async def bring(layer: _Layer) -> None:
            async with self._small if layer.blob.size <= SMALL_BYTES else self._large:
                await self._bring(layer)
            layer.arrived.set()

        async def unpack() -> None:
            for layer in layers:
                await layer.arrived.wait()
                if layer.number >= there:
                    self._tell(Stage.UNPACK, layer.blob)
                    with no_space(f"unpacking layer {layer.blob.digest}"):
                        await unpacking.unpack(layer.number)
                self._tell(Stage.DONE, layer.blob, layer.blob.size)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(unpack())
                # Each digest once: an image may have the same layer several times.
                first: dict[str, _Layer] = {}
                for layer in layers:
                    if first.setdefault(layer.blob.digest, layer) is layer:
                        group.create_task(bring(layer))
                    else:
                        group.create_task(_after(first[layer.blob.digest].arrived, layer.arrived))
            self._under_way.set()
        finally:
            unpacking.forget()

    async def _bring(self, layer: _Layer) -> None:
        """Have the layer in the content store, examined if it is to be unpacked."""
        blob, client = layer.blob, self._store.client
        async with self._shared.jobs.exclusive(f"blob {blob.digest}"):
            # What may be there already, whole or in part, belongs to our lease when it was asked for.
            ask = blob.digest in self._shared.brought or blob.size > SMALL_BYTES
            writer: Ingest | None = None
            try:
                with no_space(f"storing layer {blob.digest}"):
                    async with (
                        ingest.writing(
                            client, self._hold.lease, blob, ask=ask, executor=self._shared.executor
                        ) as writer,
                        self._shared.layers,
                    ):
                        checked = await self._fetch(writer, layer)
                self._hold.written = True
                self._shared.brought.add(blob.digest)
                self._shared.counters.blobs_fetched += 1
            except AlreadyExists:
                self._shared.counters.blobs_reused += 1
                there = await self._content.info(blob.digest)
                _check_size(blob, there.size)
                checked = CHECKED.items() <= there.labels.items()
                if checked or layer.number < layer.unpacking.count:
                    _check_type(blob, layer.diff_id)
                self._tell(Stage.EXISTS, blob, blob.size)
            finally:
                if writer is not None and writer.offset:  # in part; flushed by now
                    self._hold.written = True
            if not checked and layer.number >= layer.unpacking.count:
                await self._examine_stored(layer)

    async def _fetch(self, writer: Ingest, layer: _Layer) -> bool:
        """Fetch the rest of the layer into `writer`; return whether it was examined meanwhile.

        Bytes that turn out wrong are fetched once more, from the beginning, if the mistake can be that of an
        earlier attempt or of one of several servers.
        """
        while True:
            resumed = writer.offset > 0
            served: list[Endpoint] = []
            try:
                if resumed:
                    await self._attempt(writer, layer.blob, served)
                else:
                    await self._examined_attempt(writer, layer, served)
                self._shared.counters.blobs_resumed += resumed
                return not resumed
            except Damaged:
                raise
            except InvalidRequest as exc:
                await writer.abort()
                if not resumed and not (served and self._repository.distrust(served)):
                    raise
                log.warning("a layer is fetched again from its beginning", layer=layer.blob.digest, error=str(exc))
                await writer.restart()

    async def _examined_attempt(self, writer: Ingest, layer: _Layer, served: list[Endpoint]) -> None:
        """Fetch the whole layer, examined on the way, and unpacked too if that can be."""
        async with layer.unpacking.arriving(layer.number) as visitor:
            what, executor = f"layer {layer.blob.digest}", self._shared.executor
            check: LayerCheck | WholeCheck
            if layer.blob.size <= SMALL_BYTES:
                check = WholeCheck(executor, what, visitor)
            else:
                check = LayerCheck(executor, what, visitor, backlog=self._shared.backlog)
            try:
                await self._attempt(writer, layer.blob, served, check, layer.diff_id)
            finally:
                await check.stop()

    async def _attempt(
        self,
        writer: Ingest,
        blob: Descriptor,
        served: list[Endpoint],
        check: LayerCheck | WholeCheck | None = None,
        diff_id: str = "",
    ) -> None:
        at = writer.offset

        async def take(piece: bytes) -> None:
            nonlocal at
            at += len(piece)
            self._under_way.set()
            self._shared.counters.bytes_fetched += len(piece)
            self._tell(Stage.FETCH, blob, at)
            if check is not None:
                await check.feed(piece)
            await writer.write(piece)

        if at < blob.size:
            try:
                served += await self._repository.blob(blob.digest, blob.size, at, take)
            except NotFound as exc:
                if not blob.foreign:
                    raise
                raise NotFound(
                    f"layer {blob.digest} is marked as not distributable, and the registry does not have it ({exc});"
                    " other places are not asked: push the image with all of its layers"
                ) from exc
        if isinstance(check, LayerCheck):
            await self._commit_meanwhile(writer, blob, diff_id, check)
            return
        failure = None if check is None else await _verdict(check, blob, diff_id)
        # Damage shows in the digest first, and that is the better explanation: it names who is to blame.
        await writer.commit(CHECKED if check is not None and failure is None else {})
        if failure is not None:
            raise Damaged(str(failure)) from failure

    async def _commit_meanwhile(self, writer: Ingest, blob: Descriptor, diff_id: str, check: LayerCheck) -> None:
        """Commit a layer while the end of it is examined: for a large one containerd waits for the disk."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(writer.commit({}))
                failure = await _verdict(check, blob, diff_id)
        except BaseExceptionGroup as exc:
            raise first_cause(exc) from exc
        if failure is not None:
            raise Damaged(str(failure)) from failure
        await self._content.set_labels(blob.digest, CHECKED)

    async def _examine_stored(self, layer: _Layer) -> None:
        """Examine a layer of the content store, and remember that."""
        blob = layer.blob
        self._tell(Stage.CHECK, blob)
        check = LayerCheck(self._shared.executor, f"layer {blob.digest}", backlog=self._shared.backlog)
        try:
            async for piece in ingest.read(self._store.client, blob.digest):
                await check.feed(piece)
            _as_described(blob, layer.diff_id, await check.finish())
        finally:
            await check.stop()
        await self._content.set_labels(blob.digest, CHECKED)


@contextmanager
def no_space(what: str) -> Iterator[None]:
    """Tell a full disk from containerd's other unclassified errors: raises Exhausted for it."""
    try:
        yield
    except Unclassified as exc:
        if "no space left on device" in str(exc):
            raise Exhausted(f"{what}: no space is left on the disk; remove images with `sandboxctl rmi`") from exc
        raise


def _parsed(served: Served) -> Manifest | Index:
    try:
        return oci.parse_manifest(served.data, served.media_type if served.media_type in ACCEPT else "")
    except Unsupported:
        raise
    except InvalidRequest as exc:
        raise InvalidRequest(f"{exc} (served as {served.media_type or 'nothing in particular'})") from exc


async def _verdict(check: LayerCheck | WholeCheck, layer: Descriptor, diff_id: str) -> InvalidRequest | None:
    """The end of an examination: what is wrong with the layer is returned, anything else raised."""
    try:
        _as_described(layer, diff_id, await check.finish())
    except InvalidRequest as exc:
        return exc
    return None


def _as_described(layer: Descriptor, diff_id: str, found: Scan) -> None:
    """Raises InvalidRequest when a layer is not what the manifest and the config say that it is."""
    if found.diff_id != diff_id:
        raise InvalidRequest(
            f"the uncompressed layer {layer.digest} has a wrong digest: expected {diff_id}, computed {found.diff_id}"
        )
    # containerd takes this type at its word, and others on the same containerd would fail.
    if found.compression and layer.media_type == oci.OCI_LAYER:
        raise InvalidRequest(
            f"layer {layer.digest} is compressed ({found.compression}), its type says that it is not"
        )


async def _after(first: asyncio.Event, then: asyncio.Event) -> None:
    await first.wait()
    then.set()

"""The images of this machine, and root file systems made from them.

containerd holds the truth; here is a copy of it in memory, so that listing and resolving never wait. It is
refreshed after each change made here, and by `refresh` when containerd tells of others or time has passed.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import structlog

from sandboxd import steps
from sandboxd.containerd.client import Containerd
from sandboxd.containerd.content import Content, snapshot_label
from sandboxd.containerd.images import Image, Images
from sandboxd.containerd.leases import Leases
from sandboxd.containerd.snapshots import ROOT_LABEL, Kind, Mount, Snapshots, Usage
from sandboxd.errors import AlreadyExists, InvalidRequest, NotFound, SandboxdError
from sandboxd.model import FsInfo, ImageRecord
from sandboxd.oci import image as oci
from sandboxd.oci import platforms
from sandboxd.oci.image import Descriptor, ImageConfig, Manifest, Platform
from sandboxd.oci.selection import Search, Selected, Wanted, advance, search
from sandboxd.registry import reference

log = structlog.get_logger(__name__)

# Labels that other CRI implementations and tools on containerd know.
MANAGED = {"io.cri-containerd.image": "managed"}
PINNED = {"io.cri-containerd.pinned": "pinned"}
OWN_DOMAIN = "sandboxd.local"  # of names that only sandboxd gives: neither an archive nor a registry can take one

UNPACK_LEASE_SECONDS = 24 * 3600.0
CHANGES_LEASE_SECONDS = 3600.0
_ID_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """Content and snapshots that a lease keeps as long as they have no name."""

    content: Content
    snapshots: Snapshots


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parsed:
    """What an image record's target was found to be; it cannot change."""

    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig


@dataclass(slots=True)
class _View:
    """One consistent copy."""

    records: tuple[ImageRecord, ...] = ()
    parsed: Mapping[str, _Parsed] = field(default_factory=dict)  # by the target's digest
    targets: Mapping[str, str] = field(default_factory=dict)  # containerd's names to the targets' digests


def host_platform() -> Platform:
    """What images must be for to run here."""
    machine = os.uname().machine
    variant = {"armv7l": "v7", "armv6l": "v6", "aarch64": "v8"}.get(machine, "")
    return Platform(os="linux", architecture=platforms.normal_architecture(machine), variant=variant)


class ImageStore:
    """Images in containerd, seen by CRI."""

    def __init__(self, client: Containerd, snapshotter: str, platform: Platform | None = None) -> None:
        self.client = client
        self.platform = platform or host_platform()
        self.content = Content(client)
        self.images = Images(client)
        self.snapshots = Snapshots(client, snapshotter)
        self.leases = Leases(client)
        self.given_up: set[str] = set()  # leases of pulls that ended and could not delete them: `leftovers` does
        self._looking, self._measuring = asyncio.Lock(), asyncio.Lock()
        self._changed = True  # since `measure` began last
        self._view = _View()
        self._usage: dict[str, Usage] = {}
        self._rootfs: dict[str, tuple[Mount, ...]] = {}  # those that were prepared here
        self._fs = FsInfo(directory="", bytes=0, inodes=0, at=0)

    def under(self, lease: str) -> Leased:
        """The store's content and snapshots under a lease that exists."""
        snapshots = Snapshots(self.client, self.snapshots.snapshotter, lease)
        return Leased(content=Content(self.client, lease), snapshots=snapshots)

    # Reads: from memory.

    def list(self, filter_reference: str = "") -> tuple[ImageRecord, ...]:
        """Every image, or the one that `filter_reference` names, sorted by name."""
        if not filter_reference:
            return self._view.records
        try:
            return (self.resolve(filter_reference),)
        except (NotFound, InvalidRequest):
            return ()

    def resolve(self, text: str) -> ImageRecord:
        """The image that a name, an id, an unambiguous beginning of an id or a digest means.

        Raises NotFound, and InvalidRequest for an invalid or ambiguous reference.
        """
        return find(self._view.records, text)

    def resolve_as(self, name: str) -> ImageRecord:
        """The same for a name in full, with digest and size of the manifest that this very name leads to."""
        record = self.resolve(name)
        parsed = self._view.parsed.get(self._view.targets.get(name, ""))
        return record if parsed is None else replace(record, digest=parsed.descriptor.digest, size=_size(parsed))

    async def is_whole(self, name: str) -> bool:
        """Whether all that a name in full leads to for this machine is here; others may have removed content."""
        target = self._view.targets.get(name, "")
        parsed = self._view.parsed.get(target)
        if parsed is None:
            return False
        parts = (parsed.descriptor, parsed.manifest.config, *parsed.manifest.layers)
        wanted = {target, *(part.digest for part in parts)}
        return wanted == {info.digest for info in await self.content.list(sorted(wanted))}

    def fs_info(self) -> FsInfo:
        """What unpacked images take, as of the last refresh."""
        return self._fs

    async def refresh(self) -> None:
        """Reload containerd's state. Raises Unavailable and keeps the previous copy."""
        await self.look()
        await self.measure()

    async def look(self) -> None:
        """See which images there are; `measure` is to follow. Raises Unavailable."""
        self._changed = True
        async with self._looking:
            known, parsed = self._view.parsed, {}
            listed = await self.images.list()
            for image in listed:
                key = image.target.digest
                if key in parsed:
                    continue
                try:
                    parsed[key] = known.get(key) or await self._parse(image.target)
                except (NotFound, InvalidRequest) as exc:
                    # An unfinished pull, an artifact or another platform's image cannot be run here.
                    log.debug("an image is left out", image=image.name, error=str(exc))
            targets = {image.name: image.target.digest for image in listed}
            self._view = _View(records=_records(listed, parsed), parsed=parsed, targets=targets)

    async def _parse(self, target: Descriptor) -> _Parsed:
        """Read the manifest for this platform that `target` is or leads to, and its config."""

        async def read(wanted: Wanted) -> bytes:
            return await self.content.read(wanted.descriptor.digest, wanted.most)

        found = await carried_out(search(target, self.platform), read)
        config = oci.parse_config(await self.content.read(found.manifest.config.digest, oci.MAX_CONFIG_BYTES))
        found.objection(config.platform, self.platform)
        return _Parsed(descriptor=found.chain[-1], manifest=found.manifest, config=config)

    async def measure(self) -> None:
        """Sum what images take, if anything has changed. Raises Unavailable."""
        async with self._measuring:
            while self._changed:
                self._changed = False
                await self._measure()

    async def _measure(self) -> None:
        """Each committed snapshot is measured once, because it cannot change."""
        committed = [s.name for s in await self.snapshots.list() if s.kind is Kind.COMMITTED]
        usage = {}
        for name in committed:
            try:
                usage[name] = self._usage.get(name) or await self.snapshots.usage(name)
            except NotFound:
                pass  # collected in between
        self._usage = usage
        self._fs = FsInfo(
            directory=self._fs.directory or await self.snapshots.root(),
            bytes=sum(item.bytes for item in usage.values()),
            inodes=sum(item.inodes for item in usage.values()),
            at=time.time_ns(),
        )

    # Changes.

    async def remove(self, text: str) -> None:
        """Remove the image under all its names. Idempotent.

        Containers that run from it keep what they need until they are removed.
        """
        try:
            record = self.resolve(text)
        except NotFound:
            return
        with steps.step("image.remove", image=record.id, names=", ".join(record.names)):
            for number, name in enumerate(record.records, start=1):
                # The last one waits for the collection, so that the space is free when the call returns.
                await self.images.delete(name, sync=number == len(record.records))
            await self.refresh()

    async def name(self, lease: str, wanted: Iterable[Image]) -> None:
        """Create or move image records, which keep their other labels; when one fails, put the others back.

        The lease keeps what the record pointed at: it is needed to restore the record on failure.
        """
        changed: list[tuple[str, Image | None]] = []
        try:
            for image in wanted:
                before, labels = None, dict(image.labels)
                try:
                    before = await self.images.get(image.name)
                except NotFound:
                    pass
                if before is not None:
                    labels = {**before.labels, **labels}
                    await self.leases.add_content(lease, before.target.digest)
                # Noted first: when only the answer is lost, the name has changed.
                changed.append((image.name, before))
                changed[-1] = image.name, await self.images.put(replace(image, labels=labels))
        except BaseException:
            for name, earlier in reversed(changed):
                try:
                    await (self.images.delete(name) if earlier is None else self.images.put(earlier))
                except SandboxdError as exc:
                    log.error("an image name could not be put back", image=name, error=str(exc))
            raise

    async def pin(self, image: ImageRecord) -> ImageRecord:
        """Have kubelet's image garbage collection spare an image; raises NotFound when it is gone."""
        for name in () if image.pinned else image.records:
            found = await self.images.get(name)
            await self.images.put(replace(found, labels={**found.labels, **MANAGED, **PINNED}))
        await self.refresh()
        return self.resolve(image.id)

    async def ensure_unpacked(self, image: ImageRecord) -> None:
        """Unpack the image unless it is; raises NotFound when its content is gone."""
        if not image.chain_id or await self.snapshots.exists(image.chain_id):
            return
        # The same files may be packed in several ways, and of one of them a part may be gone.
        manifests = {
            p.descriptor.digest: p for p in self._view.parsed.values() if p.manifest.config.digest == image.id
        }
        missing = NotFound(f"image {image.id} was removed; load or pull it again")
        for parsed in manifests.values():
            try:
                await self._unpack(image, parsed)
            except NotFound as exc:
                missing = exc
            else:
                return
        raise missing

    async def _unpack(self, image: ImageRecord, parsed: _Parsed) -> None:
        with steps.step("image.unpack", image=image.id, layers=len(parsed.manifest.layers)):
            async with self.leases.held("unpack", seconds=UNPACK_LEASE_SECONDS) as lease:
                leased = self.under(lease).snapshots
                chain_id = await leased.unpack(parsed.manifest.layers, parsed.config.diff_ids)
                await self.content.set_labels(image.id, snapshot_label(leased.snapshotter, chain_id))

    async def prepare_rootfs(self, key: str, image: ImageRecord) -> tuple[Mount, ...]:
        """Make the writable root file system `key` from the image; the same key again gives the same one.

        It exists until `remove_rootfs`, even if the image is removed. Raises NotFound when the image is gone.
        """
        mounts = await self._snapshot(key, image, self.snapshots.prepare)
        self._rootfs[key] = mounts
        return mounts

    async def view(self, key: str, image: ImageRecord) -> tuple[Mount, ...]:
        """The same, read-only: the image's files as they are."""
        return await self._snapshot(key, image, self.snapshots.view)

    async def _snapshot(
        self,
        key: str,
        image: ImageRecord,
        make: Callable[[str, str, Mapping[str, str]], Awaitable[tuple[Mount, ...]]],
    ) -> tuple[Mount, ...]:
        # An own root label rather than a lease: it lives exactly as long as the snapshot, and a container record
        # that would refer to it does not exist yet.
        # The mark tells it from another daemon's when no record of it is left.
        labels = {**self.client.owned, ROOT_LABEL: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        try:
            return await make(key, image.chain_id, labels)
        except AlreadyExists:
            return await self.snapshots.mounts(key)
        except NotFound:
            await self.ensure_unpacked(image)
        return await make(key, image.chain_id, labels)

    async def rootfs(self, key: str) -> tuple[Mount, ...]:
        """How to mount a root file system that was prepared; raises NotFound."""
        return self._rootfs.get(key) or await self.snapshots.mounts(key)

    async def remove_rootfs(self, key: str) -> None:
        """Remove a root file system. Idempotent."""
        self._rootfs.pop(key, None)
        await self.snapshots.remove(key)

    async def rootfs_usage(self, key: str) -> Usage:
        """What was written to a root file system; containerd walks its files. Raises NotFound."""
        return await self.snapshots.usage(key)

    async def rootfs_changes(self, key: str, file: BinaryIO) -> None:
        """Write what a root file system has changed of its image to `file`, as an uncompressed layer.

        containerd packs it into a blob, which is gone when this returns. Raises NotFound, OSError.
        """
        await self.forget_changes(key)
        with self.leases.using(_changes_lease(key)):
            try:
                await self.leases.create(_changes_lease(key), seconds=CHANGES_LEASE_SECONDS)
                leased = self.under(_changes_lease(key))
                await self.content.copy(await leased.snapshots.diff(key, oci.OCI_LAYER), file)
            finally:
                await self.forget_changes(key)

    async def forget_changes(self, key: str) -> None:
        """Remove what an interrupted `rootfs_changes` left in containerd. Idempotent."""
        await self.leases.delete(_changes_lease(key), sync=True)


async def carried_out(searching: Search, read: Callable[[Wanted], Awaitable[bytes]]) -> Selected:
    """Carry out a search for an image's manifest. `read` raises NotFound or InvalidRequest for what is not there."""
    at = advance(searching)
    while isinstance(at, Wanted):
        try:
            answer: bytes | NotFound | InvalidRequest = await read(at)
        except (NotFound, InvalidRequest) as exc:
            answer = exc
        at = advance(searching, answer)
    return at


def _changes_lease(key: str) -> str:
    return f"sandboxd-changes-{key}"


def find(records: Sequence[ImageRecord], text: str) -> ImageRecord:
    """The record that `text` means: a name, then an id, then the beginning of an id, then a manifest's digest.

    Raises NotFound and InvalidRequest as `ImageStore.resolve`.
    """
    missing = NotFound(f"image {text!r} is not on this machine; pull it, or load it with `sandboxctl load FILE`")
    if not (prefix := _ID_PREFIX.fullmatch(text)):
        name = reference.parse(text)
        return _named(records, name, missing)
    if not text.startswith("sha256:") and len(text) < 64:
        try:
            return _named(records, reference.parse(text), missing)
        except NotFound:
            pass
    fitting = [record for record in records if record.id.startswith(f"sha256:{prefix[1]}")]
    if len(fitting) > 1:
        raise InvalidRequest(f"{text!r} is the beginning of {len(fitting)} image ids; give more digits")
    fitting = fitting or [record for record in records if f"sha256:{prefix[1]}" in (record.digest, *record.digests)]
    if not fitting:
        raise missing
    return fitting[0]


def _named(records: Iterable[ImageRecord], name: reference.Reference, missing: NotFound) -> ImageRecord:
    """The record with the name. A digest decides alone; the tag beside it is decoration."""
    for record in records:
        if name.digest:
            if f"{name.repository}@{name.digest}" in record.repo_digests:
                return record
        elif str(name) in record.repo_tags:
            return record
    raise missing


def user_of(config: Mapping[str, Any]) -> tuple[str, int | None]:
    """(username, uid) of an image config's User, "user[:group]"; CRI wants exactly one of them, or none."""
    user = str(config.get("User", "")).partition(":")[0]
    if user.isascii() and user.isdigit():
        return "", int(user)
    return user, None


def _records(listed: Iterable[Image], parsed: Mapping[str, _Parsed]) -> tuple[ImageRecord, ...]:
    """One record for each image id, from containerd's records and what their targets are."""
    groups: dict[str, list[Image]] = {}
    for image in listed:
        if image.target.digest in parsed:
            groups.setdefault(parsed[image.target.digest].manifest.config.digest, []).append(image)
    records = [_record(image_id, images, parsed) for image_id, images in groups.items()]
    return tuple(sorted(records, key=lambda record: (not record.names, record.names, record.id)))


def _size(parsed: _Parsed) -> int:
    return sum(each.size for each in (parsed.descriptor, parsed.manifest.config, *parsed.manifest.layers))


def _record(image_id: str, images: Sequence[Image], parsed: Mapping[str, _Parsed]) -> ImageRecord:
    tags, digests = set(), set()
    for image in images:
        try:
            name = reference.parse(image.name)
        except InvalidRequest:
            continue  # named by its id, or by a tool with names of its own
        if name.tag:
            tags.add(f"{name.repository}:{name.tag}")
        digests.add(f"{name.repository}@{image.target.digest}")
    first = parsed[min(image.target.digest for image in images)]
    username, uid = user_of(first.config.config)
    return ImageRecord(
        id=image_id,
        names=(*sorted(tags), *sorted(digests)),
        repo_tags=tuple(sorted(tags)),
        repo_digests=tuple(sorted(digests)),
        size=_size(first),
        username=username,
        uid=uid,
        pinned=any(PINNED.items() <= image.labels.items() for image in images),
        chain_id=first.config.chain_id,
        config=first.config.config,
        digest=first.descriptor.digest,
        digests=tuple(sorted({parsed[image.target.digest].descriptor.digest for image in images})),
        records=tuple(sorted(image.name for image in images)),
    )

"""Bringing images in without a registry: archives, and the pause image that is made here.

    read       the archive, verified to the last byte, before containerd sees any of it
    store      the blobs, under a lease
    unpack     the layers, under the same lease
    name       the image records, last: from now on the images exist

An image that is at fault itself is passed over, with a remark, as long as there is another one. Any other failure
before the names leaves nothing: the lease's end frees the rest. A failure among the names puts those back that were
already changed.
"""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from sandboxd import steps
from sandboxd.containerd.content import CHILD_LABEL, child_labels, snapshot_label
from sandboxd.containerd.images import Image
from sandboxd.errors import InvalidRequest, NotFound, NotReady
from sandboxd.images.fetch import no_space
from sandboxd.images.store import MANAGED, OWN_DOMAIN, PINNED, ImageStore, Leased
from sandboxd.model import ImageRecord, Progress, Report, Stage, unreported
from sandboxd.oci import archive, layers
from sandboxd.oci import image as oci
from sandboxd.oci.archive import Archive, Blob, ImageContent
from sandboxd.oci.image import Descriptor, Platform
from sandboxd.registry import reference

log = structlog.get_logger(__name__)

PAUSE_NAME = f"{OWN_DOMAIN}/pause:builtin"
LEASE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """An image that is complete and unpacked. `names` are in full; `digest` is the manifest's; `size` in bytes."""

    names: tuple[str, ...]
    image_id: str
    digest: str
    size: int
    remarks: tuple[str, ...] = ()  # about the archive: what of it was passed over, and why


async def load(store: ImageStore, path: Path, report: Report = unreported) -> list[Loaded]:
    """Import every image of the archive at `path` that is whole and that this machine can run; those, or none.

    What else the archive holds is passed over, with remarks that each of the images has. The same archive again
    changes nothing and answers the same. Raises InvalidRequest or Unsupported for what is wrong with the archive; no
    image record is left behind then that was not there before.
    """
    loop = asyncio.get_running_loop()
    stopped = threading.Event()

    def from_thread(progress: Progress) -> None:
        if not stopped.is_set():
            loop.call_soon_threadsafe(report, progress)

    opened = Archive(path, stopped.is_set)
    # A thread of its own: the others that the daemon has for what blocks must not all be reading archives.
    executor = ThreadPoolExecutor(1, thread_name_prefix="archive")
    try:
        with steps.step("image.read", bytes=path.stat().st_size) as step:
            contents = await loop.run_in_executor(executor, _read, opened, store.platform, from_thread)
            contents = [replace(content, names=full_names(content)) for content in contents]
            for remark in opened.remarks:
                log.warning("of an archive, a part is passed over or may not run here", reason=remark)
            step.note(images=", ".join(content.names[0] if content.names else "untagged" for content in contents))
        contents, unfit = await _bring_in(store, contents, MANAGED, report)
    finally:
        stopped.set()
        executor.shutdown(wait=False)
        opened.close()
    return [
        Loaded(
            names=content.names,
            image_id=content.config.descriptor.digest,
            digest=content.manifest.descriptor.digest,
            size=content.size,
            remarks=(*opened.remarks, *unfit),
        )
        for content in contents
    ]


async def ensure_pause(store: ImageStore, binary_path: str) -> ImageRecord:
    """The built-in pause image, made from the static program at `binary_path` unless it is there already.

    Without the program it is the one that was made before: pods that run must not lose their daemon to that. Raises
    NotReady when there is none either.
    """
    with steps.step("image.pause", binary=binary_path) as step:
        await store.refresh()
        try:
            content = await asyncio.to_thread(_pause_from, binary_path, store.platform)
        except NotReady as exc:
            record = await _made_before(store)
            if record is None:
                raise
            log.warning("the pause image cannot be made, the one that was made before is used", reason=str(exc))
            step.note(image=record.id, reason=str(exc))
            return record
        record = _present(store, content)
        if record is None or not await store.snapshots.exists(record.chain_id):
            await _bring_in(store, [content], MANAGED | PINNED, unreported)
            record = store.resolve(PAUSE_NAME)
        step.note(image=record.id)
        return record


def _pause_from(binary_path: str, platform: Platform) -> ImageContent:
    """The image of the program. Raises NotReady."""
    try:
        return pause_content(Path(binary_path).read_bytes(), platform)
    except OSError as exc:
        raise NotReady(
            f"the pause program {binary_path} cannot be read ({exc.strerror}); install catatonit"
            " (on Debian: apt-get install catatonit) or set runtime.pause_binary"
        ) from exc
    except InvalidRequest as exc:
        raise NotReady(f"{binary_path}: {exc}; install catatonit or set runtime.pause_binary") from exc


async def _made_before(store: ImageStore) -> ImageRecord | None:
    """The built-in pause image that is in the store, ready to be run."""
    try:
        record = store.resolve(PAUSE_NAME)
    except NotFound:
        return None
    return record if await store.snapshots.exists(record.chain_id) else None


def full_names(content: ImageContent) -> tuple[str, ...]:
    """The archive's names for the image, completed; what cannot be a name is left out.

    A digest in a name says what the name's owner published; only that of what is named here is kept. Names that are
    sandboxd's own names are left out: an archive must not decide what every pod starts with.
    """
    names = []
    for text in content.names:
        try:
            name = reference.parse(text)
        except InvalidRequest as exc:
            log.warning("an archive's name for its image is not one, it is left out", reason=str(exc))
            continue
        if name.domain == OWN_DOMAIN:
            log.warning("an archive's name for its image is sandboxd's own, it is left out", name=str(name))
        elif name.tag:
            names.append(str(replace(name, digest="")))
        elif name.digest == content.target.digest:
            names.append(str(name))
    return tuple(dict.fromkeys(names))


def pause_content(binary: bytes, platform: Platform) -> ImageContent:
    """The built-in pause image; the same program gives the same bytes. Raises InvalidRequest if it is not static."""
    layer = layers.pause_layer(binary)
    document = {
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {"Entrypoint": ["/catatonit", "-P"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [oci.digest(layer)]},
    }
    config = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    layer_blob, config_blob = _in_memory(oci.OCI_LAYER, layer), _in_memory(oci.OCI_CONFIG, config)
    return ImageContent(
        names=(PAUSE_NAME,),
        manifest=archive.manifest_blob(config_blob.descriptor, [layer_blob.descriptor]),
        config=config_blob,
        layers=(layer_blob,),
        parsed=oci.parse_config(config),
    )


def _in_memory(media_type: str, data: bytes) -> Blob:
    descriptor = Descriptor(media_type=media_type, digest=oci.digest(data), size=len(data))
    return Blob(descriptor=descriptor, open=lambda: io.BytesIO(data))


def _present(store: ImageStore, content: ImageContent) -> ImageRecord | None:
    """The record under the content's first name, if it is this very image and pinned."""
    try:
        record = store.resolve(content.names[0])
    except NotFound:
        return None
    same = content.manifest.descriptor.digest in (record.digest, *record.digests)
    return record if same and record.pinned else None


def _read(opened: Archive, platform: Platform, report: Report) -> list[ImageContent]:
    opened.open()
    return list(opened.images(platform, report))


async def _bring_in(
    store: ImageStore, contents: Sequence[ImageContent], labels: Mapping[str, str], report: Report
) -> tuple[list[ImageContent], list[str]]:
    """Store, unpack and name the images, then refresh the store's copy; return those that came, why others did not.

    Raises InvalidRequest when none can be unpacked.
    """
    unpacked: list[ImageContent] = []
    unfit: list[str] = []
    total = sum(content.size for content in contents)
    async with store.leases.held("import", seconds=LEASE_SECONDS) as lease:
        with steps.step("image.store", bytes=total) as step, no_space("storing the image's parts"):
            leased = store.under(lease)
            written = await _store(leased, contents, _counter(Stage.STORE, total, report))
            step.note(new_blobs=written)
        with steps.step("image.unpack") as step, no_space("unpacking the image"):
            total = sum(blob.descriptor.size for content in contents for blob in content.layers)
            count = _counter(Stage.UNPACK, total, report)
            for number, content in enumerate(contents, start=1):
                descriptors = [blob.descriptor for blob in content.layers]
                try:
                    await leased.snapshots.unpack(descriptors, content.parsed.diff_ids, count)
                except InvalidRequest as exc:
                    if number == len(contents) and not unpacked:
                        raise
                    log.warning("an image of an archive is passed over", image=_called(content), reason=str(exc))
                    unfit.append(f"{_called(content)}: {exc}")
                else:
                    unpacked.append(content)
            step.note(layers=sum(len(content.layers) for content in unpacked))
        with steps.step("image.name"):
            # containerd keeps only what has a name: an untagged image is named by its id.
            named = [(name, each) for each in unpacked for name in each.names or (each.config.descriptor.digest,)]
            await store.name(lease, [Image(name=name, target=each.target, labels=labels) for name, each in named])
    await store.refresh()
    return unpacked, unfit


def _called(content: ImageContent) -> str:
    return ", ".join(content.names) or content.config.descriptor.digest


async def _store(leased: Leased, contents: Sequence[ImageContent], count: Callable[[int], None]) -> int:
    """Write all blobs, children before the documents whose labels keep them; return how many were new."""
    written = 0
    done: set[str] = set()  # images may share layers, and an archive may have many of them
    for content in contents:
        kept: list[tuple[Blob, Mapping[str, str]]] = [(blob, {}) for blob in content.layers]
        snapshot = content.parsed.chain_id
        kept.append((content.config, snapshot_label(leased.snapshots.snapshotter, snapshot) if snapshot else {}))
        children = tuple(blob.descriptor for blob in content.layers)
        labels: Mapping[str, str] = child_labels(content.config.descriptor, children)
        for document in (content.manifest, *reversed(content.indexes)):
            kept.append((document, labels))
            labels = {f"{CHILD_LABEL}.m.0": document.descriptor.digest}
        for blob, labels in kept:
            if not labels and blob.descriptor.digest in done:
                count(blob.descriptor.size)
                continue
            done.add(blob.descriptor.digest)
            with blob.open() as file:
                written += await leased.content.write(blob.descriptor, file, labels, count)
    return written


def _counter(stage: Stage, total: int, report: Report) -> Callable[[int], None]:
    """Adds up the bytes of each call and reports the sum."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done = min(total, done + more)
        report(Progress(stage=stage, done=done, total=total))

    return count

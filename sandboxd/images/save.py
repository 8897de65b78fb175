"""Images as one archive, sent while it is made: what `sandboxctl save` writes and `load` reads.

    choose     what each reference names, and under which names it is saved
    collect    the blobs that it leads to, as far as they are here; a lease keeps them from now on
    send       every blob from the content store, verified on the way; nothing is stored in between

The size is known before the first byte is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sandboxd import steps
from sandboxd.containerd import ingest
from sandboxd.containerd.images import Image
from sandboxd.errors import InvalidRequest, NotFound, NotReady
from sandboxd.images.store import ImageStore
from sandboxd.model import ImageRecord
from sandboxd.oci import image as oci
from sandboxd.oci import layout
from sandboxd.oci.image import Descriptor, Index, Manifest
from sandboxd.oci.layout import Named
from sandboxd.oci.selection import MAX_NESTING
from sandboxd.registry import reference

LEASE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """An image to save. `names` are in full; empty for one that has none."""

    record: ImageRecord
    names: tuple[str, ...]
    target: Descriptor


class Outgoing:
    """An archive that is ready to be sent. `size` in bytes, of the whole."""

    def __init__(self, store: ImageStore, documents: Sequence[tuple[str, bytes]], blobs: Mapping[str, int]) -> None:
        self._store = store
        self._documents = documents
        self._blobs = blobs
        self.size = layout.archive_size([*(len(data) for _, data in documents), *blobs.values()])

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes in order. Raises NotReady for a blob that is not what its digest says, NotFound for one gone."""
        for path, data in self._documents:
            yield layout.header(path, len(data)) + data + layout.padding(len(data))
        for digest, size in self._blobs.items():
            yield layout.header(layout.blob_path(digest), size)
            hashed, sent = hashlib.sha256(), 0
            async for piece in ingest.read(self._store.client, digest):
                hashed.update(piece)
                sent += len(piece)
                yield piece
            if sent != size or f"sha256:{hashed.hexdigest()}" != digest:
                raise NotReady(
                    f"content {digest} is damaged in containerd's store; remove the image and pull it again"
                )
            yield layout.padding(size)
        yield layout.END


@asynccontextmanager
async def saving(store: ImageStore, references: Sequence[str]) -> AsyncIterator[Outgoing]:
    """An archive of these images; their content stays for the time of the block.

    Raises NotFound for an image that is not here, InvalidRequest for an invalid reference, NotReady when an image's
    content is not complete.
    """
    if not references:
        raise InvalidRequest("no image is named")
    with steps.step("image.save", images=", ".join(map(reference.shown, references))) as step:
        listed = {image.name: image for image in await store.images.list()}
        wanted = [choose(text, store.resolve(text), listed) for text in references]
        async with store.leases.held("save", seconds=LEASE_SECONDS) as lease:
            for choice in merge(choice for choices in wanted for choice in choices):
                await store.leases.add_content(lease, choice.target.digest)
            collected = _Collected(have={info.digest: info.size for info in await store.content.list()})
            complete = [choice for choices in wanted for choice in await collected.complete(store, choices)]
            images = [await collected.add(store, choice) for choice in merge(complete)]
            archive = Outgoing(store, layout.documents(images), collected.blobs)
            step.note(bytes=archive.size)
            yield archive


def choose(text: str, record: ImageRecord, listed: Mapping[str, Image]) -> list[Chosen]:
    """What `text` means, given that it was resolved to `record`; `listed` is what containerd has by its own names.

    A reference is saved under itself. An id or the beginning of one: under the image's tags, else its digests, else
    under no name.
    """
    targets = {name: listed[name].target for name in record.records if name in listed}
    if not targets:
        raise NotFound(f"image {text!r} was removed during the request")
    tagged, digested = {}, {}
    for name, target in targets.items():
        try:
            parsed = reference.parse(name)
        except InvalidRequest:
            continue  # named by its id, or by a tool with names of its own
        digested[f"{parsed.repository}@{target.digest}"] = target
        if parsed.tag:
            tagged[f"{parsed.repository}:{parsed.tag}"] = target
    try:
        asked = reference.parse(text)
    except InvalidRequest:
        wanted = ""  # an id
    else:
        wanted = f"{asked.repository}@{asked.digest}" if asked.digest else str(asked)
    if (found := {**tagged, **digested}.get(wanted)) is not None:
        return [Chosen(record=record, names=(wanted,), target=found)]
    if named := tagged or digested:
        return [Chosen(record=record, names=(name,), target=target) for name, target in sorted(named.items())]
    return [Chosen(record=record, names=(), target=next(iter(targets.values())))]


def merge(choices: Iterable[Chosen]) -> tuple[Chosen, ...]:
    """Each target once, with all its names."""
    merged: dict[str, Chosen] = {}
    for choice in choices:
        names = merged[choice.target.digest].names if choice.target.digest in merged else ()
        merged[choice.target.digest] = Chosen(
            record=choice.record, names=tuple(dict.fromkeys((*names, *choice.names))), target=choice.target
        )
    return tuple(merged.values())


@dataclass(slots=True, kw_only=True)
class _Collected:
    """The blobs of an archive. `have` is what the content store has, by digest with sizes."""

    have: Mapping[str, int]
    blobs: dict[str, int] = field(default_factory=dict)
    known: dict[str, list[tuple[Descriptor, Manifest | Index]]] = field(default_factory=dict)

    async def complete(self, store: ImageStore, choices: Sequence[Chosen]) -> list[Chosen]:
        """Those of the choices for one reference that are here as a whole; all of them when none is.

        The same image may be in several manifests, packed in several ways, and of one of them a part may be gone.
        """
        there = [choice for choice in choices if await self._manifest(store, choice) is not None]
        return there or list(choices)

    async def add(self, store: ImageStore, choice: Chosen) -> Named:
        """Take in all that this image leads to, as far as it is here."""
        for descriptor, found in await self._below(store, choice.target, MAX_NESTING):
            parts = (found.config, *found.layers) if isinstance(found, Manifest) else ()
            for part in (*parts, descriptor):
                self.blobs[part.digest] = self.have[part.digest]
        manifest = await self._manifest(store, choice)
        if manifest is None:
            raise NotReady(f"image {choice.record.id}: the content for {store.platform} is not here; pull it again")
        return Named(names=choice.names, target=choice.target, manifest=manifest)

    async def _manifest(self, store: ImageStore, choice: Chosen) -> Manifest | None:
        """The manifest below the choice's target that has the image's config."""
        documents = [document for _, document in await self._below(store, choice.target, MAX_NESTING)]
        manifests = (document for document in documents if isinstance(document, Manifest))
        return next((each for each in manifests if each.config.digest == choice.record.id), None)

    async def _below(
        self, store: ImageStore, descriptor: Descriptor, depth: int
    ) -> list[tuple[Descriptor, Manifest | Index]]:
        """The documents from `descriptor` down that are complete here, itself last; empty when it is not.

        Each is looked at once, however many indexes name it, and however often.
        """
        if descriptor.digest not in self.have or depth < 0:
            return []
        if descriptor.digest not in self.known:
            self.known[descriptor.digest] = []
            self.known[descriptor.digest] = await self._looked_up(store, descriptor, depth)
        return self.known[descriptor.digest]

    async def _looked_up(
        self, store: ImageStore, descriptor: Descriptor, depth: int
    ) -> list[tuple[Descriptor, Manifest | Index]]:
        data = await store.content.read(descriptor.digest, oci.MAX_MANIFEST_BYTES)
        document = oci.parse_manifest(data, descriptor.media_type)
        if isinstance(document, Manifest):
            complete = all(part.digest in self.have for part in (document.config, *document.layers))
            return [(descriptor, document)] if complete else []
        below: dict[str, tuple[Descriptor, Manifest | Index]] = {}
        seen: set[str] = set()
        for child in document.manifests:
            if child.digest in seen:
                continue
            seen.add(child.digest)
            try:
                found = await self._below(store, child, depth - 1)
            except InvalidRequest:
                continue  # an attestation or another artifact beside the image
            below.update((each.digest, (each, inner)) for each, inner in found)
        return [*below.values(), (descriptor, document)] if below else []

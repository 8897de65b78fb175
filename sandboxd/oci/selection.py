"""From a reference's target down to the manifest for this machine: the one way for pulling, loading and looking.

`search` is a generator without IO: it yields what it has to see, and is sent the bytes, or has thrown into it why
there are none. It returns what it found.

An index's word counts, whatever the configs say. Of entries that say nothing the config decides. An entry that is
missing, damaged or not an image (a signature, a chart, an attestation) is passed over, with a word, if another one
will do. What is for another machine is taken only when it is all there is and no index says so: a single manifest,
or the only entry of an index without platforms; a newer variant of this machine's architecture also where it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

from sandboxd.errors import InvalidRequest, NotFound, Unsupported
from sandboxd.oci.image import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_SKIPPED,
    Descriptor,
    Index,
    Manifest,
    Platform,
    parse_config,
    parse_manifest,
)
from sandboxd.oci.platforms import choose, nearest, objection, runs_on, silent

MAX_NESTING = 4  # indexes in indexes
MAX_DOCUMENTS = 64  # looked at for one image


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """What was found. `chain` leads from the target to the manifest.

    `platform` is what the index says that it is for, None where none says. `skipped` says what was passed over.
    """

    chain: tuple[Descriptor, ...]
    manifest: Manifest
    platform: Platform | None = None
    skipped: tuple[str, ...] = ()

    def objection(self, config: Platform, host: Platform) -> str:
        """Why the image may not run on `host`, in words, given what its config says; "" if nothing speaks against it.

        Raises Unsupported for what no Linux machine runs.
        """
        return objection(self.platform or config, host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A blob that a search has to see: an image's config, or else a manifest or an index."""

    descriptor: Descriptor
    is_config: bool

    @property
    def most(self) -> int:
        """The most bytes that it may have."""
        return MAX_CONFIG_BYTES if self.is_config else MAX_MANIFEST_BYTES


Search = Generator[Wanted, bytes, Selected]


class NotForHost(Unsupported):
    """An index has nothing for this machine."""


class _TooMany(InvalidRequest):
    """The search has looked at enough."""


@dataclass(slots=True)
class Known:
    """What earlier searches in the same place found out: each document is looked at once."""

    found: dict[str, Selected | InvalidRequest | NotFound] = field(default_factory=dict)
    configs: dict[str, Platform] = field(default_factory=dict)


def search(target: Descriptor, host: Platform, known: Known | None = None) -> Search:
    """Find the manifest for `host` that `target` is or leads to.

    Raises Unsupported when there is none, InvalidRequest for what is malformed, and what was thrown in.
    """
    looking = _Looking(host, known or Known())
    found = yield from looking.at(target, MAX_NESTING)
    return replace(_said(found, target), skipped=tuple(looking.skipped))


def advance(searching: Search, answer: bytes | NotFound | InvalidRequest | None = None) -> Wanted | Selected:
    """Go on with a search: what it wants next, or what it found.

    `answer` is what it wanted, or why that is not to be had; None at the beginning.
    """
    try:
        if answer is None:
            return next(searching)
        return searching.throw(answer) if isinstance(answer, Exception) else searching.send(answer)
    except StopIteration as done:
        found: Selected = done.value
        return found


def drive(searching: Search, read: Callable[[Wanted], bytes]) -> Selected:
    """Carry a search out with a `read` that blocks and raises NotFound or InvalidRequest."""
    at = advance(searching)
    while isinstance(at, Wanted):
        try:
            answer: bytes | NotFound | InvalidRequest = read(at)
        except (NotFound, InvalidRequest) as exc:
            answer = exc
        at = advance(searching, answer)
    return at


def _said(found: Selected, entry: Descriptor) -> Selected:
    """What was found, and that an entry led to it; the word that is nearer to the manifest counts."""
    return found if found.platform is not None or silent(entry.platform) else replace(found, platform=entry.platform)


class _Looking:
    def __init__(self, host: Platform, known: Known) -> None:
        self._host = host
        self._known = known
        self._left = MAX_DOCUMENTS
        self.skipped: list[str] = []

    def at(self, descriptor: Descriptor, depth: int) -> Search:
        """The manifest that `descriptor` is or leads to."""
        earlier = self._known.found.get(descriptor.digest)
        if isinstance(earlier, Selected):
            return replace(
                earlier, chain=(replace(descriptor, media_type=earlier.chain[0].media_type), *earlier.chain[1:])
            )
        if earlier is not None:
            raise type(earlier)(str(earlier))
        try:
            found = yield from self._read(descriptor, depth)
        except _TooMany:
            raise
        except (NotFound, InvalidRequest) as exc:
            self._known.found[descriptor.digest] = exc.with_traceback(None)
            raise
        self._known.found[descriptor.digest] = found
        return found

    def _read(self, descriptor: Descriptor, depth: int) -> Search:
        document = parse_manifest((yield from self._see(descriptor, is_config=False)), descriptor.media_type)
        descriptor = replace(descriptor, media_type=document.media_type)
        if isinstance(document, Manifest):
            return Selected(chain=(descriptor,), manifest=document)
        if depth == 0:
            raise InvalidRequest(f"indexes are nested more than {MAX_NESTING} deep")
        found = yield from self._in_index(document, depth)
        return replace(found, chain=(descriptor, *found.chain))

    def _in_index(self, index: Index, depth: int) -> Search:
        for word in index.skipped:
            self._skip(word)
        failed: list[InvalidRequest | NotFound] = []
        unnamed: list[InvalidRequest | NotFound] = []  # of entries that do not say for which machine they are
        others: list[Selected] = []
        for entry in choose(index.manifests, self._host):
            try:
                found = yield from self._entry(entry, depth)
                if found.platform is not None or (yield from self._fits(found.manifest)):
                    return found
                others.append(found)
            except (NotFound, InvalidRequest) as exc:
                self._skip(f"{entry.digest}: {exc}")
                (unnamed if silent(entry.platform) else failed).append(exc)
        if failed:
            # What is for this machine is not replaced by what is for another one.
            raise failed[0]
        for entry in nearest(index.manifests, self._host):
            try:
                return (yield from self._entry(entry, depth))
            except (NotFound, InvalidRequest) as exc:
                self._skip(f"{entry.digest}: {exc}")
        if len(others) == 1:
            return others[0]
        raise unnamed[0] if unnamed and not others else self._nothing(index)

    def _entry(self, entry: Descriptor, depth: int) -> Search:
        return _said((yield from self.at(entry, depth - 1)), entry)

    def _fits(self, manifest: Manifest) -> Generator[Wanted, bytes, bool]:
        """Whether the config says that the image is for this machine."""
        config = manifest.config
        if config.digest not in self._known.configs:
            self._known.configs[config.digest] = parse_config((yield from self._see(config, is_config=True))).platform
        return runs_on(self._known.configs[config.digest], self._host)

    def _see(self, descriptor: Descriptor, *, is_config: bool) -> Generator[Wanted, bytes, bytes]:
        if not self._left:
            raise _TooMany(f"more than {MAX_DOCUMENTS} documents lead to no image for {self._host}")
        self._left -= 1
        return (yield Wanted(descriptor=descriptor, is_config=is_config))

    def _skip(self, word: str) -> None:
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped.append(word)

    def _nothing(self, index: Index) -> NotForHost:
        there = sorted({str(item.platform) for item in index.manifests if item.platform})
        listed = ", ".join(there[:MAX_SKIPPED]) or "none named"
        passed = f"; passed over: {self.skipped[0]}" if self.skipped else ""
        return NotForHost(f"the image is not made for {self._host} (platforms: {listed}){passed}")

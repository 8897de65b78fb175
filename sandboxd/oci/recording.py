"""Small layers held in memory, and several of them merged into one.

As a rule, each layer has its own snapshot. For a tiny layer that costs more than its content, and every snapshot is
one more layer that the kernel searches; so in an image of very many layers, small neighbours share one. `merged`
computes the entries for it, in the simple cases: where the order of the layers has effects that a single layer
cannot have, it returns None, and each layer gets its own snapshot.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sandboxd.oci.layers import Read, Stopped, Visitor, check_stopped, never
from sandboxd.oci.tar import WHITEOUT

PIECE_BYTES = 1 << 20
ENTRY_BYTES = 1024  # of memory for an entry without its content, names and extended headers, estimated
TEXT_BYTES = 64  # of memory for a string without its characters

OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The arguments of `Visitor.visit`, with the content."""

    info: tarfile.TarInfo
    path: str
    target: str
    data: bytes


@dataclass(slots=True)
class Recording:
    """A visitor that records the entries, up to `most` bytes of memory. `unfit` says why it gave up."""

    most: int
    held: int = 0
    unfit: str = ""
    entries: list[Entry] = field(default_factory=list)

    def visit(self, entry: tarfile.TarInfo, path: str, target: str, read: Read) -> None:
        """Record an entry, unless the recording becomes too large."""
        self.held += _weight(entry, path, target)
        if entry.issparse() or self.held > self.most:
            self.unfit = "it is too large or sparse to be held in memory"
            self.entries.clear()
        if not self.unfit:
            pieces = []
            while piece := read(PIECE_BYTES):
                pieces.append(piece)
            self.entries.append(Entry(info=entry, path=path, target=target, data=b"".join(pieces)))

    def finish(self) -> None:
        """Do nothing: the entries take effect when they are replayed."""


def replay(entries: Iterable[Entry], visitor: Visitor, stopped: Stopped = never) -> None:
    """Pass the recorded entries to a visitor. Raises Unavailable soon after `stopped` returns True."""
    for entry in entries:
        check_stopped(stopped, "a recorded layer")
        visitor.visit(entry.info, entry.path, entry.target, _reader(entry.data))
    visitor.finish()


def merged(layers: Sequence[Sequence[Entry]], *, lowest: bool) -> list[Entry] | None:
    """The entries of one layer with the effect of `layers`, lowest first; None when no single layer has it.

    `lowest`: nothing is below these layers, so no whiteouts are needed.
    """
    whole = _Whole()
    deleted: set[str] = set()  # also below these layers
    for number, entries in enumerate(layers):
        bottom = lowest and number == 0
        if not _is_simple(entries, bottom=bottom):
            return None
        for entry in entries:
            if is_whiteout(entry.path):
                parent, name = posixpath.split(entry.path)
                victim = parent if name == OPAQUE else posixpath.join(parent, name.removeprefix(WHITEOUT))
                whole.drop(victim, itself=name != OPAQUE)
                deleted |= {victim} - {parent}
        for entry in entries:
            if is_whiteout(entry.path):
                # In an opaque directory overlayfs would list it.
                if not lowest and (posixpath.basename(entry.path) == OPAQUE or not whole.hides_below(entry.path)):
                    whole.put(entry)
                continue
            before = whole.entries.get(entry.path)
            if before is not None and before.info.isdir() != entry.info.isdir():
                return None
            if entry.path in deleted and not lowest:
                return None
            whole.put(entry)
    return list(whole.entries.values())


def _is_simple(entries: Sequence[Entry], *, bottom: bool) -> bool:
    """Whether each entry of a layer has its whole effect by itself; `bottom`: nothing is below the layer."""
    described: dict[str, bool] = {"": True}  # whether it is a directory
    for entry in entries:
        parent, name = posixpath.split(entry.path)
        if entry.info.islnk():
            return False  # the names share a file that a layer above may change under one of them
        if name.startswith(WHITEOUT):
            if bottom or (name.startswith(WHITEOUT * 2) and name != OPAQUE):
                return False  # it deletes of its own layer; or it is a kind that only aufs has
        elif entry.path and entry.path in described:
            return False  # the second one adds to the first one's attributes, or replaces it
        if name == OPAQUE and not parent:
            return False  # overlayfs shows what lies below its root in any case
        if not (bottom or described.get(parent)):
            return False  # its directory gets the attributes of one below, perhaps of a deleted one
        described[entry.path] = entry.info.isdir()
    for path in described:
        parent, name = posixpath.split(path)
        if not name.startswith(WHITEOUT) or name == OPAQUE:
            continue
        # A directory that replaces a whiteout of its own layer shows what lies below; another order fails.
        if posixpath.join(parent, name.removeprefix(WHITEOUT)) in described:
            return False
        # A whiteout in an opaque directory is listed, although nothing is there.
        if any(posixpath.join(above, OPAQUE) in described for above in _above(path)):
            return False
    return True


def _above(path: str) -> Iterator[str]:
    """The directories on the way to `path`, without the root."""
    while path := posixpath.dirname(path):
        yield path


class _Whole:
    """Entries by path, and the contents of each directory: deleting one takes time linear in its entries."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._inside: dict[str, set[str]] = {}

    def put(self, entry: Entry) -> None:
        self.entries[entry.path] = entry
        path = entry.path
        # A directory may have no entry of its own.
        while path:
            parent = posixpath.dirname(path)
            children = self._inside.setdefault(parent, set())
            if path in children:
                return
            children.add(path)
            path = parent

    def hides_below(self, path: str) -> bool:
        """Whether a directory on the way to `path` is opaque."""
        return any(posixpath.join(above, OPAQUE) in self.entries for above in _above(path))

    def drop(self, victim: str, *, itself: bool) -> None:
        """Delete the contents of a directory; with `itself`, also the directory (or file)."""
        todo = [victim]
        while todo:
            path = todo.pop()
            todo += self._inside.pop(path, ())
            if path != victim or itself:
                self.entries.pop(path, None)
        if itself and (siblings := self._inside.get(posixpath.dirname(victim))) is not None:
            siblings.discard(victim)


def is_whiteout(path: str) -> bool:
    """Whether an entry deletes something (https://github.com/opencontainers/image-spec, layer.md, "Whiteouts")."""
    return posixpath.basename(path).startswith(WHITEOUT)


def _weight(entry: tarfile.TarInfo, path: str, target: str) -> int:
    """The memory for an entry with its content, in bytes, estimated."""
    texts = [entry.name, entry.linkname, path, target, *entry.pax_headers, *entry.pax_headers.values()]
    # A character may take four bytes.
    size = ENTRY_BYTES + sum(len(text) if text.isascii() else 4 * len(text) for text in texts)
    return size + TEXT_BYTES * len(entry.pax_headers) * 2 + (entry.size if entry.isreg() else 0)


def _reader(data: bytes) -> Read:
    left = memoryview(data)

    def read(most: int) -> memoryview:
        nonlocal left
        piece, left = left[:most], left[most:]
        return piece

    return read

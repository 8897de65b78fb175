"""Small layers held in memory, and several of them made into one.

Each layer has a snapshot of its own, as a rule. One that holds next to nothing costs more as a snapshot than it
weighs, and every snapshot is one more layer that the kernel looks through; so of an image of very many layers small
neighbours share one. `merged` tells what it has to hold. It only does what is plain: where the order of the layers
leaves traces that one layer cannot have, it says so, and each gets its own.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sandboxd.oci.layers import Read, Stopped, Visitor, check_stopped, never
from sandboxd.oci.tar import WHITEOUT

PIECE = 1 << 20
ENTRY_BYTES = 1024  # that an entry takes beside its content, its names and its extended headers, roughly
TEXT_BYTES = 64  # that a text takes beside its characters

OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a visitor is shown, with its content."""

    info: tarfile.TarInfo
    path: str
    target: str
    data: bytes


@dataclass(slots=True)
class Recording:
    """A visitor that remembers the entries, of at most `most` bytes. `unfit` says why it does not."""

    most: int
    held: int = 0
    unfit: str = ""
    entries: list[Entry] = field(default_factory=list)

    def visit(self, entry: tarfile.TarInfo, path: str, target: str, read: Read) -> None:
        """Remember an entry, unless all together are too much."""
        self.held += _weight(entry, path, target)
        if entry.issparse() or self.held > self.most:
            self.unfit = "it is not to be held in memory"
            self.entries.clear()
        if not self.unfit:
            pieces = []
            while piece := read(PIECE):
                pieces.append(piece)
            self.entries.append(Entry(info=entry, path=path, target=target, data=b"".join(pieces)))

    def finish(self) -> None:
        """Nothing is to be done before the replay."""


def replay(entries: Iterable[Entry], visitor: Visitor, stopped: Stopped = never) -> None:
    """Show the visitor what was recorded. Raises Unavailable soon after `stopped` says so."""
    for entry in entries:
        check_stopped(stopped, "a recorded layer")
        visitor.visit(entry.info, entry.path, entry.target, _reader(entry.data))
    visitor.finish()


def merged(layers: Sequence[Sequence[Entry]], *, lowest: bool) -> list[Entry] | None:
    """One layer with the effect of several, the lowest first; None when only several have it.

    `lowest`: there is nothing below them, so what they delete is simply not there.
    """
    whole = _Whole()
    deleted: set[str] = set()  # below these layers too
    for number, entries in enumerate(layers):
        for entry in entries:
            if entry.info.islnk():
                return None  # the names share what a layer above may change under one of them
            if is_whiteout(entry.path):
                parent, name = posixpath.split(entry.path)
                if name.startswith(WHITEOUT * 2) and name != OPAQUE:
                    return None
                victim = parent if name == OPAQUE else posixpath.join(parent, name.removeprefix(WHITEOUT))
                whole.drop(victim, itself=name != OPAQUE)
                deleted |= {victim} - {parent}
        for entry in entries:
            if is_whiteout(entry.path):
                if not lowest:
                    whole.put(entry)
                continue
            before = whole.entries.get(entry.path)
            if before is not None and before.info.isdir() != entry.info.isdir():
                return None
            parent = posixpath.dirname(entry.path)
            if number and parent and parent not in whole.entries:
                return None  # its attributes are those of a layer below, perhaps of one that was deleted
            if entry.path in deleted and not lowest:
                return None
            whole.put(entry)
    return list(whole.entries.values())


class _Whole:
    """Entries by their paths, and what is in each directory: to delete one takes as long as it holds entries."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._inside: dict[str, set[str]] = {}

    def put(self, entry: Entry) -> None:
        self.entries[entry.path] = entry
        path = entry.path
        # A directory may have no entry of its own.
        while path:
            parent = posixpath.dirname(path)
            there = self._inside.setdefault(parent, set())
            if path in there:
                return
            there.add(path)
            path = parent

    def drop(self, victim: str, *, itself: bool) -> None:
        """Delete what is in a directory, and the directory itself or the file if `itself`."""
        todo = [victim]
        while todo:
            path = todo.pop()
            todo += self._inside.pop(path, ())
            if path != victim or itself:
                self.entries.pop(path, None)
        if itself and (there := self._inside.get(posixpath.dirname(victim))) is not None:
            there.discard(victim)


def is_whiteout(path: str) -> bool:
    """Whether an entry deletes something instead of being there (https://github.com/opencontainers/image-spec)."""
    return posixpath.basename(path).startswith(WHITEOUT)


def _weight(entry: tarfile.TarInfo, path: str, target: str) -> int:
    """What an entry takes in memory with its content, in bytes, roughly."""
    texts = [entry.name, entry.linkname, path, target, *entry.pax_headers, *entry.pax_headers.values()]
    # A character may take four bytes.
    held = ENTRY_BYTES + sum(len(text) if text.isascii() else 4 * len(text) for text in texts)
    return held + TEXT_BYTES * len(entry.pax_headers) * 2 + (entry.size if entry.isreg() else 0)


def _reader(data: bytes) -> Read:
    left = memoryview(data)

    def read(most: int) -> memoryview:
        nonlocal left
        piece, left = left[:most], left[most:]
        return piece

    return read

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

from sandboxd.oci.layers import Read, Visitor

PIECE = 1 << 20
ENTRY_BYTES = 1024  # that an entry takes beside its content, roughly

WHITEOUT = ".wh."
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
        self.held += ENTRY_BYTES + (entry.size if entry.isreg() else 0)
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


def replay(entries: Iterable[Entry], visitor: Visitor) -> None:
    """Show the visitor what was recorded."""
    for entry in entries:
        visitor.visit(entry.info, entry.path, entry.target, _reader(entry.data))
    visitor.finish()


def merged(layers: Sequence[Sequence[Entry]], *, lowest: bool) -> list[Entry] | None:
    """One layer with the effect of several, the lowest first; None when only several have it.

    `lowest`: there is nothing below them, so what they delete is simply not there.
    """
    whole: dict[str, Entry] = {}
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
                _drop(whole, victim, itself=name != OPAQUE)
                deleted |= {victim} - {parent}
        for entry in entries:
            if is_whiteout(entry.path):
                if not lowest:
                    whole[entry.path] = entry
                continue
            before = whole.get(entry.path)
            if before is not None and before.info.isdir() != entry.info.isdir():
                return None
            parent = posixpath.dirname(entry.path)
            if number and parent and parent not in whole:
                return None  # its attributes are those of a layer below, perhaps of one that was deleted
            if entry.path in deleted and not lowest:
                return None
            whole[entry.path] = entry
    return list(whole.values())


def is_whiteout(path: str) -> bool:
    """Whether an entry deletes something instead of being there (https://github.com/opencontainers/image-spec)."""
    return posixpath.basename(path).startswith(WHITEOUT)


def _drop(whole: dict[str, Entry], victim: str, *, itself: bool) -> None:
    below = f"{victim}/" if victim else ""
    for path in [p for p in whole if p.startswith(below) or p == victim]:
        if path != victim or itself:
            del whole[path]


def _reader(data: bytes) -> Read:
    left = memoryview(data)

    def read(most: int) -> memoryview:
        nonlocal left
        piece, left = left[:most], left[most:]
        return piece

    return read

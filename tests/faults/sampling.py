"""Which cells of a matrix are tried when there is no time for all: always the same ones."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def sample(cells: Sequence[T], *, one_in: int, everything: bool = False) -> list[T]:
    """All cells with `everything`, else one in `one_in` and at least one, by a hash of what a cell says of itself."""
    if everything:
        return list(cells)
    by_hash = sorted(range(len(cells)), key=lambda at: zlib.crc32(str(cells[at]).encode()))
    return [cells[at] for at in sorted(by_hash[: max(1, len(cells) // one_in)])]


def waves(cells: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The cells in order, `size` at a time."""
    return (cells[at : at + size] for at in range(0, len(cells), size))

"""Cells: what a fault matrix has tried, one line each, for the table and for build/faults/summary.json.

    with cells.cell("kill", at="RunPodSandbox 17 containerd.tasks.Create", what="SIGKILL"):
        ...

A cell that fails is noted and the matrix goes on; the test fails at its end with every failed cell. What a failed
cell may have spoiled (a bed) is its matrix's to replace: `failed` counts.
"""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

PROPERTY = "cell"  # of a test report
SHOWN = 4000  # characters of a failed cell's words


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One fault at one place, and what came of it."""

    matrix: str  # "kill", "plugins", ...
    at: str  # where: a verb and its step, a plugin and its command
    what: str  # the fault
    seconds: float
    error: str = ""  # "" when everything was as it must be


class Cells:
    """The cells of one test. Made by the fixture `cells`, which fails the test for those that failed."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record
        self._failed: list[Cell] = []

    @property
    def failed(self) -> int:
        """How many have failed so far."""
        return len(self._failed)

    @contextmanager
    def cell(self, matrix: str, *, at: str, what: str) -> Iterator[None]:
        """Try one fault. An error inside is noted, and goes no further."""
        began, error = time.monotonic(), ""
        try:
            yield
        except Exception as exc:
            error = "".join(traceback.format_exception(exc))[-SHOWN:]
        cell = Cell(matrix=matrix, at=at, what=what, seconds=round(time.monotonic() - began, 3), error=error)
        if error:
            self._failed.append(cell)
        self._record(PROPERTY, json.dumps(asdict(cell)))

    def finish(self) -> None:
        """Raise AssertionError with every cell that failed."""
        words = [f"{cell.matrix}: {cell.at}: {cell.what}\n{cell.error}" for cell in self._failed]
        assert not words, f"{len(words)} cells failed:\n" + "\n".join(words)


def parse(text: object) -> Cell:
    """The cell of a report's property."""
    return Cell(**json.loads(str(text)))


def table(cells: Sequence[Cell]) -> list[str]:
    """Lines for people: for each matrix, how many cells there were, how many failed, and the time that they took."""
    tried = Counter(cell.matrix for cell in cells)
    failed = Counter(cell.matrix for cell in cells if cell.error)
    lines = [f"{'matrix':<24}{'cells':>8}{'failed':>8}{'seconds':>10}"]
    for matrix in sorted(tried):
        seconds = sum(cell.seconds for cell in cells if cell.matrix == matrix)
        lines.append(f"{matrix:<24}{tried[matrix]:>8}{failed[matrix]:>8}{seconds:>10.0f}")
    return lines


def write(cells: Sequence[Cell], path: Path) -> None:
    """Write every cell as JSON, in the order of matrix and place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(cells, key=lambda cell: (cell.matrix, cell.at, cell.what))
    path.write_text(json.dumps({"cells": [asdict(cell) for cell in ordered]}, indent=1) + "\n", encoding="utf-8")

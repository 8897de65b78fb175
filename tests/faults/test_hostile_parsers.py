"""Hostile files and answers: whatever others write is taken, or refused as the parser documents, and soon.

The inputs come from a seed, which is part of each cell; SEED=number tries others. What they found once is a case of a
unit test by now.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from tests.faults.cells import Cells
from tests.faults.garbage import Garbage
from tests.faults.parsers import PARSERS, Parser

pytestmark = pytest.mark.faults

SEED = int(os.environ.get("SEED", "11"))
CPU_SECONDS = 5.0  # of this process, for one input: far more than any takes
CHEAP, DEAR = 4300, 500
LONG = 10  # times as many with FAULTS=long


@contextmanager
def within_cpu_time() -> Iterator[None]:
    """Raise TimeoutError in what computes for too long; what waits is not counted, nor are other processes."""

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it computes for more than {CPU_SECONDS:g} s")

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def inputs(parser: Parser, count: int) -> Iterator[bytes]:
    """What it takes, and what becomes of that by accidents."""
    garbage = Garbage(SEED)
    yield from parser.seeds
    for number in range(count - len(parser.seeds)):
        yield garbage.deep(parser.levels) if number % 200 == 0 else garbage.changed(parser.seeds)


@pytest.mark.timeout(1800)  # with everything
@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_a_parser_takes_or_refuses_whatever_it_is_given(cells: Cells, everything: bool, parser: Parser) -> None:
    count = (CHEAP if parser.cheap else DEAR) * (LONG if everything else 1)
    with cells.cell("hostile", at=parser.name, what=f"{count} inputs, seed {SEED}"):
        for data in inputs(parser, count):
            try:
                with within_cpu_time():
                    parser.parse(data)
            except parser.refuses:
                pass
            except Exception as exc:
                raise AssertionError(f"{parser.name} of {data[:300]!r}") from exc

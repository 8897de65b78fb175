"""How the benchmarks write for people."""

from __future__ import annotations

import math

import pytest

from tests.bench import table


def test_columns_are_aligned_and_lines_end_without_spaces() -> None:
    assert table.aligned([("a", "long", ""), ("longer", "b", "c")]) == "a       long\nlonger  b     c"


def test_numbers_are_flush_right() -> None:
    assert table.aligned([("name", "ms"), ("x", "1")], numbers=True) == "name  ms\nx      1"


def test_no_rows_are_no_text() -> None:
    assert table.aligned([]) == ""
    assert table.section("title", [("only", "a head")]) == ""


@pytest.mark.parametrize(
    ("seconds", "shown"), [(1.2345, "1234"), (0.0123, "12.3"), (0.00123, "1.23"), (math.inf, "-")]
)
def test_milliseconds_have_the_digits_that_mean_something(seconds: float, shown: str) -> None:
    assert table.milliseconds(seconds) == shown

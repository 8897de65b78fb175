"""Quantiles and intervals of the benchmarks."""

from __future__ import annotations

import math
import random

import pytest

from tests.bench import stats


@pytest.mark.parametrize(
    ("values", "part", "expected"),
    [
        ([3.0], 0.99, 3.0),
        ([2.0, 1.0], 0.5, 1.5),
        ([5.0, 1.0, 3.0], 0.5, 3.0),
        ([float(n) for n in range(101)], 0.95, 95.0),
        ([0.0, 10.0], 1.0, 10.0),
        ([0.0, 10.0], 0.0, 0.0),
    ],
)
def test_a_quantile_lies_between_its_neighbours(values: list[float], part: float, expected: float) -> None:
    assert stats.quantile(values, part) == pytest.approx(expected)


def test_a_summary_has_the_ends_and_what_lies_between() -> None:
    found = stats.summary([4.0, 1.0, 3.0, 2.0])

    assert (found.count, found.least, found.median, found.most) == (4, 1.0, 2.5, 4.0)
    assert found.median < found.p95 < found.p99 < found.most


def test_a_ratio_is_that_of_the_medians_and_within_its_interval() -> None:
    source = random.Random(1)
    ours = [source.gauss(60, 5) for _ in range(80)]
    theirs = [source.gauss(100, 5) for _ in range(80)]

    found = stats.ratio(ours, theirs)

    assert found.low is not None and found.high is not None
    assert found.low < found.value < found.high
    assert found.low < 0.6 < found.high
    assert found.high - found.low < 0.1
    assert found.interval == f"{found.low:.2f} to {found.high:.2f}"


def test_the_same_values_give_the_same_interval() -> None:
    values = [1.0, 5.0, 2.0, 9.0, 7.0], [2.0, 3.0, 4.0, 5.0, 6.0]

    assert stats.ratio(*values) == stats.ratio(*values)


def test_what_disturbs_a_turn_on_both_sides_widens_nothing() -> None:
    """Turns are drawn, not values: a ratio that is the same in every turn is known exactly."""
    theirs = [float(n) for n in range(1, 20)]

    found = stats.ratio([value / 2 for value in theirs], theirs)

    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)


def test_values_that_belong_to_no_turn_can_be_of_any_number() -> None:
    found = stats.ratio([1.0] * 5, [2.0] * 7)

    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)


def test_intervals_hold_what_is_true_about_as_often_as_they_say() -> None:
    """Of two that are alike, 1 is the true ratio: 38 of 40 on average, and here of these 40."""
    source = random.Random(2)
    held = 0
    for _ in range(40):
        ours, theirs = ([source.gauss(50, 9) for _ in range(40)] for _ in range(2))
        found = stats.ratio(ours, theirs, resamples=200)
        assert found.low is not None and found.high is not None
        held += found.low < 1.0 < found.high

    assert 34 <= held <= 40


def test_few_values_tell_of_no_interval() -> None:
    """Two that are alike by chance would look certain."""
    found = stats.ratio([1.0, 1.0], [2.0, 2.0])

    assert (found.value, found.low, found.high, found.interval) == (0.5, None, None, "unknown")


def test_a_ratio_to_nothing_is_infinite() -> None:
    assert stats.ratio([1.0], [0.0]).value == math.inf


@pytest.mark.parametrize(("ours", "theirs"), [([], [1.0]), ([1.0], [])])
def test_no_values_have_no_ratio(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="no values"):
        stats.ratio(ours, theirs)

"""Quantiles, and how sure a ratio of medians is. Pure: the same values give the same intervals."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

RESAMPLES = 2000
FEWEST = 5  # values that tell of an interval
CONFIDENCE = 0.95
_SEED = 13  # any; a fixed one makes the interval a function of the values

Reduce = Callable[[Sequence[float]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is told of many values of one thing."""

    count: int
    median: float
    p95: float
    p99: float
    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Ours to theirs, with the interval that holds it with CONFIDENCE: None, where too few values tell of none."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> str:
        """For people."""
        if self.low is None or self.high is None:
            return "unknown"
        return f"{self.low:.2f} to {self.high:.2f}"


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` (0 to 1) of them lie, between two by straight line; ValueError for none."""
    if not values:
        raise ValueError("no values, no quantile")
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summary(values: Sequence[float]) -> Summary:
    """ValueError for no values."""
    return Summary(
        count=len(values),
        median=quantile(values, 0.5),
        p95=quantile(values, 0.95),
        p99=quantile(values, 0.99),
        least=min(values),
        most=max(values),
    )


def ratio(
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    reduce: Reduce = statistics.median,
    resamples: int = RESAMPLES,
) -> Ratio:
    """`reduce` of ours over that of theirs, with a percentile bootstrap interval.

    Values of one turn have one index: where there are as many of both, turns are drawn rather than values, so that
    what disturbed a turn on both sides widens nothing. A ratio to nothing is infinite. ValueError for no values.
    """
    if not ours or not theirs:
        raise ValueError("no values, no ratio")
    value = _over(reduce(ours), reduce(theirs))
    if min(len(ours), len(theirs)) < FEWEST:
        return Ratio(value=value)
    paired = len(ours) == len(theirs)
    source = random.Random(_SEED)
    drawn = []
    for _ in range(resamples):
        mine = source.choices(range(len(ours)), k=len(ours))
        others = mine if paired else source.choices(range(len(theirs)), k=len(theirs))
        drawn.append(_over(reduce([ours[i] for i in mine]), reduce([theirs[i] for i in others])))
    tail = (1 - CONFIDENCE) / 2
    return Ratio(value=value, low=_rank(drawn, tail), high=_rank(drawn, 1 - tail))


def _over(mine: float, theirs: float) -> float:
    return mine / theirs if theirs else math.inf


def _rank(values: Sequence[float], part: float) -> float:
    """As quantile, but one of the values: the line between a number and infinity is neither."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

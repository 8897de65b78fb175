"""What `make bench-pull` makes of its figures."""

from __future__ import annotations

import json

import pytest

from tests.bench.ground import FLAVOURS
from tests.bench.pull import LARGE, MOST_MEMORY, MOST_RATIO, OURS, THEIRS, Figures, table


def figures(ours: list[float], theirs: list[float], image: str = LARGE, peak: int = 0) -> Figures:
    return Figures(containerd="1.6", seconds={image: {OURS: ours, THEIRS: theirs}}, peak_bytes=[peak] if peak else [])


def test_the_ratio_is_that_of_medians() -> None:
    """One slow pull on either side changes nothing."""
    assert figures([1.0, 1.0, 90.0], [2.0, 2.0, 2.0, 50.0, 0.1]).ratio(LARGE) == pytest.approx(0.5)


@pytest.mark.parametrize("image", MOST_RATIO)
def test_a_goal_is_met_up_to_its_bound(image: str) -> None:
    most = MOST_RATIO[image]

    assert list(figures([most], [1.0], image).goals().values()) == [True]
    assert list(figures([most + 0.01], [1.0], image).goals().values()) == [False]


def test_the_largest_peak_counts() -> None:
    measured = figures([1.0], [1.0], peak=MOST_MEMORY - 1)
    assert all(measured.goals().values())

    measured.peak_bytes.append(MOST_MEMORY)
    assert not all(measured.goals().values())


def test_everything_that_was_measured_is_written_and_the_medians_are_shown() -> None:
    measured = figures([1.0, 2.0, 3.0], [4.0, 4.0, 4.0], peak=99_000_000)

    document = json.loads(json.dumps(measured.document()))

    assert document["images"][LARGE]["seconds"] == {OURS: [1.0, 2.0, 3.0], THEIRS: [4.0, 4.0, 4.0]}
    assert document["images"][LARGE]["ratio"] == 0.5
    assert document["peak_bytes"] == 99_000_000
    assert "2.00 s" in table({"debian": measured}) and "0.50" in table({"debian": measured})


def test_the_distributions_containerd_needs_nothing_to_be_built() -> None:
    assert FLAVOURS[0].name == "debian"
    assert FLAVOURS[0].missing == ""

"""What `make bench-pull` makes of its figures."""

from __future__ import annotations

import json

import pytest

from tests.bench.pull_figures import (
    BUSY,
    CONDITIONS,
    LARGE,
    MOST_MEMORY,
    MOST_PROCESSOR_RATIO,
    MOST_RATIO,
    OURS,
    QUIET,
    THEIRS,
    Figures,
    Pull,
    table,
)

CONTAINERD = "1.6"


def pulls(seconds: list[float], processor: float = 1.0) -> list[Pull]:
    return [Pull(seconds=each, processor=processor) for each in seconds]


def figures(
    ours: list[float],
    theirs: list[float],
    image: str = LARGE,
    condition: str = QUIET,
    processor: float = 1.0,
    peak: int = 0,
) -> Figures:
    taken = {OURS: pulls(ours, processor), THEIRS: pulls(theirs)}
    return Figures(containerd=CONTAINERD, pulls={(condition, image): taken}, peak_bytes=[peak] if peak else [])


def test_the_ratio_is_that_of_medians() -> None:
    """One slow pull on either side changes nothing."""
    measured = figures([1.0, 1.0, 90.0], [2.0, 2.0, 2.0, 50.0, 0.1])

    assert measured.ratio(QUIET, LARGE) == pytest.approx(0.5)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("image", MOST_RATIO)
def test_a_goal_is_met_up_to_its_bound(image: str, condition: str) -> None:
    most = MOST_RATIO[image]

    assert list(figures([most], [1.0], image, condition).goals().values()) == [True, True]
    assert list(figures([most + 0.01], [1.0], image, condition).goals().values()) == [False, True]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_processor_time_is_a_goal_of_its_own(condition: str) -> None:
    most = MOST_PROCESSOR_RATIO

    assert list(figures([0.1], [1.0], condition=condition, processor=most).goals().values()) == [True, True]
    assert list(figures([0.1], [1.0], condition=condition, processor=most + 0.01).goals().values()) == [True, False]


def test_a_missed_goal_says_where() -> None:
    (missed,) = (goal for goal, met in figures([2.0], [1.0], condition=BUSY).goals().items() if not met)

    assert missed == f"{LARGE}, busy: ratio of time 2.00, at most 1.00"


def test_the_largest_peak_counts() -> None:
    measured = figures([1.0], [1.0], peak=MOST_MEMORY - 1)
    assert all(measured.goals().values())

    measured.peak_bytes.append(MOST_MEMORY)
    assert not all(measured.goals().values())


def test_everything_that_was_measured_is_written_and_the_medians_are_shown() -> None:
    measured = figures([1.0, 2.0, 3.0], [4.0, 4.0, 4.0], processor=0.75, peak=99_000_000)

    document = json.loads(json.dumps(measured.document()))

    found = document["images"][LARGE][QUIET]
    assert found["seconds"]["all"] == {OURS: [1.0, 2.0, 3.0], THEIRS: [4.0, 4.0, 4.0]}
    assert (found["seconds"]["ratio"], found["processor"]["ratio"]) == (0.5, 0.75)
    assert document["peak_bytes"] == 99_000_000
    time, processor = table({"debian": measured}).splitlines()[1:]
    assert "2.00 s" in time and "0.50" in time and "99" in time
    assert "0.75 s" in processor and "99" not in processor

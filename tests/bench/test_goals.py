"""Goals are met, missed, or not told of: what is not built or not measured never passes."""

from __future__ import annotations

import pytest

from tests.bench import goals
from tests.bench.goals import ANY, GOALS, MET, MISSED, NOT_BUILT, NOT_MEASURED, Goal, Measured, Verdict
from tests.bench.modes import COLUMNS, DEFAULT, POOL, REAL
from tests.bench.stats import Ratio


def judged(measured: Measured, figure: str, flavour: str = "current") -> dict[str, Verdict]:
    return {v.column: v for v in goals.judge(flavour, measured) if v.goal.figure == figure}


def test_without_measurements_nothing_is_met_or_missed() -> None:
    for flavour in GOALS:
        outcomes = {v.outcome for v in goals.judge(flavour, Measured(built=frozenset({REAL})))}
        assert outcomes <= {NOT_BUILT, NOT_MEASURED}


def test_a_bound_is_met_when_it_is_reached() -> None:
    measured = Measured(built=frozenset({REAL, DEFAULT}))
    measured.note("run", 0.75, REAL)
    measured.note("run", 0.61, DEFAULT)

    found = judged(measured, "run")

    assert (found[REAL].outcome, found[DEFAULT].outcome, found[POOL].outcome) == (MET, MISSED, NOT_BUILT)


def test_rates_have_to_be_larger() -> None:
    measured = Measured(built=frozenset({REAL}))
    measured.note("up_8", 1.19, REAL)
    measured.note("down_8", 1.3, REAL)

    assert judged(measured, "up_8")[REAL].outcome == MISSED
    assert judged(measured, "down_8")[REAL].outcome == MET


def test_a_figure_of_a_way_that_is_not_built_does_not_pass() -> None:
    measured = Measured(built=frozenset({REAL}))
    measured.note("run", 0.01, POOL)

    verdict = judged(measured, "run")[POOL]
    assert (verdict.outcome, verdict.measured) == (NOT_BUILT, None)


def test_what_is_about_no_way_needs_none_to_be_built() -> None:
    measured = Measured(built=frozenset())
    measured.note("memory_500", 99.0)

    assert judged(measured, "memory_500", "debian")[ANY].outcome == MET


@pytest.mark.parametrize("flavour", GOALS)
def test_every_goal_is_of_known_columns(flavour: str) -> None:
    for goal in GOALS[flavour]:
        assert set(goal.bounds) == {ANY} or set(goal.bounds) <= set(COLUMNS)


def test_a_verdict_says_what_was_found_and_what_was_wanted() -> None:
    measured = Measured(built=frozenset({REAL}))
    measured.note("run", 0.9, REAL)

    words = judged(measured, "run")[REAL].words

    assert "RunPodSandbox, 1 client, real plugins: 0.9" in words
    assert "≤ 0.75: missed" in words


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.5, 0.7, "met"), (0.5, 0.8, "met?"), (0.75, 0.8, "met?"), (None, None, "met?")]
)
def test_a_verdict_that_may_be_due_to_noise_says_so(low: float | None, high: float | None, said: str) -> None:
    """The exit status goes by what was measured all the same: a run that is too short shows nothing."""
    measured = Measured(built=frozenset({REAL}))
    measured.note("run", Ratio(value=0.7, low=low, high=high), REAL)

    verdict = judged(measured, "run")[REAL]

    assert verdict.outcome == MET
    assert verdict.words.endswith(f": {said}")
    assert f"0.7 {said} (<=0.75)" in [cell for row in goals.rows([verdict]) for cell in row]


def test_the_table_has_a_line_a_goal() -> None:
    verdicts = goals.judge("current", Measured(built=frozenset({REAL})))

    rows = goals.rows(verdicts)

    assert len(rows) == 1 + len(GOALS["current"])
    assert all(len(row) == len(COLUMNS) + 2 for row in rows)
    assert any("not built (<=0.12)" in row for row in rows)


def test_units_are_said() -> None:
    goal = Goal(figure="x", title="memory", bounds={ANY: 100.0}, unit="MB")
    verdict = Verdict(goal=goal, column=ANY, outcome=MISSED, bound=100.0)

    assert verdict.words == "memory: goal ≤ 100 MB: missed"

"""What sandboxd is to reach, and whether it did. Pure.

Most goals are ratios to the plugin of the same containerd, measured in one run. A goal has a bound for each way to
run pods (see `modes`); one whose way is not built, or whose section was not run, is neither met nor missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.bench.modes import COLUMNS, DEFAULT, PINNED, POOL, REAL
from tests.bench.stats import Ratio

MET, MISSED, NOT_BUILT, NOT_MEASURED = "met", "missed", "not built", "not measured"

ANY = "any"  # of a goal that is not about a way to run pods


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """`figure` is the key of what is measured; `bounds` what it may be in each column."""

    figure: str
    title: str
    bounds: Mapping[str, float]
    at_least: bool = False  # the bound is the least, else the most
    unit: str = ""  # "" is a ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    goal: Goal
    column: str
    outcome: str
    bound: float
    measured: Ratio | None = None

    @property
    def certain(self) -> bool:
        """Whether the bound is outside of the interval; figures with a unit have none."""
        if self.measured is None or self.goal.unit:
            return True
        if self.measured.low is None or self.measured.high is None:
            return False
        return not self.measured.low <= self.bound <= self.measured.high

    @property
    def words(self) -> str:
        """For one line."""
        sign = "≥" if self.goal.at_least else "≤"
        where = "" if self.column == ANY else f", {self.column}"
        unit = f" {self.goal.unit}" if self.goal.unit else ""
        found = ""
        if self.measured is not None:
            between = "" if self.measured.low is None else f" ({self.measured.interval})"
            found = f"{self.measured.value:.3g}{unit}{between}, "
        outcome = self.outcome if self.certain else f"{self.outcome}?"
        return f"{self.goal.title}{where}: {found}goal {sign} {self.bound:g}{unit}: {outcome}"


def _same(bound: float) -> Mapping[str, float]:
    return dict.fromkeys(COLUMNS, bound)


def _columns(*bounds: float) -> Mapping[str, float]:
    return dict(zip(COLUMNS, bounds, strict=True))


_EVERYWHERE = (
    Goal(figure="list_containers_1000", title="ListContainers with 1,000", bounds={ANY: 1.0}),
    Goal(figure="list_pods_1000", title="ListPodSandbox with 1,000", bounds={ANY: 1.0}),
    Goal(figure="container_status_1000", title="ContainerStatus with 1,000", bounds={ANY: 1.0}),
    Goal(figure="pod_status_1000", title="PodSandboxStatus with 1,000", bounds={ANY: 1.0}),
    Goal(figure="exec_sync", title="ExecSync", bounds={ANY: 1.0}),
    Goal(figure="log_seconds_a_byte", title="log, seconds a byte", bounds={ANY: 1.0}),
    Goal(figure="memory_500", title="daemon's memory with 500 pods", bounds={ANY: 100.0}, unit="MB"),
    Goal(figure="idle_100", title="daemon idle with 100 pods", bounds={ANY: 0.5}, unit="% of a core"),
    # "Flat" is a ratio of 1; what is more than a fifth above it is not noise on any machine that is quiet.
    Goal(figure="flat_500", title="RunPodSandbox with 500 pods to that with none", bounds={ANY: 1.2}),
    Goal(figure="daemon_ms", title="daemon's processor time a pod", bounds=_same(15.0), unit="ms"),
    Goal(figure="startup", title="daemon's start", bounds={ANY: 0.5}, unit="s"),
    Goal(figure="recording", title="RunPodSandbox recorded to not recorded", bounds={ANY: 1.02}),
)

GOALS: Mapping[str, Sequence[Goal]] = {
    "current": (
        Goal(figure="run", title="RunPodSandbox, 1 client", bounds=_columns(0.75, 0.60, 0.12, 0.30)),
        Goal(figure="first_200", title="RunPodSandbox to HTTP 200", bounds=_columns(0.85, 0.75, 0.50, 0.60)),
        Goal(figure="create", title="CreateContainer", bounds=_same(1.0)),
        Goal(figure="start", title="StartContainer", bounds=_same(1.0)),
        Goal(figure="stop", title="StopPodSandbox", bounds=_columns(0.65, 0.35, 0.35, 0.30)),
        Goal(figure="up_8", title="pods/s up, 8 clients", bounds=_columns(1.2, 1.5, 1.5, 2.0), at_least=True),
        Goal(figure="down_8", title="pods/s down, 8 clients", bounds=_columns(1.3, 2.0, 2.0, 2.5), at_least=True),
        *_EVERYWHERE,
    ),
    "debian": (
        Goal(figure="run", title="RunPodSandbox, 1 client", bounds={DEFAULT: 0.75}),
        Goal(figure="stop", title="StopPodSandbox", bounds={DEFAULT: 0.4}),
        Goal(figure="up_8", title="pods/s up, 8 clients", bounds={DEFAULT: 1.3}, at_least=True),
        Goal(figure="down_8", title="pods/s down, 8 clients", bounds={DEFAULT: 1.3}, at_least=True),
        *_EVERYWHERE,
    ),
}


@dataclass(slots=True, kw_only=True)
class Measured:
    """The figures of one containerd by goal and column; what is of no column is of ANY."""

    built: frozenset[str]  # columns
    figures: dict[tuple[str, str], Ratio] = field(default_factory=dict)

    def note(self, figure: str, value: Ratio | float, column: str = ANY) -> None:
        if not isinstance(value, Ratio):
            value = Ratio(value=value)
        self.figures[figure, column] = value


def judge(flavour: str, measured: Measured) -> list[Verdict]:
    """Every goal in every column that it has a bound for. A bound is met when it is reached exactly."""
    verdicts = []
    for goal in GOALS[flavour]:
        for column, bound in goal.bounds.items():
            found = measured.figures.get((goal.figure, column))
            if column != ANY and column not in measured.built:
                outcome, found = NOT_BUILT, None
            elif found is None:
                outcome = NOT_MEASURED
            elif found.value >= bound if goal.at_least else found.value <= bound:
                outcome = MET
            else:
                outcome = MISSED
            verdicts.append(Verdict(goal=goal, column=column, outcome=outcome, bound=bound, measured=found))
    return verdicts


def rows(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """The table of goals: a line a goal, a column a way; of no way is what is in the last."""
    columns = (REAL, DEFAULT, POOL, PINNED, ANY)
    lines: dict[str, dict[str, str]] = {}
    for verdict in verdicts:
        lines.setdefault(verdict.goal.title, {})[verdict.column] = _cell(verdict)
    head = ("goal", *columns[:-1], "whole")
    return [head, *((title, *(cells.get(c, "") for c in columns)) for title, cells in lines.items())]


def _cell(verdict: Verdict) -> str:
    sign = ">=" if verdict.goal.at_least else "<="
    bound = f"{sign}{verdict.bound:g}"
    if verdict.measured is None:
        return f"{verdict.outcome} ({bound})"
    doubt = "" if verdict.certain else "?"
    return f"{verdict.measured.value:.3g} {verdict.outcome}{doubt} ({bound})"

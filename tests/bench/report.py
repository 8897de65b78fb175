"""What was measured, as figures for the goals, as a table for people and as a document. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.bench import goals, plots, stats
from tests.bench.goals import Measured, Verdict
from tests.bench.life import OPERATIONS, TITLES, Crowd, Times, Turns
from tests.bench.modes import COLUMNS, UNRECORDED
from tests.bench.parties import AGAIN, PLUGIN
from tests.bench.standing import Crowded, Flood
from tests.bench.stats import Ratio
from tests.bench.table import Row, megabytes, milliseconds, section

SPENT_TITLES = {
    "daemon": "the daemon",
    "containerd": "its containerd",
    "children": "plugins (of the plugin: and starts of shims)",
    "all": "all of it",
    "machine": "the machine",
}


@dataclass(slots=True, kw_only=True)
class Findings:
    """Everything of one containerd; what was not run is None or empty."""

    versions: Mapping[str, str]
    main: str  # the party that is what a user gets
    turns: Turns | None = None
    recording: Turns | None = None
    crowds: dict[int, Crowd] = field(default_factory=dict)  # by clients
    crowded: Crowded | None = None
    objects: dict[int, Times] = field(default_factory=dict)
    exec_sync: Times | None = None
    floods: dict[str, Flood] = field(default_factory=dict)
    start_up: list[float] = field(default_factory=list)
    start_up_spent: list[float] = field(default_factory=list)  # of processor time


def measured(found: Findings, built: frozenset[str]) -> Measured:
    """The figures that goals are about."""
    figures = Measured(built=built)
    if found.turns:
        _of_turns(found.turns, figures)
    for clients, crowd in found.crowds.items():
        for column in (c for c in COLUMNS if c in crowd.up):
            figures.note(f"up_{clients}", rate_ratio(crowd.up, column), column)
            figures.note(f"down_{clients}", rate_ratio(crowd.down, column), column)
    if found.recording:
        times = found.recording.times
        figures.note("recording", _ratio(times, "run", found.main, UNRECORDED))
    for count, times in found.objects.items():
        for call in times[PLUGIN]:
            figures.note(f"{call}_{count}", _ratio(times, call, found.main))
    if found.exec_sync:
        figures.note("exec_sync", _ratio(found.exec_sync, "exec_sync", found.main))
    if PLUGIN in found.floods:
        theirs = found.floods[PLUGIN].bytes_per_second
        figures.note("log_seconds_a_byte", theirs / found.floods[found.main].bytes_per_second)
    if found.start_up:
        figures.note("startup", statistics.median(found.start_up))
    if found.crowded:
        _of_crowded(found.crowded, found.main, figures)
    return figures


def _of_turns(turns: Turns, figures: Measured) -> None:
    for column in (c for c in COLUMNS if c in turns.times):
        for operation in OPERATIONS:
            figures.note(operation, _ratio(turns.times, operation, column), column)
        figures.note("daemon_ms", turns.spent[column].daemon * 1e3 / turns.pods, column)


def _of_crowded(crowded: Crowded, main: str, figures: Measured) -> None:
    sizes = crowded.sizes[main]
    for size in sizes:
        figures.note(f"memory_{size.pods}", size.daemon_bytes / 1e6)
        figures.note(f"flat_{size.pods}", stats.ratio(size.run, sizes[0].run))
    figures.note(f"idle_{crowded.idle_pods}", crowded.idle[main]["daemon"])


def _ratio(times: Times, call: str, party: str, other: str = PLUGIN) -> Ratio:
    return stats.ratio(times[party][call], times[other][call])


def rate_ratio(rates: Mapping[str, Sequence[float]], party: str) -> Ratio:
    """Of pods a second: ours over theirs."""
    return stats.ratio(rates[party], rates[PLUGIN])


def table(name: str, found: Findings, verdicts: Sequence[Verdict]) -> str:
    """All of it for people."""
    words = ", ".join(f"{key} {value}" for key, value in found.versions.items())
    parts = [f"{name}: {words}\n"]
    if found.turns:
        parts.append(section("1 client, by turns: milliseconds", _times(found.turns.times, OPERATIONS)))
        parts.append(section("processor: milliseconds a pod", _spent(found.turns)))
    if found.recording:
        rows = _times(found.recording.times, OPERATIONS, UNRECORDED)
        parts.append(section("recorded or not, pods without containers: milliseconds", rows))
        parts.append(section("recorded or not, processor: milliseconds a pod", _spent(found.recording)))
    for clients, crowd in found.crowds.items():
        parts.append(section(f"{clients} clients: milliseconds", _times(crowd.times, OPERATIONS)))
        parts.append(section(f"{clients} clients: pods a second", _rates(crowd)))
        parts.append(section(f"{clients} clients, processor: milliseconds a pod", _spent(crowd)))
    if found.crowded:
        parts.append(section("many pods", _sizes(found.crowded)))
        parts.append(section(f"idle with {found.crowded.idle_pods} pods: % of a core", _idle(found.crowded)))
    for count, times in found.objects.items():
        parts.append(section(f"{count} pods and containers: milliseconds", _times(times, tuple(times[PLUGIN]))))
    if found.exec_sync:
        parts.append(section("exec: milliseconds", _times(found.exec_sync, ("exec_sync",))))
    parts.append(section("a flood of output", _floods(found.floods)))
    if found.start_up:
        medians = [milliseconds(statistics.median(each)) for each in (found.start_up, found.start_up_spent)]
        parts.append(f"start of the daemon: {medians[0]} ms (median), of processor time {medians[1]} ms\n")
    parts.append(section("goals", goals.rows(verdicts)))
    return "\n".join(part for part in parts if part)


def _times(times: Times, calls: Sequence[str], other: str = PLUGIN) -> list[Row]:
    rows: list[Row] = [("operation", "party", "n", "median", "p95", "p99", "ratio", "95 % interval")]
    for call in calls:
        for party, series in times.items():
            if call not in series:
                continue
            one = stats.summary(series[call])
            ratio, between = "", ""
            if party != other:
                found = _ratio(times, call, party, other)
                ratio, between = f"{found.value:.2f}", found.interval
            shown = (milliseconds(value) for value in (one.median, one.p95, one.p99))
            rows.append((TITLES.get(call, call), party, str(one.count), *shown, ratio, between))
    return rows


def _rates(crowd: Crowd) -> list[Row]:
    rows: list[Row] = [("party", "up", "down", "ratio up", "95 % interval", "ratio down", "95 % interval")]
    for party in crowd.up:
        ratios: list[str] = []
        for rates in (crowd.up, crowd.down):
            found = rate_ratio(rates, party)
            ratios += (f"{found.value:.2f}", found.interval) if party != PLUGIN else ("", "")
        medians = (f"{statistics.median(rates[party]):.1f}" for rates in (crowd.up, crowd.down))
        rows.append((party, *medians, *ratios))
    return rows


def _spent(of: Turns | Crowd) -> list[Row]:
    rows: list[Row] = [("party", *SPENT_TITLES.values())]
    for party, spent in of.spent.items():
        each = spent.each(of.pods)
        rows.append((party, *(milliseconds(each[part]) if each[part] else "" for part in SPENT_TITLES)))
    return rows


def _sizes(crowded: Crowded) -> list[Row]:
    rows: list[Row] = [
        ("party", "pods", "daemon MB", "and containerd", "RunPodSandbox ms", "daemon ms a pod", "all ms")
    ]
    for party, sizes in crowded.sizes.items():
        for size in sizes:
            memory = (megabytes(size.daemon_bytes), megabytes(size.bytes_with_containerd))
            run = milliseconds(statistics.median(size.run))
            spent = (milliseconds(size.spent[part]) for part in ("daemon", "all"))
            rows.append((party, str(size.pods), *memory, run, *spent))
    return rows


def _idle(crowded: Crowded) -> list[Row]:
    parts = ("daemon", "containerd", "all")
    return [("party", *parts), *((p, *(f"{one[part]:.2f}" for part in parts)) for p, one in crowded.idle.items())]


def _floods(floods: Mapping[str, Flood]) -> list[Row]:
    rows: list[Row] = [("party", "MB a second", "Version ms", "flooded", "ListContainers ms", "flooded")]
    for party, flood in floods.items():
        shown = []
        for call in ("version", "list_containers"):
            shown += [milliseconds(statistics.median(one[call])) for one in (flood.quiet, flood.flooded)]
        rows.append((party, f"{flood.bytes_per_second / 1e6:.0f}", *shown))
    return rows


def document(found: Findings, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """For summary.json: every figure, in seconds and bytes."""
    whole: dict[str, Any] = {"versions": dict(found.versions), "default": found.main}
    whole["goals"] = [
        {
            "figure": verdict.goal.figure,
            "title": verdict.goal.title,
            "column": verdict.column,
            "bound": verdict.bound,
            "at_least": verdict.goal.at_least,
            "unit": verdict.goal.unit,
            "measured": asdict(verdict.measured) if verdict.measured else None,
            "outcome": verdict.outcome,
        }
        for verdict in verdicts
    ]
    if found.turns:
        whole["turns"] = _summaries(found.turns.times) | {"processor_seconds_a_pod": _each(found.turns)}
    if found.recording:
        summaries = _summaries(found.recording.times, UNRECORDED)
        whole["recording"] = summaries | {"processor_seconds_a_pod": _each(found.recording)}
    whole["crowds"] = {
        str(clients): _summaries(crowd.times)
        | {"up": crowd.up, "down": crowd.down, "processor_seconds_a_pod": _each(crowd)}
        for clients, crowd in found.crowds.items()
    }
    whole["many_pods"] = asdict(found.crowded) if found.crowded else None
    whole["objects"] = {str(count): _summaries(times) for count, times in found.objects.items()}
    whole["exec_sync"] = _summaries(found.exec_sync) if found.exec_sync else None
    whole["floods"] = {party: asdict(flood) for party, flood in found.floods.items()}
    whole["start_up_seconds"] = found.start_up
    whole["start_up_processor_seconds"] = found.start_up_spent
    return whole


def _summaries(times: Times, other: str = PLUGIN) -> dict[str, Any]:
    """Each party's calls: the values, what they come to, and the ratio to the other."""
    return {
        party: {
            call: {
                **asdict(stats.summary(series)),
                "ratio": asdict(_ratio(times, call, party, other)),
                "seconds": [round(value, 6) for value in series],
            }
            for call, series in calls.items()
        }
        for party, calls in times.items()
    }


def _each(of: Turns | Crowd) -> dict[str, dict[str, float]]:
    return {party: spent.each(of.pods) for party, spent in of.spent.items()}


def drawn(name: str, found: Findings, verdicts: Sequence[Verdict]) -> dict[str, str]:
    """The plots, by the name of their file."""
    files = {}
    version = found.versions["containerd"]
    if found.turns:
        times = found.turns.times
        bounds = {(v.goal.figure, v.column): v.bound for v in verdicts}
        shown = [party for party in (*COLUMNS, AGAIN) if party in times]
        bars = [
            plots.Bar(
                label=f"{TITLES[op]}, {party}",
                ratio=_ratio(times, op, party),
                bound=bounds.get((op, party)),
                muted=party == AGAIN,
            )
            for op in OPERATIONS
            for party in shown
        ]
        files[f"{name}-ratios.svg"] = plots.ratios(f"One pod at a time, containerd {version}", bars)
        files[f"{name}-run.svg"] = plots.distributions(
            f"RunPodSandbox, one client, containerd {version}",
            {party: [value * 1e3 for value in times[party]["run"]] for party in (*shown, PLUGIN)},
            "milliseconds",
        )
    if found.crowded:
        files[f"{name}-memory.svg"] = plots.lines(
            f"Memory of the daemon, containerd {version}",
            {
                party: [(float(size.pods), size.daemon_bytes / 1e6) for size in sizes]
                for party, sizes in found.crowded.sizes.items()
            },
            across="pods",
            up="MB",
        )
    return files

"""How sandboxd does beside containerd's own CRI plugin: `python -m tests.bench [options]`, `make bench`.

sandboxd, in each way to run pods that it is built for, and the plugin of the same containerd binary each get a host
of their own with the same in it (`parties`), and serve the same requests of one client by turns, pod by pod, in an
order that changes. The plugin runs twice: what lies between the two is noise. build/bench/summary.json gets every
figure, table.txt what is printed, and an SVG each plot.

    turns     one client: every operation, RunPodSandbox to the first HTTP 200, processor time a pod
    recording RunPodSandbox with timelines and without
    crowds    8 and 32 clients: the same, and pods a second up and down
    many      0, 100 and 500 pods: memory, what one more pod costs, what the daemon does when nobody asks
    objects   lists and states with 10, 100 and 1,000 pods and containers
    exec      ExecSync
    logs      a flood of output, and what it costs requests
    start     from the start of the daemon to its first answer

Pulls are another benchmark's (`tests.bench.pull`). The exit status is 1 when a goal was missed. A way that is not
built, and a containerd that is not, are left out, and that is said.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench import goals, life, per_pod, report, standing
from tests.bench.ground import FLAVOURS, OUT, Flavour, chosen
from tests.bench.modes import COLUMNS, UNRECORDED, Mode, main_mode
from tests.bench.parties import AGAIN, PLUGIN, Party, gathered, known_modes, versions
from tests.bench.report import Findings

SECTIONS = ("turns", "recording", "crowds", "many", "objects", "exec", "logs", "start")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured; no turns or crowds begin after `seconds`, but the first."""

    rounds: int
    crowds: tuple[tuple[int, int, int], ...]  # clients, pods, rounds
    sizes: tuple[int, ...]
    idle_at: int
    idle_seconds: float
    counts: tuple[int, ...]  # of objects
    execs: int
    flood_seconds: float
    starts: int
    window: int  # pods whose cost is that at a size
    calls: int  # of each kind, where one takes little
    recorded: int  # rounds, recorded and not
    seconds: float


FULL = Plan(
    rounds=64,
    crowds=((8, 32, 6), (32, 64, 3)),
    sizes=(0, 100, 500),
    idle_at=100,
    idle_seconds=60.0,
    counts=(10, 100, 1000),
    execs=100,
    flood_seconds=5.0,
    starts=5,
    window=12,
    calls=200,
    recorded=200,
    seconds=480.0,
)
QUICK = Plan(
    rounds=6,
    crowds=((8, 8, 2), (32, 32, 1)),
    sizes=(0, 10),
    idle_at=10,
    idle_seconds=5.0,
    counts=(10, 50),
    execs=10,
    flood_seconds=1.0,
    starts=2,
    window=6,
    calls=100,
    recorded=6,
    seconds=45.0,
)


def measure(flavour: Flavour, modes: Sequence[Mode], plan: Plan, sections: Sequence[str]) -> Findings:
    """Run these sections on one containerd."""
    with gathered(flavour, modes) as parties:
        return measure_these(flavour, parties, main_mode(modes).name, plan, sections)


def measure_these(
    flavour: Flavour, parties: Mapping[str, Party], main: str, plan: Plan, sections: Sequence[str]
) -> Findings:
    """The same with parties that are there; `main` is the one that is what a user gets."""
    found = Findings(versions=versions(parties[PLUGIN]), main=main)
    everybody = [party for name, party in parties.items() if name != UNRECORDED]
    two = [parties[main], parties[PLUGIN]]
    if "turns" in sections:
        _say(flavour, f"turns of {', '.join(party.name for party in everybody)}")
        found.turns = life.turns(everybody, plan.rounds, time.monotonic() + plan.seconds)
    if "recording" in sections and UNRECORDED in parties:
        _say(flavour, "recording")
        both = [parties[main], parties[UNRECORDED]]
        found.recording = life.turns(both, plan.recorded, time.monotonic() + plan.seconds, life.bare)
    if "crowds" in sections:
        deadline = time.monotonic() + plan.seconds
        for clients, pods, rounds in plan.crowds:
            _say(flavour, f"{clients} clients")
            found.crowds[clients] = life.crowd(everybody, clients, pods, rounds, deadline)
    _standing(flavour, found, two, plan, sections)
    return found


def _standing(flavour: Flavour, found: Findings, two: Sequence[Party], plan: Plan, sections: Sequence[str]) -> None:
    if "exec" in sections:
        _say(flavour, "exec")
        found.exec_sync = standing.executions(two, plan.execs)
    if "logs" in sections:
        _say(flavour, "logs")
        found.floods = {party.name: standing.flood(party, plan.flood_seconds, plan.calls) for party in two}
    if "many" in sections:
        _say(flavour, f"{', '.join(map(str, plan.sizes))} pods")
        found.crowded = standing.crowded(two, plan.sizes, plan.idle_at, plan.idle_seconds, plan.window)
    if "objects" in sections:
        _say(flavour, f"{', '.join(map(str, plan.counts))} objects")
        found.objects = standing.objects(two, plan.counts, plan.calls)
    if "start" in sections:
        found.start_up, found.start_up_spent = standing.start_up(two[0], plan.starts)


def _say(flavour: Flavour, words: str) -> None:
    print(f"bench: {flavour.name}: {words}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the head of this file."""
    options = _options(arguments)
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = Plan(**{**{f: getattr(plan, f) for f in Plan.__dataclass_fields__}, "rounds": options.rounds})
    modes = known_modes()
    flavours = chosen(options.containerds, "bench")
    OUT.mkdir(parents=True, exist_ok=True)
    if options.profile:
        return _profile(flavours, modes)
    load = os.getloadavg()[0]
    document: dict[str, object] = {"processors": os.cpu_count(), "load_before": load, "quick": options.quick}
    tables, verdicts = [], []
    for flavour in flavours:
        found = measure(flavour, modes, plan, options.only or SECTIONS)
        figures = report.measured(found, frozenset(mode.name for mode in modes if mode.built))
        judged = goals.judge(flavour.name, figures)
        verdicts += [(flavour.name, verdict) for verdict in judged]
        tables.append(report.table(flavour.name, found, judged))
        document[flavour.name] = report.document(found, judged)
        for name, drawing in report.drawn(flavour.name, found, judged).items():
            (OUT / name).write_text(drawing, encoding="utf-8")
    (OUT / "summary.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (OUT / "table.txt").write_text("\n".join(tables), encoding="utf-8")
    print("\n".join(tables))
    return _conclude(verdicts, load)


def _conclude(verdicts: Sequence[tuple[str, goals.Verdict]], load: float) -> int:
    """The last lines, and the exit status."""
    outcomes = [verdict.outcome for _, verdict in verdicts]
    for name, verdict in verdicts:
        if verdict.outcome == goals.MISSED:
            print(f"missed: {name}: {verdict.words}")
    unbuilt = [c for c in COLUMNS if any(v.column == c and v.outcome == goals.NOT_BUILT for _, v in verdicts)]
    if unbuilt:
        print(f"not built: {', '.join(unbuilt)}")
    cores = os.cpu_count() or 1
    if load > cores / 2:
        print(f"bench: the machine was not quiet (load {load:.1f} before the start): times are not to be relied on")
    counted = ", ".join(f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes))
    print("bench: a verdict with a ? may be due to noise: the bound is within the interval, or no interval is known")
    print(f"bench: goals: {counted}; {AGAIN!r} to {PLUGIN!r} is noise; {OUT / 'summary.json'} has every figure")
    return 1 if goals.MISSED in outcomes else 0


def _profile(flavours: Sequence[Flavour], modes: Sequence[Mode]) -> int:
    for flavour in flavours:
        _say(flavour, "counts and profile of one pod")
        found = per_pod.measure(flavour, main_mode(modes))
        words = per_pod.text(found)
        (OUT / f"profile-{flavour.name}.txt").write_text(f"{words}\n{found.profile}", encoding="utf-8")
        print(f"{flavour.name}\n\n{words}")
        print(f"bench: {OUT / f'profile-{flavour.name}.txt'} has the profile too")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [flavour.name for flavour in FLAVOURS]
    parser = argparse.ArgumentParser(description="Measure sandboxd beside containerd's own CRI plugin.")
    parser.add_argument("containerds", nargs="*", metavar="CONTAINERD", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="only this section; repeatable")
    parser.add_argument("--rounds", type=int, default=0, help="turns of each party with one client")
    parser.add_argument("--quick", action="store_true", help="a little of everything, in a few minutes")
    parser.add_argument("--profile", action="store_true", help="instead: what the daemon does for one pod")
    options = parser.parse_args(arguments)
    if unknown := set(options.containerds) - set(names):
        parser.error(f"unknown containerd {', '.join(sorted(unknown))}: known are {', '.join(names)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())

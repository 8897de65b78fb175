"""What one pod costs the daemon, counted and profiled: `python -m tests.bench --profile`."""

from __future__ import annotations

import io
import json
import os
import pstats
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench import floor
from tests.bench.counted import COUNTS, PROFILED, STATS
from tests.bench.floor import Floor
from tests.bench.ground import Flavour
from tests.bench.life import whole
from tests.bench.modes import Mode
from tests.bench.parties import Party, start_sandboxd
from tests.bench.table import section
from tests.processes import until
from tests.testbed import ROOT

PODS = 12
REQUESTS = 6  # of the client for one pod: up, its address, down
INSIDE = "/var/log/counted"
COUNTED = (sys.executable, "-m", "tests.bench.counted", INSIDE)  # the daemon
SHOWN = 45  # functions of the profile, and modules of the import

Counts = Mapping[tuple[str, str, str], float]  # kind, what, RPC: how often for one pod


@dataclass(frozen=True, slots=True, kw_only=True)
class PerPod:
    """Of one pod with one container, from RunPodSandbox to RemovePodSandbox."""

    counts: Counts
    daemon_ms: float  # processor time, without the profiler
    floor: Floor  # what a call costs in itself
    profile: str  # what cProfile says, for people


def measure(flavour: Flavour, mode: Mode, pods: int = PODS) -> PerPod:
    """Run so many pods twice, once counted and once profiled."""
    with ExitStack() as stack:
        party = _start(stack, flavour, mode)
        _, before = counted(party)
        for _ in range(pods):
            whole(party, {})
        events, after = counted(party)
        counts, spent = per_pod(events, pods), after - before
    with ExitStack() as stack:
        party = _start(stack, flavour, mode, profiled=True)
        counted(party)
        for _ in range(pods):
            whole(party, {})
        counted(party)
        profile = told(party.bed.path(f"{INSIDE}/{STATS}"), pods)
    spent_ms = spent * 1e3 / pods
    return PerPod(counts=counts, daemon_ms=spent_ms, floor=floor.measure(), profile=profile + import_time())


def per_pod(counted: Sequence[Sequence[object]], pods: int) -> Counts:
    """The rows that the daemon wrote, for one pod."""
    return {(str(kind), str(what), str(rpc)): float(str(n)) / pods for kind, what, rpc, n in counted}


def rows(kind: str, counts: Counts) -> list[tuple[str, ...]]:
    """One line for each thing of this kind, a column for each RPC, most frequent first."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for (of, what, rpc), number in counts.items():
        if of == kind:
            found[what][rpc] += number  # type: ignore[assignment]  # fractions are counted too
    rpcs = sorted({rpc for one in found.values() for rpc in one})
    ordered = sorted(found, key=lambda what: (-sum(found[what].values()), what))
    table = [(kind, "a pod", *(rpc or "by itself" for rpc in rpcs))]
    table += [
        (what, _number(sum(found[what].values())), *(_number(found[what][r]) for r in rpcs)) for what in ordered
    ]
    sums = [sum(one[rpc] for one in found.values()) for rpc in rpcs]
    return [*table, ("all", _number(sum(sums)), *(_number(each) for each in sums))]


def text(measured: PerPod) -> str:
    """For people."""
    asked = sum(number for (kind, _, _), number in measured.counts.items() if kind == "containerd")
    alone = measured.floor.of(asked=asked, answered=REQUESTS)
    parts = [
        f"daemon: {measured.daemon_ms:.1f} ms of processor time a pod, of which gRPC alone, without anything that it"
        f" is used for, takes {alone:.1f} ms: {asked:.0f} calls to containerd at {measured.floor.asking:.2f} ms and"
        f" {REQUESTS} of the client at {measured.floor.answering:.2f} ms\n"
    ]
    for kind, title in (
        ("containerd", "calls to containerd"),
        ("commit", "transactions of the ledger"),
        ("log", "log records"),
        ("process", "processes"),
    ):
        parts.append(section(title, rows(kind, measured.counts)))
    return "\n".join(part for part in parts if part)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value else ""


def _start(stack: ExitStack, flavour: Flavour, mode: Mode, *, profiled: bool = False) -> Party:
    party = start_sandboxd(stack, flavour, mode, ["env", f"{PROFILED}=1", *COUNTED] if profiled else COUNTED)
    for _ in range(2):
        whole(party, {})
    return party


def counted(party: Party) -> tuple[list[list[object]], float]:
    """What was counted since the last time, and the seconds of processor time since the daemon's start."""
    place = party.bed.path(f"{INSIDE}/{COUNTS}")
    place.unlink(missing_ok=True)
    os.kill(party.bed.daemon_pid, signal.SIGUSR2)
    until(place.exists, what="the daemon has written its counts")
    written = json.loads(place.read_bytes())
    return written["counts"], float(written["processor"])


def told(stats: Path, pods: int) -> str:
    """The profile: what takes time itself, by function and by file, and what takes it with all that it calls."""
    output = io.StringIO()
    read = pstats.Stats(str(stats), stream=output)
    by_file: Counter[str] = Counter()
    for (file, _, _), (_, _, own, _, _) in read.stats.items():  # type: ignore[attr-defined]
        by_file[_short(file)] += own
    lines = [(f"{own * 1e3 / pods:.2f}", file) for file, own in by_file.most_common(SHOWN)]
    output.write(f"Milliseconds of processor time a pod by file, with the profiler's own weight ({pods} pods)\n")
    output.writelines(f"{own:>8}  {file}\n" for own, file in lines)
    read.sort_stats("tottime").print_stats(SHOWN)
    read.sort_stats("cumulative").print_stats("sandboxd", SHOWN)
    return output.getvalue().replace(f"{ROOT}/", "")


def _short(file: str) -> str:
    if not file.startswith("/"):
        return "C"
    for place in ("/site-packages/", f"/python{sys.version_info[0]}.{sys.version_info[1]}/"):
        file = file.rpartition(place)[2]
    return file.removeprefix(f"{ROOT}/")


def import_time() -> str:
    """What importing the daemon takes, by module; its slowest with all that they import."""
    argv = [sys.executable, "-X", "importtime", "-c", "import sandboxd.__main__, sandboxd.daemon"]
    words = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stderr
    lines = [line.removeprefix("import time:").split("|") for line in words.splitlines() if "|" in line][1:]
    slowest = sorted(((int(total), name.rstrip()) for _, total, name in lines), reverse=True)[:SHOWN]
    return "Microseconds of the slowest imports\n" + "".join(f"{t:>9} {name}\n" for t, name in slowest)

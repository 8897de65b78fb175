"""What container output costs the daemon's answers, and how fast it flows: `python -m tests.bench.logs`.

In one bed, three times the same requests: with nothing else going on, with two containers that only burn CPU, and
with two that write all they can. Version and ListContainers are answered by the daemon alone; reopening a log asks
the logger, in the middle of its work. build/bench/logs.json gets the medians and the ratios of flooded to burning:
a daemon that pumped the output itself would take tens of times as long. Beside them, how many bytes of log were
written in a second of the flood.

The exit status is 1 when a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

if not __package__:  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.pods import container_config, container_status, run_container, run_pod
from tests.processes import until
from tests.testbed import ROOT, Testbed

OUT = ROOT / "build" / "bench" / "logs.json"
CALLS_EACH = 200
# What the median of a request may be at most, with a flood of output, compared to mere load.
MOST_RATIO: Mapping[str, float] = {"version": 2.0, "list": 2.0, "reopen": 10.0}

Calls = Mapping[str, Callable[[], object]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the head of this file."""
    parser = argparse.ArgumentParser(description="Measure what container output costs the daemon's answers.")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    with Testbed() as bed:
        bed.default_network()
        bed.start_daemon(daemon={"log_level": "info"})
        bed.load_image("busybox")
        figures = measure(bed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    missed = [name for name, most in MOST_RATIO.items() if figures["ratio"][name] > most]
    for name in MOST_RATIO:
        times = "  ".join(f"{load} {figures[load][name] * 1e3:6.2f} ms" for load in ("idle", "burning", "flooded"))
        print(f"{name:8} {times}  ratio {figures['ratio'][name]:.2f} (goal: at most {MOST_RATIO[name]:g})")
    print(f"flood    {figures['flow']['bytes_per_second'] / 1e6:.0f} MB of log a second")
    print(f"bench-logs: {len(MOST_RATIO) - len(missed)} goals met, {len(missed)} missed ({options.out})")
    return 1 if missed else 0


def measure(bed: Testbed) -> dict[str, dict[str, float]]:
    """Medians in seconds, by load and request; their ratios; the flow of log."""
    pod_id = run_pod(bed)
    quiet = run_container(bed, pod_id, container_config("quiet", "busybox", ["sleep", "100000"]))
    calls: Calls = {
        "version": lambda: bed.runtime.Version(cri.VersionRequest(), timeout=30),
        "list": lambda: bed.runtime.ListContainers(cri.ListContainersRequest(), timeout=30),
        "reopen": lambda: bed.runtime.ReopenContainerLog(
            cri.ReopenContainerLogRequest(container_id=quiet), timeout=30
        ),
    }
    idle = medians(calls)
    with busy(bed, pod_id, "burn", "while :; do :; done"):
        burning = medians(calls)
    with busy(bed, pod_id, "flood", "exec yes") as logs:
        before, began = size(logs), time.perf_counter()
        flooded = medians(calls)
        flow = (size(logs) - before) / (time.perf_counter() - began)
    return {
        "idle": idle,
        "burning": burning,
        "flooded": flooded,
        "ratio": {name: flooded[name] / burning[name] for name in calls},
        "flow": {"bytes_per_second": flow},
    }


def medians(calls: Calls) -> dict[str, float]:
    """The median of each request, which take turns: what disturbs one disturbs all."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(CALLS_EACH):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in taken.items()}


@contextmanager
def busy(bed: Testbed, pod_id: str, name: str, script: str) -> Iterator[list[Path]]:
    """Two containers that run a script meanwhile; their log files."""
    configs = [container_config(f"{name}-{i}", "busybox", ["sh", "-c", f"echo on; {script}"]) for i in range(2)]
    made = [run_container(bed, pod_id, config) for config in configs]
    logs = [bed.path(container_status(bed, container_id).log_path) for container_id in made]
    try:
        until(lambda: all(log.stat().st_size for log in logs), within=30, what=f"both containers {name}")
        yield logs
    finally:
        for container_id, log in zip(made, logs, strict=True):
            bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=60)
            log.unlink()


def size(logs: Sequence[Path]) -> int:
    return sum(log.stat().st_size for log in logs)


if __name__ == "__main__":
    sys.exit(main())

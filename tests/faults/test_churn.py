"""Pods come and go, many at a time: nothing is left of them, in the host or in the daemon."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.faults.cells import Cells
from tests.pods import container_config, create_container, pod_config, remove_pod, run_pod, start_container
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.faults

AT_ONCE = 16
WARM_UP = 48  # pods, until pools, caches and the allocator have what they need
SECONDS = 300  # for one request on a machine that does much else
MORE_THREADS = 8  # pools start theirs as they need them, up to a limit
MORE_MEMORY = 16 << 20  # bytes: an allocator's fragments, not something of each pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a daemon holds."""

    descriptors: list[str]  # what they are, without what differs each time
    threads: int
    memory: int  # bytes, resident
    tasks: dict[str, int]
    busy: list[str]  # jobs and locks
    logger_descriptors: int


@pytest.fixture
def bed() -> Iterator[Testbed]:
    with Testbed() as made:
        made.default_network()
        made.daemon_argv = [sys.executable, str(Path(__file__).with_name("counted.py")), str(counts_file(made))]
        made.env["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        made.start_daemon(daemon={"log_level": "warning"})
        made.load_image("busybox")
        yield made


def counts_file(bed: Testbed) -> Path:
    return bed.base / "counts.json"


def counts(bed: Testbed) -> dict[str, Any]:
    """What the daemon counts in itself; see counted.py."""
    file = counts_file(bed)
    file.unlink(missing_ok=True)
    os.kill(bed.daemon_pid, signal.SIGUSR2)
    until(file.exists, what="the daemon counts")
    counted: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return counted


def held(bed: Testbed) -> Held:
    """What the daemon holds now."""
    process = Path("/proc") / str(bed.daemon_pid)
    links = []
    for fd in (process / "fd").iterdir():
        try:
            links.append(os.readlink(fd).partition(":[")[0])
        except FileNotFoundError:  # closed meanwhile
            continue
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    counted = counts(bed)
    logger = bed.path("/run/sandboxd/logger.pid").read_text().split()[0]
    return Held(
        descriptors=sorted(links),
        threads=int(fields["Threads"]),
        memory=int(fields["VmRSS"].split()[0]) * 1024,
        tasks=counted["tasks"],
        busy=[*counted["jobs"], *counted["locks"]],
        logger_descriptors=len(list((bed.proc / logger / "fd").iterdir())),
    )


def one(bed: Testbed, number: int) -> None:
    """A pod with a container comes and goes; every fourth is entered, every other removed without being stopped."""
    config = pod_config(f"churn-{number}")
    pod_id = run_pod(bed, config)
    command = ["sleep", "100000"] if number % 2 else ["true"]
    container = create_container(bed, pod_id, container_config("main", "busybox", command), config)
    start_container(bed, container)
    if number % 4 == 1:
        request = cri.ExecSyncRequest(container_id=container, cmd=["echo", "hi"])
        assert bed.runtime.ExecSync(request, timeout=SECONDS).stdout == b"hi\n"
    if number % 3:
        remove_pod(bed, pod_id)
    else:
        bed.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id), timeout=SECONDS)


def churn(bed: Testbed, numbers: range) -> None:
    with ThreadPoolExecutor(AT_ONCE) as clients:
        for _ in clients.map(lambda number: one(bed, number), numbers):
            pass


@pytest.mark.timeout(7200)
def test_a_daemon_through_which_many_pods_went_holds_what_it_held_before(
    bed: Testbed, cells: Cells, everything: bool
) -> None:
    pods = 1000 if everything else 150
    churn(bed, range(1))
    host = observe(bed)
    churn(bed, range(1, WARM_UP))
    until(lambda: not held(bed).busy, what="the daemon rests")
    before = held(bed)
    churn(bed, range(WARM_UP, pods))
    until(lambda: not held(bed).busy, what="the daemon rests")

    with cells.cell("churn", at=f"{pods} pods, {AT_ONCE} at a time", what="residue"):
        assert not bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
        assert_no_leaks(bed, host)
    with cells.cell("churn", at=f"{pods} pods, {AT_ONCE} at a time", what="descriptors"):
        until(lambda: held(bed).descriptors == before.descriptors, what=f"{before}, not {held(bed)}")
        until(lambda: held(bed).logger_descriptors == before.logger_descriptors, what="the logger's are closed")
    with cells.cell("churn", at=f"{pods} pods, {AT_ONCE} at a time", what="threads, tasks and memory"):
        until(lambda: held(bed).tasks == before.tasks, what=f"{before}, not {held(bed)}")
        after = held(bed)
        assert after.threads <= before.threads + MORE_THREADS, (before, after)
        assert after.memory <= before.memory + MORE_MEMORY, (before, after)

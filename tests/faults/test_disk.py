"""A full disk keeps no pod from being stopped and removed, and is said; new pods are refused before they begin.

Each case has a bed with a small file system of its own in one place, which is filled again before each request: what
a removal frees, and what the daemon had in reserve, is taken at once, as by a container that goes on writing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.faults.cells import Cells
from tests.pods import (
    LOGS,
    create_container,
    exited,
    pod_config,
    pod_status,
    refused,
    remove_pod,
    run_container,
    run_pod,
    shell,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.faults

ROOT = "/var/lib/sandboxd"
STATE = "/run/sandboxd"
IPAM = "/var/lib/cni"
SOCKET = "/run/api/sandboxd.sock"  # in a place that the test process sees
SECONDS = 60  # for any answer
WRONG = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)

# It goes on whether or not its output is taken; how far it is can be read in its pod's memory.
COUNT = "n=0; while :; do n=$((n+1)); echo $n; echo $n > /dev/shm/n; sleep 0.05; done"

FILL = """
import os, sys, uuid
place, what = sys.argv[1:]
if what == "inodes":
    try:
        os.makedirs(f"{place}/filler", exist_ok=True)
        while True:
            open(f"{place}/filler/{uuid.uuid4()}", "x").close()
    except OSError:
        sys.exit()
fd = os.open(f"{place}/filler", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
for size in (1 << 20, 4096, 1):
    try:
        while True:
            os.write(fd, b"x" * size)
    except OSError:
        pass
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A bed with a small file system, and what it lacks when it is full: "bytes" or "inodes"."""

    bed: Testbed
    place: str
    lacks: str

    def fill(self) -> None:
        """Take everything that is left."""
        self.bed.run(["python3", "-I", "-c", FILL, self.place, self.lacks])

    def clear(self) -> None:
        """Give it all back."""
        self.bed.run(["rm", "-rf", f"{self.place}/filler"])

    def names(self) -> str:
        """Everything that is on it."""
        return self.bed.run(["find", self.place, "-path", f"{self.place}/filler", "-prune", "-o", "-print"]).stdout


@contextmanager
def disk(containerd_bin: Path | None, place: str, lacks: str) -> Iterator[Disk]:
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        bed.run(["mkdir", "-p", place, LOGS])
        size = "nr_inodes=3000,size=200m" if lacks == "inodes" else "size=96m"
        bed.run(["mount", "-t", "tmpfs", "-o", f"{size},mode=0711", "none", place])
        bed.start_daemon(api={"socket": SOCKET})
        bed.load_image("busybox")
        yield Disk(bed=bed, place=place, lacks=lacks)


def conditions(bed: Testbed) -> dict[str, cri.RuntimeCondition]:
    answer = bed.runtime.Status(cri.StatusRequest(), timeout=SECONDS)
    return {condition.type: condition for condition in answer.status.conditions}


def pods(bed: Testbed) -> set[str]:
    return {pod.id for pod in bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=SECONDS).items}


def is_refused(ask: Callable[[], object], *codes: grpc.StatusCode) -> str:
    """The request is refused with one of the codes, with any that is not `WRONG` without; the words."""
    with pytest.raises(grpc.RpcError) as error:
        ask()
    code, words = refused(error.value)
    assert code in codes if codes else code not in WRONG, f"{code}: {words}"
    return words


def answered(ask: Callable[[], object]) -> None:
    """The request succeeds, or is refused with a code that says something."""
    try:
        ask()
    except grpc.RpcError as error:
        code, words = refused(error)
        assert code not in WRONG, f"{code}: {words}"


def goes_on(bed: Testbed, container_id: str) -> None:
    def count() -> int:
        read = cri.ExecSyncRequest(container_id=container_id, cmd=["cat", "/dev/shm/n"], timeout=30)
        return int(bed.runtime.ExecSync(read, timeout=SECONDS).stdout or "0")

    before = count()
    until(lambda: count() > before, what="the container goes on although its output is not taken")


def stop(bed: Testbed, container_id: str) -> None:
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=1), timeout=SECONDS)
    assert exited(bed, container_id)


def remove(bed: Testbed, container_id: str) -> None:
    bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=SECONDS)
    wanted = cri.ListContainersRequest(filter=cri.ContainerFilter(id=container_id))
    assert not bed.runtime.ListContainers(wanted).containers


def stop_pod(bed: Testbed, pod_id: str) -> None:
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=SECONDS)
    assert pod_status(bed, pod_id).state == cri.SANDBOX_NOTREADY


def remove_stopped(bed: Testbed, pod_id: str) -> None:
    bed.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id), timeout=SECONDS)
    assert pod_id not in pods(bed)


FULL = [(ROOT, "bytes"), (ROOT, "inodes"), (STATE, "bytes"), (STATE, "inodes"), (IPAM, "bytes"), (LOGS, "bytes")]


@pytest.mark.parametrize(("place", "lacks"), FULL)
def test_pods_on_a_full_disk_are_stopped_and_removed_and_new_ones_refused(
    cells: Cells, containerd_bin: Path | None, place: str, lacks: str
) -> None:
    what = f"no {lacks} on {place}"
    with disk(containerd_bin, place, lacks) as full:
        bed = full.bed
        remove_pod(bed, run_pod(bed))
        before = observe(bed)
        made = [run_pod(bed) for _ in range(3)]
        inside = [run_container(bed, pod_id, shell(COUNT)) for pod_id in made]

        def tried(verb: str, do: Callable[[], object]) -> None:
            full.fill()
            with cells.cell("disk", at=verb, what=what):
                do()

        if place != LOGS:  # a client's choice, and its to watch
            tried("Status", lambda: _says_so(bed, place))
            tried("RunPodSandbox", lambda: is_refused(lambda: run_pod(bed), grpc.StatusCode.RESOURCE_EXHAUSTED))
        else:
            tried("RunPodSandbox", lambda: answered(lambda: remove_pod(bed, run_pod(bed))))
        tried("CreateContainer", lambda: answered(lambda: create_container(bed, made[1], shell("true"))))
        tried("LoadImage", lambda: answered(lambda: bed.load_image("busybox")))
        if place == STATE:
            run = cri.ExecSyncRequest(container_id=inside[0], cmd=["true"], timeout=30)
            tried("ExecSync", lambda: answered(lambda: bed.runtime.ExecSync(run, timeout=SECONDS)))
        else:
            tried("ExecSync", lambda: goes_on(bed, inside[0]))
        tried("StopContainer", lambda: stop(bed, inside[0]))
        tried("RemoveContainer", lambda: remove(bed, inside[0]))
        tried("StopPodSandbox", lambda: stop_pod(bed, made[0]))
        tried("RemovePodSandbox", lambda: remove_stopped(bed, made[0]))
        tried("restart", lambda: _restarted(bed, made[1:], kill=False))
        tried("StopPodSandbox after a restart", lambda: stop_pod(bed, made[1]))
        tried("RemovePodSandbox after a restart", lambda: remove_stopped(bed, made[1]))
        tried("restart after SIGKILL", lambda: _restarted(bed, made[2:], kill=True))
        tried("RemovePodSandbox after SIGKILL", lambda: remove_stopped(bed, made[2]))
        with cells.cell("disk", at="afterwards", what=what):
            full.clear()
            if not bed.daemon_running:
                bed.relaunch_daemon()
            until(lambda: conditions(bed)["DiskReady"].status, what="there is room again")
            for left in pods(bed):
                remove_pod(bed, left)
            remove_pod(bed, run_pod(bed))
            assert_no_leaks(bed, before)
            names = full.names()
            assert not [id_ for id_ in (*made, *inside) if id_ in names and place != LOGS]


def _says_so(bed: Testbed, place: str) -> None:
    found = conditions(bed)
    assert not found["DiskReady"].status
    assert place in found["DiskReady"].message
    assert found["RuntimeReady"].status


def _restarted(bed: Testbed, remain: list[str], *, kill: bool) -> None:
    """The daemon comes back and knows its pods; one that it could not note as removed may be there once more."""
    bed.restart_daemon(kill=kill)
    assert pods(bed) >= set(remain)
    for pod_id in remain:
        assert pod_status(bed, pod_id).state == cri.SANDBOX_READY


def test_a_ledger_that_cannot_be_written_keeps_no_pod_from_being_removed(
    cells: Cells, containerd_bin: Path | None
) -> None:
    """As on a file system that an error has made read-only, or over a quota: nothing can be given up for it."""
    what = "the daemon can write no file"
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        bed.run(["mkdir", "-p", LOGS])
        bed.start_daemon()
        bed.load_image("busybox")
        remove_pod(bed, run_pod(bed))
        before = observe(bed)
        made = [run_pod(bed) for _ in range(3)]
        inside = [run_container(bed, pod_id, shell(COUNT)) for pod_id in made]
        ends = run_container(bed, made[2], shell("exit 7"))
        until(lambda: exited(bed, ends), what="the container ends")
        ends = run_container(bed, made[2], shell("sleep 0.5; until test -e /dev/shm/go; do sleep 0.1; done; exit 7"))
        bed.run(["prlimit", f"--pid={_inside_pid(bed)}", "--fsize=0:unlimited"])

        with cells.cell("disk", at="RunPodSandbox", what=what):
            is_refused(lambda: run_pod(bed))
            assert pods(bed) == set(made)
            is_refused(lambda: run_pod(bed), grpc.StatusCode.RESOURCE_EXHAUSTED)
        with cells.cell("disk", at="Status", what=what):
            condition = conditions(bed)["DiskReady"]
            assert not condition.status and "the ledger cannot be written" in condition.message
        with cells.cell("disk", at="an exit", what=what):
            go = cri.ExecSyncRequest(container_id=ends, cmd=["touch", "/dev/shm/go"], timeout=30)
            bed.runtime.ExecSync(go, timeout=SECONDS)
            until(lambda: exited(bed, ends), what="the exit is seen")
        with cells.cell("disk", at="StopContainer", what=what):
            stop(bed, inside[0])
        with cells.cell("disk", at="RemoveContainer", what=what):
            remove(bed, inside[0])
        with cells.cell("disk", at="StopPodSandbox", what=what):
            stop_pod(bed, made[0])
        with cells.cell("disk", at="RemovePodSandbox", what=what):
            remove_stopped(bed, made[0])
        with cells.cell("disk", at="restart after SIGKILL", what=what):
            bed.restart_daemon(kill=True)
            status = bed.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=ends)).status
            assert (status.state, status.exit_code) == (cri.CONTAINER_EXITED, 7)
            assert {id_ for id_ in pods(bed) if pod_status(bed, id_).state == cri.SANDBOX_READY} == set(made[1:])
        with cells.cell("disk", at="afterwards", what=what):
            for left in pods(bed):
                remove_pod(bed, left)
            remove_pod(bed, run_pod(bed))
            assert_no_leaks(bed, before)


def _inside_pid(bed: Testbed) -> int:
    """The daemon's pid in the bed."""
    for entry in bed.proc.iterdir():
        if entry.name.isdigit():
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"sandboxd" in words and b"serve" in words:
                return int(entry.name)
    raise AssertionError("no daemon runs")


def test_what_is_noted_late_is_noted_once_there_is_room(cells: Cells, containerd_bin: Path | None) -> None:
    with disk(containerd_bin, ROOT, "bytes") as full:
        bed = full.bed
        pod_id = run_pod(bed, pod_config(f"late-{secrets.token_hex(4)}"))
        full.fill()
        remove_pod(bed, pod_id)
        full.clear()
        until(lambda: conditions(bed)["DiskReady"].status, what="there is room again")
        with cells.cell("disk", at="RemovePodSandbox", what="room again, then SIGKILL"):
            bed.restart_daemon(kill=True)
            assert not pods(bed)

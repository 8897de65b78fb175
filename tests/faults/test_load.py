"""What many requests at once do to a pod's shim, to those who ask meanwhile, and to the daemon's memory."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from sandboxd.config import Runtime
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.pods import container_info, remove_pod, run_container, run_pod, shell
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.faults

LIMIT = 110  # seconds, for a call to end
PODS = 100  # at once
MOST = PODS * 3 // 4  # that are done during one read, on a machine that has other things to do
PLACES = Runtime().execs_per_pod


@pytest.fixture(scope="module")
def box(bed: Testbed, images: tuple[str, ...]) -> Iterator[str]:
    """A container that waits."""
    pod_id = run_pod(bed)
    yield run_container(bed, pod_id, shell("mkfifo /gate; sleep 3600"))
    remove_pod(bed, pod_id)


def sync(bed: Testbed, container_id: str, *cmd: str, timeout: int = 0) -> cri.ExecSyncResponse:
    request = cri.ExecSyncRequest(container_id=container_id, cmd=cmd, timeout=timeout)
    answer: cri.ExecSyncResponse = bed.runtime.ExecSync(request, timeout=LIMIT)
    return answer


def test_seventy_execs_at_once_in_one_pod_all_succeed_and_the_pod_works_on(bed: Testbed, box: str) -> None:
    """They are ended one by one, and all at once: each is a moment at which Debian's shim has been seen to hang."""
    with ThreadPoolExecutor(71) as clients:
        short = [clients.submit(sync, bed, box, "sh", "-c", f"exit {i}", timeout=30) for i in range(70)]
        assert [call.result().exit_code for call in short] == list(range(70))

        long = [clients.submit(sync, bed, box, "cat", "/gate") for _ in range(70)]
        until(lambda: at_the_gate(bed) == PLACES, what="the pod has as many processes as it may")
        while not all(call.done() for call in long):
            shut_gate(bed, box)
        assert [call.result().exit_code for call in long] == [0] * 70
    assert sync(bed, box, "echo", "works", timeout=30).stdout == b"works\n"


def test_output_of_many_at_once_is_bounded_over_all(bed: Testbed, box: str) -> None:
    """Twenty times 20 MB, of which an answer holds 16 MiB: together seven times the bound on all."""
    sync(bed, box, "head", "-c", "20000000", "/dev/zero")
    daemon = bed.daemon_pid
    before = rss(daemon)
    with ThreadPoolExecutor(20) as clients:
        calls = [clients.submit(size_of, bed, box) for _ in range(20)]
        most = before
        while wait(calls, timeout=0.02).not_done:
            most = max(most, rss(daemon))
    assert {call.result() for call in calls} == {(16 << 20) - 65536}
    assert most - before < 220 << 20, f"grew from {before >> 20} to {most >> 20} MiB"


def test_reads_are_answered_all_through_a_burst_of_pods_and_of_their_ends(bed: Testbed) -> None:
    """And a pod that is stopped meanwhile waits for none of those that wait for their turn."""
    stopped = run_pod(bed)
    made: list[str] = []

    def read_while(done: Callable[[], int]) -> int:
        """Read until all is done; the most that was done during one read."""
        most, before = 0, done()
        while before < PODS:
            bed.runtime.Status(cri.StatusRequest(), timeout=LIMIT)
            bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=LIMIT)
            now = done()
            most, before = max(most, now - before), now
        return most

    with ThreadPoolExecutor(PODS) as clients:
        calls = [clients.submit(lambda: made.append(run_pod(bed))) for _ in range(PODS)]
        remove_pod(bed, stopped)
        assert len(made) < PODS // 2, "stopping a pod waited for half of the others"
        assert read_while(lambda: sum(call.done() for call in calls)) < MOST, "reads were held up"
        for call in calls:
            call.result()
        calls = [clients.submit(remove_pod, bed, pod_id) for pod_id in made]
        held_up = read_while(lambda: sum(call.done() for call in calls))
        assert held_up < MOST, "reads were held up while pods were removed"
        for call in calls:
            call.result()
    assert "waiting for its turn" in bed.log_file.read_text("utf-8")


def size_of(bed: Testbed, container_id: str) -> int:
    return len(sync(bed, container_id, "head", "-c", "20000000", "/dev/zero").stdout)


def at_the_gate(bed: Testbed) -> int:
    """How many processes wait to be let through."""
    return sum(command == b"cat\0/gate\0" for command in commands(bed))


def commands(bed: Testbed) -> Iterator[bytes]:
    for entry in bed.proc.iterdir():
        with contextlib.suppress(OSError):
            yield (entry / "cmdline").read_bytes()


def shut_gate(bed: Testbed, container_id: str) -> None:
    """Open the FIFO and close it: all who wait at it read its end, and end, at the same moment."""
    gate = bed.proc / str(container_info(bed, container_id)["pid"]) / "root" / "gate"
    try:
        os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        assert error.errno == errno.ENXIO, "nobody waits there"


def rss(pid: int) -> int:
    """Bytes of memory that a process has now."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096

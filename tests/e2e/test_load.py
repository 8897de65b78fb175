"""What many requests at once do to a pod's shim, to those who ask meanwhile, and to the daemon's memory."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandboxd.config import Runtime
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.pods import container_info, remove_pod, run_container, run_pod, shell
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

LIMIT = 110  # seconds, for a call to end
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
    """Thirty times 20 MB, of which an answer holds 16 MiB: together five times as much as the bound on all."""
    sync(bed, box, "head", "-c", "20000000", "/dev/zero")
    before = rss(bed)
    with ThreadPoolExecutor(30) as clients:
        calls = [clients.submit(size_of, bed, box) for _ in range(30)]
        most = before
        while not all(call.done() for call in calls):
            most = max(most, rss(bed))
    assert {call.result() for call in calls} == {(16 << 20) - 65536}
    assert most - before < 250 << 20, f"grew from {before >> 20} to {most >> 20} MiB"


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


def rss(bed: Testbed) -> int:
    """Bytes of memory that the daemon has now."""
    with open(f"/proc/{bed.daemon_pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096

"""ExecSync; Exec is in test_streaming."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.pods import container_config, refused, remove_pod, run_container, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def box(bed: Testbed, images: tuple[str, ...]) -> Iterator[str]:
    """A busybox container that lives for the module."""
    pod_id = run_pod(bed)
    yield run_container(bed, pod_id, container_config("box", "busybox", ["sleep", "100000"]))
    remove_pod(bed, pod_id)


def sync(bed: Testbed, container_id: str, *cmd: str, timeout: int = 10) -> cri.ExecSyncResponse:
    request = cri.ExecSyncRequest(container_id=container_id, cmd=cmd, timeout=timeout)
    return bed.runtime.ExecSync(request, timeout=60)


@pytest.mark.parametrize("timeout", [-(2**63), -1, 0, 2**63 - 1])
def test_a_limit_that_is_none_is_not_reached(bed: Testbed, box: str, timeout: int) -> None:
    assert sync(bed, box, "echo", "x", timeout=timeout).stdout == b"x\n"


def running(bed: Testbed, marker: str) -> bool:
    """Whether a process with this argument runs in the bed."""
    return bed.run(["pgrep", "-f", marker], check=False).returncode == 0


def test_output_errors_and_exit_code_come_back_apart(bed: Testbed, box: str) -> None:
    answer = sync(bed, box, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 3)


def test_a_timeout_ends_the_process_before_the_call_returns(bed: Testbed, box: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        sync(bed, box, "sleep", "43210", timeout=1)
    assert refused(error.value)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not running(bed, "sleep 43210")


def test_a_timeout_ends_what_the_process_has_started_too(bed: Testbed, box: str) -> None:
    """A probe that times out every few seconds would fill the container with sleepers."""
    with pytest.raises(grpc.RpcError) as error:
        sync(bed, box, "sh", "-c", "sleep 43213; true", timeout=1)
    assert refused(error.value)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: not running(bed, "sleep 43213"), what="all are ended")


def test_a_client_that_leaves_ends_the_process(bed: Testbed, box: str) -> None:
    request = cri.ExecSyncRequest(container_id=box, cmd=["sleep", "43211"])
    call = bed.runtime.ExecSync.future(request)
    until(lambda: running(bed, "sleep 43211"), what="it runs")
    call.cancel()
    until(lambda: not running(bed, "sleep 43211"), what="it is gone")


def test_a_background_child_that_holds_the_output_does_not_hold_the_call(bed: Testbed, box: str) -> None:
    answer = sync(bed, box, "sh", "-c", "sleep 43212 & echo $!", timeout=60)
    assert answer.exit_code == 0
    assert sync(bed, box, "kill", answer.stdout.decode().strip()).exit_code == 0


def test_output_beyond_the_cap_is_dropped_and_does_not_block(bed: Testbed, box: str) -> None:
    try:
        answer = sync(bed, box, "sh", "-c", "head -c 12000000 /dev/zero; echo done >&2", timeout=30)
    except grpc.RpcError as error:
        pytest.fail(f"{refused(error)}")
    assert len(answer.stdout) == 12_000_000
    assert answer.stderr == b"done\n"


def test_a_command_that_is_not_there_is_said(bed: Testbed, box: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        sync(bed, box, "no-such-command")
    code, words = refused(error.value)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "no-such-command" in words


def test_exec_in_a_container_that_does_not_run_is_refused(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    ended = run_container(bed, pod_id, container_config("ended", "busybox", ["true"]))
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=ended, timeout=5))
    with pytest.raises(grpc.RpcError) as error:
        sync(bed, ended, "true")
    assert refused(error.value)[0] is grpc.StatusCode.FAILED_PRECONDITION
    remove_pod(bed, pod_id)


def test_many_execs_leave_nothing(bed: Testbed, box: str) -> None:
    sync(bed, box, "true")
    before = observe(bed)
    for number in range(20):
        assert sync(bed, box, "sh", "-c", f"exit {number}").exit_code == number
    assert_no_leaks(bed, before)

"""The stop signal that an image or a request names is sent; an unknown one keeps no container from being stopped."""

from __future__ import annotations

import hashlib
import secrets
import signal as signals
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.images import with_configs
from tests.pods import (
    container_config,
    container_status,
    create_container,
    log_lines,
    refused,
    remove_pod,
    run_container,
    run_pod,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

UNKNOWN = ["SIGNOPE", "99999", "-9", "SIGRTMAX+100", "0", "\u0663", " SIGTERM ", "9" * 5000, "SIGRTMIN-1"]
KNOWN = {"rtmin+3": 37, "SIGRTMAX-1": 63, "12": 12, "usr1": 10}
# Says by which signal it ends. Numbers, as no shell names them all.
SCRIPT = 'for i in 10 12 15 37 63; do trap "echo got $i; exit 0" $i; done; echo ready; while :; do sleep 0.05; done'


def image_name(signal: str) -> str:
    return f"docker.io/test/stopped-by-{hashlib.sha256(signal.encode()).hexdigest()[:12]}:1"


@pytest.fixture(scope="module")
def pod(bed: Testbed, images: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    archive = tmp_path_factory.mktemp("signals") / "signals.tar"
    configs = {image_name(signal): {"StopSignal": signal} for signal in (*UNKNOWN, *KNOWN)}
    bed.load_archive(with_configs(bed.build_image("busybox"), archive, configs))
    pod_id = run_pod(bed)
    yield pod_id
    remove_pod(bed, pod_id)


def stopped(bed: Testbed, pod: str, image: str, **changes: Any) -> list[str]:
    """What a container says when it is stopped."""
    config = container_config(f"c-{secrets.token_hex(4)}", image, ["sh", "-c", SCRIPT], **changes)
    container_id = run_container(bed, pod, config)
    until(lambda: "ready" in log_lines(bed, container_id), what="it can be stopped")
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=30), timeout=60)
    assert container_status(bed, container_id).exit_code == 0
    said = log_lines(bed, container_id)
    bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=60)
    return said


@pytest.mark.parametrize("signal", UNKNOWN)
def test_a_container_whose_image_names_no_signal_is_stopped_with_sigterm(bed: Testbed, pod: str, signal: str) -> None:
    assert stopped(bed, pod, image_name(signal))[-1] == "got 15"
    assert "unknown stop signal" in bed.log_tail(200)


@pytest.mark.parametrize(("signal", "number"), KNOWN.items())
def test_an_image_names_its_signal_in_any_of_dockers_ways(bed: Testbed, pod: str, signal: str, number: int) -> None:
    assert stopped(bed, pod, image_name(signal))[-1] == f"got {number}"


def test_a_request_counts_real_time_signals_from_either_end(bed: Testbed, pod: str) -> None:
    for signal, number in ((cri.SIGRTMINPLUS3, 37), (cri.SIGRTMAXMINUS1, 63)):
        assert stopped(bed, pod, "busybox", stop_signal=signal)[-1] == f"got {number}"


def test_a_request_for_a_signal_that_cri_does_not_have_is_refused(bed: Testbed, pod: str) -> None:
    config = container_config("c", "busybox", ["true"], stop_signal=999)
    with pytest.raises(grpc.RpcError) as error:
        create_container(bed, pod, config)
    code, said = refused(error.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT and "stop_signal: 999" in said


# Every signal of CRI

UNTRAPPED = {cri.SIGKILL, cri.SIGSTOP}
TRAPPED = [number for name, number in cri.Signal.items() if number not in UNTRAPPED]
# Nothing that forks: a child's end is a signal as well.
SAYS_WHICH = """
    mkfifo /tmp/never; exec 3<>/tmp/never
    for i in $(seq 1 64); do
        case $i in 9|19|32|33) ;; *) trap "echo got $i; exit 0" $i ;; esac
    done
    echo ready; while :; do read -r nothing <&3; done
"""


def kernels_number(signal: int) -> int:
    """Of a signal of CRI; the library keeps 32 and 33 to itself, so the real-time ones begin at 34 and end at 64."""
    name = cri.Signal.Name(cri.Signal.ValueType(signal))
    for start, base, step in (("SIGRTMINPLUS", 34, 1), ("SIGRTMAXMINUS", 64, -1)):
        if name.startswith(start):
            return base + step * int(name.removeprefix(start))
    return 15 if name == "RUNTIME_DEFAULT" else int(signals.Signals[name])


def test_each_of_cris_signals_reaches_the_process(bed: Testbed, pod: str) -> None:
    assert len(TRAPPED) + len(UNTRAPPED) == 66, "65, and the default"

    def outcome(signal: int) -> tuple[list[str], int, str]:
        config = container_config(f"s{signal}", "busybox", ["sh", "-c", SAYS_WHICH], stop_signal=signal)
        container_id = run_container(bed, pod, config)
        until(lambda: "ready" in log_lines(bed, container_id), what=f"{signal} can be sent")
        bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=60), timeout=120)
        status = container_status(bed, container_id)
        said = log_lines(bed, container_id)
        bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=60)
        return said, status.exit_code, status.reason

    with ThreadPoolExecutor(4) as clients:
        found = dict(zip(TRAPPED, clients.map(outcome, TRAPPED), strict=True))
    assert found == {signal: (["ready", f"got {kernels_number(signal)}"], 0, "Completed") for signal in TRAPPED}


IGNORED = [cri.SIGCHLD, cri.SIGCLD, cri.SIGCONT, cri.SIGURG, cri.SIGWINCH]  # unless a process handles them
STOPPING = [cri.SIGSTOP, cri.SIGTSTP]


@pytest.mark.parametrize("signal", [*IGNORED, *STOPPING, cri.SIGKILL], ids=cri.Signal.Name)
def test_a_signal_that_ends_nothing_is_followed_by_sigkill(
    bed: Testbed, pod: str, signal: cri.Signal.ValueType
) -> None:
    config = container_config(f"s{signal}", "busybox", ["sleep", "1000"], stop_signal=signal)
    container_id = run_container(bed, pod, config)
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=1), timeout=60)
    assert container_status(bed, container_id).exit_code == 137
    bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=60)


# What else may be the state of a container, or the client's idea of time


@pytest.mark.parametrize("timeout", [-(2**63), -1, 0, 2**31, 2**63 - 1])
def test_a_container_is_stopped_within_any_time(bed: Testbed, pod: str, timeout: int) -> None:
    config = container_config(f"c-{secrets.token_hex(4)}", "busybox", ["sh", "-c", SCRIPT])
    container_id = run_container(bed, pod, config)
    until(lambda: "ready" in log_lines(bed, container_id), what="it can be stopped")
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=timeout), timeout=60)
    assert container_status(bed, container_id).exit_code == (0 if timeout > 0 else 137)


@pytest.mark.parametrize("timeout", [0, 60])
def test_a_container_that_somebody_has_paused_is_stopped(bed: Testbed, pod: str, timeout: int) -> None:
    config = container_config(f"c-{secrets.token_hex(4)}", "busybox", ["sh", "-c", SCRIPT])
    container_id = run_container(bed, pod, config)
    until(lambda: "ready" in log_lines(bed, container_id), what="it runs")
    address = "/run/sandboxd/containerd/containerd.sock"
    bed.run(["ctr", "--address", address, "--namespace", "sandboxd", "tasks", "pause", container_id])
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=timeout), timeout=120)
    assert container_status(bed, container_id).exit_code == (0 if timeout else 137)


def test_a_container_that_was_never_started_can_be_stopped_and_removed(bed: Testbed, pod: str) -> None:
    container_id = create_container(bed, pod, container_config("never", "busybox", ["true"]))
    for timeout in (0, 10):
        bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=timeout), timeout=60)
    assert container_status(bed, container_id).state == cri.CONTAINER_CREATED
    bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=60)

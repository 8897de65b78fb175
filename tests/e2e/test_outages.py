"""containerd is killed, or stopped, under the daemon: it is back soon, and no outage is made permanent."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.containerd import shims
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import Snapshot, assert_no_leaks, observe
from tests.conftest import StartBed
from tests.pods import (
    container_config,
    container_status,
    create_container,
    log_lines,
    pod_config,
    pod_status,
    refused,
    remove_pod,
    run_container,
    run_pod,
    shell,
    start_container,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
SLEEP = ["sleep", "100000"]
SOCKET = "/run/sandboxd/containerd/containerd.sock"
SHIM = "import socket, sys, time; s = socket.socket(1); s.bind(sys.argv[1]); s.listen(); time.sleep(1000)"
SLOW = """#!/bin/sh
case " $* " in
    *" exec "*) runc "$@"; code=$?; sleep 3; exit $code ;;
esac
exec runc "$@"
"""
SHIM_IS_KNOWN = ("address", "bootstrap.json", "shim-binary-path", "sandbox")


def warmed_up(bed: Testbed) -> Snapshot:
    """What is there once a first pod and container have come and gone."""
    pod_id = run_pod(bed)
    run_container(bed, pod_id, container_config("first", "busybox", SLEEP))
    remove_pod(bed, pod_id)
    return observe(bed)


def containerd(bed: Testbed) -> str:
    """The pid, inside, of the private containerd."""
    return bed.path("/run/sandboxd/containerd/containerd.pid").read_text().strip()


def bundle(bed: Testbed, container_id: str) -> Path:
    """Where containerd keeps what it knows of the container's task."""
    return bed.path("/run/sandboxd/containerd/state/io.containerd.runtime.v2.task/sandboxd") / container_id


def until_logged(bed: Testbed, container_id: str, line: str) -> None:
    until(lambda: log_lines(bed, container_id) == [line], what="its output is logged, once")


def answered(bed: Testbed, config: cri.PodSandboxConfig) -> str:
    """The id of the pod, asked for until containerd is there."""
    made = []

    def asked() -> bool:
        try:
            made.append(run_pod(bed, config))
        except grpc.RpcError as error:
            assert refused(error)[0] in AWAY, refused(error)
        return bool(made)

    until(asked, what="a pod can be run")
    return made[0]


def test_the_private_containerd_is_back_however_often_it_is_killed(bed: Testbed, images: tuple[str, ...]) -> None:
    """With pauses that grew at each of these deaths, the last would be waited for for more than a minute."""
    living = run_pod(bed)
    run_container(bed, living, container_config("sleeps", "busybox", SLEEP))
    pids = set()
    for _ in range(8):
        pid = containerd(bed)
        bed.run(["kill", "-9", pid])
        pids.add(pid)
        remove_pod(bed, answered(bed, pod_config()))
    assert len(pids) == 8 and containerd(bed) not in pids
    pauses = [line for line in bed.log_file.read_text().splitlines() if "restarting it" in line]
    assert len(pauses) >= 8 and all("in_seconds=0.2" in line for line in pauses), pauses
    assert pod_status(bed, living).state == cri.SANDBOX_READY
    remove_pod(bed, living)


def test_what_a_death_of_containerd_cuts_off_is_undone_or_done_when_it_is_back(
    bed: Testbed, images: tuple[str, ...]
) -> None:
    before = warmed_up(bed)
    pod_id = run_pod(bed)
    for number in range(6):
        container_id, config = create_container(bed, pod_id, shell(f"echo {number}; sleep 100000")), pod_config()
        with ThreadPoolExecutor(2) as clients:
            requests: list[Future[Any]] = [
                clients.submit(start_container, bed, container_id),
                clients.submit(run_pod, bed, config),
            ]
            if number % 2:  # later: a task exists, or runs
                until(bundle(bed, container_id).exists, what="a bundle of its task is there")
            bed.run(["kill", "-9", containerd(bed)])
            for request in requests:
                error = request.exception(timeout=150)
                assert error is None or refused(error)[0] in AWAY, error
        made = answered(bed, config)
        assert pod_status(bed, made).state == cri.SANDBOX_READY
        state = container_status(bed, container_id)
        assert state.state != cri.CONTAINER_EXITED, (state.exit_code, state.reason, state.message)
        start_container(bed, container_id)
        assert container_status(bed, container_id).state == cri.CONTAINER_RUNNING
        until_logged(bed, container_id, str(number))
        remove_pod(bed, made)
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


@pytest.mark.parametrize("written", range(6))
def test_a_bundle_that_a_dying_containerd_left_blocks_no_start(
    bed: Testbed, images: tuple[str, ...], written: int
) -> None:
    """containerd writes a bundle's parts one after the other, and keeps for ever what is there when it dies."""
    before = warmed_up(bed)
    pod_id = run_pod(bed)
    container_id = create_container(bed, pod_id, shell("echo starts; sleep 100000"))
    whole, left = bundle(bed, pod_id), bundle(bed, container_id)
    work = bed.path(os.readlink(whole / "work")).with_name(container_id)
    (bed.path("/run/sandboxd/containers") / container_id / "io").mkdir(parents=True)  # a start was begun
    left.mkdir()
    if written > 0:
        (left / "rootfs").mkdir()
    if written > 1:
        work.mkdir()
    if written > 2:
        (left / "work").symlink_to(os.readlink(whole / "work").replace(pod_id, container_id))
    if written > 3:
        shutil.copy(whole / "config.json", left)
    if written > 4:
        for name in SHIM_IS_KNOWN:
            if (whole / name).exists():
                shutil.copy(whole / name, left)
    bed.run(["kill", "-9", containerd(bed)])
    remove_pod(bed, answered(bed, pod_config()))
    start_container(bed, container_id)
    until_logged(bed, container_id, "starts")
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)
    assert not work.exists()


def test_a_snapshot_that_a_dying_containerd_left_is_in_nobodys_way(bed: Testbed, images: tuple[str, ...]) -> None:
    """Its directory is there before its record, and the next snapshot has its number."""
    before = warmed_up(bed)
    made = bed.path("/var/lib/sandboxd/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots")
    pod_id = run_pod(bed)
    last = max(int(directory.name) for directory in made.iterdir())
    left = made / str(last + 1)
    (left / "fs").mkdir(parents=True)
    (left / "fs" / "somebody's").touch()
    second = run_pod(bed)
    assert pod_status(bed, second).state == cri.SANDBOX_READY
    assert not (left / "fs" / "somebody's").exists()
    remove_pod(bed, second)
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_a_shim_without_a_task_goes_with_its_pod(bed: Testbed, images: tuple[str, ...]) -> None:
    """As when the daemon is killed while containerd waits for the shim: it gives up, and the shim waits on."""
    before = warmed_up(bed)
    pod_id = run_pod(bed)
    listens = shims.socket_path(SOCKET, "sandboxd", pod_id)
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=120)
    until(lambda: not bed.path(listens).exists(), what="its shim has gone")
    options = ["-namespace", "sandboxd", "-id", pod_id, "-address", SOCKET]
    # In the directory of Python, which finds its modules by its name.
    named = f'exec -a {Path(sys.executable).with_name("containerd-shim")} "$@"'
    left = bed.popen(["bash", "-c", named, "", sys.executable, "-c", SHIM, listens, *options])
    until(bed.path(listens).exists, what="a shim listens that no containerd knows")
    remove_pod(bed, pod_id)
    assert left.wait(timeout=60) != 0
    assert_no_leaks(bed, before)


def test_a_process_that_ran_when_containerds_death_cut_off_its_start_does_not_stay(fresh_bed: StartBed) -> None:
    """The shim ends the runtime then, takes the process for one that was never started, and forgets it."""
    bed = fresh_bed(daemon=False)
    bed.write("/run/slow-runc", SLOW, mode=0o755)
    slow = {"slow": {"binary": "/run/slow-runc"}}
    bed.start_daemon(daemon={"reconcile_seconds": 0.5}, runtime={"handlers": slow})
    bed.load_image("busybox")
    pod_id = run_pod(bed, handler="slow")
    box = run_container(bed, pod_id, container_config("box", "busybox", SLEEP))
    somebodys = ["tasks", "exec", "--detach", "--exec-id", "somebodys", box, "sleep", "100001"]
    bed.run(["ctr", "--address", SOCKET, "--namespace", "sandboxd", *somebodys])

    with ThreadPoolExecutor(1) as client:
        asked = cri.ExecSyncRequest(container_id=box, cmd=["sleep", "100002"])
        request = client.submit(bed.runtime.ExecSync, asked, timeout=60)
        until(lambda: runs(bed, "sleep 100002"), what="the process runs, and is still being started")
        bed.run(["kill", "-9", containerd(bed)])
        error = request.exception(timeout=60)
        assert error is not None and refused(error)[0] in AWAY

    until(lambda: not runs(bed, "sleep 100002"), what="it is ended")
    assert runs(bed, "sleep 100001"), "the shim knows who started it"
    assert container_status(bed, box).state == cri.CONTAINER_RUNNING
    remove_pod(bed, pod_id)


def runs(bed: Testbed, command: str) -> bool:
    return bed.run(["pgrep", "-xf", command], check=False).returncode == 0

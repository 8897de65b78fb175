"""The daemon goes and comes back: pods live on, nothing is lost, nothing is left."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from sandboxd.containerd.shims import socket_path
from sandboxd.ledger import Ledger
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.fakes.cni_plugin import calls, install
from tests.pods import (
    container_config,
    container_info,
    container_status,
    create_container,
    exited,
    log_lines,
    pod_info,
    pod_status,
    refused,
    remove_pod,
    run_container,
    run_pod,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

CTR = ("ctr", "-a", "/run/sandboxd/containerd/containerd.sock", "-n", "sandboxd")
AT = 1_700_000_000 * 10**9  # when a container ended, unix nanoseconds


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_pods_live_on_and_are_known_afterwards(bed: Testbed, images: tuple[str, ...], kill: bool) -> None:
    pod_id = run_pod(bed)
    nginx = run_container(bed, pod_id, container_config("nginx", "nginx"))
    ip = pod_status(bed, pod_id).network.ip
    pids = pod_info(bed, pod_id)["pid"], container_info(bed, nginx)["pid"]
    bed.restart_daemon(kill=kill)
    assert pod_status(bed, pod_id).state == cri.SANDBOX_READY
    assert pod_status(bed, pod_id).network.ip == ip
    assert container_status(bed, nginx).state == cri.CONTAINER_RUNNING
    assert (pod_info(bed, pod_id)["pid"], container_info(bed, nginx)["pid"]) == pids
    assert bed.http_get(ip)[0] == 200
    remove_pod(bed, pod_id)


def test_an_exit_while_the_daemon_is_down_is_seen_with_its_code(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    script = "echo before; while [ ! -e /data/go ]; do sleep 0.02; done; exit 5"
    data = bed.write("/var/lib/gate/.keep", "").parent
    config = container_config(
        "waits",
        "busybox",
        ["sh", "-c", script],
        mounts=[cri.Mount(host_path="/var/lib/gate", container_path="/data")],
    )
    container_id = run_container(bed, pod_id, config)
    pid = container_info(bed, container_id)["pid"]
    bed.stop_daemon()
    (data / "go").touch()
    until(lambda: not _alive(bed, pid), what="the container ends")
    bed.relaunch_daemon()
    status = container_status(bed, container_id)
    assert (status.state, status.exit_code) == (cri.CONTAINER_EXITED, 5)
    assert log_lines(bed, container_id) == ["before"]
    (data / "go").unlink()
    remove_pod(bed, pod_id)


def test_a_daemon_that_dies_while_it_records_an_end_loses_no_exit_code(bed: Testbed, images: tuple[str, ...]) -> None:
    """A logger that stands still keeps it waiting for the rest of the output, after it has seen the end."""
    pod_id = run_pod(bed)
    data = bed.write("/var/lib/gate/.keep", "").parent
    config = container_config(
        "ends",
        "busybox",
        ["sh", "-c", "while [ ! -e /data/go ]; do sleep 0.02; done; exit 5"],
        mounts=[cri.Mount(host_path="/var/lib/gate", container_path="/data")],
    )
    container_id = run_container(bed, pod_id, config)
    logger = bed.path("/run/sandboxd/logger.pid").read_text().split()[0]
    bed.run(["kill", "-STOP", logger])
    (data / "go").touch()
    until(lambda: tasks(bed).get(container_id) != "RUNNING", what="it has ended")
    bed.kill_daemon()
    bed.run(["kill", "-CONT", logger])
    bed.relaunch_daemon()

    until(lambda: exited(bed, container_id), what="its end is recorded")
    status = container_status(bed, container_id)
    assert (status.exit_code, status.reason) == (5, "Error")
    (data / "go").unlink()
    remove_pod(bed, pod_id)


def test_a_task_whose_end_was_recorded_but_that_was_not_deleted_is_freed_and_keeps_its_code(
    bed: Testbed, images: tuple[str, ...]
) -> None:
    """The daemon died between the two; what it had recorded is what holds."""
    pod_id = run_pod(bed)
    container_id = run_container(bed, pod_id, container_config("ends", "busybox", ["sleep", "100000"]))
    pid = container_info(bed, container_id)["pid"]
    bed.kill_daemon()
    bed.run(["kill", "-9", str(pid)])
    until(lambda: not _alive(bed, pid), what="the container ends")
    ledger = Ledger(str(bed.path("/var/lib/sandboxd/ledger.db")))
    ledger.update_container(container_id, pid=0, finished_at=AT, exit_code=42, reason="Error")
    ledger.close()
    assert "STOPPED" in tasks(bed)[container_id]
    bed.relaunch_daemon()

    until(lambda: container_id not in tasks(bed), what="the task is freed")
    status = container_status(bed, container_id)
    assert (status.state, status.exit_code, status.finished_at) == (cri.CONTAINER_EXITED, 42, AT)
    remove_pod(bed, pod_id)


def tasks(bed: Testbed) -> dict[str, str]:
    """The states of containerd's tasks, by their containers' ids."""
    listed = bed.run([*CTR, "tasks", "ls"]).stdout.splitlines()[1:]
    return {fields[0]: fields[-1] for fields in map(str.split, listed)}


def _alive(bed: Testbed, pid: int) -> bool:
    """Whether the process runs; a dead one may wait as a zombie for the shim to look at it."""
    try:
        return (bed.proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_output_written_while_the_daemon_is_down_is_logged_afterwards(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    script = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; sleep 0.01; done"
    container_id = run_container(bed, pod_id, container_config("writes", "busybox", ["sh", "-c", script]))
    bed.restart_daemon()
    until(lambda: exited(bed, container_id), what="it has written all")
    assert log_lines(bed, container_id) == [f"line {i}" for i in range(1, 201)]
    remove_pod(bed, pod_id)


def test_a_second_daemon_on_the_same_directories_is_refused(bed: Testbed) -> None:
    argv = [*bed.daemon_argv, "serve", "--config", "/etc/cni/sandboxd.toml"]
    finished = bed.run(argv, check=False, timeout=30)
    assert finished.returncode == 1
    assert "another sandboxd is running" in finished.stderr
    pod_id = run_pod(bed)
    remove_pod(bed, pod_id)


def test_a_pod_whose_creation_was_cut_off_is_gone_after_the_restart(fresh_bed: StartBed) -> None:
    bed = fresh_bed(network=False)
    plugins = str(bed.path("/opt/cni/bin"))
    bed.path("/opt/cni/bin").mkdir(parents=True, exist_ok=True)
    install(plugins, "scripted", {})
    bed.write(
        "/etc/cni/net.d/10-test.conflist",
        json.dumps({"cniVersion": "1.0.0", "name": "test", "plugins": [{"type": "scripted"}]}),
    )
    remove_pod(bed, run_pod(bed))
    before = observe(bed)
    install(plugins, "scripted", {"ADD": [{"hang": True}]})
    adds = sum(call["command"] == "ADD" for call in calls(plugins))
    with ThreadPoolExecutor(1) as client:
        running = client.submit(run_pod, bed)
        until(lambda: sum(c["command"] == "ADD" for c in calls(plugins)) > adds, what="ADD is called")
        bed.kill_daemon()
        assert isinstance(running.exception(timeout=30), grpc.RpcError)
    install(plugins, "scripted", {})
    bed.relaunch_daemon()
    assert not bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    until(lambda: calls(plugins)[-1]["command"] == "DEL", what="what was begun is undone, behind readiness")
    (cut_off,) = {c["env"]["CNI_CONTAINERID"] for c in calls(plugins)[-1:]}
    until(lambda: not bed.path(f"/run/netns/sandboxd-{cut_off}").exists(), what="the namespace goes")
    assert not _hanging(bed)
    assert_no_leaks(bed, before)


def _hanging(bed: Testbed) -> list[str]:
    return bed.run(["pgrep", "-f", "/opt/cni/bin/scripted"], check=False).stdout.split()


def test_the_socket_of_a_shim_that_was_cut_off_goes_with_its_pod(bed: Testbed) -> None:
    pod_id = run_pod(bed)
    (path,) = (p for p in bed.path("/run/containerd/s").iterdir() if _listens_for(p.name, pod_id))
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    bed.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
    assert not path.exists()


def _listens_for(name: str, pod_id: str) -> bool:
    """Whether the name is the one that our formula gives; a containerd with another breaks this test."""
    return socket_path("/run/sandboxd/containerd/containerd.sock", "sandboxd", pod_id).endswith(name)


def test_containerd_may_be_killed_and_comes_back(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    nginx = run_container(bed, pod_id, container_config("nginx", "nginx"))
    pid = bed.path("/run/sandboxd/containerd/containerd.pid").read_text().strip()
    bed.run(["kill", "-9", pid])
    until(lambda: _creates(bed, pod_id), what="containers can be created again")
    assert container_status(bed, nginx).state == cri.CONTAINER_RUNNING
    assert bed.http_get(pod_status(bed, pod_id).network.ip)[0] == 200
    remove_pod(bed, pod_id)


def _creates(bed: Testbed, pod_id: str) -> bool:
    try:
        create_container(bed, pod_id, container_config("again", "busybox", ["true"]))
    except grpc.RpcError as error:
        assert refused(error)[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return False
    return True


def test_a_failed_del_is_a_debt_that_is_paid_later_and_the_pod_is_gone(fresh_bed: StartBed) -> None:
    bed = fresh_bed(network=False)
    plugins = str(bed.path("/opt/cni/bin"))
    bed.path("/opt/cni/bin").mkdir(parents=True, exist_ok=True)
    install(plugins, "scripted", {})
    bed.write(
        "/etc/cni/net.d/10-test.conflist",
        json.dumps({"cniVersion": "1.0.0", "name": "test", "plugins": [{"type": "scripted"}]}),
    )
    remove_pod(bed, run_pod(bed))
    before = observe(bed)
    install(plugins, "scripted", {"DEL": [{"error": {"code": 100, "msg": "not today"}}]})
    pod_id = run_pod(bed)
    remove_pod(bed, pod_id)
    assert not bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    (debt,) = _debts(bed)
    assert debt["sandbox"] == pod_id and "not today" in debt["error"]
    assert bed.path(f"/run/netns/sandboxd-{pod_id}").exists()
    install(plugins, "scripted", {})
    bed.restart_daemon()
    until(lambda: not _debts(bed), what="the debt is paid, behind readiness")
    assert_no_leaks(bed, before)


def _debts(bed: Testbed) -> list[dict[str, str]]:
    status = bed.runtime.Status(cri.StatusRequest(verbose=True))
    return list(json.loads(status.info["network"])["debts"])

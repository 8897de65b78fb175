"""The daemon as systemd's own: installed as its unit says, on the machine itself, with systemd's cgroup driver."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.machine.host import CGROUPS, UNIT, Machine, journal, left, shown, systemctl
from tests.pods import (
    container_config,
    container_info,
    container_status,
    exited,
    log_lines,
    pod_config,
    pod_status,
    remove_pod,
    run_container,
    run_pod,
)
from tests.processes import until

pytestmark = [pytest.mark.machine, pytest.mark.e2e]

MIB = 1 << 20
SLEEP = ["sleep", "3600"]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """The machine, on which the unit runs and has its images."""
    with Machine() as made:
        made.default_network()
        made.start_daemon()
        for name in ("nginx", "busybox"):
            made.load_image(name)
        yield made


def sandboxctl(machine: Machine, *words: str) -> str:
    return machine.run([str(Path(sys.executable).with_name("sandboxctl")), *words], timeout=120).stdout


def web_pod(machine: Machine) -> tuple[str, int, str]:
    """A pod with nginx: its id, the pid and the address of nginx."""
    pod_id = run_pod(machine)
    container_id = run_container(machine, pod_id, container_config("web", "nginx"))
    ip = pod_status(machine, pod_id).network.ip
    assert machine.http_get(ip)[0] == 200
    return pod_id, int(container_info(machine, container_id)["pid"]), ip


def test_the_unit_is_active_once_the_daemon_serves(machine: Machine) -> None:
    assert (shown("ActiveState"), shown("SubState"), shown("Type")) == ("active", "running", "notify")
    machine.stop_daemon()
    machine.relaunch_daemon()  # systemctl start waits for READY=1
    assert machine.serves()


def test_what_a_kubelet_asks_for_its_driver_is_answered_with_systemd(machine: Machine) -> None:
    driver = machine.runtime.RuntimeConfig(cri.RuntimeConfigRequest()).linux.cgroup_driver
    assert driver == cri.SYSTEMD


def test_pods_run_on_while_systemd_restarts_the_daemon(machine: Machine) -> None:
    pod_id, pid, ip = web_pod(machine)
    before = machine.daemon_pid
    systemctl("restart", UNIT)
    assert machine.daemon_pid != before
    assert os.path.exists(f"/proc/{pid}")
    assert machine.http_get(ip)[0] == 200
    assert pod_status(machine, pod_id).state == cri.SANDBOX_READY
    remove_pod(machine, pod_id)


def test_systemd_starts_a_killed_daemon_again_and_its_pods_run_on(machine: Machine) -> None:
    pod_id, pid, ip = web_pod(machine)
    before, restarts = machine.daemon_pid, int(shown("NRestarts"))
    os.kill(before, signal.SIGKILL)
    until(lambda: machine.daemon_pid not in (0, before) and machine.serves(), what="systemd starts it again")
    assert int(shown("NRestarts")) == restarts + 1
    assert os.path.exists(f"/proc/{pid}")
    assert machine.http_get(ip)[0] == 200
    assert pod_status(machine, pod_id).state == cri.SANDBOX_READY
    remove_pod(machine, pod_id)


def test_the_limits_of_a_container_are_its_scopes_for_the_kernel_and_for_systemd(machine: Machine) -> None:
    pod_id = run_pod(machine)
    limits = cri.LinuxContainerResources(
        memory_limit_in_bytes=64 * MIB, cpu_period=100_000, cpu_quota=20_000, unified={"pids.max": "50"}
    )
    config = container_config("c", "busybox", SLEEP, linux=cri.LinuxContainerConfig(resources=limits))
    container_id = run_container(machine, pod_id, config)
    scope = CGROUPS / machine.cgroup_of(pod_id, container_id)
    said = {name: (scope / name).read_text().strip() for name in ("memory.max", "cpu.max", "pids.max")}
    assert said == {"memory.max": str(64 * MIB), "cpu.max": "20000 100000", "pids.max": "50"}
    found = systemctl("show", "--property=MemoryMax,CPUQuotaPerSecUSec,Slice", scope.name).splitlines()
    assert set(found) == {f"MemoryMax={64 * MIB}", "CPUQuotaPerSecUSec=200ms", f"Slice={machine.name}.slice"}
    # systemd writes what it knows again.
    systemctl("daemon-reload")
    assert (scope / "memory.max").read_text().strip() == str(64 * MIB)
    remove_pod(machine, pod_id)
    assert not scope.exists()


def test_a_pod_in_a_slice_that_its_client_names_leaves_no_scope_in_it(machine: Machine) -> None:
    """The slice is the client's: kubelet, which makes one for each pod, stops it when the pod is gone."""
    parent = f"{machine.name}-burstable-pod1.slice"
    pod_id = run_pod(machine, pod_config(linux=cri.LinuxPodSandboxConfig(cgroup_parent=f"/kubepods.slice/{parent}")))
    container_id = run_container(machine, pod_id, container_config("c", "busybox", SLEEP))
    place = CGROUPS / f"{machine.name}.slice/{machine.name}-burstable.slice/{parent}"
    assert (place / f"sandboxd-{container_id}.scope").is_dir()
    remove_pod(machine, pod_id)
    assert not left()
    assert not list(place.glob("*.scope"))
    systemctl("stop", parent)
    assert not place.exists()


def test_a_container_that_runs_out_of_memory_spoils_neither_the_daemon_nor_its_pod(machine: Machine) -> None:
    """Why it ended is not asked: systemd removes the scope and its counter, and containerd 1.6 may be too late."""
    pod_id, pid, ip = web_pod(machine)
    before = machine.daemon_pid
    limits = cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(memory_limit_in_bytes=16 * MIB))
    command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"]
    container_id = run_container(machine, pod_id, container_config("hog", "busybox", command, linux=limits))
    until(lambda: exited(machine, container_id), what="it is killed")
    assert container_status(machine, container_id).exit_code == 128 + signal.SIGKILL
    assert (machine.daemon_pid, shown("ActiveState"), os.path.exists(f"/proc/{pid}")) == (before, "active", True)
    assert machine.http_get(ip)[0] == 200
    remove_pod(machine, pod_id)


def test_a_container_sees_its_own_cgroup_alone_and_cannot_write_to_it(machine: Machine) -> None:
    pod_id = run_pod(machine)
    script = "cat /proc/self/cgroup; ls -d /sys/fs/cgroup/system.slice 2>&1; echo 1 >/sys/fs/cgroup/pids.max"
    container_id = run_container(
        machine, pod_id, container_config("c", "busybox", ["sh", "-c", f"exec 2>&1; {script}"])
    )
    until(lambda: exited(machine, container_id), what="it ends")
    first, second, third = log_lines(machine, container_id)
    assert first == "0::/"
    assert "No such file" in second
    assert "Read-only file system" in third
    remove_pod(machine, pod_id)


PROFILE = """
profile sandboxd-test-no-writes flags=(attach_disconnected) {
  file,
  deny /tmp/** w,
  capability,
  network,
  signal,
  ptrace,
  unix,
}
"""


def test_a_named_apparmor_profile_confines_and_one_that_is_not_loaded_is_refused(
    machine: Machine, tmp_path: Path
) -> None:
    if not Path("/sys/module/apparmor/parameters/enabled").exists():
        pytest.skip("this machine's kernel does not run AppArmor")
    (tmp_path / "profile").write_text(PROFILE)
    machine.run(["apparmor_parser", "--replace", "--skip-cache", str(tmp_path / "profile")])
    pod_id = run_pod(machine)

    def config(name: str) -> cri.ContainerConfig:
        profile = cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref=name)
        context = cri.LinuxContainerSecurityContext(apparmor=profile)
        script = "cat /proc/self/attr/current; touch /tmp/here && echo written; touch /here && echo also"
        return container_config(
            "c",
            "busybox",
            ["sh", "-c", f"exec 2>&1; mkdir -p /tmp; {script}"],
            linux=cri.LinuxContainerConfig(security_context=context),
        )

    with pytest.raises(grpc.RpcError, match="is not loaded"):
        run_container(machine, pod_id, config("sandboxd-test-missing"))
    container_id = run_container(machine, pod_id, config("sandboxd-test-no-writes"))
    until(lambda: exited(machine, container_id), what="it ends")
    assert log_lines(machine, container_id) == [
        "sandboxd-test-no-writes (enforce)",
        "touch: /tmp/here: Permission denied",
        "also",
    ]
    remove_pod(machine, pod_id)


def test_nothing_of_the_machine_is_taken_for_ours_and_nothing_of_ours_is_missing(machine: Machine) -> None:
    pod_id, _, _ = web_pod(machine)
    found = json.loads(sandboxctl(machine, "audit", "--output", "json"))
    remove_pod(machine, pod_id)
    assert found == {} or not any(found.values()), found


def test_the_journal_has_the_priorities_of_what_the_daemon_logs(machine: Machine) -> None:
    pid = str(machine.daemon_pid)
    lines = [json.loads(line) for line in journal(machine.since, "--output=json").splitlines()]
    own = [line for line in lines if line.get("_PID") == pid]
    assert own
    for line in own:
        level = json.loads(line["MESSAGE"])["level"]
        assert line["PRIORITY"] == {"debug": "7", "info": "6", "warning": "4", "error": "3"}[level], line["MESSAGE"]

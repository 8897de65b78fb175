"""Limits that change, memory that runs out, and what the cluster tells the machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.conftest import StartBed
from tests.pods import (
    container_config,
    container_info,
    container_status,
    create_container,
    exited,
    log_lines,
    pod_config,
    pod_info,
    pod_status,
    refused,
    remove_pod,
    run_container,
    run_pod,
    start_container,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

MIB = 1 << 20
CGROUPS = Path("/sys/fs/cgroup")
V2 = (CGROUPS / "cgroup.controllers").exists()
# A kernel without this controller has nothing to limit, and one processor nothing to choose from.
CPUSETS = not V2 or "cpuset" in (CGROUPS / "cgroup.controllers").read_text().split()
SLEEP = ["sleep", "3600"]

# What the shell does in a container that must meet its limit: one child takes too much memory.
HOG = "dd if=/dev/zero of=/dev/null bs=100M count=1"


def linux(**limits: object) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(**limits))  # type: ignore[arg-type]


def update(bed: Testbed, container_id: str, **limits: object) -> None:
    wanted = cri.LinuxContainerResources(**limits)  # type: ignore[arg-type]
    request = cri.UpdateContainerResourcesRequest(container_id=container_id, linux=wanted)
    bed.runtime.UpdateContainerResources(request, timeout=60)


def limits_of(bed: Testbed, pod_id: str, container_id: str) -> dict[str, int | str]:
    """The limits as the kernel has them, in v1's words."""

    def read(controller: str, name: str) -> str:
        where = bed.cgroup_of(pod_id, container_id)
        return (CGROUPS / ("" if V2 else controller) / where / name).read_text().strip()

    if V2:
        quota, period = read("cpu", "cpu.max").split()
        return {
            "quota": -1 if quota == "max" else int(quota),
            "period": int(period),
            "memory": int(read("memory", "memory.max")),
            **({"cpus": read("cpuset", "cpuset.cpus")} if CPUSETS else {}),
        }
    return {
        "quota": int(read("cpu", "cpu.cfs_quota_us")),
        "period": int(read("cpu", "cpu.cfs_period_us")),
        "memory": int(read("memory", "memory.limit_in_bytes")),
        "cpus": read("cpuset", "cpuset.cpus"),
    }


def spec_limits(bed: Testbed, container_id: str) -> dict[str, object]:
    resources = container_info(bed, container_id)["runtimeSpec"]["linux"]["resources"]
    return {**resources["cpu"], "memory": resources["memory"]["limit"], "devices": len(resources["devices"])}


def test_the_limits_of_a_running_container_change_and_the_others_stay(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    start = linux(cpu_period=100_000, cpu_quota=20_000, cpu_shares=512, memory_limit_in_bytes=64 * MIB)
    container_id = run_container(bed, pod_id, container_config("c", "busybox", SLEEP, linux=start))
    before = spec_limits(bed, container_id)
    cpus = {"cpus": "0"} if CPUSETS else {}
    update(bed, container_id, memory_limit_in_bytes=96 * MIB, cpuset_cpus=cpus.get("cpus", ""))
    assert limits_of(bed, pod_id, container_id) == {
        "quota": 20_000,
        "period": 100_000,
        "memory": 96 * MIB,
        **cpus,
    }
    update(bed, container_id, cpu_quota=-1)
    now = limits_of(bed, pod_id, container_id)
    assert (now["quota"], now["memory"]) == (-1, 96 * MIB)
    # Also where the container would be started from, and with it what it was allowed.
    spec = spec_limits(bed, container_id)
    assert spec == {**before, "quota": -1, "memory": 96 * MIB, **cpus}
    remove_pod(bed, pod_id)


@dataclass(frozen=True)
class Limit:
    """Where the kernel keeps a limit, below the container's cgroup, and what it says there for two values."""

    field: str
    values: tuple[object, object]
    v1: str  # controller/file
    v1_says: tuple[str, str]
    v2: str
    v2_says: tuple[str, str]


LIMITS = (
    Limit(
        "cpu_period", (50_000, 40_000), "cpu/cpu.cfs_period_us", ("50000", "40000"),
        "cpu.max", ("20000 50000", "10000 40000"),
    ),
    Limit(
        "cpu_quota", (20_000, 10_000), "cpu/cpu.cfs_quota_us", ("20000", "10000"),
        "cpu.max", ("20000 50000", "10000 40000"),
    ),
    Limit("cpu_shares", (512, 2048), "cpu/cpu.shares", ("512", "2048"), "cpu.weight", ("20", "79")),
    Limit(
        "memory_limit_in_bytes", (64 * MIB, 96 * MIB), "memory/memory.limit_in_bytes", (str(64 * MIB), str(96 * MIB)),
        "memory.max", (str(64 * MIB), str(96 * MIB)),
    ),
    Limit(
        "memory_swap_limit_in_bytes", (80 * MIB, 128 * MIB),
        "memory/memory.memsw.limit_in_bytes", (str(80 * MIB), str(128 * MIB)),
        "memory.swap.max", (str(16 * MIB), str(32 * MIB)),
    ),
    Limit("cpuset_cpus", ("0-1", "1"), "cpuset/cpuset.cpus", ("0-1", "1"), "cpuset.cpus", ("0-1", "1")),
    Limit("cpuset_mems", ("0", "0"), "cpuset/cpuset.mems", ("0", "0"), "cpuset.mems", ("0", "0")),
)[: 7 if CPUSETS else 5]  # fmt: skip
OOM_SCORES = (300, 600)


def seen_inside(bed: Testbed, container_id: str) -> dict[str, str]:
    """The limits as the container itself sees them in the files of its cgroup, and its OOM score."""
    files = {limit.field: f"/sys/fs/cgroup/{limit.v2 if V2 else limit.v1}" for limit in LIMITS}
    script = "; ".join(f"cat {path}" for path in files.values())
    request = cri.ExecSyncRequest(container_id=container_id, cmd=["sh", "-ec", script], timeout=60)
    answer = bed.runtime.ExecSync(request, timeout=60)
    assert answer.exit_code == 0, answer.stderr
    pid = container_info(bed, container_id)["pid"]
    score = (bed.proc / str(pid) / "oom_score_adj").read_text().strip()
    return {**dict(zip(files, answer.stdout.decode().splitlines(), strict=True)), "oom_score_adj": score}


def expected(which: int) -> dict[str, str]:
    says = {limit.field: (limit.v2_says if V2 else limit.v1_says)[which] for limit in LIMITS}
    return {**says, "oom_score_adj": str(OOM_SCORES[which])}


def limits(which: int) -> dict[str, object]:
    return {**{limit.field: limit.values[which] for limit in LIMITS}, "oom_score_adj": OOM_SCORES[which]}


def test_every_limit_is_in_the_cgroup_from_the_start_after_a_change_and_after_a_restart(
    bed: Testbed, images: tuple[str, ...]
) -> None:
    pod_id = run_pod(bed)
    container_id = run_container(bed, pod_id, container_config("c", "busybox", SLEEP, linux=linux(**limits(0))))
    assert seen_inside(bed, container_id) == expected(0)
    update(bed, container_id, **limits(1))
    assert seen_inside(bed, container_id) == expected(1)
    bed.restart_daemon(kill=True)
    assert seen_inside(bed, container_id) == expected(1)
    told = container_status(bed, container_id).resources.linux
    assert told == cri.LinuxContainerResources(**limits(1))  # type: ignore[arg-type]
    # A container that is started from what is stored has them too.
    again = create_container(bed, pod_id, container_config("again", "busybox", SLEEP, linux=linux(**limits(0))))
    update(bed, again, **limits(1))
    bed.restart_daemon(kill=True)
    start_container(bed, again)
    assert seen_inside(bed, again) == expected(1)
    remove_pod(bed, pod_id)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.field)
def test_each_limit_changes_alone(bed: Testbed, images: tuple[str, ...], limit: Limit) -> None:
    if V2:
        pytest.skip("a file of v2 can hold two limits: the test of all at once tells what it says")
    pod_id = run_pod(bed)
    container_id = run_container(bed, pod_id, container_config("c", "busybox", SLEEP, linux=linux(**limits(0))))
    changed = {limit.field: limit.values[1]}
    if limit.field == "memory_limit_in_bytes":
        # It counts into the other one, which is lower than this.
        changed["memory_swap_limit_in_bytes"] = 128 * MIB
    update(bed, container_id, **changed)
    wanted = {each.field: each.v1_says[each.field in changed] for each in LIMITS}
    assert seen_inside(bed, container_id) == {**wanted, "oom_score_adj": str(OOM_SCORES[0])}
    remove_pod(bed, pod_id)


def test_limits_that_are_not_given_are_the_kernels_and_a_memory_limit_leaves_no_swap(
    bed: Testbed, images: tuple[str, ...]
) -> None:
    pod_id = run_pod(bed)
    plain = run_container(bed, pod_id, container_config("plain", "busybox", SLEEP))
    limited = run_container(
        bed, pod_id, container_config("limited", "busybox", SLEEP, linux=linux(memory_limit_in_bytes=64 * MIB))
    )
    seen = seen_inside(bed, plain)
    assert seen["cpu_quota"] in ("-1", "max 100000")
    assert seen["oom_score_adj"] == Path("/proc/self/oom_score_adj").read_text().strip()
    assert seen_inside(bed, limited)["memory_swap_limit_in_bytes"] == ("0" if V2 else str(64 * MIB))
    remove_pod(bed, pod_id)


def test_files_of_cgroup_v2_are_set_there_and_refused_elsewhere(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    wanted = {"memory.high": str(48 * MIB)}
    if V2:
        container_id = run_container(
            bed, pod_id, container_config("c", "busybox", SLEEP, linux=linux(unified=wanted))
        )
        where = bed.cgroup_of(pod_id, container_id)
        assert (CGROUPS / where / "memory.high").read_text().strip() == str(48 * MIB)
        update(bed, container_id, unified={"memory.high": str(32 * MIB)})
        assert (CGROUPS / where / "memory.high").read_text().strip() == str(32 * MIB)
    else:
        with pytest.raises(grpc.RpcError) as at_create:
            create_container(bed, pod_id, container_config("c", "busybox", SLEEP, linux=linux(unified=wanted)))
        container_id = run_container(bed, pod_id, container_config("c", "busybox", SLEEP))
        before = seen_inside(bed, container_id), container_info(bed, container_id)["runtimeSpec"]
        with pytest.raises(grpc.RpcError) as at_update:
            update(bed, container_id, cpu_shares=512, unified=wanted)
        for error in (at_create, at_update):
            code, words = refused(error.value)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "memory.high: this machine runs cgroup v1" in words
        assert (seen_inside(bed, container_id), container_info(bed, container_id)["runtimeSpec"]) == before
    remove_pod(bed, pod_id)


def test_huge_page_limits_are_not_changed_while_a_container_runs_but_may_be_repeated(
    bed: Testbed, images: tuple[str, ...]
) -> None:
    """kubelet sends a limit of 0 for each size with every change."""
    pod_id = run_pod(bed)
    none = [cri.HugepageLimit(page_size="2MB", limit=0)]
    container_id = run_container(
        bed, pod_id, container_config("c", "busybox", SLEEP, linux=linux(hugepage_limits=none))
    )
    update(bed, container_id, cpu_shares=512, hugepage_limits=none)
    before = seen_inside(bed, container_id)
    assert before["cpu_shares"] == ("20" if V2 else "512")
    with pytest.raises(grpc.RpcError) as error:
        update(
            bed, container_id, cpu_shares=1024, hugepage_limits=[cri.HugepageLimit(page_size="2MB", limit=2 * MIB)]
        )
    code, words = refused(error.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "hugepage_limits" in words
    assert seen_inside(bed, container_id) == before
    remove_pod(bed, pod_id)


def test_new_limits_survive_a_restart_of_the_daemon(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    config = container_config("c", "busybox", SLEEP, linux=linux(memory_limit_in_bytes=64 * MIB, cpu_shares=512))
    container_id = run_container(bed, pod_id, config)
    update(bed, container_id, memory_limit_in_bytes=80 * MIB)
    bed.restart_daemon(kill=True)
    assert limits_of(bed, pod_id, container_id)["memory"] == 80 * MIB
    assert spec_limits(bed, container_id)["memory"] == 80 * MIB
    told = container_status(bed, container_id).resources.linux
    assert (told.memory_limit_in_bytes, told.cpu_shares) == (80 * MIB, 512)
    # And the next change builds on them.
    update(bed, container_id, cpu_period=50_000, cpu_quota=10_000)
    now = limits_of(bed, pod_id, container_id)
    assert (now["memory"], now["quota"], now["period"]) == (80 * MIB, 10_000, 50_000)
    remove_pod(bed, pod_id)


def test_a_container_that_was_not_started_starts_with_its_new_limits(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    config = container_config("c", "busybox", SLEEP, linux=linux(memory_limit_in_bytes=64 * MIB))
    container_id = create_container(bed, pod_id, config)
    update(bed, container_id, memory_limit_in_bytes=48 * MIB, oom_score_adj=300)
    start_container(bed, container_id)
    assert limits_of(bed, pod_id, container_id)["memory"] == 48 * MIB
    pid = container_info(bed, container_id)["pid"]
    assert (bed.proc / str(pid) / "oom_score_adj").read_text().strip() == "300"
    remove_pod(bed, pod_id)


def test_the_oom_score_of_running_processes_changes_too(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    script = "sleep 3600 & wait"
    container_id = run_container(bed, pod_id, container_config("c", "busybox", ["sh", "-c", script]))
    update(bed, container_id, oom_score_adj=500)
    pid = container_info(bed, container_id)["pid"]
    assert (bed.proc / str(pid) / "oom_score_adj").read_text().strip() == "500"
    remove_pod(bed, pod_id)


def test_what_the_runtime_refuses_changes_nothing(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    config = container_config(
        "c", "busybox", SLEEP, linux=linux(memory_limit_in_bytes=64 * MIB, cpu_period=100_000, cpu_quota=20_000)
    )
    container_id = run_container(bed, pod_id, config)
    before = limits_of(bed, pod_id, container_id), container_info(bed, container_id)["runtimeSpec"]
    with pytest.raises(grpc.RpcError) as impossible:
        update(bed, container_id, cpu_quota=40_000, cpuset_cpus="4096")
    assert refused(impossible.value)[0] is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as invalid:
        update(bed, container_id, cpu_period=1)
    assert refused(invalid.value)[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert (limits_of(bed, pod_id, container_id), container_info(bed, container_id)["runtimeSpec"]) == before
    update(bed, container_id, cpu_quota=40_000)
    assert limits_of(bed, pod_id, container_id)["quota"] == 40_000
    remove_pod(bed, pod_id)


def test_a_container_that_has_ended_or_never_was_has_no_limits_to_change(
    bed: Testbed, images: tuple[str, ...]
) -> None:
    pod_id = run_pod(bed)
    container_id = run_container(bed, pod_id, container_config("c", "busybox", ["true"]))
    until(lambda: exited(bed, container_id), what="it has ended")
    with pytest.raises(grpc.RpcError) as ended:
        update(bed, container_id, cpu_shares=512)
    assert refused(ended.value)[0] is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as unknown:
        update(bed, "0" * 64, cpu_shares=512)
    assert refused(unknown.value)[0] is grpc.StatusCode.NOT_FOUND
    remove_pod(bed, pod_id)


def test_the_resources_of_a_pod_are_noted_and_survive_a_restart(bed: Testbed) -> None:
    pod_id = run_pod(
        bed, pod_config(linux=cri.LinuxPodSandboxConfig(overhead=cri.LinuxContainerResources(cpu_shares=9)))
    )
    request = cri.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod_id, resources=cri.LinuxContainerResources(memory_limit_in_bytes=64 * MIB)
    )
    bed.runtime.UpdatePodSandboxResources(request)
    bed.restart_daemon(kill=True)
    noted = pod_info(bed, pod_id)["config"]["linux"]
    assert noted["resources"]["memory_limit_in_bytes"] == str(64 * MIB)
    assert noted["overhead"]["cpu_shares"] == "9", "what is absent stays"
    with pytest.raises(grpc.RpcError) as unknown:
        bed.runtime.UpdatePodSandboxResources(cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id="0" * 64))
    assert refused(unknown.value)[0] is grpc.StatusCode.NOT_FOUND
    remove_pod(bed, pod_id)


# Memory that runs out


def small(name: str, script: str) -> cri.ContainerConfig:
    limits = linux(memory_limit_in_bytes=20 * MIB, memory_swap_limit_in_bytes=20 * MIB)
    return container_config(name, "busybox", ["sh", "-c", script], linux=limits)


def test_a_container_that_ran_out_of_memory_says_so(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    # The process itself, and the child of a shell that ends with the child's code.
    ids = [run_container(bed, pod_id, small(f"direct-{i}", f"exec {HOG}")) for i in range(4)]
    ids += [run_container(bed, pod_id, small(f"shell-{i}", f"{HOG}; exit $?")) for i in range(4)]
    until(lambda: all(exited(bed, each) for each in ids), what="all have ended")
    for container_id in ids:
        status = container_status(bed, container_id)
        assert (status.exit_code, status.reason) == (137, "OOMKilled")
    remove_pod(bed, pod_id)


def test_out_of_memory_while_the_daemon_was_down_is_known_too(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    data = bed.write("/var/lib/oom/.keep", "").parent
    config = small("waits", f"while [ ! -e /data/go ]; do sleep 0.02; done; exec {HOG}")
    config.mounts.add(host_path="/var/lib/oom", container_path="/data")
    container_id = run_container(bed, pod_id, config)
    pid = container_info(bed, container_id)["pid"]
    bed.kill_daemon()
    (data / "go").touch()
    until(lambda: not _runs(bed, pid), what="it has ended")
    bed.relaunch_daemon()
    status = container_status(bed, container_id)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    (data / "go").unlink()
    remove_pod(bed, pod_id)


def _runs(bed: Testbed, pid: int) -> bool:
    try:
        return (bed.proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_that_ran_out_of_memory_is_the_reason_for_any_code(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed)
    well = run_container(bed, pod_id, small("well", f"{HOG}; echo child $?; exit 0"))
    badly = run_container(bed, pod_id, small("badly", f"{HOG}; exit 3"))
    until(lambda: exited(bed, well) and exited(bed, badly), what="both have ended")
    assert "child 137" in log_lines(bed, well)
    status = container_status(bed, well)
    assert (status.exit_code, status.reason) == (0, "OOMKilled")
    status = container_status(bed, badly)
    assert (status.exit_code, status.reason) == (3, "OOMKilled")
    remove_pod(bed, pod_id)


@pytest.mark.parametrize("how", ["container", "pod"])
@pytest.mark.parametrize("hungry", [True, False])
def test_our_own_sigkill_alone_is_not_taken_for_an_oom(
    bed: Testbed, images: tuple[str, ...], how: str, hungry: bool
) -> None:
    pod_id = run_pod(bed)
    script = f"{HOG if hungry else 'false'}; echo child $?; while :; do sleep 0.1; done"
    container_id = run_container(bed, pod_id, small("stays", script))
    said = f"child {137 if hungry else 1}"
    until(lambda: said in log_lines(bed, container_id), what="the child has ended")
    if how == "container":
        bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=0), timeout=60)
    else:
        bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=60)
    status = container_status(bed, container_id)
    assert (status.exit_code, status.reason) == (137, "OOMKilled" if hungry else "Error")
    remove_pod(bed, pod_id)


# What the cluster tells the machine


TEMPLATE = {
    "cniVersion": "1.0.0",
    "name": "cluster",
    "plugins": [
        {
            "type": "ptp",
            "ipam": {"type": "host-local", "ranges": "{{.PodCIDRRanges}}", "routes": "{{.Routes}}"},
        }
    ],
}


def set_cidr(bed: Testbed, cidr: str) -> None:
    config = cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr=cidr))
    bed.runtime.UpdateRuntimeConfig(cri.UpdateRuntimeConfigRequest(runtime_config=config), timeout=10)


def test_the_pod_cidr_becomes_the_network_of_new_pods(fresh_bed: StartBed) -> None:
    bed = fresh_bed(network=False, daemon=False)
    bed.write("/etc/cni/cluster.template", json.dumps(TEMPLATE))
    bed.start_daemon(network={"conf_template": "/etc/cni/cluster.template"})
    set_cidr(bed, "")
    with pytest.raises(grpc.RpcError):
        run_pod(bed)
    set_cidr(bed, "10.77.1.0/24")
    first = run_pod(bed)
    assert pod_status(bed, first).network.ip.startswith("10.77.1.")
    set_cidr(bed, "10.77.2.0/24,fd77::/64")
    second = run_pod(bed)
    network = pod_status(bed, second).network
    assert network.ip.startswith("10.77.2.")
    assert [each.ip.startswith("fd77::") for each in network.additional_ips] == [True]
    with pytest.raises(grpc.RpcError) as invalid:
        set_cidr(bed, "10.77.2.1/24")
    assert refused(invalid.value)[0] is grpc.StatusCode.INVALID_ARGUMENT
    for pod_id in (first, second):
        remove_pod(bed, pod_id)


def test_a_network_that_somebody_configured_is_left_alone(fresh_bed: StartBed) -> None:
    bed = fresh_bed(daemon=False)
    bed.write("/etc/cni/cluster.template", json.dumps(TEMPLATE))
    bed.start_daemon(network={"conf_template": "/etc/cni/cluster.template"})
    set_cidr(bed, "10.77.1.0/24")
    assert [path.name for path in bed.path("/etc/cni/net.d").iterdir()] == ["10-sandboxd.conflist"]

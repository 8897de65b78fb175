"""Runtime handlers: several OCI runtimes side by side, each with what it can do and options of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.pods import (
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
    shell,
    start_container,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

MIB = 1 << 20
LIVES = "trap 'exit 7' TERM; echo lives; while :; do sleep 0.1; done"

# crun before 1.9 does not know a machine that has cgroup v2 beside v1: here it does not see it.
CRUN = """#!/bin/sh
if [ -d /sys/fs/cgroup/unified ]; then
    exec unshare --mount --propagation slave sh -c 'umount /sys/fs/cgroup/unified && exec crun "$@"' crun "$@"
fi
exec crun "$@"
"""
RECORDER = """#!/bin/sh
echo "$@" >> /run/recorded
exec runc "$@"
"""
BROKEN = """#!/bin/sh
[ "$1" = features ] && exec runc features
exit 1
"""


@pytest.fixture(scope="module")
def two(containerd_bin: Path | None) -> Iterator[Testbed]:
    """A bed with the handlers runc and crun."""
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        bed.write("/var/lib/crun-here", CRUN, mode=0o755)
        handlers = {"crun": {"binary": "/var/lib/crun-here", "root": "/run/crun"}}
        bed.start_daemon(runtime={"handlers": handlers, "cgroup_parent": bed.cgroup_parent})
        bed.load_image("busybox")
        yield bed


def offered(bed: Testbed) -> dict[str, cri.RuntimeHandlerFeatures]:
    return {each.name: each.features for each in bed.runtime.Status(cri.StatusRequest()).runtime_handlers}


def exec_sync(bed: Testbed, container_id: str, script: str) -> str:
    request = cri.ExecSyncRequest(container_id=container_id, cmd=["sh", "-c", script], timeout=60)
    return str(bed.runtime.ExecSync(request, timeout=60).stdout.decode())


def warm_up(bed: Testbed, handler: str) -> None:
    """Have what the first pod and container make once and for all."""
    pod_id = run_pod(bed, handler=handler)
    run_container(bed, pod_id, shell("true"))
    remove_pod(bed, pod_id)


def known_to(bed: Testbed, program: str, root: str) -> list[str]:
    return bed.run([program, "--root", root, "list", "-q"]).stdout.split()


@pytest.mark.parametrize("handler", ["runc", "crun"])
def test_a_pod_lives_the_same_life_under_either_runtime(two: Testbed, handler: str) -> None:
    bed = two
    warm_up(bed, handler)
    before = observe(bed)
    pod_id = run_pod(bed, handler=handler)
    assert pod_status(bed, pod_id).runtime_handler == handler
    (listed,) = bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(id=pod_id))).items
    assert listed.runtime_handler == handler
    limits = cri.LinuxContainerResources(memory_limit_in_bytes=64 * MIB, cpu_shares=512)
    config = shell(LIVES, linux=cri.LinuxContainerConfig(resources=limits))
    container_id = run_container(bed, pod_id, config)
    until(lambda: log_lines(bed, container_id) == ["lives"], what="its first words")
    assert exec_sync(bed, container_id, "echo asked") == "asked\n"
    wanted = cri.LinuxContainerResources(memory_limit_in_bytes=96 * MIB)
    bed.runtime.UpdateContainerResources(
        cri.UpdateContainerResourcesRequest(container_id=container_id, linux=wanted), timeout=60
    )
    stats = bed.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container_id)).stats
    assert stats.memory.available_bytes.value == 96 * MIB - stats.memory.working_set_bytes.value
    bed.restart_daemon(kill=True)
    assert container_status(bed, container_id).state == cri.CONTAINER_RUNNING
    assert exec_sync(bed, container_id, "echo again") == "again\n"
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=20), timeout=60)
    assert container_status(bed, container_id).exit_code == 7
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


@pytest.mark.parametrize("handler", ["runc", "crun"])
def test_what_somebody_has_paused_ends_under_either_runtime(two: Testbed, handler: str) -> None:
    """Not every runtime thaws on SIGKILL: a container, one of a pod that is stopped, and the pause container."""
    bed = two
    warm_up(bed, handler)
    before = observe(bed)
    address = "/run/sandboxd/containerd/containerd.sock"

    def pause(task_id: str) -> None:
        bed.run(["ctr", "--address", address, "--namespace", "sandboxd", "tasks", "pause", task_id])

    pod_id = run_pod(bed, handler=handler)
    container_id, other = (run_container(bed, pod_id, shell(LIVES)) for _ in range(2))
    pause(container_id)
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=0), timeout=60)
    assert container_status(bed, container_id).exit_code == 137
    pause(other)
    pause(pod_id)
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=60)
    assert container_status(bed, other).exit_code == 137
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_each_pod_is_run_by_the_runtime_of_its_handler_only(two: Testbed) -> None:
    bed = two
    crun, runc = run_pod(bed, handler="crun"), run_pod(bed)
    by_crun = run_container(bed, crun, shell(LIVES))
    by_runc = run_container(bed, runc, shell(LIVES))
    under_crun = set(known_to(bed, "/var/lib/crun-here", "/run/crun/sandboxd"))
    under_runc = set(known_to(bed, "runc", "/run/containerd/runc/sandboxd"))
    assert {crun, by_crun} <= under_crun and {runc, by_runc} <= under_runc
    assert not under_crun & under_runc
    for pod_id in (crun, runc):
        remove_pod(bed, pod_id)


def test_status_shows_of_each_handler_what_its_runtime_says(two: Testbed) -> None:
    """Read-only recursively is what both may know or not; what is advertised is what they say."""
    found = offered(two)
    assert set(found) == {"", "runc", "crun"}
    assert found[""] == found["runc"]
    for name, binary in (("runc", "runc"), ("crun", "crun")):
        asked = two.run([binary, "features"], check=False)
        assert found[name].recursive_read_only_mounts == (asked.returncode == 0 and '"rro"' in asked.stdout)


def test_an_unknown_handler_is_an_error_that_names_the_known_ones_and_leaves_nothing(two: Testbed) -> None:
    before = observe(two)
    with pytest.raises(grpc.RpcError) as unknown:
        run_pod(two, handler="none")
    code, words = refused(unknown.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "unknown runtime handler 'none'; known: crun, runc" in words
    assert_no_leaks(two, before)


def test_a_handler_that_was_taken_out_of_the_configuration_still_lets_go_of_its_pods(fresh_bed: StartBed) -> None:
    bed = fresh_bed(daemon=False)
    bed.write("/run/recorder", RECORDER, mode=0o755)
    bed.start_daemon(runtime={"handlers": {"old": {"binary": "/run/recorder"}}, "cgroup_parent": bed.cgroup_parent})
    bed.load_image("busybox")
    warm_up(bed, "old")
    before = observe(bed)
    pod_id = run_pod(bed, handler="old")
    container_id = run_container(bed, pod_id, shell(LIVES))
    created = create_container(bed, pod_id, shell("exit 4"))
    bed.stop_daemon()
    bed.start_daemon()
    assert pod_status(bed, pod_id).runtime_handler == "old"
    assert exec_sync(bed, container_id, "echo asked") == "asked\n"
    start_container(bed, created)
    until(lambda: exited(bed, created), what="it has ended")
    assert container_status(bed, created).exit_code == 4
    with pytest.raises(grpc.RpcError) as gone:
        create_container(bed, pod_id, shell("true"))
    assert "unknown runtime handler 'old'; known: runc" in refused(gone.value)[1]
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_handlers_stand_side_by_side_with_options_of_their_own(fresh_bed: StartBed) -> None:
    handlers = {
        "recorded": {"binary": "/run/recorder", "root": "/run/recorded-root", "annotations": ["vendor.example/*"]},
        "mute": {"binary": "/bin/true"},
        "absent": {"binary": "/no/such/runtime"},
        "broken": {"binary": "/run/broken"},
        "vm": {"type": "io.containerd.vm.v2"},
    }
    bed = fresh_bed(daemon=False)
    bed.write("/run/recorder", RECORDER, mode=0o755)
    bed.write("/run/broken", BROKEN, mode=0o755)
    bed.start_daemon(
        runtime={"handlers": handlers, "default_handler": "recorded", "cgroup_parent": bed.cgroup_parent}
    )
    bed.load_image("busybox")
    found = offered(bed)
    assert set(found) == {"", "runc", *handlers}
    assert found[""] == found["recorded"] == found["runc"] == found["broken"]
    for name in ("mute", "absent", "vm"):
        assert found[name] == cri.RuntimeHandlerFeatures(), name

    config = pod_config(annotations={"vendor.example/a": "1", "other.example/b": "2"})
    pod_id = run_pod(bed, config)
    container_id = run_container(bed, pod_id, shell("true"))
    until(lambda: exited(bed, container_id), what="it has ended")
    recorded = bed.path("/run/recorded").read_text()
    assert "--root /run/recorded-root" in recorded
    assert recorded.count("features\n") == 1, "it was asked once, by the daemon that started"
    annotations = pod_info(bed, pod_id)["runtimeSpec"]["annotations"]
    assert annotations["vendor.example/a"] == "1"
    assert "other.example/b" not in annotations
    plain = run_pod(bed, handler="runc")
    assert plain not in bed.path("/run/recorded").read_text()
    remove_pod(bed, plain)
    remove_pod(bed, pod_id)

    before = observe(bed)
    for handler, words in (
        ("broken", "/run/broken did not terminate"),
        ("absent", "/no/such/runtime"),
        ("vm", "io.containerd.vm.v2"),
    ):
        with pytest.raises(grpc.RpcError) as error:
            run_pod(bed, handler=handler)
        code, said = refused(error.value)
        assert code is grpc.StatusCode.FAILED_PRECONDITION, (handler, code, said)
        assert words in said
    mapping = [cri.IDMapping(host_id=100000, container_id=0, length=65536)]
    mapped = cri.UserNamespace(mode=cri.POD, uids=mapping, gids=mapping)
    security = cri.LinuxSandboxSecurityContext(namespace_options=cri.NamespaceOption(userns_options=mapped))
    with pytest.raises(grpc.RpcError) as error:
        run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(security_context=security)), handler="mute")
    assert "user namespaces do not work here: /bin/true does not say" in refused(error.value)[1]
    assert_no_leaks(bed, before)


def test_setup_installs_both_runtimes() -> None:
    """The tests above must not pass because there is nothing to test."""
    for program in ("runc", "crun"):
        assert subprocess.run([program, "--version"], capture_output=True, check=True).stdout

"""Requests and images that every other runtime takes, however odd, under either OCI runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.e2e.test_handlers import CRUN
from tests.images import with_configs
from tests.pods import (
    container_config,
    container_status,
    exited,
    log_lines,
    pod_config,
    remove_pod,
    run_container,
    run_pod,
    shell,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

MIB = 1 << 20
CONFIGS: dict[str, dict[str, Any]] = {
    "entrypoint-reset": {"Entrypoint": [""], "Cmd": ["/bin/echo", "of", "Cmd"]},
    "nulls": {
        "Entrypoint": [None],
        "Cmd": ["echo", "of", "Cmd"],
        "Env": [None, "A=1"],
        "Labels": {"a": None},
    },
}


@pytest.fixture(scope="module")
def two(containerd_bin: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """A bed with the handlers runc and crun and all the images, after a first pod."""
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        bed.write("/var/lib/crun-here", CRUN, mode=0o755)
        handlers = {"crun": {"binary": "/var/lib/crun-here", "root": "/run/crun"}}
        bed.start_daemon(runtime={"handlers": handlers, "cgroup_parent": bed.cgroup_parent})
        bed.load_image("busybox")
        archive = tmp_path_factory.mktemp("images") / "images.tar"
        configs = {f"docker.io/test/{name}:1": changes for name, changes in CONFIGS.items()}
        bed.load_archive(with_configs(bed.build_image("busybox"), archive, configs))
        for name in ("first", "second"):
            bed.write(f"/var/lib/odd/{name}/which", f"{name}\n")
        for handler in ("runc", "crun"):
            pod_id = run_pod(bed, handler=handler)
            run_container(
                bed, pod_id, shell("true", mounts=[cri.Mount(container_path="/x", host_path="/var/lib/none")])
            )
            remove_pod(bed, pod_id)
        yield bed


@pytest.fixture(params=["runc", "crun"])
def handler(two: Testbed, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a handler; when the test is over its pod must be gone."""
    before = observe(two)
    yield str(request.param)
    assert_no_leaks(two, before)


def output(
    bed: Testbed, handler: str, config: cri.ContainerConfig, pod: cri.PodSandboxConfig | None = None
) -> list[str]:
    """What the container writes until it ends, without an error."""
    pod_id = run_pod(bed, pod, handler=handler)
    container_id = run_container(bed, pod_id, config)
    until(lambda: exited(bed, container_id), what="it has ended")
    status = container_status(bed, container_id)
    assert (status.exit_code, status.reason) == (0, "Completed"), log_lines(bed, container_id)
    said = log_lines(bed, container_id) if status.log_path else []
    remove_pod(bed, pod_id)
    return said


def linux(**fields: Any) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(**fields))


@pytest.mark.parametrize("image", CONFIGS)
def test_an_image_that_resets_its_entrypoint_runs_its_command(two: Testbed, handler: str, image: str) -> None:
    assert output(two, handler, container_config("c", f"docker.io/test/{image}:1")) == ["of Cmd"]


def test_selinux_options_mean_nothing_to_a_kernel_without_selinux(two: Testbed, handler: str) -> None:
    """Kubernetes' own tests of EmptyDir send them everywhere."""
    assert not Path("/sys/fs/selinux/enforce").exists(), "this machine runs SELinux: the test is about others"
    for options in (cri.SELinuxOption(level="s0"), cri.SELinuxOption(user="u", role="r", type="t", level="s0:c1,c2")):
        pod = pod_config(
            linux=cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(selinux_options=options))
        )
        config = shell(
            "cat /data/which",
            mounts=[cri.Mount(container_path="/data", host_path="/var/lib/odd/first", selinux_relabel=True)],
            linux=cri.LinuxContainerConfig(
                security_context=cri.LinuxContainerSecurityContext(selinux_options=options)
            ),
        )
        assert output(two, handler, config, pod) == ["first"]
    assert "SELinux options ignored" in two.log_tail(400)


ODD_LIMITS: dict[str, dict[str, Any]] = {
    "shares below": {"cpu_shares": 1},
    "shares above": {"cpu_shares": 2**40},
    "no memory limit": {"memory_limit_in_bytes": -1},
    "no limit at all": {"memory_limit_in_bytes": -1, "memory_swap_limit_in_bytes": -1, "cpu_quota": -1},
    "swap without a memory limit": {"memory_limit_in_bytes": -1, "memory_swap_limit_in_bytes": 64 * MIB},
    "no quota": {"cpu_quota": -5, "cpu_period": 100_000},
    "cpus": {"cpuset_cpus": "0,"},
    "hugepages": {"hugepage_limits": [cri.HugepageLimit(page_size="2MB", limit=2 * MIB)]},
}


@pytest.mark.parametrize("limits", ODD_LIMITS.values(), ids=ODD_LIMITS)
def test_odd_limits_are_set_as_near_as_the_kernel_can(two: Testbed, handler: str, limits: dict[str, Any]) -> None:
    assert output(two, handler, shell("echo runs", linux=linux(**limits))) == ["runs"]


@pytest.mark.parametrize("which", ["shares below", "shares above", "no memory limit", "swap without a memory limit"])
def test_odd_limits_can_be_set_later(two: Testbed, handler: str, which: str) -> None:
    pod_id = run_pod(two, handler=handler)
    config = shell("while :; do sleep 0.1; done", linux=linux(memory_limit_in_bytes=64 * MIB, cpu_shares=512))
    container_id = run_container(two, pod_id, config)
    resources = cri.LinuxContainerResources(**ODD_LIMITS[which])
    two.runtime.UpdateContainerResources(
        cri.UpdateContainerResourcesRequest(container_id=container_id, linux=resources), timeout=60
    )
    remove_pod(two, pod_id)


def test_a_mount_whose_source_is_missing_is_an_empty_directory(two: Testbed, handler: str) -> None:
    two.run(["rm", "-rf", "/var/lib/none"])
    config = shell("ls -A /x && echo empty", mounts=[cri.Mount(container_path="/x", host_path="/var/lib/none")])
    assert output(two, handler, config) == ["empty"]
    assert two.path("/var/lib/none").is_dir()
    assert "source was missing" in two.log_tail(400)


def test_of_two_mounts_at_a_place_the_last_is_seen(two: Testbed, handler: str) -> None:
    mounts = [
        cri.Mount(container_path="/data", host_path="/var/lib/odd/first"),
        cri.Mount(container_path="/data/", host_path="/var/lib/odd/second"),
    ]
    assert output(two, handler, shell("cat /data/which", mounts=mounts)) == ["second"]
    assert "is mounted 2 times" in two.log_tail(400)


def test_a_relative_path_is_below_the_root(two: Testbed, handler: str) -> None:
    config = shell("cat /a/b/which", mounts=[cri.Mount(container_path="a/b", host_path="/var/lib/odd/first")])
    assert output(two, handler, config) == ["first"]


def test_an_absolute_log_path_is_below_the_log_directory(two: Testbed, handler: str) -> None:
    config = shell("echo logged")
    config.log_path = f"/{config.log_path}"
    assert output(two, handler, config) == ["logged"]
    assert "is absolute, but taken below" in two.log_tail(400)


def test_the_null_device_may_be_mounted_where_the_users_are(two: Testbed, handler: str) -> None:
    mounts = [cri.Mount(container_path=f"/etc/{name}", host_path="/dev/null") for name in ("passwd", "group")]
    assert output(two, handler, shell("cat /etc/passwd /etc/group; id -u", mounts=mounts)) == ["0"]


def test_a_log_path_without_a_log_directory_is_no_log(two: Testbed, handler: str) -> None:
    pod = pod_config()
    pod.log_directory = ""
    assert output(two, handler, shell("echo discarded"), pod) == []

"""States, exit codes, logs, idempotence and filters of pods and containers."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.pods import (
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
    shell,
    start_container,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e


def finished(bed: Testbed, pod_id: str, config: cri.ContainerConfig) -> str:
    """Run a container to its end; its id."""
    container_id = run_container(bed, pod_id, config)
    until(lambda: exited(bed, container_id), what="the container ends")
    return container_id


def remove(bed: Testbed, container_id: str) -> None:
    bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=60)


def stop(bed: Testbed, container_id: str, timeout: int) -> None:
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=timeout), timeout=60)


# States.


def test_a_container_goes_from_created_to_running_to_exited(bed: Testbed, shared_pod: str) -> None:
    container_id = create_container(bed, shared_pod, shell("exec sleep 1000"))
    created = container_status(bed, container_id)
    assert created.state == cri.CONTAINER_CREATED
    assert created.created_at and not created.started_at
    start_container(bed, container_id)
    running = container_status(bed, container_id)
    assert running.state == cri.CONTAINER_RUNNING
    assert running.started_at >= running.created_at
    stop(bed, container_id, 0)
    ended = container_status(bed, container_id)
    assert ended.state == cri.CONTAINER_EXITED
    assert ended.finished_at >= ended.started_at
    remove(bed, container_id)


@pytest.mark.parametrize(
    ("script", "code", "reason"), [("true", 0, "Completed"), ("exit 3", 3, "Error"), ("kill -9 $$", 137, "Error")]
)
def test_exit_codes_and_reasons_are_seen_without_asking(
    bed: Testbed, shared_pod: str, script: str, code: int, reason: str
) -> None:
    container_id = finished(bed, shared_pod, shell(script))
    status = container_status(bed, container_id)
    assert (status.exit_code, status.reason) == (code, reason)
    remove(bed, container_id)


def test_a_container_that_ends_at_once_is_seen_to_have_ended(bed: Testbed, shared_pod: str) -> None:
    """Its exit event may come before StartContainer has recorded that it runs."""
    for _ in range(20):
        container_id = run_container(bed, shared_pod, shell("exit 4"))
        until(lambda: exited(bed, container_id), what="the container ends")  # noqa: B023
        assert container_status(bed, container_id).exit_code == 4
        remove(bed, container_id)


def test_stop_sends_the_stop_signal_and_grants_the_grace_period(bed: Testbed, shared_pod: str) -> None:
    container_id = run_container(bed, shared_pod, shell("trap 'exit 7' TERM; while :; do sleep 0.05; done"))
    until(lambda: container_info(bed, container_id)["pid"], what="it runs")
    stop(bed, container_id, 30)
    assert container_status(bed, container_id).exit_code in (7, 143)
    remove(bed, container_id)


def test_a_container_that_ignores_the_signal_is_killed_after_the_grace_period(bed: Testbed, shared_pod: str) -> None:
    container_id = run_container(bed, shared_pod, shell("trap '' TERM; echo ready; while :; do sleep 0.05; done"))
    until(lambda: "ready" in log_lines(bed, container_id), what="it ignores TERM")
    stop(bed, container_id, 1)
    assert container_status(bed, container_id).exit_code == 128 + signal.SIGKILL
    remove(bed, container_id)


def test_removing_a_running_container_works(bed: Testbed, shared_pod: str) -> None:
    container_id = run_container(bed, shared_pod, shell("exec sleep 1000"))
    remove(bed, container_id)
    with pytest.raises(grpc.RpcError) as error:
        container_status(bed, container_id)
    assert refused(error.value)[0] is grpc.StatusCode.NOT_FOUND


def test_a_pod_whose_pause_is_killed_is_seen_as_not_ready_and_can_be_removed(bed: Testbed) -> None:
    pod_id = run_pod(bed)
    bed.run(["kill", "-9", str(pod_info(bed, pod_id)["pid"])])
    until(lambda: pod_status(bed, pod_id).state == cri.SANDBOX_NOTREADY, what="the pod is not ready")
    remove_pod(bed, pod_id)


# Logs.


def test_both_streams_land_in_the_cri_format(bed: Testbed, shared_pod: str) -> None:
    container_id = finished(bed, shared_pod, shell("echo out; echo err >&2; printf unfinished"))
    text = bed.path(container_status(bed, container_id).log_path).read_text(encoding="utf-8")
    entries = {tuple(line.split(" ", 3)[1:]) for line in text.splitlines()}
    assert entries == {("stdout", "F", "out"), ("stderr", "F", "err"), ("stdout", "P", "unfinished")}
    remove(bed, container_id)


def test_a_long_line_is_split_into_partial_entries(bed: Testbed, shared_pod: str) -> None:
    container_id = finished(bed, shared_pod, shell("head -c 40000 /dev/zero | tr '\\0' x; echo"))
    text = bed.path(container_status(bed, container_id).log_path).read_text(encoding="utf-8")
    parts = [line.split(" ", 3)[2:] for line in text.splitlines()]
    assert [tag for tag, _ in parts] == ["P", "P", "F"]
    assert "".join(part for _, part in parts) == "x" * 40000
    remove(bed, container_id)


def test_a_reopened_log_goes_on_in_a_new_file(bed: Testbed, shared_pod: str) -> None:
    container_id = run_container(bed, shared_pod, shell("while :; do echo tick; sleep 0.02; done"))
    path = bed.path(container_status(bed, container_id).log_path)
    until(lambda: path.exists() and path.stat().st_size, what="the first line")
    old = path.rename(path.with_suffix(".1.log"))
    bed.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container_id))
    until(lambda: path.stat().st_size, what="a line in the new file")
    size = old.stat().st_size
    until(lambda: path.stat().st_size > 200, what="more lines in the new file")
    assert old.stat().st_size == size
    remove(bed, container_id)


# What the container sees.


def test_a_container_finds_its_pods_files_and_identity(bed: Testbed, images: tuple[str, ...]) -> None:
    config = pod_config(
        "seen", dns_config=cri.DNSConfig(servers=["192.0.2.53"], searches=["example.test"], options=["ndots:2"])
    )
    pod_id = run_pod(bed, config)
    ip = pod_status(bed, pod_id).network.ip
    container_id = finished(
        bed, pod_id, shell("hostname; cat /etc/hostname /etc/resolv.conf /etc/hosts; df /dev/shm | tail -1")
    )
    seen = log_lines(bed, container_id)
    assert seen[:2] == ["seen", "seen"]
    assert seen[2:5] == ["search example.test", "nameserver 192.0.2.53", "options ndots:2"]
    assert any(line.split() == [ip, "seen"] for line in seen)
    assert seen[-1].startswith("shm")
    remove_pod(bed, pod_id)


def test_env_args_workdir_user_and_readonly_root_are_as_asked(bed: Testbed, shared_pod: str) -> None:
    config = shell("echo $GREETING; pwd; id -u; id -g; touch /x 2>&1 || echo read-only")
    config.envs.append(cri.KeyValue(key="GREETING", value=b"hello"))
    config.working_dir = "/tmp"
    config.linux.security_context.run_as_user.value = 1234
    config.linux.security_context.run_as_group.value = 5678
    config.linux.security_context.readonly_rootfs = True
    container_id = finished(bed, shared_pod, config)
    assert log_lines(bed, container_id)[:4] == ["hello", "/tmp", "1234", "5678"]
    assert log_lines(bed, container_id)[-1] == "read-only"
    remove(bed, container_id)


def test_cpu_and_memory_limits_reach_the_cgroup(bed: Testbed, shared_pod: str) -> None:
    config = shell("exec sleep 1000")
    limits = cri.LinuxContainerResources(cpu_period=100000, cpu_quota=50000, memory_limit_in_bytes=64 << 20)
    config.linux.resources.CopyFrom(limits)
    container_id = run_container(bed, shared_pod, config)
    lines = (bed.proc / str(container_info(bed, container_id)["pid"]) / "cgroup").read_text().splitlines()
    groups = {controller: line.split(":")[2] for line in lines for controller in line.split(":")[1].split(",")}
    files = {
        "memory": ("memory.limit_in_bytes", "memory.max", str(64 << 20)),
        "cpu": ("cpu.cfs_quota_us", "cpu.max", "50000"),
    }
    for controller, (v1, v2, wanted) in files.items():
        if controller in groups:
            path = f"/sys/fs/cgroup/{controller}{groups[controller]}/{v1}"
        else:
            path = f"/sys/fs/cgroup{groups['']}/{v2}"
        assert bed.path(path).read_text().split()[0] == wanted
    remove(bed, container_id)


def test_mounts_are_seen_and_read_only_ones_cannot_be_written(bed: Testbed, shared_pod: str) -> None:
    bed.write("/var/lib/pod-data/greeting", "hello\n")
    config = shell(
        "cat /data/greeting; touch /data/x 2>/dev/null || echo read-only",
        mounts=[cri.Mount(host_path="/var/lib/pod-data", container_path="/data", readonly=True)],
    )
    container_id = finished(bed, shared_pod, config)
    assert log_lines(bed, container_id) == ["hello", "read-only"]
    assert list(container_status(bed, container_id).mounts) == list(config.mounts)
    remove(bed, container_id)


def test_a_host_network_pod_has_no_namespace_and_no_address(bed: Testbed, images: tuple[str, ...]) -> None:
    config = pod_config()
    config.ClearField("hostname")
    config.linux.security_context.namespace_options.network = cri.NODE
    pod_id = run_pod(bed, config)
    assert not pod_status(bed, pod_id).network.ip
    assert pod_id not in bed.run(["ip", "netns", "list"]).stdout
    container_id = finished(bed, pod_id, shell("cat /etc/resolv.conf /etc/hosts >/dev/null && ls /sys/class/net"))
    assert "up0" in log_lines(bed, container_id)
    remove_pod(bed, pod_id)


# Idempotence.


def test_the_same_run_request_returns_the_same_pod(bed: Testbed) -> None:
    config = pod_config()
    with ThreadPoolExecutor(4) as clients:
        ids = set(clients.map(lambda _: run_pod(bed, config), range(4)))
    assert len(ids) == 1
    assert run_pod(bed, config) in ids
    remove_pod(bed, ids.pop())


def test_another_pod_of_the_same_name_is_refused(bed: Testbed) -> None:
    config = pod_config()
    pod_id = run_pod(bed, config)
    config.labels["changed"] = "yes"
    with pytest.raises(grpc.RpcError) as error:
        run_pod(bed, config)
    code, words = refused(error.value)
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert pod_id in words
    remove_pod(bed, pod_id)


def test_the_same_create_request_returns_the_same_container(bed: Testbed, shared_pod: str) -> None:
    config = shell("true")
    first = create_container(bed, shared_pod, config)
    assert create_container(bed, shared_pod, config) == first
    remove(bed, first)


def test_stop_and_remove_may_be_repeated(bed: Testbed) -> None:
    pod_id = run_pod(bed)
    for _ in range(2):
        bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    for _ in range(2):
        bed.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


def test_a_client_that_gives_up_leaves_nothing_half_done(bed: Testbed, images: tuple[str, ...]) -> None:
    remove_pod(bed, run_pod(bed))
    before = observe(bed)
    config = pod_config()
    request = cri.RunPodSandboxRequest(config=config)
    with pytest.raises(grpc.RpcError):
        bed.runtime.RunPodSandbox(request, timeout=0.01)
    remove_pod(bed, run_pod(bed, config))  # joins the one in flight, or finds what it made
    assert not bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest(filter=_named(config))).items
    assert_no_leaks(bed, before)


def _named(config: cri.PodSandboxConfig) -> cri.PodSandboxFilter:
    return cri.PodSandboxFilter(label_selector={"pod": config.metadata.name})


# Lists.


def test_any_unambiguous_prefix_of_an_id_names_the_object(bed: Testbed, shared_pod: str) -> None:
    assert len(shared_pod) == 64
    assert pod_status(bed, shared_pod[:12]).id == shared_pod
    container_id = create_container(bed, shared_pod, shell("true"))
    assert container_status(bed, container_id[:12]).id == container_id
    remove(bed, container_id[:12])


def test_lists_are_filtered_by_id_state_labels_and_pod(bed: Testbed, shared_pod: str) -> None:
    pod_id = run_pod(bed, pod_config(labels={"app": "filtered"}))
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    ready, notready = (cri.PodSandboxStateValue(state=s) for s in (cri.SANDBOX_READY, cri.SANDBOX_NOTREADY))

    def pods(**wanted: object) -> list[str]:
        found = bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(**wanted)))  # type: ignore[arg-type]
        return [item.id for item in found.items]

    assert set(pods()) >= {shared_pod, pod_id}
    assert pods(id=pod_id[:10]) == [pod_id]
    assert pods(label_selector={"app": "filtered"}) == [pod_id]
    assert pods(label_selector={"app": "other"}) == []
    assert pod_id in pods(state=notready) and pod_id not in pods(state=ready)
    assert shared_pod in pods(state=ready)

    container_id = create_container(bed, shared_pod, shell("true", labels={"tier": "one"}))

    def containers(**wanted: object) -> list[str]:
        found = bed.runtime.ListContainers(cri.ListContainersRequest(filter=cri.ContainerFilter(**wanted)))  # type: ignore[arg-type]
        return [item.id for item in found.containers]

    assert containers(label_selector={"tier": "one"}) == [container_id]
    assert containers(pod_sandbox_id=pod_id) == []
    assert container_id in containers(pod_sandbox_id=shared_pod[:10])
    assert containers(id=container_id, state=cri.ContainerStateValue(state=cri.CONTAINER_RUNNING)) == []
    remove(bed, container_id)
    remove_pod(bed, pod_id)


# Images.


def test_images_are_listed_found_and_removed(bed: Testbed, images: tuple[str, ...]) -> None:
    listed = bed.images.ListImages(cri.ListImagesRequest()).images
    tags = {tag for image in listed for tag in image.repo_tags}
    assert {"docker.io/library/nginx:latest", "docker.io/library/busybox:latest"} <= tags
    found = bed.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image="busybox"))).image
    assert found.id.startswith("sha256:") and found.size
    by_id = bed.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=found.id))).image
    assert by_id == found
    assert not bed.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image="absent"))).HasField("image")
    usage = bed.images.ImageFsInfo(cri.ImageFsInfoRequest()).image_filesystems[0]
    assert usage.used_bytes.value and usage.fs_id.mountpoint
    bed.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=found.id)))
    assert not bed.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image="busybox"))).HasField("image")
    bed.load_image("busybox")

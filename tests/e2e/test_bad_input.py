"""Bad input gets a clear error with the right code, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.pods import (
    container_config,
    container_status,
    create_container,
    exited,
    log_lines,
    pod_config,
    refused,
    remove_pod,
    run_container,
    run_pod,
    start_container,
)
from tests.processes import until
from tests.testbed import ROOT, Testbed

pytestmark = pytest.mark.e2e

FAKE = ROOT / "tests" / "fakes" / "cni_plugin.py"


HOST_NETWORK = cri.LinuxPodSandboxConfig(
    security_context=cri.LinuxSandboxSecurityContext(namespace_options=cri.NamespaceOption(network=cri.NODE))
)


def changed(**metadata: Any) -> cri.PodSandboxConfig:
    """A good pod but for its metadata."""
    config = pod_config()
    for key, value in metadata.items():
        setattr(config.metadata, key, value)
    return config


INVALID_PODS: dict[str, tuple[cri.PodSandboxConfig, str]] = {
    "no metadata": (cri.PodSandboxConfig(), "metadata"),
    "an empty name": (changed(name=""), "name"),
    "an empty namespace": (changed(namespace=""), "namespace"),
    "an empty uid": (changed(uid=""), "uid"),
    "a name with a slash": (changed(name="a/b"), "name"),
    "a name with a control character": (changed(name="a\nb"), "name"),
}


@pytest.mark.parametrize("case", INVALID_PODS)
def test_an_invalid_pod_is_refused_with_the_field_that_is_wrong(bed: Testbed, case: str) -> None:
    config, field = INVALID_PODS[case]
    before = observe(bed)
    with pytest.raises(grpc.RpcError) as error:
        run_pod(bed, config)
    code, words = refused(error.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in words
    assert_no_leaks(bed, before)


def test_an_unknown_runtime_handler_is_refused_with_the_known_ones(bed: Testbed) -> None:
    with pytest.raises(grpc.RpcError) as error:
        run_pod(bed, handler="gvisor")
    code, words = refused(error.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "gvisor" in words and "runc" in words


def test_unknown_ids_are_not_found_on_status_and_done_on_stop_and_remove(bed: Testbed) -> None:
    unknown = "0" * 64
    for ask in (
        lambda: bed.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=unknown)),
        lambda: bed.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=unknown)),
    ):
        with pytest.raises(grpc.RpcError) as error:
            ask()
        assert refused(error.value)[0] is grpc.StatusCode.NOT_FOUND
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=unknown))
    bed.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=unknown))
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=unknown))
    bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=unknown))
    bed.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image="no-such-image")))


@pytest.fixture(scope="module")
def pod(bed: Testbed, images: tuple[str, ...]) -> Iterator[str]:
    """A pod that has run a container before, so that what is made once is there."""
    pod_id = run_pod(bed)
    warm = run_container(bed, pod_id, container_config("warm", "busybox", ["true"]))
    bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=warm))
    yield pod_id
    remove_pod(bed, pod_id)


def mounted(**fields: Any) -> Callable[[], cri.ContainerConfig]:
    return lambda: container_config("c", "busybox", ["true"], mounts=[cri.Mount(**fields)])


INVALID_CONTAINERS: dict[str, tuple[Callable[[], cri.ContainerConfig], grpc.StatusCode, str]] = {
    "an unknown image": (
        lambda: container_config("c", "no-such-image"),
        grpc.StatusCode.NOT_FOUND,
        "no-such-image",
    ),
    "no metadata": (
        lambda: cri.ContainerConfig(image=cri.ImageSpec(image="busybox")),
        grpc.StatusCode.INVALID_ARGUMENT,
        "metadata",
    ),
    "a mount source that cannot be": (
        mounted(host_path="/dev/null/source", container_path="/data"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "/dev/null/source",
    ),
    "a log path that climbs": (
        lambda: cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="c"),
            image=cri.ImageSpec(image="busybox"),
            log_path="../../escape.log",
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "log_path",
    ),
    "an unknown user": (
        lambda: container_config(
            "c",
            "busybox",
            ["true"],
            linux=cri.LinuxContainerConfig(
                security_context=cri.LinuxContainerSecurityContext(run_as_username="nobody-knows")
            ),
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        "nobody-knows",
    ),
}


@pytest.mark.parametrize("case", INVALID_CONTAINERS)
def test_an_invalid_container_is_refused_and_leaves_nothing(bed: Testbed, pod: str, case: str) -> None:
    make, wanted_code, wanted_words = INVALID_CONTAINERS[case]
    before = observe(bed)
    with pytest.raises(grpc.RpcError) as error:
        create_container(bed, pod, make())
    code, words = refused(error.value)
    assert code is wanted_code
    assert wanted_words in words
    assert_no_leaks(bed, before)


def test_a_command_that_is_not_in_the_image_fails_the_start_and_says_so(bed: Testbed, pod: str) -> None:
    before = observe(bed)
    container_id = create_container(bed, pod, container_config("c", "busybox", ["no-such-command"]))
    with pytest.raises(grpc.RpcError) as error:
        start_container(bed, container_id)
    code, words = refused(error.value)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "no-such-command" in words
    status = container_status(bed, container_id)
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 128, "StartError")
    assert "no-such-command" in status.message
    bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id))
    assert_no_leaks(bed, before)


# The story's three errors, and the network's own.


def conflist(*plugins: dict[str, Any], version: str = "1.0.0") -> str:
    return json.dumps({"cniVersion": version, "name": "test", "plugins": list(plugins)})


@pytest.fixture
def bare(fresh_bed: StartBed) -> Testbed:
    """A bed with a daemon and no network configuration."""
    return fresh_bed(network=False)


def scripted(bed: Testbed, script: dict[str, Any]) -> None:
    """Make the scripted plugin the bed's network."""
    bed.write("/opt/cni/bin/scripted", FAKE.read_text(encoding="utf-8"), mode=0o755)
    bed.write("/opt/cni/bin/scripted.script.json", json.dumps(script))
    bed.write("/etc/cni/net.d/10-test.conflist", conflist({"type": "scripted"}))


def run_is_refused(bed: Testbed) -> tuple[grpc.StatusCode, str]:
    """RunPodSandbox must fail and leave nothing; how it failed."""
    remove_pod(bed, run_pod(bed, pod_config(linux=HOST_NETWORK)))  # containerd's own directories are there after it
    before = observe(bed)
    with pytest.raises(grpc.RpcError) as error:
        run_pod(bed)
    assert not bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    assert_no_leaks(bed, before)
    return refused(error.value)


def test_a_missing_plugin_is_named_with_every_directory_and_the_package(bare: Testbed) -> None:
    bare.write("/etc/cni/net.d/10-test.conflist", conflist({"type": "bridge"}, {"type": "no-such-plugin"}))
    code, words = run_is_refused(bare)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "no-such-plugin" in words
    assert all(directory in words for directory in ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"))


def test_no_network_configuration_is_said_with_its_directory(bare: Testbed) -> None:
    code, words = run_is_refused(bare)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "/etc/cni/net.d" in words


def test_an_unsupported_version_is_said(bare: Testbed) -> None:
    bare.write("/etc/cni/net.d/10-test.conflist", conflist({"type": "bridge"}, version="9.0.0"))
    code, words = run_is_refused(bare)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "9.0.0" in words


def test_an_exhausted_address_range_is_said(bare: Testbed) -> None:
    ipam = {"type": "host-local", "subnet": "10.99.0.0/30"}  # one address beside the gateway
    bare.write("/etc/cni/net.d/10-test.conflist", conflist({"type": "bridge", "bridge": "small", "ipam": ipam}))
    pod_id = run_pod(bare)
    before = observe(bare)
    with pytest.raises(grpc.RpcError) as error:
        run_pod(bare)
    code, words = refused(error.value)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "address" in words
    assert_no_leaks(bare, before)
    remove_pod(bare, pod_id)
    remove_pod(bare, run_pod(bare))  # the one address is free again


def test_a_malformed_result_is_said_and_undone(bare: Testbed) -> None:
    scripted(bare, {"ADD": [{"stdout": "{not json"}]})
    code, words = run_is_refused(bare)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "scripted" in words


def test_a_plugin_that_hangs_is_ended_and_said(fresh_bed: StartBed) -> None:
    bed = fresh_bed(daemon=False, network=False)
    bed.start_daemon(network={"plugin_seconds": 1.0})
    scripted(bed, {"ADD": [{"hang": True}]})
    code, words = run_is_refused(bed)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "scripted" in words


def test_a_broken_file_is_reported_and_does_not_take_the_network_down(fresh_bed: StartBed) -> None:
    bed = fresh_bed()
    bed.write("/etc/cni/net.d/00-broken.conflist", "{")
    pod_id = run_pod(bed)
    status = bed.runtime.Status(cri.StatusRequest())
    ready = {condition.type: condition for condition in status.status.conditions}["NetworkReady"]
    assert ready.status
    assert "00-broken.conflist" in ready.message
    remove_pod(bed, pod_id)


def test_a_pod_is_torn_down_with_what_it_was_set_up_with(fresh_bed: StartBed) -> None:
    bed = fresh_bed()
    remove_pod(bed, run_pod(bed))
    before = observe(bed)
    pod_id = run_pod(bed)
    network = bed.default_network()
    bed.path(network.file).unlink()
    remove_pod(bed, pod_id)
    bed.default_network()
    assert_no_leaks(bed, before)


def test_a_missing_resolv_conf_on_the_host_is_no_error(fresh_bed: StartBed) -> None:
    bed = fresh_bed()
    bed.load_image("busybox")
    bed.run(["rm", "-f", "/etc/resolv.conf"])
    pod_id = run_pod(bed)
    show = container_config("c", "busybox", ["sh", "-c", "cat /etc/resolv.conf && echo there"])
    container_id = run_container(bed, pod_id, show)
    until(lambda: exited(bed, container_id), what="the container ends")
    assert log_lines(bed, container_id) == ["there"]
    remove_pod(bed, pod_id)

"""What failed and what is under way can be explained, by name, also after the daemon was restarted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.pods import container_config, create_container, pod_config, refused, remove_pod, run_pod, start_container
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

SOCKET = "/run/sandboxd/sandboxd.sock"

# A network whose plugin waits for a file that says how to end.
NETWORK = {"cniVersion": "1.0.0", "name": "odd", "plugins": [{"type": "odd"}]}
PLUGIN = """#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
ADD)
    while ! [ -e /run/odd/go ]; do sleep 0.05; done
    echo '{"cniVersion": "1.0.0", "code": 999, "msg": "the switch is on fire"}'
    exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def bed(containerd_bin: Any) -> Iterator[Testbed]:
    with Testbed(containerd_bin=containerd_bin) as made:
        made.write("/etc/cni/net.d/00-odd.conflist", json.dumps(NETWORK))
        made.write("/opt/cni/bin/odd", PLUGIN, mode=0o755)
        made.write("/run/odd/go", "")
        made.start_daemon()
        made.load_image("busybox")
        yield made


def sandboxctl(bed: Testbed, *argv: str) -> str:
    return bed.run([str(Path(sys.executable).parent / "sandboxctl"), "--socket", SOCKET, *argv]).stdout


def named(name: str) -> cri.PodSandboxConfig:
    config = pod_config()
    config.metadata.name = name
    return config


def fails(bed: Testbed, config: cri.PodSandboxConfig) -> str:
    with pytest.raises(grpc.RpcError) as error:
        run_pod(bed, config)
    return refused(error.value)[1]


def test_a_pod_whose_network_failed_is_explained_by_name_and_after_a_restart(bed: Testbed) -> None:
    config = named("burns")
    assert "the switch is on fire" in fails(bed, config)
    fails(bed, config)
    for _ in range(2):
        told = sandboxctl(bed, "explain", "burns")
        assert told.startswith("burns  does not exist\n")
        assert "RunPodSandbox default/burns  failed" in told and "2 times in a row" in told
        marked = [line.split() for line in told.splitlines() if line.strip().startswith("✗")]
        assert ["ADD", "odd", "failed:", "exit", "status", "1"] in [line[5:11] for line in marked]
        assert told.count("cause") == 1
        everything = sandboxctl(bed, "explain", "-v", "burns")
        assert "ADD /opt/cni/bin/odd  exit status 1" in everything
        assert '"msg": "the switch is on fire"' in everything and "CNI_IFNAME=eth0" in everything
        listed = sandboxctl(bed, "pods", "-a")
        assert "burns" in listed and "Failed: " in listed
        assert "burns" not in sandboxctl(bed, "pods")
        assert "default/burns" in sandboxctl(bed, "explain", "--failed")
        bed.restart_daemon(kill=True)
    assert "does not exist" in sandboxctl(bed, "explain", "default/burns")


def test_a_pod_that_hangs_in_its_network_is_listed_and_says_what_it_waits_for(bed: Testbed) -> None:
    go = bed.path("/run/odd/go")
    go.unlink()
    with ThreadPoolExecutor(1) as client:
        request = client.submit(fails, bed, named("hangs"))
        until(lambda: "cni.add" in sandboxctl(bed, "pods", "-a"), what="it is listed, with the step that it is in")
        assert "Creating (cni.add for" in sandboxctl(bed, "pods", "-a")
        told = sandboxctl(bed, "explain", "hangs")
        assert "RunPodSandbox default/hangs  is under way, for" in told
        assert "ADD odd" in next(line for line in told.splitlines() if "now in" in line and "cni.add" in line)
        metrics = sandboxctl(bed, "metrics")
        assert 'sandboxd_operations_in_flight{operation="RunPodSandbox"} 1.0' in metrics
        go.touch()
        request.result(timeout=120)
    assert 'sandboxd_operations_failed_total{operation="RunPodSandbox"}' in sandboxctl(bed, "metrics")


def test_an_image_a_container_and_a_start_that_failed_are_explained(bed: Testbed) -> None:
    with pytest.raises(grpc.RpcError):
        bed.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image="127.0.0.1:9/no:such")), timeout=120)
    assert "PullImage 127.0.0.1:9/no:such  failed" in sandboxctl(bed, "explain", "127.0.0.1:9/no:such")
    config = named("works")
    config.linux.security_context.namespace_options.network = cri.NODE
    pod_id = run_pod(bed, config)
    with pytest.raises(grpc.RpcError):
        create_container(bed, pod_id, container_config("wrong", "no-such-image", ["sleep", "1"]))
    assert "CreateContainer default/works/wrong  failed" in sandboxctl(bed, "explain", "wrong")
    container_id = create_container(bed, pod_id, container_config("absent", "busybox", ["/no/such/program"]))
    with pytest.raises(grpc.RpcError):
        start_container(bed, container_id)
    told = sandboxctl(bed, "explain", "works")
    assert "StartContainer default/works/absent  failed" in told
    assert "no such file" in sandboxctl(bed, "explain", "absent").lower()
    remove_pod(bed, pod_id)
    assert "StartContainer default/works/absent  failed" in sandboxctl(bed, "explain", "works")

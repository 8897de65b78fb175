"""Host ports that lead nowhere, on real plugins: refused, or said where every client of CRI can see it."""

from __future__ import annotations

import json
import sys

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.pods import pod_config, pod_info, refused, remove_pod, run_pod
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

LISTEN = "import socket; s = socket.create_server(('127.0.0.1', 8081)); print('there', flush=True); input()"


def publishing(port: int = 8080, protocol: cri.Protocol.ValueType = cri.TCP) -> cri.PodSandboxConfig:
    """A pod whose two containers declare the same host port."""
    mapping = cri.PortMapping(container_port=80, host_port=port, protocol=protocol)
    return pod_config(port_mappings=[mapping, mapping])


def said(bed: Testbed, pod_id: str) -> list[str]:
    """The pod's warnings, which its timeline has too."""
    info = pod_info(bed, pod_id)
    warnings = list(info.get("warnings", ()))
    steps = [step for step in info["timeline"] if step["step"] == "pod.network.check"]
    assert ["; ".join(warnings)] * bool(warnings) == [step["detail"]["warning"] for step in steps]
    return warnings


def test_a_port_of_another_pod_is_refused_and_free_again_after_it(bed: Testbed) -> None:
    holder = run_pod(bed, publishing())
    assert said(bed, holder) == []
    before = observe(bed)
    with pytest.raises(grpc.RpcError) as error:
        run_pod(bed, publishing())
    code, words = refused(error.value)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "host port 8080/tcp is held by pod" in words and holder in words
    assert_no_leaks(bed, before)
    other = run_pod(bed, publishing(protocol=cri.UDP))
    assert said(bed, other) == []
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=holder))
    successor = run_pod(bed, publishing())
    assert said(bed, successor) == []
    for pod_id in (holder, other, successor):
        remove_pod(bed, pod_id)


def test_a_port_that_a_process_of_the_machine_has_is_said(bed: Testbed) -> None:
    process = bed.popen([sys.executable, "-I", "-c", LISTEN], stdin=-1)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    pod_id = run_pod(bed, publishing(8081))
    (warning,) = said(bed, pod_id)
    assert "process of this machine has host port 8081/tcp" in warning
    remove_pod(bed, pod_id)
    process.communicate("\n")


def test_a_network_without_a_plugin_for_them_is_said(fresh_bed: StartBed) -> None:
    bed = fresh_bed(network=False)
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]]}
    conf = {"cniVersion": "1.0.0", "name": "plain", "plugins": [{"type": "bridge", "bridge": "plain0", "ipam": ipam}]}
    bed.write("/etc/cni/net.d/10-plain.conflist", json.dumps(conf))
    config = publishing()
    config.annotations["kubernetes.io/egress-bandwidth"] = "10M"
    pod_id = run_pod(bed, config)
    ports, bandwidth = said(bed, pod_id)
    assert "host ports may lead nowhere" in ports and "10-plain.conflist" in ports
    assert "bandwidth is not limited" in bandwidth
    remove_pod(bed, pod_id)

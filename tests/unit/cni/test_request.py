"""What plugins are asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxd.cni import request
from sandboxd.cni.conf import NetworkConfig, from_json
from sandboxd.cni.request import IPS, plan
from sandboxd.errors import InvalidRequest
from sandboxd.model import IN_PROCESS, AttachmentState
from sandboxd.pb.cri.v1 import api_pb2 as cri

POD_ID = "f" * 64


def pod(**fields: Any) -> cri.PodSandboxConfig:
    metadata = cri.PodSandboxMetadata(name="web", namespace="shop", uid="u-1", attempt=1)
    return cri.PodSandboxConfig(**{"metadata": metadata, **fields})


def mapping(**fields: Any) -> cri.PortMapping:
    return cri.PortMapping(**{"host_port": 8080, "container_port": 80, **fields})


CONFIG = NetworkConfig(
    name="pods",
    versions=("1.0.0",),
    plugins=({"type": "bridge", "bridge": "cni0"}, {"type": "portmap", "capabilities": {"portMappings": True}}),
    source="/etc/cni/net.d/10.conflist",
)


@pytest.mark.parametrize(
    ("mappings", "asked"),
    [
        ([mapping()], [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]),
        ([mapping(host_port=0)], None),
        (
            [mapping(protocol=cri.UDP, host_ip="127.0.0.1")],
            [{"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "127.0.0.1"}],
        ),
        (
            [mapping(protocol=cri.SCTP, host_ip="fd00:0::1")],
            [{"hostPort": 8080, "containerPort": 80, "protocol": "sctp", "hostIP": "fd00::1"}],
        ),
        ([mapping(), mapping()], [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]),
        (
            [mapping(), mapping(protocol=cri.UDP)],
            [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
            ],
        ),
    ],
)
def test_only_ports_of_the_host_are_mapped(mappings: list[cri.PortMapping], asked: Any) -> None:
    assert request.capability_args(pod(port_mappings=mappings)).get("portMappings") == asked


@pytest.mark.parametrize(
    ("mappings", "wrong"),
    [
        ([mapping(host_port=65536)], "8080|65536 → 80: the host port must be between"),
        ([mapping(host_port=-1)], "the host port must be between"),
        ([mapping(container_port=0)], "the container port must be between"),
        ([mapping(host_ip="localhost")], "host ip: 'localhost' is not an IP address"),
        ([mapping(host_ip="fe80::1%eth0")], "is not an IP address"),
        ([mapping(protocol=7)], "unknown protocol 7"),
        ([mapping(), mapping(container_port=81)], "8080 → 81: the host port is already mapped to 80/tcp"),
    ],
)
def test_a_mapping_that_cannot_work_is_refused(mappings: list[cri.PortMapping], wrong: str) -> None:
    with pytest.raises(InvalidRequest, match=wrong):
        request.capability_args(pod(port_mappings=mappings))


def test_dns_is_passed_as_far_as_it_is_given() -> None:
    given = cri.DNSConfig(servers=["10.0.0.10"], searches=["shop.svc"])

    assert request.capability_args(pod(dns_config=given)) == {
        "dns": {"servers": ["10.0.0.10"], "searches": ["shop.svc"]}
    }


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("1000", 1000),
        ("1k", 1000),
        ("10M", 10_000_000),
        ("1.5M", 1_500_000),
        (".5M", 500_000),
        ("5.M", 5_000_000),
        ("1Mi", 1048576),
        ("1e6", 1_000_000),
        ("1E6", 1_000_000),
        ("1500000m", 1500),
        ("1000.5", 1001),
        ("1P", 10**15),
        ("9000000e-3", 9000),
    ],
)
def test_bandwidth_annotations_are_kubernetes_quantities_in_bits(text: str, bits: int) -> None:
    asked = request.capability_args(pod(annotations={request.INGRESS: text}))

    assert asked["bandwidth"] == {"ingressRate": bits, "ingressBurst": 2**32 - 1}


@pytest.mark.parametrize(
    "text", ["", "fast", "-1M", "999", "1E", "2P", "1e99", "1 M", "1KB", "1e", "٣M", "1M\n", "."]
)
def test_a_bandwidth_that_is_no_sensible_quantity_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"annotation {request.EGRESS}: "):
        request.capability_args(pod(annotations={request.EGRESS: text}))


def test_annotations_ask_for_addresses_and_a_mac_and_are_passed_themselves() -> None:
    annotations = {request.IPS: "10.88.0.9, fd00::9/64", request.MAC: "02-00-00-AA-bb-01", request.EGRESS: "1M"}

    assert request.capability_args(pod(annotations=annotations), cgroup_path="/pods/x") == {
        "bandwidth": {"egressRate": 1_000_000, "egressBurst": 2**32 - 1},
        "ips": ["10.88.0.9", "fd00::9/64"],
        "mac": "02:00:00:aa:bb:01",
        "io.kubernetes.cri.pod-annotations": annotations,
        "cgroupPath": "/pods/x",
    }


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (request.IPS, ""),
        (request.IPS, "10.0.0.1,"),
        (request.IPS, "10.0.0.256"),
        (request.IPS, "10.0.0.1/33"),
        (request.IPS, "fe80::1%eth0"),
        (request.IPS, "10.0.0.1,10.0.0.1"),
        (request.MAC, ""),
        (request.MAC, "02:00:00:00:00"),
        (request.MAC, "02:00:00:00:00:0g"),
        (request.MAC, "01:00:5e:00:00:01"),
        (request.MAC, "00:00:00:00:00:00"),
    ],
)
def test_an_annotation_that_asks_for_the_impossible_is_refused_by_name(annotation: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"annotation {annotation}: "):
        request.capability_args(pod(annotations={annotation: text}))


def test_a_pod_that_asks_for_nothing_gets_no_capability_arguments() -> None:
    assert request.capability_args(pod()) == {}


def test_cni_args_say_who_the_pod_is() -> None:
    assert request.cni_args(pod(), "abc") == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
    )


@pytest.mark.parametrize("value", ["a;b", "a=b", "a\nb", "a\0b"])
@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
def test_a_value_that_would_break_out_of_cni_args_is_refused(field: str, value: str) -> None:
    config = pod()
    setattr(config.metadata, field, value)

    with pytest.raises(InvalidRequest, match=f"K8S_POD_{field.upper()} is"):
        request.cni_args(config, "abc")


def test_a_plan_holds_everything_that_add_will_be_given() -> None:
    planned = request.plan(
        CONFIG, pod(port_mappings=[mapping()]), POD_ID, "/run/netns/x", ["/opt/cni/bin", "/usr/lib/cni"]
    )

    assert planned.state is AttachmentState.PLANNED
    assert (planned.sandbox_id, planned.network, planned.ifname) == (POD_ID, "pods", "eth0")
    assert (planned.netns_path, planned.plugin_path) == ("/run/netns/x", "/opt/cni/bin:/usr/lib/cni")
    assert from_json(planned.config, planned.conf_file) == CONFIG
    assert json.loads(planned.capability_args) == request.capability_args(pod(port_mappings=[mapping()]))
    assert planned.args == request.cni_args(pod(), POD_ID)


@pytest.mark.parametrize("text", ["", "a b", "-a", "a/b", "a\n", "é"])
def test_a_container_id_breaks_the_rules_of_the_spec(text: str) -> None:
    with pytest.raises(InvalidRequest, match="container id"):
        request.plan(CONFIG, pod(), text, "/run/netns/x", ["/opt/cni/bin"])


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a%d", "x" * 16, "ü" * 8])
def test_an_interface_name_breaks_the_rules_of_linux(text: str) -> None:
    with pytest.raises(InvalidRequest, match="interface name"):
        request.plan(CONFIG, pod(), POD_ID, "/run/netns/x", ["/opt/cni/bin"], ifname=text)


@pytest.mark.parametrize("text", ["eth0", "net1.100", "x" * 15])
def test_a_good_interface_name_is_taken(text: str) -> None:
    assert request.plan(CONFIG, pod(), POD_ID, "/n", ["/opt/cni/bin"], ifname=text).ifname == text


def test_a_plugin_directory_with_a_colon_cannot_be_passed() -> None:
    with pytest.raises(InvalidRequest, match="CNI_PATH cannot hold"):
        request.plan(CONFIG, pod(), POD_ID, "/n", ["/opt:/bin"])


@pytest.mark.parametrize(
    ("plugin", "previous", "stdin"),
    [
        (
            {"type": "bridge", "bridge": "cni0", "cniVersion": "0.1.0", "name": "mine"},
            None,
            {"type": "bridge", "bridge": "cni0", "cniVersion": "1.0.0", "name": "pods"},
        ),
        (
            {"type": "portmap", "capabilities": {"portMappings": True, "mac": True}},
            {"ips": []},
            {
                "type": "portmap",
                "cniVersion": "1.0.0",
                "name": "pods",
                "runtimeConfig": {"portMappings": [1]},
                "prevResult": {"ips": []},
            },
        ),
        (
            {"type": "portmap", "capabilities": {"portMappings": False}, "prevResult": {"stale": 1}},
            None,
            {"type": "portmap", "cniVersion": "1.0.0", "name": "pods"},
        ),
    ],
)
def test_stdin_is_the_plugins_object_with_the_runtimes_keys(
    plugin: dict[str, Any], previous: dict[str, Any] | None, stdin: dict[str, Any]
) -> None:
    capabilities = {"portMappings": [1], "dns": {"servers": []}}

    assert json.loads(request.plugin_stdin(CONFIG, plugin, capabilities, previous, "1.0.0")) == stdin


def test_a_plugin_whose_capabilities_are_null_declares_none() -> None:
    stdin = request.plugin_stdin(
        CONFIG, {"type": "x", "capabilities": None, "ipam": None}, {"dns": {}}, None, "1.0.0"
    )

    assert json.loads(stdin) == {"type": "x", "ipam": None, "cniVersion": "1.0.0", "name": CONFIG.name}


def test_the_environment_is_the_specs_and_nothing_else() -> None:
    planned = request.plan(CONFIG, pod(), POD_ID, "/run/netns/x", ["/opt/cni/bin"])

    assert request.plugin_env("ADD", planned) == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": POD_ID,
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": planned.args,
        "CNI_PATH": "/opt/cni/bin",
    }
    assert request.plugin_env("DEL", planned, "")["CNI_NETNS"] == ""


def test_what_a_pod_asks_for_can_be_a_reason_to_execute_the_plugin() -> None:
    ipam = {"type": "host-local", "subnet": "10.99.0.0/24"}
    config = NetworkConfig(
        name="pods",
        versions=("1.0.0",),
        plugins=({"type": "bridge", "ipam": ipam, "capabilities": {"ips": True}}, {"type": "portmap"}),
        backends=(IN_PROCESS, IN_PROCESS),
    )
    metadata = cri.PodSandboxMetadata(name="web", namespace="shop", uid="u")
    asking = cri.PodSandboxConfig(metadata=metadata, annotations={IPS: "10.99.0.9"})

    assert plan(config, cri.PodSandboxConfig(metadata=metadata), "c1", "/n", ["/b"]).backends == (IN_PROCESS,) * 2
    assert plan(config, asking, "c1", "/n", ["/b"]).backends == ("", IN_PROCESS)

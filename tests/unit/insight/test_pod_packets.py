"""To whom packets are sent; what comes of them is a kernel's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.cni import result
from sandboxd.insight import pod_packets, probes
from sandboxd.insight.evidence import Answer, Port
from tests.fakes.bundle import Bundle, pod_config
from tests.unit.insight.seen import BRIDGE, ETH0, RESULT, answer, well


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every packet, as "how to whom"; all are answered, ARP for the pod by its bridge and a stranger."""
    packets: list[str] = []

    async def ping(path: str, address: str, *, whose: str = "") -> Answer:
        packets.append(f"ping {address}")
        return answer(address, answered=not address.endswith(".1"), whose=whose)

    async def resolve(path: str, server: str) -> Answer:
        packets.append(f"resolve {server}")
        return answer(server)

    async def connect(address: str, port: int) -> Answer:
        packets.append(f"connect {address}:{port}")
        return answer(f"{address}:{port}")

    async def arp(path: str, ifname: str, mac: str, address: str, *, sender: str = "0.0.0.0") -> set[str]:
        packets.append(f"arp {address} from {sender}")
        return {BRIDGE.mac, "02:00:00:00:00:99"}

    for probe in (ping, resolve, connect, arp):
        monkeypatch.setattr(probes, probe.__name__, probe)
    return packets


def given(address: str, gateway: str) -> dict[str, Any]:
    """The fields of Seen for a pod with this address."""
    document: Mapping[str, Any] = {**RESULT, "ips": [{"interface": 2, "address": address, "gateway": gateway}]}
    ip = address.partition("/")[0]
    return {"result": result.parse_result(json.dumps(document).encode(), "bridge"), "ips": (ip,), "network": "pods"}


async def test_everybody_who_matters_is_asked_once(fakes: Bundle, sent: list[str]) -> None:
    seen = well(
        ports=(Port(protocol="tcp", number=8080, inside=80), Port(protocol="udp", number=53, inside=53)),
        resolv_conf=b"nameserver 192.0.2.53\nnameserver example\nnameserver fe80::1%eth0\n",
    )
    packets = await pod_packets.sent(fakes.node, seen)

    assert sorted(sent) == [
        "arp 10.0.0.1 from 10.0.0.2",
        "arp 10.0.0.2 from 0.0.0.0",
        "connect 10.0.0.2:80",
        "connect 198.51.100.1:8080",
        "ping 10.0.0.1",
        "resolve 192.0.2.53",
    ]
    (gateway,) = packets.gateways
    assert gateway.answered and gateway.how.startswith("to ARP, as ")


async def test_the_bridge_that_answers_for_the_pod_is_not_another_owner(fakes: Bundle, sent: list[str]) -> None:
    packets = await pod_packets.sent(fakes.node, well())

    assert packets.owners == ["02:00:00:00:00:99"]


async def test_an_interface_that_is_down_sends_no_arp(fakes: Bundle, sent: list[str]) -> None:
    seen = well()
    down = replace(seen.inside, links=(replace(ETH0, up=False),))
    await pod_packets.sent(fakes.node, replace(seen, inside=down))

    assert not [each for each in sent if each.startswith("arp")]


@pytest.mark.parametrize(
    ("address", "gateway", "asked"),
    [
        ("10.88.0.9/16", "10.88.0.1", ["10.88.0.2"]),
        ("10.77.0.9/16", "10.77.0.1", []),  # the network had another subnet when the other pod came
        ("10.77.0.9/32", "169.254.1.1", ["10.88.0.2"]),  # each pod has a subnet of its own
    ],
)
async def test_other_pods_are_asked_that_are_in_the_pods_subnet(
    fakes: Bundle, sent: list[str], address: str, gateway: str, asked: list[str]
) -> None:
    await fakes.ready_pod(pod_config("other"))
    packets = await pod_packets.sent(fakes.node, well(**given(address, gateway)))

    assert [each.to for each in packets.neighbours] == asked
    assert [each.whose for each in packets.neighbours] == ["default/other"] * len(asked)

"""What plugins changed, in words: by operation, by plugin, by where it is and whose."""

from __future__ import annotations

from typing import Any

from sandboxd.cli import changes
from sandboxd.pb.host.v1 import host_pb2 as host

START = 1_780_000_000 * 10**9


def change(kind: str, name: str, how: str = "added", place: str = "host", owner: str = "pod", **sides: Any) -> Any:
    return host.NetworkChange(place=place, kind=kind, name=name, change=how, belongs_to=owner, **sides)


def look(at: int, *found: Any, operation: str = "RunPodSandbox", **detail: str) -> host.Step:
    return host.Step(
        operation=operation, name="cni.look", started_at=START + at * 10**9, duration=1, changes=found, detail=detail
    )


ETH0 = {"kind": "veth", "mac": "02:00:00:00:00:01", "peer": "veth1", "state": "up", "mtu": "1500"}
ANSWER = host.ExplainResponse(
    pod_sandbox_id="a" * 64,
    steps=[
        look(0, before="bridge", verb="ADD"),
        look(
            1,
            change("link", "eth0", place="pod", after=ETH0),
            change("link", "sbx0", owner="network", after={"kind": "bridge"}),
            change(
                "sysctl", "net.ipv4.ip_forward", "changed", owner="network", before={"value": "0"},
                after={"value": "1"},
            ),
            change("rule", "iptables filter INPUT -j DROP", owner=""),
            after="bridge", verb="ADD", left_out="3",
        ),
        look(2, after="portmap", verb="ADD", unseen="nft: busy"),
        look(
            60,
            change(
                "link", "veth1", "changed", before={"state": "up", "mtu": "1"}, after={"state": "down", "mtu": "1"}
            ),
            change("address", "10.0.0.2/24 dev eth0", "removed", place="pod", before={"scope": "link"}),
            operation="StopPodSandbox", after="bridge", verb="DEL",
        ),
    ],
)  # fmt: skip


def test_each_plugin_is_told_with_what_changed_where() -> None:
    assert changes.told(changes.recorded(ANSWER), "default/web", "a" * 64).plain.splitlines() == [
        "Changes for pod default/web  aaaaaaaaaaaa",
        "",
        "RunPodSandbox  2026-05-28 20:26:41 UTC",
        "    ADD bridge",
        "      in the pod",
        "        + link eth0  veth, peer veth1, mac 02:00:00:00:00:01, mtu 1500, up",
        "      on the host, shared by the network's pods",
        "        + link sbx0  bridge",
        "        ~ sysctl net.ipv4.ip_forward  0 → 1",
        "      on the host meanwhile, perhaps by others",
        "        + rule iptables filter INPUT -j DROP",
        "      and 3 more",
        "    ADD portmap",
        "      changed nothing that is looked at",
        "      not seen: nft: busy",
        "",
        "StopPodSandbox  2026-05-28 20:27:40 UTC",
        "    DEL bridge",
        "      on the host",
        "        ~ link veth1  up → down",
        "      in the pod",
        "        - address 10.0.0.2/24 dev eth0  scope link",
    ]


def test_what_failed_is_told_too() -> None:
    failed = host.Operation(operation="RunPodSandbox", duration=5, steps=ANSWER.steps[:2])
    (only,) = changes.recorded(host.ExplainResponse(operations=[failed]))
    assert (only.verb, only.plugin, len(only.changes)) == ("ADD", "bridge", 4)


def test_a_value_that_is_new_or_gone_says_so() -> None:
    one = change("link", "veth1", "changed", before={"mtu": "1", "state": "up"}, after={"master": "sbx0", "mtu": "2"})
    told = changes.told([changes.Execution(
        operation="x", verb="ADD", plugin="p", started_at=START, changes=[one], left_out="", unseen=""
    )], "web", "")  # fmt: skip
    assert told.plain.splitlines()[-1] == "        ~ link veth1  on none → sbx0, mtu 1 → 2, up → none"


def test_without_a_record_what_there_is_now_is_told_and_how_to_record() -> None:
    thing = host.NetworkThing(
        place="host", kind="link", name="veth1\x1b[2J", fields={"kind": "veth"}, belongs_to="pod"
    )

    told = changes.now(host.PodNetworkResponse(things=[thing], unseen=["nft: no"]), "web", "a" * 64).plain

    assert "What there was before is not known" in told and "--record-changes" in told
    assert "on the host\n        link veth1\\x1b[2J  veth\n      not seen: nft: no" in told
    assert "nothing" in changes.now(host.PodNetworkResponse(), "web", "a" * 64).plain
    assert "now" not in changes.now(None, "web", "").plain.replace("known", "")


def test_programs_get_the_same() -> None:
    data = changes.as_data(changes.recorded(ANSWER), None, "a" * 64)

    assert data["recorded"] and data["now"] is None
    first, second, third = data["executions"]
    assert (first["command"], first["plugin"], first["leftOut"]) == ("ADD", "bridge", 3)
    assert first["changes"][0] == {
        "place": "pod", "kind": "link", "name": "eth0", "change": "added", "before": {}, "after": ETH0,
        "belongsTo": "pod",
    }  # fmt: skip
    assert second["unseen"] == "nft: busy" and third["operation"] == "StopPodSandbox"
    assert changes.as_data([], host.PodNetworkResponse(), "a")["now"] == {"things": [], "unseen": []}

"""What the pod's network consists of, as far as it is recorded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxd.cli.topology import Link, Part, State, Topology, topology
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli import told


def drawn(answer: host.ExplainResponse) -> Topology:
    found = topology(answer)
    assert found is not None
    return found


def only(answer: host.ExplainResponse) -> Link:
    (link,) = drawn(answer).links
    return link


def test_a_pod_with_bridge_and_portmap_has_all_its_parts() -> None:
    assert drawn(told.running_pod()) == Topology(
        namespace=State.THERE,
        netns_path=told.NETNS,
        inode="77",
        pid=42,
        links=[
            Link(
                network="net",
                kind="bridge",
                state=State.THERE,
                inside=Part("eth0"),
                mac="0a:00:00:00:00:01",
                addresses=["10.0.0.2/24"],
                routes=["default via 10.0.0.1", "10.9.0.0/16 via 10.0.0.9"],
                host_end=Part("veth1"),
                on=Part("sbx0"),
                on_addresses=["10.0.0.1"],
                rules=[Part("masquerade"), Part(":8080/tcp → 80")],
            )
        ],
    )


def test_what_a_failed_pod_did_not_get_is_not_made_and_what_it_had_is_undone() -> None:
    found = drawn(told.failed_pod())
    assert found.namespace is State.UNDONE and found.netns_path == told.NETNS and found.inode == "77"
    (link,) = found.links
    assert link.state is State.FAILED and link.trouble == "ADD bridge failed: exit status 1"
    assert link.inside == Part("eth0", State.MISSING) and link.on == Part("sbx0", State.MISSING)
    assert link.rules == [Part("masquerade", State.MISSING)]


def test_a_plugin_that_fails_after_others_leaves_theirs_as_undone_but_the_bridge_which_no_del_removes() -> None:
    link = only(told.failed_pod(told.netns(), told.bridge_add(), told.portmap_add(exit_code=-9)))
    assert link.inside == Part("eth0", State.UNDONE) and link.host_end == Part("veth1", State.UNDONE)
    assert link.on == Part("sbx0", State.THERE) and link.addresses == ["10.0.0.2/24"]
    assert link.rules == [Part("masquerade", State.UNDONE), Part(":8080/tcp → 80", State.FAILED)]
    assert link.state is State.FAILED and "killed with SIGKILL" in link.trouble


def test_an_answer_that_the_daemon_refused_is_a_failure_too() -> None:
    refused = told.bridge_add()
    refused.error = "no JSON"
    link = only(told.failed_pod(told.netns(), refused))
    assert link.trouble == "ADD bridge failed: its answer was refused" and link.inside.state is State.MISSING


def test_of_a_pod_under_way_what_was_made_is_there_and_what_runs_is_named() -> None:
    found = drawn(told.pod_under_way())
    assert found.namespace is State.THERE
    (link,) = found.links
    assert (
        link.inside == Part("eth0") and link.trouble == "ADD portmap is under way" and link.state is State.UNDER_WAY
    )


def test_a_plugin_of_another_network_does_not_keep_this_one_under_way() -> None:
    answer = told.pod_under_way()
    for each in answer.operations[0].open:
        each.detail["network"] = "second"
    answer.attachments.add(network="second", ifname="eth1", state="adding")
    first, second = drawn(answer).links
    assert first.state is State.THERE
    assert second.network == "second" and second.inside.text == "eth1" and second.state is State.UNDER_WAY


def test_the_first_plugin_under_way_is_a_network_of_which_nothing_is_made() -> None:
    answer = told.pod_under_way()
    del answer.operations[0].steps[1:], answer.steps[1:]
    link = only(answer)
    assert link.network == "net" and link.inside.state is State.MISSING and link.state is State.UNDER_WAY


def test_what_a_stopped_pod_had_is_undone_and_what_it_owes_is_not() -> None:
    gone = [told.step("cni.del", 200, 1, plugin=told.execution("bridge", told.BRIDGE, {}, command="DEL"))]
    answer = told.running_pod(told.netns(), told.bridge_add(), *gone)
    answer.pid = answer.netns_inode = 0
    assert drawn(answer).namespace is State.UNDONE and only(answer).inside.state is State.UNDONE
    answer.attachments.add(network="net", ifname="eth0", state="owed", error="busy")
    assert only(answer).inside.state is State.OWED


def test_a_network_that_is_attached_anew_has_the_newest_addresses() -> None:
    again = json.loads(json.dumps(told.RESULT).replace("10.0.0.2", "10.0.0.3"))
    second = told.step("cni.add", 900, 1, plugin=told.execution("bridge", told.BRIDGE, again))
    assert only(told.running_pod(told.netns(), told.bridge_add(), second)).addresses == ["10.0.0.3/24"]


def test_a_pod_of_the_hosts_network_has_none_of_its_own() -> None:
    found = drawn(host.ExplainResponse(pod_sandbox_id="a" * 64, pid=1, steps=[told.step("pod.run", 0, 1)]))
    assert found.of_host and found.links == []


def test_without_executions_the_records_of_attachments_tell() -> None:
    answer = told.running_pod(told.step("pod.run", 0, 1))
    answer.attachments.add(
        network="net",
        ifname="eth0",
        state="added",
        config=json.dumps({"plugins": [told.BRIDGE]}).encode(),
        result=json.dumps(told.RESULT).encode(),
    )
    link = only(answer)
    assert link.addresses == ["10.0.0.2/24"] and link.on == Part("sbx0") and link.inside == Part("eth0")


def test_an_image_that_could_not_be_pulled_has_no_network() -> None:
    assert topology(host.ExplainResponse(operations=[host.Operation(operation="PullImage", duration=1)])) is None


@pytest.mark.parametrize(
    ("kind", "conf", "on", "host_end"),
    [
        ("ptp", {}, None, "veth1"),
        ("macvlan", {"master": "ens3"}, "ens3", None),
        ("ipvlan", {}, "the default route's interface", None),
        ("mine", {}, None, "veth1"),
    ],
)
def test_other_plugins_connect_the_pod_in_their_way(
    kind: str, conf: dict[str, Any], on: str | None, host_end: str | None
) -> None:
    result = {**told.RESULT, "interfaces": told.RESULT["interfaces"][1:]}
    added = told.step("cni.add", 5, 1, plugin=told.execution(kind, {"name": "n", **conf}, result))
    link = only(told.running_pod(told.netns(), added))
    assert (link.on and link.on.text, link.host_end and link.host_end.text) == (on, host_end)


def test_a_result_of_before_version_0_3_0_has_its_addresses_and_routes() -> None:
    old = {"ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]}}
    added = told.step("cni.add", 5, 1, plugin=told.execution("bridge", told.BRIDGE, old))
    link = only(told.running_pod(told.netns(), added))
    assert link.addresses == ["10.0.0.2/24"] and link.routes == ["default via 10.0.0.1"]


@pytest.mark.parametrize("junk", [b"", b"[]", b"7", b"[" * 5000, b'{"ips": 7, "interfaces": [7], "routes": {}}'])
def test_what_is_no_result_and_no_configuration_is_no_reason_to_fail(junk: bytes) -> None:
    added = told.bridge_add()
    added.plugin.stdin = added.plugin.stdout = junk
    assert only(told.running_pod(told.netns(), added)).inside.text == "eth0"

"""What `explain --changes` tells is what independent tools see: after an ADD, after a DEL, and without a record."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import Snapshot, difference, network
from tests.pods import pod_config, remove_pod, run_pod
from tests.testbed import Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.insight]

SOCKET = "/run/sandboxd/sandboxd.sock"
SYSCTLS = ("net.ipv4.ip_forward", "net.ipv4.conf.sbx0.route_localnet")


@pytest.fixture(scope="module")
def containerd_flavour() -> str:
    """One is enough: what is compared is made by plugins."""
    return "debian"


def changes(bed: Testbed, name: str) -> dict[str, Any]:
    program = str(Path(sys.executable).parent / "sandboxctl")
    answer = bed.run([program, "--socket", SOCKET, "explain", "--changes", name, "-o", "json"]).stdout
    read: dict[str, Any] = json.loads(answer)
    return read


def config_of(name: str, host_port: int, *, record: bool) -> cri.PodSandboxConfig:
    config = pod_config(name, port_mappings=[cri.PortMapping(container_port=80, host_port=host_port)])
    if record:
        config.annotations["sandboxd.io/record-changes"] = "true"
    return config


def as_audited(change: dict[str, Any]) -> list[str]:
    """A change of the host in the words of the audit, which asks ip(8) and iptables-save; none if it lacks it."""
    kind, name, fields = change["kind"], change["name"], change["after"] or change["before"]
    if kind == "link":
        return [f"link {name} ({fields['kind']}{', master ' + fields['master'] if 'master' in fields else ''})"]
    if kind == "address" and fields.get("scope") != "link":
        return [f"address {name.replace(' dev ', ' on ')}"]
    if kind in ("chain", "rule") and name.startswith("ip"):
        family, table, rest = name.split(" ", 2)
        return [f"{family} {table} {f'chain {rest} -' if kind == 'chain' else f'-A {rest}'}"]
    if kind == "file" and "last_reserved_ip" not in name:
        return [f"IPAM or CNI file {name} = {fields['content']}"]
    return []


def of(told: dict[str, Any], operation: str, change: str) -> list[dict[str, Any]]:
    """All that the plugins of an operation added, removed or changed."""
    done = [each for each in told["executions"] if each["operation"] == operation]
    return [each for one in done for each in one["changes"] if each["change"] == change]


def on_the_host(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in items if each["place"] == "host"]


def audited(before: Snapshot, after: Snapshot, sign: str) -> list[str]:
    """The audit's difference without namespaces, local and per-table routes, nft's view of iptables' tables."""
    lines = [line[2:] for line in difference(before, after) if line[0] == sign]
    mine = re.compile(r"link |address |iptables .*(-A |chain CNI)|ip6tables .*(-A |chain CNI)|IPAM ")
    return sorted(line for line in lines if mine.match(line))


def inside(bed: Testbed, pod_id: str) -> dict[str, list[str]]:
    """Addresses and routes in the pod, by ip(8)."""
    enter = ["ip", "-n", f"sandboxd-{pod_id}", "-json"]
    links = json.loads(bed.run([*enter, "address"]).stdout)
    routes = json.loads(bed.run([*enter, "route"]).stdout)
    return {
        "link": [each["ifname"] for each in links if each["ifname"] != "lo"],
        "address": [
            f"{one['local']}/{one['prefixlen']} dev {each['ifname']}"
            for each in links
            for one in each["addr_info"]
            if one["scope"] == "global"
        ],
        "route": [
            f"{each['dst']}{' via ' + each['gateway'] if 'gateway' in each else ''} dev {each['dev']}"
            for each in routes
        ],
    }


def test_what_the_plugins_add_and_remove_is_what_other_tools_see(bed: Testbed) -> None:
    before, sysctls = network(bed), bed.run(["sysctl", "-n", SYSCTLS[0]]).stdout.strip()
    pod_id = run_pod(bed, config_of("web", 8080, record=True))
    during = network(bed)

    told = changes(bed, "web")

    assert [(each["command"], each["plugin"]) for each in told["executions"]] == [
        ("ADD", "bridge"),
        ("ADD", "portmap"),
    ]
    assert told["recorded"] and told["now"] is None
    added = of(told, "RunPodSandbox", "added")
    assert sorted(line for each in on_the_host(added) for line in as_audited(each)) == audited(before, during, "+")
    assert not of(told, "RunPodSandbox", "removed")
    in_the_pod = [each for each in added if each["place"] == "pod"]
    for kind, names in inside(bed, pod_id).items():
        seen = [each["name"] for each in in_the_pod if each["kind"] == kind]
        assert sorted(name for name in seen if "fe80" not in name) == sorted(names), kind
    changed = {each["name"]: (each["before"], each["after"]) for each in of(told, "RunPodSandbox", "changed")}
    assert changed.get(SYSCTLS[0], ({"value": "1"}, {"value": "1"})) == ({"value": sysctls}, {"value": "1"})
    assert changed[SYSCTLS[1]] == ({"value": "0"}, {"value": "1"})
    # Nobody else was at work, so nothing may be anybody's.
    assert [each["name"] for one in told["executions"] for each in one["changes"] if not each["belongsTo"]] == []

    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=120)

    told = changes(bed, "web")
    stopped = [each for each in told["executions"] if each["operation"] == "StopPodSandbox"]
    assert [(each["command"], each["plugin"]) for each in stopped] == [("DEL", "portmap"), ("DEL", "bridge")]
    removed = of(told, "StopPodSandbox", "removed")
    gone = sorted(line for each in on_the_host(removed) for line in as_audited(each))
    assert gone == audited(during, network(bed), "-")
    assert {each["belongsTo"] for each in removed} == {"pod"}
    assert "eth0" in [each["name"] for each in removed if each["place"] == "pod"]
    remove_pod(bed, pod_id)


def test_what_other_pods_change_at_the_same_time_is_not_told_as_this_pods(bed: Testbed) -> None:
    configs = {f"twin-{number}": config_of(f"twin-{number}", 9000 + number, record=True) for number in range(3)}
    futures = {
        name: bed.runtime.RunPodSandbox.future(cri.RunPodSandboxRequest(config=config), timeout=120)
        for name, config in configs.items()
    }
    ids = {name: future.result().pod_sandbox_id for name, future in futures.items()}

    for name, pod_id in ids.items():
        own = [each for each in of(changes(bed, name), "RunPodSandbox", "added") if each["belongsTo"] == "pod"]
        files = [each for each in own if each["kind"] == "file"]
        reserved = [each["after"]["content"] for each in files if "last_reserved" not in each["name"]]
        assert reserved == [f"{pod_id} eth0"]
        links = [each for each in on_the_host(own) if each["kind"] == "link"]
        assert [each["after"]["peer"] for each in links] == ["eth0"]
        others = set(ids.values()) - {pod_id}
        assert not [each for each in own if any(other in json.dumps(each) for other in others)]
    for pod_id in ids.values():
        remove_pod(bed, pod_id)


def test_of_a_pod_that_was_not_recorded_what_there_is_now_is_told(bed: Testbed) -> None:
    pod_id = run_pod(bed, config_of("quiet", 8090, record=False))

    told = changes(bed, "quiet")

    assert not told["recorded"] and told["executions"] == []
    there = {(each["place"], each["kind"], each["name"]) for each in told["now"]["things"]}
    assert {("pod", kind, name) for kind, names in inside(bed, pod_id).items() for name in names} <= there
    own = [each for each in told["now"]["things"] if each["place"] == "host" and each["belongsTo"] == "pod"]
    saved = bed.run(["iptables-save", "-t", "nat"]).stdout
    rules = {f"iptables nat {line[3:]}" for line in saved.splitlines() if line.startswith("-A") and pod_id in line}
    assert rules and rules <= {each["name"] for each in own}
    reserved = [each["fields"]["content"] for each in own if each["kind"] == "file"]
    assert f"{pod_id} eth0" in reserved
    shared = {each["name"]: each["fields"] for each in told["now"]["things"] if each["belongsTo"] == "network"}
    assert shared["sbx0"]["kind"] == "bridge"
    assert [shared[name] for name in SYSCTLS] == [{"value": "1"}, {"value": "1"}]

    remove_pod(bed, pod_id)

"""A chain is found again in what was recorded, and what runs it again elsewhere is the same but for whose it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxd.cni import recorded
from sandboxd.cni.conf import from_json
from sandboxd.cni.recorded import Elsewhere
from sandboxd.cni.request import plugin_env, plugin_stdin
from sandboxd.errors import InvalidRequest
from sandboxd.steps import PluginExecution

POD, OWN = "a" * 64, "b" * 64
WHERE = Elsewhere(id=OWN, netns_path="/run/netns/own", ports={8080: 50000}, left_out=frozenset({"ips"}))
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.2/16"}]}
ARGS = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={POD};K8S_POD_UID=u-1"
BRIDGE: dict[str, Any] = {"type": "bridge", "bridge": "b0", "runtimeConfig": {"ips": ["10.88.0.2/16"]}}
TUNING: dict[str, Any] = {"type": "tuning"}
PORTMAP: dict[str, Any] = {
    "type": "portmap",
    "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
}


def execution(command: str, conf: dict[str, Any], previous: object = None, **changes: Any) -> PluginExecution:
    document = {"cniVersion": "1.0.0", "name": "pods", **conf, **({"prevResult": previous} if previous else {})}
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": changes.pop("pod", POD),
        "CNI_NETNS": "/run/netns/pod",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": ARGS,
        "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
        "PATH": "/bin",
    }
    values: dict[str, Any] = {
        "command": command,
        "binary": f"/opt/cni/bin/{conf['type']}",
        "env": env,
        "stdin": json.dumps(document).encode(),
        "stdout": b"",
        "stderr": b"",
        "exit_code": 0,
        "duration": 1,
    }
    return PluginExecution(**values | changes)


ADDS = [execution("ADD", BRIDGE), execution("ADD", TUNING, RESULT), execution("ADD", PORTMAP, RESULT)]
DELS = [execution("DEL", each, RESULT) for each in (PORTMAP, TUNING, BRIDGE)]


def types(executions: list[PluginExecution], target: PluginExecution) -> tuple[list[str], int]:
    links, place = recorded.chain(executions, target)
    return [link.type for link in links], place


@pytest.mark.parametrize(
    ("executions", "target", "place"),
    [
        (ADDS, ADDS[1], 1),
        ([*ADDS, *DELS], DELS[0], 2),
        # The second failed, so the third has its DEL only.
        ([*ADDS[:2], *DELS], ADDS[1], 1),
        ([*ADDS[:2], *DELS], DELS[0], 2),
        # What is known of an earlier boot's pod.
        (DELS, DELS[1], 1),
        # A second attempt at what is owed runs the plugins that failed.
        ([*ADDS, *DELS, execution("DEL", TUNING, RESULT)], DELS[2], 0),
    ],
)
def test_the_whole_chain_is_known_from_its_adds_or_from_its_dels(
    executions: list[PluginExecution], target: PluginExecution, place: int
) -> None:
    assert types(executions, target) == (["bridge", "tuning", "portmap"], place)


def test_another_run_and_another_pods_plugins_are_no_part_of_the_chain() -> None:
    again = [execution("ADD", BRIDGE), execution("ADD", TUNING, RESULT)]
    other = execution("ADD", {"type": "other"}, RESULT, pod="c" * 64)
    assert types([*ADDS, other, *again], again[1]) == (["bridge", "tuning"], 1)
    assert types([*ADDS, other, *again], ADDS[2]) == (["bridge", "tuning", "portmap"], 2)


def test_a_check_of_which_nothing_else_is_known_is_a_chain_of_its_own() -> None:
    check = execution("CHECK", TUNING, RESULT)
    assert types([check], check) == (["tuning"], 0)


def test_elsewhere_nothing_says_whose_it_was() -> None:
    links, _ = recorded.chain(ADDS, ADDS[2])
    moved = [recorded.elsewhere(link, WHERE) for link in links]
    for link in moved:
        assert POD not in json.dumps([link.conf, dict(link.env)])
        assert link.env["CNI_ARGS"] == (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=replay-{OWN[:12]};"
            f"K8S_POD_INFRA_CONTAINER_ID={OWN};K8S_POD_UID={OWN}"
        )
        assert (link.env["CNI_NETNS"], link.env["PATH"]) == ("/run/netns/own", "/bin")
    assert "runtimeConfig" not in moved[0].conf
    assert moved[2].ports == [{"hostPort": 50000, "containerPort": 80, "protocol": "tcp"}]
    assert recorded.asked(links[0], "ips") == ["10.88.0.2"]


def test_a_call_has_the_last_result_where_the_command_takes_one() -> None:
    links, _ = recorded.chain(ADDS, ADDS[0])
    call = recorded.call(links[0], "DEL", RESULT)
    assert json.loads(call.stdin)["prevResult"] == RESULT and call.env["CNI_COMMAND"] == "DEL"
    old = execution("ADD", {**BRIDGE, "cniVersion": "0.3.1"})
    (link,), _ = recorded.chain([old], old)
    assert "prevResult" not in json.loads(recorded.call(link, "DEL", RESULT).stdin)
    assert json.loads(recorded.call(link, "ADD", RESULT).stdin)["prevResult"] == RESULT


def test_the_attachment_gives_each_plugin_the_same_input_again() -> None:
    links, _ = recorded.chain(ADDS, ADDS[2])
    moved = [recorded.elsewhere(link, WHERE) for link in links]
    made = recorded.attachment(moved, WHERE, pod="replay of shop/web", boot="b")
    config = from_json(made.config)
    for link, plugin in zip(moved, config.plugins, strict=True):
        stdin = plugin_stdin(config, plugin, json.loads(made.capability_args), RESULT, config.cni_version)
        call = recorded.call(link, "DEL", RESULT)
        assert json.loads(stdin) == json.loads(call.stdin)
        assert {**plugin_env("DEL", made), "PATH": "/bin"} == call.env


def test_what_is_run_as_recorded_is_so_to_the_byte() -> None:
    status = execution("STATUS", BRIDGE)
    call = recorded.as_recorded(status)
    assert (call.stdin, call.env, call.binary) == (status.stdin, status.env, status.binary)
    assert (call.plugin, call.network) == ("bridge", "pods")


def test_addresses_of_the_configuration_itself_are_seen() -> None:
    ipam = {"type": "static", "addresses": [{"address": "10.9.0.5/24"}]}
    fixed = execution("ADD", {**BRIDGE, "ipam": ipam})
    (link,), _ = recorded.chain([fixed], fixed)
    assert recorded.fixed_addresses(link) == ["10.9.0.5"]


def test_input_that_is_no_configuration_is_refused() -> None:
    broken = execution("ADD", BRIDGE, stdin=b"[")
    with pytest.raises(InvalidRequest, match="recorded input of /opt/cni/bin/bridge"):
        recorded.chain([broken], broken)
    strange = execution("ADD", {**BRIDGE, "cniVersion": "7"})
    links, _ = recorded.chain([strange], strange)
    with pytest.raises(InvalidRequest, match="version 7"):
        recorded.attachment(links, WHERE, pod="", boot="")

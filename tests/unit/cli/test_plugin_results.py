"""What an execution of a plugin came to."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from sandboxd.cli import plugin_results
from sandboxd.pb.host.v1 import host_pb2 as host

BRIDGE: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "sbx0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
    "ips": [{"interface": 2, "address": "10.0.10.2/24", "gateway": "10.0.10.1"}],
}
PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}


def execution(conf: Any = None, result: Any = None, **more: Any) -> host.PluginExecution:
    return host.PluginExecution(
        command=more.pop("command", "ADD"),
        binary="/usr/lib/cni/bridge",
        stdin=json.dumps(conf or {}).encode(),
        stdout=json.dumps(result).encode() if result is not None else b"",
        duration=28 * 10**6,
        **more,
    )


@pytest.mark.parametrize(
    ("conf", "result", "made"),
    [
        ({"type": "bridge", "bridge": "sbx0"}, BRIDGE, "eth0 10.0.10.2/24 via 10.0.10.1, veth1 on sbx0"),
        ({"type": "ptp"}, BRIDGE, "eth0 10.0.10.2/24 via 10.0.10.1, sbx0, veth1 on the host"),
        ({"prevResult": BRIDGE}, BRIDGE, "the result as before"),
        ({"prevResult": {**BRIDGE, "cniVersion": "0.4.0"}}, BRIDGE, "the result as before"),
        ({"prevResult": BRIDGE, "runtimeConfig": PORTS}, BRIDGE, "host port 8080/tcp to 80"),
        (
            {"prevResult": BRIDGE},
            {**BRIDGE, "ips": [*BRIDGE["ips"], {"address": "fd00::2/64"}]},
            "fd00::2/64",
        ),
        ({}, {"ip4": {"ip": "10.0.0.2/8", "gateway": "10.0.0.1"}}, "10.0.0.2/8 via 10.0.0.1"),
        ({}, {"interfaces": [{"name": "eth0", "sandbox": "/n"}]}, "eth0 without an address"),
        ({}, {"ips": "odd", "interfaces": [7]}, "no address, no interface"),
        ({"prevResult": BRIDGE}, {**BRIDGE, "dns": {"domain": "x"}}, "a result that differs: dns"),
    ],
)
def test_an_add_says_what_it_added_to_what_was_there(conf: Any, result: Any, made: str) -> None:
    assert plugin_results.line(execution(conf, result)) == f"ADD bridge → {made}  28 ms"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "exit status 0"),
        ({"exit_code": 3}, "exit status 3"),
        (
            {"exit_code": -signal.SIGKILL, "timed_out": True, "ended_by": "sandboxd"},
            "killed by sandboxd when its time was over, after 28 ms",
        ),
        ({"exit_code": -signal.SIGKILL, "ended_by": "sandboxd"}, "killed with SIGKILL by sandboxd"),
        (
            {"exit_code": -signal.SIGSEGV, "ended_by": "other"},
            "killed with SIGSEGV by itself, the kernel or another process, not by sandboxd",
        ),
        ({"exit_code": -99, "ended_by": "sandboxd"}, "killed with signal 99 by sandboxd"),
    ],
)
def test_an_ending_has_the_status_or_the_signal_and_who_sent_it(fields: dict[str, Any], told: str) -> None:
    assert plugin_results.ending(execution(**fields)) == told


def test_a_failed_execution_and_a_del_are_a_line_too() -> None:
    assert plugin_results.line(execution(exit_code=1)) == "ADD bridge failed: exit status 1  28 ms"
    assert plugin_results.line(execution(command="DEL")) == "DEL bridge  28 ms"


def test_of_the_next_plugins_result_only_what_differs_is_told() -> None:
    changed = {**BRIDGE, "ips": [{**BRIDGE["ips"][0], "gateway": "10.0.10.9"}]}
    conf = {"type": "tuning", "prevResult": BRIDGE}
    told = dict(plugin_results.told(execution(conf, changed)))
    assert told["prevResult"] == "as the plugins before it answered (sbx0, veth1, eth0, 10.0.10.2/24)"
    assert told["result"].split("\n") == [
        "prevResult, with:",
        '-       "gateway": "10.0.10.1",',
        '+       "gateway": "10.0.10.9",',
    ]
    assert "prevResult" not in told["conf"]
    assert dict(plugin_results.told(execution(conf, BRIDGE)))["result"] == "prevResult, unchanged"


@pytest.mark.parametrize("odd", [None, 7, "x", [], [7], {}, [{}], {"a": 7}, [[]], [{"name": 7, "interface": True}]])
@pytest.mark.parametrize("key", ["interfaces", "ips", "ip4", "runtimeConfig", "prevResult", "bridge", "cniVersion"])
def test_whatever_plugins_print_has_a_line_and_is_told(key: str, odd: Any) -> None:
    for conf, result in (({key: odd}, BRIDGE), ({"prevResult": {key: odd}}, BRIDGE), ({}, {key: odd}), (odd, odd)):
        done = execution(conf, {**BRIDGE, **result} if isinstance(result, dict) else result)
        assert plugin_results.line(done).startswith("ADD bridge → ") and list(plugin_results.told(done))


def test_a_result_nested_beyond_reason_and_two_long_ones_that_differ_are_told() -> None:
    deep = host.PluginExecution(command="ADD", stdin=b"[" * 100_000, stdout=b"[" * 100_000)
    assert plugin_results.line(deep) and list(plugin_results.told(deep))
    was, now = ({"routes": [{"dst": f"10.{n % 256}.{n // 256}.{last}/32"} for n in range(3000)]} for last in (1, 2))
    assert sum("dst" in each for each in plugin_results.differences(was, now)) == 6000


def test_what_is_not_json_is_told_as_it_is() -> None:
    odd = host.PluginExecution(command="ADD", stdin=b"conf", stdout=b"oops\n", stderr=b"\xff")
    assert dict(plugin_results.told(odd)) == {"environment": "", "conf": "conf", "stdout": "oops", "stderr": "\ufffd"}

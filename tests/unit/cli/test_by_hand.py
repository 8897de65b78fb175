"""What a person would type instead. What the commands do is tests/e2e/test_explain_commands.py's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxd.cli import by_hand
from sandboxd.pb.host.v1 import host_pb2 as host

PATH = "/run/netns/sandboxd-a"
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/8"}]}


def add(plugin: str, at: int, conf: dict[str, Any], result: Any = RESULT, **more: Any) -> host.Step:
    execution = host.PluginExecution(
        command="ADD",
        binary=f"/usr/lib/cni/{plugin}",
        env={"CNI_COMMAND": "ADD", "CNI_NETNS": PATH, "CNI_ARGS": "A=1;B=2", "PATH": "/bin"},
        stdin=json.dumps({"cniVersion": "1.0.0", "type": plugin, **conf}).encode(),
        stdout=json.dumps(result).encode(),
        **more,
    )
    return host.Step(operation="RunPodSandbox", name="cni.add", started_at=at, duration=1, plugin=execution)


NETNS = host.Step(operation="RunPodSandbox", name="pod.netns.create", duration=1, detail={"path": PATH})
MADE = [add("portmap", 20, {"prevResult": RESULT}), NETNS, add("bridge", 10, {})]
POD = host.ExplainResponse(pod_sandbox_id="a", netns_path=PATH, steps=MADE)


def of(*steps: host.Step, path: str = PATH) -> host.ExplainResponse:
    return host.ExplainResponse(pod_sandbox_id="a", netns_path=path, steps=steps)


def executed(lines: list[str]) -> list[str]:
    """The lines that are neither comments nor empty."""
    return [line for line in lines if line and not line.startswith("#")]


def calls(lines: list[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """(command, binary, configuration) of each execution of a plugin."""
    found = []
    for begin, text in enumerate(lines):
        if text.endswith(" <<'EOF'"):
            end = lines.index("EOF", begin)
            command = next(each for each in reversed(lines[:begin]) if each.startswith("CNI_COMMAND="))
            found.append((command[12:15], text.split()[0], json.loads("\n".join(lines[begin + 1 : end]))))
    return found


def test_the_namespace_comes_first_and_then_each_add_with_its_environment_and_what_it_was_told() -> None:
    lines = executed(by_hand.commands(POD, "default/web"))
    assert lines[:7] == [
        "ip netns add sandboxd-a",
        f"nsenter --net={PATH} ip link set lo up",
        "CNI_COMMAND=ADD \\",
        f"CNI_NETNS={PATH} \\",
        "CNI_ARGS='A=1;B=2' \\",
        "PATH=/bin \\",
        "/usr/lib/cni/bridge <<'EOF'",
    ]
    assert calls(lines) == [
        ("ADD", "/usr/lib/cni/bridge", {"cniVersion": "1.0.0", "type": "bridge"}),
        ("ADD", "/usr/lib/cni/portmap", {"cniVersion": "1.0.0", "type": "portmap", "prevResult": RESULT}),
    ]


def test_the_span_that_a_plugin_was_traced_in_is_not_typed() -> None:
    traced = add("bridge", 10, {})
    traced.plugin.env["TRACEPARENT"], traced.plugin.env["TRACESTATE"] = "00-a-b-01", "a=1"
    answer = of(NETNS, traced)
    assert not [line for line in by_hand.commands(answer, "default/web") if "TRACE" in line]


def test_the_dels_follow_in_reverse_with_the_last_result_and_as_comments_first() -> None:
    down = by_hand.undoing(POD, "default/web")
    assert calls(down) == [
        ("DEL", "/usr/lib/cni/portmap", {"cniVersion": "1.0.0", "type": "portmap", "prevResult": RESULT}),
        ("DEL", "/usr/lib/cni/bridge", {"cniVersion": "1.0.0", "type": "bridge", "prevResult": RESULT}),
    ]
    assert down[-1] == "ip netns del sandboxd-a"
    commented = [line.removeprefix("# ") for line in by_hand.commands(POD, "default/web")]
    assert commented[-len(down) + 1 :] == down[1:]


def test_before_0_4_0_a_del_is_given_no_result() -> None:
    ((_, _, conf),) = calls(by_hand.undoing(of(NETNS, add("bridge", 1, {"cniVersion": "0.3.1"})), "x"))
    assert "prevResult" not in conf


def test_an_add_that_failed_is_undone_with_the_result_before_it() -> None:
    failed = host.Operation(
        operation="RunPodSandbox",
        duration=1,
        steps=[NETNS, add("bridge", 1, {}), add("portmap", 2, {"prevResult": RESULT}, {"code": 1}, exit_code=1)],
    )
    answer = host.ExplainResponse(operations=[failed])
    assert "# It failed; what follows undoes what was made." in by_hand.commands(answer, "x")
    assert [conf["prevResult"] for _, _, conf in calls(by_hand.undoing(answer, "x"))] == [RESULT, RESULT]


def namespace(name: str = "pod.netns.create", **detail: str) -> host.Step:
    return host.Step(operation="RunPodSandbox", name=name, duration=1, detail=detail)


def test_a_namespace_outside_of_what_ip_knows_is_mounted() -> None:
    elsewhere = of(namespace(path="/n/s a"), *MADE[2:])
    lines = executed(by_hand.commands(elsewhere, "x"))
    assert lines[0] == "mkdir -p /n && touch '/n/s a'"
    assert lines[1].startswith("unshare --net sh -c 'mount --bind /proc/self/ns/net ")
    assert by_hand.undoing(elsewhere, "x")[-1] == "umount '/n/s a' && rm '/n/s a'"


def test_a_namespace_of_a_user_namespace_gets_the_same_ids() -> None:
    owned = namespace("pod.userns.create", host_uid="65536", length="1000")
    text = "\n".join(by_hand.commands(of(owned, *MADE[2:]), "x"))
    assert "echo '0 65536 1000' > /proc/$!/$map" in text and f"mount --bind /proc/$!/ns/net {PATH}" in text


def test_a_namespace_whose_step_is_not_kept_any_more_is_the_plugins() -> None:
    assert executed(by_hand.commands(of(*MADE[2:]), "x"))[0] == "ip netns add sandboxd-a"


@pytest.mark.parametrize(
    ("path", "why"), [("", "the host's own network"), (PATH, "no execution of a CNI plugin's ADD")]
)
def test_where_there_is_nothing_to_type_it_says_why(path: str, why: str) -> None:
    with pytest.raises(by_hand.NothingRecorded, match=why):
        by_hand.commands(of(path=path), "x")


def test_the_end_of_a_configuration_is_no_line_of_it() -> None:
    odd = add("bridge", 1, {})
    odd.plugin.stdin = b"no\nEOF\nJSON"
    lines = by_hand.commands(of(NETNS, odd), "x")
    assert not any("\n" in line or not line.isascii() for line in lines)

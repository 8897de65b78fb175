"""The story that `explain` tells."""

from __future__ import annotations

from sandboxd.cli import timeline
from sandboxd.pb.host.v1 import host_pb2 as host

MS = 10**6
START = 1_700_000_000_123 * MS


NOW = 1_800_000_000 * 10**9


def step(operation: str, name: str, at: int, took: int, **more: object) -> host.Step:
    made = host.Step(operation=operation, name=name, started_at=START + at * MS, duration=took * MS)
    made.MergeFrom(host.Step(**more))  # type: ignore[arg-type]
    return made


def told(**fields: object) -> list[str]:
    return lines(host.ExplainResponse(pod_sandbox_id="a" * 64, **fields))  # type: ignore[arg-type]


def lines(answer: host.ExplainResponse) -> list[str]:
    return [line.rstrip() for line in timeline.story(answer, "default/web", NOW).plain.split("\n")]


def test_the_pod_comes_first_with_namespace_and_pid() -> None:
    assert told(netns_path="/run/netns/a", netns_inode=7, pid=42) == [
        "Pod default/web  aaaaaaaaaaaa",
        "    netns  /run/netns/a  inode 7",
        "    pause  pid 42",
    ]


def test_a_stopped_pod_and_a_pod_without_a_network_say_so() -> None:
    assert told(netns_path="/run/netns/a")[1:] == ["    netns  /run/netns/a  (gone)", "    pause  not running"]
    assert told()[1] == "    netns  the host's own"


def test_steps_stand_under_their_operation_with_offset_and_duration() -> None:
    lines = told(
        steps=[
            step("RunPodSandbox", "pod.netns.create", 0, 3, detail={"path": "/run/netns/a", "a": "b"}),
            step("RunPodSandbox", "cni.add", 4, 45),
            step("StartContainer", "container.task.start", 1000, 7, container_id="c" * 64),
        ]
    )
    assert lines[3:] == [
        "",
        "RunPodSandbox  2023-11-14 22:13:20.123 UTC  took 49 ms",
        "         +0 µs       3 ms  pod.netns.create  a=b  path=/run/netns/a",
        "         +4 ms      45 ms  cni.add",
        "",
        "StartContainer  2023-11-14 22:13:21.123 UTC  took 7 ms",
        "         +0 µs       7 ms  container.task.start  container cccccccccccc",
    ]


def test_a_plugin_shows_what_it_was_told_and_what_it_said() -> None:
    plugin = host.PluginExecution(
        command="ADD",
        binary="/opt/cni/bin/bridge",
        stdin=b'{"name":"n"}',
        stdout=b'{"code":7}',
        stderr=b"a\nb\n",
        exit_code=1,
        duration=2 * MS,
    )
    lines = [line.strip() for line in told(steps=[step("RunPodSandbox", "cni.add", 0, 3, plugin=plugin, error="no")])]
    assert lines[6:] == [
        "ADD /opt/cni/bin/bridge  exit 1  2 ms",
        "conf",
        "{",
        '"name": "n"',
        "}",
        "result",
        "{",
        '"code": 7',
        "}",
        "stderr",
        "a",
        "b",
        "failed  no",
    ]


def test_a_plugin_that_was_killed_says_by_what() -> None:
    timed = told(steps=[step("x", "y", 0, 1, plugin=host.PluginExecution(timed_out=True, exit_code=-9))])
    killed = told(steps=[step("x", "y", 0, 1, plugin=host.PluginExecution(exit_code=-11))])
    assert any("timed out and was killed" in line for line in timed)
    assert any("killed by signal 11" in line for line in killed)


def test_networks_come_last_with_addresses_and_debts() -> None:
    lines = told(
        attachments=[
            host.Attachment(
                network="n",
                ifname="eth0",
                state="owed",
                ips=["10.0.0.2", "fd00::2"],
                conf_file="/c",
                attempts=3,
                error="busy",
            ),
            host.Attachment(network="m", ifname="eth1", state="planned", conf_file="/d"),
        ]
    )
    assert lines[4:] == [
        "Networks",
        "    n  eth0  owed  10.0.0.2, fd00::2  from /c  DEL tried 3 times",
        "        busy",
        "    m  eth1  planned  no address  from /d",
    ]


def test_control_characters_of_a_plugin_do_not_reach_the_terminal() -> None:
    plugin = host.PluginExecution(stderr=b"\x1b[2Jgone")
    assert not any("\x1b" in line for line in told(steps=[step("x", "y", 0, 1, plugin=plugin)]))


def operation(**values: object) -> host.Operation:
    made = host.Operation(operation="RunPodSandbox", subject="default/web", started_at=NOW - 30 * 10**9)
    made.MergeFrom(host.Operation(**values))  # type: ignore[arg-type]
    return made


def test_what_could_not_be_made_has_its_last_failure_whole_and_a_line_for_each_other() -> None:
    step = host.Step(operation="RunPodSandbox", name="cni.add", started_at=NOW - 29 * 10**9, error="no address left")
    failed = [
        operation(duration=10**9, error="the second", steps=[step], times=3),
        operation(duration=10**9, error="the first", steps=[step], times=1),
    ]
    shown = lines(host.ExplainResponse(operations=failed))
    assert shown[0] == "default/web  does not exist"
    assert "RunPodSandbox default/web  failed 2027-01-15 07:59:31 UTC, 3 times in a row" in shown
    assert [line.strip() for line in shown if "the second" in line or "the first" in line] == [
        "the second",
        "the first",
    ]
    assert sum("cni.add" in line for line in shown) == 1


def test_what_is_under_way_says_what_it_waits_for_and_how_long() -> None:
    waits = host.Step(name="cni.add", started_at=NOW - 20 * 10**9, detail={"plugin": "bridge"})
    shown = lines(host.ExplainResponse(pod_sandbox_id="a" * 64, operations=[operation(open=[waits])]))
    assert "RunPodSandbox default/web  is under way, for 30 s" in shown
    assert [line.split() for line in shown if "cni.add" in line] == [
        ["now", "in", "20", "s", "cni.add", "plugin=bridge"]
    ]

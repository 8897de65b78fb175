"""The story that `explain` tells."""

from __future__ import annotations

import json
from pathlib import Path

from sandboxd.cli import timeline
from sandboxd.pb.host.v1 import host_pb2 as host

ROOT = Path(__file__).parents[3]

MS = 10**6
START = 1_700_000_000_123 * MS


NOW = 1_800_000_000 * 10**9


def step(operation: str, name: str, at: int, took: int, **more: object) -> host.Step:
    made = host.Step(operation=operation, name=name, started_at=START + at * MS, duration=took * MS)
    made.MergeFrom(host.Step(**more))  # type: ignore[arg-type]
    return made


def told(*, verbose: bool = False, **fields: object) -> list[str]:
    answer = host.ExplainResponse(pod_sandbox_id="a" * 64, **fields)  # type: ignore[arg-type]
    return lines(answer, verbose=verbose)


def lines(answer: host.ExplainResponse, *, verbose: bool = False) -> list[str]:
    return [line.rstrip() for line in timeline.story(answer, "default/web", NOW, verbose=verbose).plain.split("\n")]


def test_the_pod_comes_first_with_namespace_and_pid() -> None:
    assert told(netns_path="/run/netns/a", netns_inode=7, pid=42) == [
        "Pod default/web  aaaaaaaaaaaa",
        "    netns  /run/netns/a  inode 7",
        "    pause  pid 42",
    ]


def test_a_stopped_pod_and_a_pod_without_a_network_say_so() -> None:
    assert told(netns_path="/run/netns/a")[1:] == ["    netns  /run/netns/a  (gone)", "    pause  not running"]
    assert told()[1] == "    netns  the host's own"
    assert told(pinned=True)[2] == "    pause  none: the namespaces are pinned"


RUN = [
    step("RunPodSandbox", "pod.netns.create", 0, 3, detail={"path": "/run/netns/a", "inode": "7"}),
    step("RunPodSandbox", "cni.add", 5, 45, detail={"plugin": "bridge"}),
    step("RunPodSandbox", "pod.pause.rootfs", 6, 4),
    step("RunPodSandbox", "pod.network.attach", 4, 47, detail={"network": "n", "passed_over": "/b.conf: broken"}),
    step("RunPodSandbox", "pod.run", 0, 60),
    step("StartContainer", "container.task.start", 1000, 7, container_id="c" * 64),
]


def test_a_step_is_a_line_with_its_sentence_in_the_order_of_starts_within_what_it_was_part_of() -> None:
    assert told(steps=RUN)[3:] == [
        "",
        "RunPodSandbox  2023-11-14 22:13:20.123 UTC  took 60 ms",
        "         +0 µs      60 ms  The pod is made, until it can take containers",
        "         +0 µs       3 ms    The network namespace is created, its loopback up: /run/netns/a, inode 7",
        "         +4 ms      47 ms    The pod is attached to network n",
        "                               passed over: /b.conf: broken",
        "         +5 ms      45 ms      ADD bridge",
        "         +6 ms       4 ms    ∥ The pause container gets a root file system, from image",
        "",
        "StartContainer  2023-11-14 22:13:21.123 UTC  took 7 ms",
        "         +0 µs       7 ms  The container's process runs",
        "",
        "∥ goes on beside the steps above it",
    ]


def test_verbose_adds_the_steps_name_and_all_its_particulars() -> None:
    shown = told(verbose=True, steps=RUN)
    assert any(line.endswith("inode 7  pod.netns.create  inode=7  path=/run/netns/a") for line in shown)
    assert any(line.endswith("container.task.start  container cccccccccccc") for line in shown)


ACTS = [
    host.Act(what="file", about="/run/x/hosts", started_at=START + 2 * MS, size=0),
    host.Act(what="Snapshots.Prepare", about="k\x1b", started_at=START, duration=MS, outcome="ALREADY_EXISTS"),
]


def test_verbose_tells_below_a_step_what_it_changed_in_the_order_of_starts() -> None:
    steps = [step("RunPodSandbox", "pod.files.write", 0, 3, acts=ACTS)]
    shown = told(verbose=True, steps=steps)[5:]
    assert [line.strip() for line in shown[1:]] == [
        "Snapshots.Prepare k\\x1b  1 ms  ALREADY_EXISTS",
        "file /run/x/hosts  0 bytes",
    ]
    assert len(told(steps=steps)) == 6


def test_verbose_tells_what_a_step_under_way_has_changed() -> None:
    open_step = host.Step(name="pod.pause.create", started_at=NOW, acts=ACTS)
    running = host.Operation(operation="RunPodSandbox", subject="default/web", started_at=NOW, open=[open_step])
    assert any("file /run/x/hosts" in line for line in told(verbose=True, operations=[running]))


BRIDGE = host.PluginExecution(
    command="ADD",
    binary="/opt/cni/bin/bridge",
    env={"CNI_IFNAME": "eth0", "CNI_COMMAND": "ADD"},
    stdin=b'{"name":"n"}',
    stdout=b'{"code":7}',
    stderr=b"a\nb\n",
    exit_code=1,
    duration=2 * MS,
)


def test_what_failed_is_marked_and_its_cause_told_once_where_it_began() -> None:
    failed = [
        step("RunPodSandbox", "cni.add", 1, 3, plugin=BRIDGE, error="no way"),
        step("RunPodSandbox", "pod.network.attach", 1, 4, error="no way; ask"),
        step("RunPodSandbox", "pod.run", 0, 9, error="no way; ask"),
    ]
    assert told(steps=failed)[5:] == [
        "   ✗     +0 µs       9 ms  The pod is made, until it can take containers",
        "   ✗     +1 ms       4 ms    The pod is attached to network",
        "   ✗     +1 ms       3 ms      ADD bridge failed: exit status 1  2 ms",
        "                                 cause  no way",
    ]
    failed[2].error = "pause does not start"
    assert told(steps=failed)[6] == "                             cause  pause does not start"


def test_what_is_known_of_a_failure_follows_the_plugins_words() -> None:
    known = {"kind": "bad_range", "cause": "it is no range", "next": "correct it"}
    failed = step("RunPodSandbox", "cni.add", 1, 3, plugin=BRIDGE, error="no way", detail=known)
    outer = step("RunPodSandbox", "pod.network.attach", 1, 4, error="no way", detail={"next": "free some"})
    shown = [line.strip() for line in told(steps=[failed, outer])]
    assert shown[6:] == [
        "next  free some",
        "✗     +0 µs       3 ms    ADD bridge failed: exit status 1  2 ms",
        "said  no way",
        "cause  it is no range",
        "next  correct it",
    ]


def test_verbose_has_all_that_a_plugin_was_told_and_said() -> None:
    shown = told(verbose=True, steps=[step("RunPodSandbox", "cni.add", 0, 3, plugin=BRIDGE, error="no")])
    assert [line.strip() for line in shown][6:] == [
        "ADD /opt/cni/bin/bridge  exit status 1",
        "environment",
        "CNI_COMMAND=ADD",
        "CNI_IFNAME=eth0",
        "conf",
        "{",
        '"name": "n"',
        "}",
        "stdout",
        "{",
        '"code": 7',
        "}",
        "stderr",
        "a",
        "b",
        "cause  no",
    ]


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
    shown = told(verbose=True, steps=[step("x", "y", 0, 1, plugin=plugin, error="\x1b")])
    assert any("gone" in line for line in shown) and not any("\x1b" in line for line in shown)


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
    assert sum("ADD a plugin" in line for line in shown) == 1


def test_what_is_under_way_says_what_it_waits_for_and_how_long() -> None:
    waits = host.Step(name="cni.add", started_at=NOW - 20 * 10**9, detail={"plugin": "bridge"})
    shown = lines(host.ExplainResponse(pod_sandbox_id="a" * 64, operations=[operation(open=[waits])]))
    assert "RunPodSandbox default/web  is under way, for 30 s" in shown
    assert [line.split() for line in shown if "cni.add" in line] == [
        ["now", "in", "20", "s", "ADD", "bridge", "cni.add"]
    ]


SAMPLE_ID = "903bd2ae8baad4a5afd3fb3443355fbe750c4731b1cdbed3726e48ad25dc3313"
SAMPLE_NETNS = f"/run/netns/sandboxd-{SAMPLE_ID}"
SAMPLE = host.ExplainResponse(pod_sandbox_id=SAMPLE_ID, netns_path=SAMPLE_NETNS, netns_inode=4026532417, pid=121)
RESULT = {
    "interfaces": [{"name": "sbx0"}, {"name": "veth5b3bb0dd"}, {"name": "eth0", "sandbox": SAMPLE_NETNS}],
    "ips": [{"interface": 2, "address": "10.0.10.2/24", "gateway": "10.0.10.1"}],
}
PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
SAMPLE_STEPS: list[tuple[str, float, float, dict[str, str]]] = [
    ("pod.netns.create", 0.0274, 2.33, {"path": SAMPLE_NETNS, "inode": "4026532417"}),
    ("pod.files.mount", 8.43, 3.26, {}),
    ("pod.pause.rootfs", 12.1, 7.53, {"image": "sha256:5eff6fc2b037" + "0" * 52}),
    ("pod.pause.record", 21.2, 12.5, {}),
    ("cni.add", 4.07, 154, {"plugin": "bridge"}),
    ("pod.pause.create", 34.2, 159, {"pid": "121"}),
    ("cni.add", 159, 72.2, {"plugin": "portmap"}),
    (
        "pod.network.attach",
        3.68,
        228,
        {"network": "sandboxd", "ips": "10.0.10.2", "conf": "/etc/cni/net.d/10-sandboxd.conflist"},
    ),
    ("pod.files.write", 232, 0.441, {}),
    ("pod.pause.start", 233, 14, {"pid": "121"}),
    ("pod.run", 0, 248, {"pod": "default/web/x/0"}),
]
SAMPLE_PLUGINS = {
    "bridge": ({"type": "bridge", "bridge": "sbx0"}, 153),
    "portmap": ({"type": "portmap", "prevResult": RESULT, "runtimeConfig": PORTS}, 71.6),
}


def test_the_sample_in_the_documentation_is_what_is_printed() -> None:
    begin = 1_796_057_560_011 * MS
    for name, at, took, detail in SAMPLE_STEPS:
        made = SAMPLE.steps.add(
            operation="RunPodSandbox",
            name=name,
            started_at=begin + int(at * MS),
            duration=int(took * MS),
            detail=detail,
        )
        if name == "cni.add":
            conf, own = SAMPLE_PLUGINS[detail["plugin"]]
            made.plugin.MergeFrom(
                host.PluginExecution(
                    command="ADD",
                    binary=f"/usr/lib/cni/{detail['plugin']}",
                    stdin=json.dumps(conf).encode(),
                    stdout=json.dumps(RESULT).encode(),
                    duration=int(own * MS),
                )
            )
    printed = "\n".join(f"    {line}".rstrip() for line in lines(SAMPLE))
    for text in ("docs/explain.md", "README.md"):
        assert printed in (ROOT / text).read_text(encoding="utf-8"), text

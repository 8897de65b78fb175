"""Executing plugins, against a scripted one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd import spans, steps
from sandboxd.cni import executions as module
from sandboxd.cni import leftovers
from sandboxd.cni.conf import NetworkConfig
from sandboxd.cni.invoker import Invoker
from sandboxd.cni.request import plan
from sandboxd.errors import Exhausted, InvalidRequest, NotReady, PluginFailed, Unavailable
from sandboxd.model import IN_PROCESS, Attachment
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.fakes import cni_plugin

# A live namespace that is not the host's network, without privileges: the invoker looks at the kind of file only.
NETNS = "/proc/self/ns/uts"
POD = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web", namespace="shop", uid="u"))
FAILS = {"error": {"code": 999, "msg": "no luck", "details": "really"}, "stderr": "tried hard\n"}


@pytest.fixture(autouse=True)
def nothing_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs elsewhere for the same container id is another test's, not an earlier daemon's."""
    monkeypatch.setattr(leftovers, "_look", dict)


def network(*types: str, **changes: Any) -> NetworkConfig:
    chain = tuple({"type": type_} for type_ in types)
    return replace(NetworkConfig(name="pods", versions=("1.1.0",), plugins=chain, source="/d/10.conflist"), **changes)


def attached(config: NetworkConfig, directory: str, /, **changes: Any) -> Attachment:
    return replace(plan(config, POD, "c1", NETNS, [directory]), **changes)


def called(directory: str) -> list[tuple[str, str]]:
    return [(call["command"], call["plugin"]) for call in cni_plugin.calls(directory)]


async def until(happened: Callable[[], bool]) -> None:
    """Wait for another process."""
    async with asyncio.timeout(30):
        while not happened():  # noqa: ASYNC110 - nothing tells of another process's file
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether it still runs; a killed process that nobody reaped yet is as good as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_add_runs_the_chain_in_order_and_hands_on_each_result(
    plugins: Callable[..., str], records: list[steps.StepRecord]
) -> None:
    directory = plugins(bridge={}, tuning={"ADD": [{"result": {"ips": [{"address": "10.9.9.9/8"}]}}]}, portmap={})
    attachment = attached(network("bridge", "tuning", "portmap"), directory)

    result = json.loads(await Invoker(30).add(attachment))

    first, second, third = cni_plugin.calls(directory)
    assert called(directory) == [("ADD", "bridge"), ("ADD", "tuning"), ("ADD", "portmap")]
    assert "prevResult" not in first["stdin"]
    assert second["stdin"]["prevResult"]["ips"] == [{"address": "10.88.0.2/16", "interface": 0}]
    assert third["stdin"]["prevResult"] == {"cniVersion": "1.1.0", "ips": [{"address": "10.9.9.9/8"}]} == result
    assert [(r.name, r.detail["plugin"], r.detail["network"]) for r in records] == [
        ("cni.add", "bridge", "pods"),
        ("cni.add", "tuning", "pods"),
        ("cni.add", "portmap", "pods"),
    ]


async def test_a_result_is_handed_on_before_the_plugin_that_is_given_it_runs(plugins: Callable[..., str]) -> None:
    directory = plugins(bridge={}, tuning={}, portmap={"ADD": [FAILS]})
    seen: list[tuple[int, str]] = []

    def handed_on(result: bytes) -> None:
        seen.append((len(called(directory)), json.loads(result)["ips"][0]["address"]))

    with pytest.raises(PluginFailed):
        await Invoker(30).add(attached(network("bridge", "tuning", "portmap"), directory), handed_on)

    assert seen == [(1, "10.88.0.2/16"), (2, "10.88.0.2/16")]


async def test_the_environment_is_cni_and_path_only_and_the_process_leads_its_own_group(
    plugins: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "x")
    directory = plugins(bridge={})

    await Invoker(30, path="/opt/tools:/usr/bin:/bin").add(attached(network("bridge"), directory))

    env = cni_plugin.calls(directory)[0]["env"]
    assert {key for key in env if key not in ("LC_CTYPE", "PWD", "SHLVL", "_")} == {
        *("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "PATH")
    }
    assert env["PATH"] == "/opt/tools:/usr/bin:/bin"


async def test_a_plugin_is_told_in_which_span_it_runs_and_its_del_is_not_told_of_that_one(
    plugins: Callable[..., str], records: list[steps.StepRecord]
) -> None:
    directory = plugins(bridge={})
    attachment = attached(network("bridge"), directory)
    spans.turn_on(1.0)
    try:
        await Invoker(30).add(attachment)
        await Invoker(30).delete(attachment)
    finally:
        spans.turn_off()
    await Invoker(30).delete(attachment)

    add, traced, untraced = (call["env"] for call in cni_plugin.calls(directory))
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", add["TRACEPARENT"])
    assert traced["TRACEPARENT"] not in ("", add["TRACEPARENT"])
    assert "TRACEPARENT" not in untraced
    recorded = [record.plugin.env.get("TRACEPARENT") for record in records if record.plugin]
    assert recorded == [add["TRACEPARENT"], traced["TRACEPARENT"], None]


async def test_plugins_that_run_are_counted_by_command(plugins: Callable[..., str], tmp_path: Path) -> None:
    directory = plugins(bridge={"ADD": [{"wait_for": "go"}]})
    invoker = Invoker(30, concurrency=1)
    idle = dict.fromkeys(module.COMMANDS, (0, 0))
    assert invoker.running() == idle
    adding = [asyncio.create_task(invoker.add(attached(network("bridge"), directory))) for _ in range(2)]
    await until(lambda: bool(cni_plugin.calls(directory)))

    assert invoker.running() == {**idle, "ADD": (1, 1)}
    Path(directory, "go").touch()
    await asyncio.gather(*adding)
    assert invoker.running() == idle


async def test_an_execution_is_recorded_whole(plugins: Callable[..., str], records: list[steps.StepRecord]) -> None:
    directory = plugins(bridge={"ADD": [{"stderr": "made cni0\n"}]})

    await Invoker(30).add(attached(network("bridge"), directory))

    execution = records[0].plugin
    assert execution is not None
    assert (execution.command, execution.binary) == ("ADD", f"{directory}/bridge")
    assert (execution.stderr, execution.exit_code, execution.timed_out) == (b"made cni0\n", 0, False)
    assert execution.env["CNI_NETNS"] == NETNS
    assert json.loads(execution.stdin)["name"] == "pods"
    assert json.loads(execution.stdout)["ips"]
    assert execution.duration > 0


async def test_the_first_failing_plugin_ends_the_chain_and_its_stderr_is_kept(
    plugins: Callable[..., str], records: list[steps.StepRecord]
) -> None:
    directory = plugins(bridge={}, tuning={"ADD": [FAILS]}, portmap={})

    with pytest.raises(PluginFailed) as caught:
        await Invoker(30).add(attached(network("bridge", "tuning", "portmap"), directory))

    assert str(caught.value) == "CNI plugin tuning failed on ADD: no luck: really (CNI error 999)"
    assert called(directory) == [("ADD", "bridge"), ("ADD", "tuning")]
    assert records[1].error == str(caught.value)
    assert records[1].plugin is not None
    assert records[1].plugin.stderr == b"tried hard\n"


@pytest.mark.parametrize(
    ("action", "error", "words"),
    [
        ({"error": {"code": 11, "msg": "starting"}}, Unavailable, "starting"),
        ({"error": {"code": 999, "msg": "no IP addresses available in range set"}}, Exhausted, "range set"),
        ({"stdout": "", "exit": 3}, PluginFailed, "exited with status 3"),
        ({"stdout": "", "exit": 3, "stderr": "panic"}, PluginFailed, "panic"),
        ({"stdout": "", "signal": 9}, PluginFailed, "killed by SIGKILL"),
        ({"stdout": "{"}, PluginFailed, "malformed result: not valid JSON"),
        ({"stdout": ""}, PluginFailed, "nothing was printed on stdout"),
        ({"stdout": "x" * (3 << 20)}, PluginFailed, "more than 1048576 bytes on stdout"),
        ({"result": {"ips": []}}, PluginFailed, "returned no address for eth0"),
    ],
)
async def test_each_way_to_fail_has_its_error(
    plugins: Callable[..., str], action: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        await Invoker(30).add(attached(network("bridge"), plugins(bridge={"ADD": [action]})))


async def test_an_intermediate_plugin_need_not_give_an_address(plugins: Callable[..., str]) -> None:
    directory = plugins(
        bridge={"ADD": [{"result": {}}]}, ptp={"ADD": [{"result": {"ips": [{"address": "1.2.3.4/8"}]}}]}
    )

    assert b"1.2.3.4" in await Invoker(30).add(attached(network("bridge", "ptp"), directory))


async def test_nothing_runs_when_a_later_binary_of_the_chain_is_missing(plugins: Callable[..., str]) -> None:
    directory = plugins(bridge={})

    with pytest.raises(NotReady, match=r'"portmap" .* was not found'):
        await Invoker(30).add(attached(network("bridge", "portmap"), directory))

    assert called(directory) == []


@pytest.mark.parametrize(
    ("path", "error"), [("/nowhere", NotReady), ("/etc/passwd", NotReady), ("/proc/self/ns/net", InvalidRequest)]
)
async def test_add_demands_a_live_namespace_that_is_not_the_hosts(
    plugins: Callable[..., str], path: str, error: type[Exception]
) -> None:
    directory = plugins(bridge={})

    with pytest.raises(error, match=path):
        await Invoker(30).add(attached(network("bridge"), directory, netns_path=path))

    assert called(directory) == []


async def test_del_runs_in_reverse_with_the_final_result_in_every_plugin(
    plugins: Callable[..., str], records: list[steps.StepRecord]
) -> None:
    directory = plugins(bridge={}, portmap={})
    final = {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/8"}]}
    attachment = attached(network("bridge", "portmap"), directory, result=json.dumps(final).encode())

    await Invoker(30).delete(attachment)

    assert called(directory) == [("DEL", "portmap"), ("DEL", "bridge")]
    assert [call["stdin"]["prevResult"] for call in cni_plugin.calls(directory)] == [final, final]
    assert [call["env"]["CNI_NETNS"] for call in cni_plugin.calls(directory)] == [NETNS, NETNS]
    assert [record.name for record in records] == ["cni.del", "cni.del"]


@pytest.mark.parametrize(
    ("result", "version"),
    [(b"", "1.1.0"), (b"{", "1.1.0"), (b'{"ips": []}', "0.3.1")],
    ids=["never attached", "damaged", "before 0.4.0"],
)
async def test_del_has_no_previous_result_when_there_is_none_to_give(
    plugins: Callable[..., str], result: bytes, version: str
) -> None:
    directory = plugins(bridge={})

    await Invoker(30).delete(attached(network("bridge", versions=(version,)), directory, result=result))

    assert "prevResult" not in cni_plugin.calls(directory)[0]["stdin"]


@pytest.mark.parametrize("path", ["/nowhere", "/etc/passwd", "/proc/self/ns/net", ""])
async def test_del_names_no_namespace_unless_a_foreign_one_lives_at_the_path(
    plugins: Callable[..., str], path: str
) -> None:
    directory = plugins(bridge={})

    await Invoker(30).delete(attached(network("bridge"), directory, netns_path=path))

    assert cni_plugin.calls(directory)[0]["env"]["CNI_NETNS"] == ""


@pytest.mark.parametrize(
    ("failing", "words"),
    [
        (FAILS, "portmap failed on DEL"),
        ({"signal": 9, "stdout": ""}, "killed by SIGKILL"),
        ({"hang": True}, "portmap did not finish DEL within 1 seconds"),
        ({"error": {"code": 11, "msg": "busy"}}, "try again later"),
    ],
    ids=["refuses", "dies", "hangs", "is not ready"],
)
async def test_del_goes_on_past_a_plugin_that_fails_and_only_that_one_owes(
    plugins: Callable[..., str], failing: dict[str, Any], words: str
) -> None:
    directory = plugins(bridge={}, portmap={"DEL": [failing, failing, {}]}, tuning={})
    attachment = attached(network("bridge", "portmap", "tuning"), directory)
    invoker = Invoker(1 if "hang" in failing else 30)

    (owed,) = await invoker.delete(attachment)
    assert called(directory) == [("DEL", "tuning"), ("DEL", "portmap"), ("DEL", "bridge")]
    assert (owed.plugin, owed.position, owed.attempts, owed.missing) == ("portmap", 1, 1, "")
    assert words in owed.error

    (again,) = await invoker.delete(replace(attachment, owed=(owed,)))
    assert again == replace(owed, attempts=2)
    assert await invoker.delete(replace(attachment, owed=(again,))) == ()
    assert called(directory)[3:] == [("DEL", "portmap"), ("DEL", "portmap")], "the others have done theirs"


async def test_each_plugin_that_fails_owes_its_own_del(plugins: Callable[..., str]) -> None:
    directory = plugins(bridge={"DEL": [FAILS]}, portmap={"DEL": [FAILS]}, tuning={})

    owed = await Invoker(30).delete(attached(network("bridge", "portmap", "tuning"), directory))

    assert [(each.position, each.plugin) for each in owed] == [(0, "bridge"), (1, "portmap")]


async def test_a_plugin_without_its_binary_owes_and_is_known_to_be_missing(plugins: Callable[..., str]) -> None:
    directory = plugins(bridge={})

    (owed,) = await Invoker(30).delete(attached(network("bridge", "cilium-cni"), directory))

    assert called(directory) == [("DEL", "bridge")]
    assert (owed.plugin, owed.missing) == ("cilium-cni", "cilium-cni")


async def test_a_plugin_that_cannot_be_executed_is_not_missing(plugins: Callable[..., str], tmp_path: Path) -> None:
    directory = plugins(bridge={}, portmap={})
    (tmp_path / "portmap").chmod(0o644)

    (owed,) = await Invoker(30).delete(attached(network("bridge", "portmap"), directory))

    assert (owed.plugin, owed.missing) == ("portmap", "")
    assert "chmod +x" in owed.error


@pytest.mark.parametrize(
    ("words", "missing"),
    [('failed to find plugin "whereabouts" in path [/opt/cni/bin]', "whereabouts"), ("it is busy", "")],
)
async def test_an_ipam_plugin_is_missing_when_its_plugin_says_so(
    plugins: Callable[..., str], words: str, missing: str
) -> None:
    """Not every plugin runs what `ipam.type` names."""
    directory = plugins(bridge={"DEL": [{"error": {"code": 999, "msg": words}}]})
    config = replace(network("bridge"), plugins=({"type": "bridge", "ipam": {"type": "whereabouts"}},))

    (owed,) = await Invoker(30).delete(attached(config, directory))

    assert owed.missing == missing


async def test_an_ipam_plugin_that_is_gone_for_good_has_a_stand_in_behind_all_directories(
    plugins: Callable[..., str], tmp_path: Path
) -> None:
    directory = plugins(bridge={})
    seen = tmp_path / "seen"
    script = f'#!/bin/sh\ncat >/dev/null\necho "$CNI_PATH" >{seen}\n"${{CNI_PATH##*:}}/whereabouts"\n'
    (tmp_path / "bridge").write_text(script)
    config = replace(network("bridge"), plugins=({"type": "bridge", "ipam": {"type": "whereabouts"}},))
    attachment = attached(config, directory)

    assert await Invoker(30).delete(attachment)
    assert seen.read_text().strip() == attachment.plugin_path
    assert await Invoker(30).delete(attachment, without=frozenset({"whereabouts"})) == ()
    assert seen.read_text().startswith(f"{attachment.plugin_path}:/")


async def test_del_of_a_container_that_the_plugin_does_not_know_is_done(
    plugins: Callable[..., str], records: list[steps.StepRecord]
) -> None:
    """Error code 3 says that there is nothing to clean up."""
    directory = plugins(bridge={}, portmap={"DEL": [{"error": {"code": 3, "msg": "who?"}}]})

    await Invoker(30).delete(attached(network("bridge", "portmap"), directory))

    assert called(directory) == [("DEL", "portmap"), ("DEL", "bridge")]
    assert records[0].detail["already_gone"] == "who?"


@pytest.mark.parametrize("damage", [{"capability_args": b""}, {"capability_args": b"{"}, {"config": b"{"}])
async def test_a_damaged_record_is_told_as_such(plugins: Callable[..., str], damage: dict[str, bytes]) -> None:
    with pytest.raises(InvalidRequest):
        await Invoker(30).delete(attached(network("bridge"), plugins(bridge={}), **damage))


async def test_a_timeout_kills_the_plugin_with_its_children_and_keeps_what_it_said(
    plugins: Callable[..., str], records: list[steps.StepRecord], tmp_path: Path
) -> None:
    directory = plugins(bridge={"DEL": [{"stderr": "waiting for the lock\n", "grandchild": "child", "hang": True}]})

    (owed,) = await Invoker(2).delete(attached(network("bridge"), directory))
    assert re.search(r"bridge did not finish DEL within 2 seconds .*: waiting for the lock", owed.error)

    execution = records[0].plugin
    assert execution is not None
    assert (execution.timed_out, execution.exit_code, execution.stderr) == (True, -9, b"waiting for the lock\n")
    assert execution.ended_by == "sandboxd"
    grandchild = int((tmp_path / "child").read_text())
    await until(lambda: not is_alive(grandchild))
    assert not is_alive(cni_plugin.calls(directory)[0]["pid"])


async def test_cancellation_kills_the_plugin_with_its_children_and_is_recorded(
    plugins: Callable[..., str], records: list[steps.StepRecord], tmp_path: Path
) -> None:
    directory = plugins(bridge={"ADD": [{"grandchild": "child", "hang": True}]})
    task = asyncio.create_task(Invoker(60).add(attached(network("bridge"), directory)))
    await until((tmp_path / "child").exists)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    execution = records[-1].plugin
    assert execution is not None
    assert (execution.command, execution.exit_code, execution.ended_by) == ("ADD", -9, "sandboxd")
    assert not execution.timed_out
    grandchild = int((tmp_path / "child").read_text())
    await until(lambda: not is_alive(grandchild))
    assert not is_alive(cni_plugin.calls(directory)[0]["pid"])


async def test_no_more_plugins_run_at_once_than_allowed(plugins: Callable[..., str], tmp_path: Path) -> None:
    directory = plugins(bridge={"ADD": [{"wait_for": "go"}]})
    invoker = Invoker(60, concurrency=2)
    pods = [attached(network("bridge"), directory, sandbox_id=f"c{i}") for i in range(4)]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(invoker.add(pod)) for pod in pods]
        await until(lambda: len(cni_plugin.calls(directory)) == 2)
        assert invoker._executions.full(("pods", "ADD"))
        (tmp_path / "go").touch()

    assert all(b"10.88.0.2" in task.result() for task in tasks)
    assert len(cni_plugin.calls(directory)) == 4


async def test_check_asks_in_order_with_the_final_result(
    plugins: Callable[..., str], records: list[steps.StepRecord]
) -> None:
    directory = plugins(bridge={}, portmap={"CHECK": [{}, FAILS]})
    attachment = attached(network("bridge", "portmap"), directory, result=b'{"cniVersion":"1.1.0"}')

    assert await Invoker(30).check(attachment) is True
    with pytest.raises(PluginFailed, match="portmap failed on CHECK"):
        await Invoker(30).check(attachment)

    assert called(directory)[:2] == [("CHECK", "bridge"), ("CHECK", "portmap")]
    assert cni_plugin.calls(directory)[1]["stdin"]["prevResult"] == {"cniVersion": "1.1.0"}
    assert {record.name for record in records} == {"cni.check"}


@pytest.mark.parametrize(
    ("changes", "result"), [({"disable_check": True}, b"{}"), ({"versions": ("0.3.1",)}, b"{}"), ({}, b"")]
)
async def test_check_is_not_asked_where_the_spec_forbids_it(
    plugins: Callable[..., str], changes: dict[str, Any], result: bytes
) -> None:
    directory = plugins(bridge={})

    assert await Invoker(30).check(attached(network("bridge", **changes), directory, result=result)) is False
    assert called(directory) == []


async def test_status_asks_every_plugin_with_only_what_it_needs(plugins: Callable[..., str]) -> None:
    directory = plugins(bridge={}, portmap={"STATUS": [{}, {"error": {"code": 50, "msg": "no uplink"}}]})
    invoker, config = Invoker(30), network("bridge", "portmap")

    assert await invoker.status(config, [directory]) is True
    with pytest.raises(NotReady, match="portmap failed on STATUS: no uplink"):
        await invoker.status(config, [directory])

    env = cni_plugin.calls(directory)[0]["env"]
    assert {key: value for key, value in env.items() if key.startswith("CNI_")} == {
        "CNI_COMMAND": "STATUS",
        "CNI_PATH": directory,
    }


async def test_gc_names_the_valid_attachments_and_asks_everyone_even_after_a_failure(
    plugins: Callable[..., str], records: list[steps.StepRecord]
) -> None:
    directory = plugins(bridge={"GC": [FAILS]}, tuning={"GC": [FAILS]}, portmap={})

    with pytest.raises(PluginFailed, match="bridge failed on GC") as caught:
        await Invoker(30).gc(network("bridge", "tuning", "portmap"), [directory], [("c1", "eth0")])

    assert caught.value.__notes__ == ["CNI plugin tuning failed on GC: no luck: really (CNI error 999)"]
    assert called(directory) == [("GC", "bridge"), ("GC", "tuning"), ("GC", "portmap")]
    stdin = cni_plugin.calls(directory)[2]["stdin"]
    assert stdin["cni.dev/valid-attachments"] == [{"containerID": "c1", "ifname": "eth0"}]
    assert [record.name for record in records] == ["cni.gc"] * 3


@pytest.mark.parametrize("ask", [
    lambda invoker, directory: invoker.status(network("bridge", versions=("1.0.0",)), [directory]),
    lambda invoker, directory: invoker.gc(network("bridge", versions=("1.0.0",)), [directory], []),
    lambda invoker, directory: invoker.gc(network("bridge", disable_gc=True), [directory], []),
])  # fmt: skip
async def test_status_and_gc_are_not_asked_where_the_spec_forbids_it(
    plugins: Callable[..., str], ask: Callable[[Invoker, str], Awaitable[bool]]
) -> None:
    directory = plugins(bridge={})

    assert await ask(Invoker(30), directory) is False
    assert called(directory) == []


class Held:
    """Executes nothing: every execution lasts until it is let go."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.limits: list[float] = []
        self.let_go: asyncio.Queue[None] = asyncio.Queue()

    async def run(
        self, binary: str, env: Mapping[str, str], stdin: bytes, timeout: float, cut_off: object
    ) -> steps.PluginExecution:
        self.began.append(env["CNI_COMMAND"])
        self.limits.append(timeout)
        await self.let_go.get()
        return steps.PluginExecution(
            command=env["CNI_COMMAND"],
            binary=binary,
            env=env,
            stdin=stdin,
            stdout=b'{"ips": [{"address": "10.0.0.2/8"}]}',
            stderr=b"",
            exit_code=0,
            duration=1,
        )

    async def next(self) -> list[str]:
        """What has begun once nothing can go on by itself."""
        for _ in range(50):
            await asyncio.sleep(0)
        return self.began


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """Executions that end when the test says so."""
    held = Held()
    monkeypatch.setattr("sandboxd.cni.execution.run", held.run)
    return held


async def test_hanging_adds_hold_up_neither_another_network_nor_the_end_of_a_pod(
    plugins: Callable[..., str], held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOT_SECONDS", 1e6)
    directory = plugins(bridge={})
    invoker = Invoker(60)
    on_other = attached(network("bridge", name="other"), directory)

    async with asyncio.TaskGroup() as group:
        for i in range(20):
            group.create_task(invoker.add(attached(network("bridge"), directory, sandbox_id=f"c{i}")))
        assert await held.next() == ["ADD"] * 8
        for call in (
            invoker.add(on_other),
            invoker.delete(on_other),
            invoker.delete(attached(network("bridge"), directory)),
            invoker.check(attached(network("bridge"), directory, result=b"{}")),
        ):
            group.create_task(call)
        assert (await held.next())[8:] == ["ADD", "DEL", "DEL", "CHECK"]
        for _ in range(24):
            held.let_go.put_nowait(None)


async def test_dels_that_failed_before_do_not_hold_up_the_first_of_another_pod(
    plugins: Callable[..., str], held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOT_SECONDS", 1e6)
    directory = plugins(bridge={})
    invoker = Invoker(60)

    async with asyncio.TaskGroup() as group:
        for i in range(9):
            group.create_task(invoker.delete(attached(network("bridge"), directory, sandbox_id=f"c{i}", attempts=3)))
        assert await held.next() == ["DEL"] * 8
        group.create_task(invoker.delete(attached(network("bridge"), directory, sandbox_id="c10")))
        assert await held.next() == ["DEL"] * 9
        for _ in range(10):
            held.let_go.put_nowait(None)


async def test_more_hanging_plugins_than_slots_do_not_stop_a_network(
    plugins: Callable[..., str], held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOT_SECONDS", 0.01)
    directory = plugins(bridge={})
    invoker = Invoker(60)

    async with asyncio.TaskGroup() as group:
        for i in range(20):
            group.create_task(invoker.delete(attached(network("bridge"), directory, sandbox_id=f"c{i}")))
        await until(lambda: len(held.began) == 20)
        for _ in range(20):
            held.let_go.put_nowait(None)


@pytest.mark.parametrize(("seconds", "teardown"), [(5, 5), (120, 120), (240, 120), (600, 300)])
def test_a_del_has_the_time_that_a_kubelet_waits_for_it_and_more_where_an_add_has(
    seconds: float, teardown: float
) -> None:
    assert Invoker(seconds)._executions._teardown_timeout == teardown


@pytest.mark.parametrize(
    ("operation", "limit"),
    [
        (lambda invoker, attachment, config: invoker.add(attachment), 240),
        (lambda invoker, attachment, config: invoker.delete(attachment), 120),
        (lambda invoker, attachment, config: invoker.check(attachment), 120),
        (lambda invoker, attachment, config: invoker.status(config, attachment.plugin_path.split(":")), 120),
        (lambda invoker, attachment, config: invoker.gc(config, attachment.plugin_path.split(":"), []), 30),
    ],
)
async def test_each_verb_has_its_limit(
    plugins: Callable[..., str], held: Held, operation: Callable[..., Awaitable[Any]], limit: float
) -> None:
    config, directory = network("bridge"), plugins(bridge={})
    held.let_go.put_nowait(None)

    await operation(Invoker(240), attached(config, directory, result=b"{}"), config)

    assert held.limits == [limit]


async def test_gc_never_overlaps_an_operation_on_its_network(plugins: Callable[..., str], held: Held) -> None:
    directory = plugins(bridge={})
    invoker, attachment = Invoker(60), attached(network("bridge"), directory, result=b"{}")

    async with asyncio.TaskGroup() as group:
        for operation in (invoker.add, invoker.delete, invoker.check):
            group.create_task(operation(attachment))
        assert await held.next() == ["ADD", "DEL", "CHECK"]
        group.create_task(invoker.gc(network("bridge"), [directory], []))
        group.create_task(invoker.add(attachment))
        group.create_task(invoker.add(attached(network("bridge", name="other"), directory)))
        assert await held.next() == ["ADD", "DEL", "CHECK", "ADD"]  # the last is the other network's
        for _ in range(4):
            held.let_go.put_nowait(None)
        assert await held.next() == ["ADD", "DEL", "CHECK", "ADD", "GC"]
        held.let_go.put_nowait(None)
        assert await held.next() == ["ADD", "DEL", "CHECK", "ADD", "GC", "ADD"]
        held.let_go.put_nowait(None)


def test_the_scripted_plugin_can_be_executed_in_place() -> None:
    assert os.stat(cni_plugin.__file__).st_mode & stat.S_IXUSR


async def test_each_plugin_runs_within_what_the_caller_enters_around_it_and_its_error_passes_through(
    plugins: Callable[..., str],
) -> None:
    directory = plugins(bridge={}, portmap={"ADD": [FAILS], "DEL": [FAILS]})
    attachment = attached(network("bridge", "portmap"), directory)
    seen: list[str] = []

    @asynccontextmanager
    async def around(plugin: str) -> AsyncIterator[None]:
        seen.append(f"{plugin} {len(called(directory))}")
        try:
            yield
        except PluginFailed as exc:
            seen.append(f"{exc.plugin} failed")
            raise
        finally:
            seen.append(f"{plugin} {len(called(directory))}")

    with pytest.raises(PluginFailed):
        await Invoker(30).add(attachment, around=around)
    assert seen == ["bridge 0", "bridge 1", "portmap 1", "portmap failed", "portmap 2"]

    seen.clear()
    (owed,) = await Invoker(30).delete(attachment, around=around)
    assert (owed.plugin, seen) == ("portmap", ["portmap 2", "portmap failed", "portmap 3", "bridge 3", "bridge 4"])


async def test_what_was_made_in_process_is_undone_without_its_binary(records: list[steps.StepRecord]) -> None:
    """A plugin that was uninstalled since is no debt then."""
    attachment = attached(network("portmap"), "/nowhere", backends=(IN_PROCESS,), result=b'{"cniVersion":"1.1.0"}')
    invoker = Invoker(30, in_process=lambda network: "auto")

    assert await invoker.delete(attachment) == ()
    (executed,) = [record.plugin for record in records if record.plugin]
    assert (executed.backend, executed.binary, executed.exit_code) == (IN_PROCESS, "portmap", 0)
    assert invoker.deletes_in_process(attachment)


async def test_a_network_that_is_never_in_process_is_left_to_its_plugins(plugins: Callable[..., str]) -> None:
    directory = plugins(portmap={})
    attachment = attached(network("portmap"), directory, backends=(IN_PROCESS,), result=b'{"cniVersion":"1.1.0"}')
    invoker = Invoker(30, in_process=lambda network: "never")

    assert await invoker.delete(attachment) == ()
    assert called(directory) == [("DEL", "portmap")]
    assert not invoker.deletes_in_process(attachment)

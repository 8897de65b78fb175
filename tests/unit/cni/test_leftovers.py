"""Plugins of a daemon that died are ended before their pod's DEL, and nothing else is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxd import steps
from sandboxd.cni import execution, leftovers
from sandboxd.cni.conf import NetworkConfig
from sandboxd.cni.invoker import Invoker
from sandboxd.cni.leftovers import Leftovers
from sandboxd.cni.request import plan
from sandboxd.errors import Unavailable
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.fakes import cni_plugin

POD = f"leftovers-{os.getpid()}"  # tests that run beside have plugins too
HANGS: dict[str, Any] = {"ADD": [{"grandchild": "child", "hang": True}]}


class Machine:
    """Processes as a daemon leaves them that is killed: their pipes closed, their parent gone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *argv: str, pod: str = POD, fed: bool = True, own_session: bool = True, **env: str) -> int:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if fed else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "CNI_PATH": str(self.directory), "CNI_CONTAINERID": pod, **env},
            start_new_session=own_session,
        )
        if process.stdin:
            process.stdin.close()
        self._started.append(process)
        while process.poll() is None and not Path(f"/proc/{process.pid}/environ").read_bytes():
            pass  # execve(2) lets the parent go on before it sets them
        return process.pid

    def plugin(self, name: str = "bridge", *, pod: str = POD, fed: bool = True) -> int:
        """Start a plugin in its ADD."""
        return self.start(str(self.directory / name), pod=pod, fed=fed, CNI_COMMAND="ADD", CNI_IFNAME="eth0")

    def script(self, name: str, text: str) -> None:
        (self.directory / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.directory / name).chmod(0o755)

    def lives(self, pid: int) -> bool:
        return leftovers._process(pid) is not None

    async def child(self) -> int:
        """The pid of the scripted plugin's grandchild."""
        async with asyncio.timeout(30):
            while not (self.directory / "child").exists():  # noqa: ASYNC110 - nothing tells of another's file
                await asyncio.sleep(0.01)
        return int((self.directory / "child").read_text())

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
        if (self.directory / "child").exists() and self.lives(int((self.directory / "child").read_text())):
            os.kill(int((self.directory / "child").read_text()), signal.SIGKILL)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.end()


async def test_a_plugin_that_outlived_its_daemon_is_ended_with_its_children(
    plugins: Callable[..., str], machine: Machine
) -> None:
    plugins(bridge=HANGS)
    plugin, child = machine.plugin(), await machine.child()

    await Leftovers().end(POD)

    assert not machine.lives(plugin)
    assert not machine.lives(child)


async def test_a_delegate_whose_plugin_has_died_is_ended(plugins: Callable[..., str], machine: Machine) -> None:
    plugins(bridge=HANGS)
    plugin, child = machine.plugin(), await machine.child()
    os.kill(plugin, signal.SIGKILL)

    await Leftovers().end(POD)

    assert not machine.lives(child)


async def test_a_plugin_that_was_alone_when_it_was_found_is_ended_with_what_it_started_since(
    machine: Machine,
) -> None:
    wait, start = "while ! [ -e go ]; do sleep 0.01; done", "sleep 600 & echo $! >child.new; mv child.new child"
    machine.script("slow", f'cd "$(dirname "$0")"; {wait}; {start}; wait')
    plugin = machine.plugin("slow")
    found = Leftovers()
    (machine.directory / "go").touch()
    child = await machine.child()

    await found.end(POD)

    assert not machine.lives(plugin)
    assert not machine.lives(child)


async def test_a_plugin_that_redirects_everything_is_known_by_its_command_line(machine: Machine) -> None:
    machine.script("bridge", "exec </dev/null >/dev/null 2>&1; while :; do sleep 1; done")
    plugin = machine.plugin(fed=False)

    await Leftovers().end(POD)

    assert not machine.lives(plugin)


async def test_a_plugin_under_another_name_is_known_by_what_feeds_it(machine: Machine) -> None:
    plugin = machine.start("sleep", "600", CNI_COMMAND="ADD")

    await Leftovers().end(POD)

    assert not machine.lives(plugin)


async def test_a_helper_that_a_plugin_left_behind_is_not_ended(machine: Machine) -> None:
    helper = machine.start("sleep", "600", CNI_COMMAND="ADD", fed=False)

    await Leftovers().end(POD)

    assert machine.lives(helper)


async def test_what_is_not_this_pods_plugin_is_not_ended(plugins: Callable[..., str], machine: Machine) -> None:
    plugins(bridge={"ADD": [{"hang": True}]})
    others = [
        machine.plugin(pod=f"{POD}-other"),
        machine.plugin(pod=f"{POD}1"),
        machine.start("sleep", "600"),  # a shell in which somebody set the variable
        machine.start("sleep", "600", CNI_COMMAND="ADD", own_session=False),  # in our own process group
    ]

    await Leftovers().end(POD)

    assert all(map(machine.lives, others))


async def test_a_plugin_that_starts_later_is_not_of_an_earlier_daemon(
    plugins: Callable[..., str], machine: Machine
) -> None:
    plugins(bridge={"ADD": [{"hang": True}]})
    found = Leftovers()
    plugin = machine.plugin()

    await found.end(POD)

    assert machine.lives(plugin)


async def test_one_that_does_not_end_is_said_and_tried_again(
    plugins: Callable[..., str], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins(bridge={"ADD": [{"hang": True}]})
    plugin, found = machine.plugin(), Leftovers()
    with monkeypatch.context() as patch:
        patch.setattr(leftovers, "END_SECONDS", 0.05)
        patch.setattr(execution, "kill_group", lambda group: None)
        with pytest.raises(Unavailable, match=f"do not end: process {plugin}; the DEL is tried again later"):
            await found.end(POD)

    await found.end(POD)

    assert not machine.lives(plugin)


async def test_a_del_waits_for_the_end_of_its_pods_leftovers(
    plugins: Callable[..., str], machine: Machine, records: list[steps.StepRecord]
) -> None:
    directory = plugins(bridge={**HANGS, "DEL": [{}]})
    plugin = machine.plugin()
    await machine.child()
    config = NetworkConfig(name="pods", versions=("1.1.0",), plugins=({"type": "bridge"},))
    attachment = plan(config, cri.PodSandboxConfig(), POD, "/proc/self/ns/uts", [directory])

    await Invoker(30).delete(attachment)

    assert not machine.lives(plugin)
    assert [(record.name, record.error) for record in records] == [("cni.leftovers", ""), ("cni.del", "")]
    assert records[0].detail == {"groups": str(plugin)}
    assert [call["command"] for call in cni_plugin.calls(directory)] == ["ADD", "DEL"]


@pytest.mark.parametrize("group", [-1, 0, 1])
def test_a_group_that_is_everybody_or_our_own_is_never_killed(group: int) -> None:
    with pytest.raises(ValueError, match="no process group of a plugin"):
        execution.kill_group(group)

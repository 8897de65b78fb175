"""Pods that are attached and detached, by plugins or in-process, on a machine of their own; and what is seen of it.

A run is a child in network and mount namespaces of its own, with /run and /var/lib of its own. It gets a `Run` as
JSON and prints what it saw.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sandboxd.cni import execution
from sandboxd.cni.in_process import backend, dialects
from sandboxd.config import Network
from sandboxd.steps import PluginExecution
from tests.root import plugin_state
from tests.testbed import ROOT

REAL, OURS = "plugins", "in-process"
CURRENT = ROOT / "build" / "cni-plugins"  # made by `make cni-plugins`, where there is a Go
INSTALLED = next((d for d in Network().plugin_dirs if os.path.exists(f"{d}/bridge")), "/usr/lib/cni")
DIRECTORIES = (INSTALLED, *([str(CURRENT)] if (CURRENT / "bridge").exists() else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is done: pods with these host ports get the network `conf`, a `bridge`, one after the other."""

    conf: dict[str, Any]
    ports: tuple[tuple[dict[str, Any], ...], ...] = ((),)
    before: tuple[str, ...] = ()  # commands for a shell
    plugins: str = INSTALLED
    by: str = REAL  # who attaches; every second pod is detached by the other


def seen(run: Run) -> dict[str, Any]:
    """What came of a run, on a machine of its own."""
    return child("one-by-one", json.dumps(asdict(run)))


def child(what: str, argument: str) -> dict[str, Any]:
    """What a child prints that does `what` on a machine of its own."""
    command = ("unshare", "--net", "--mount", sys.executable, "-X", "dev", "-m", "tests.root.plugin_runs", what)
    done = subprocess.run((*command, argument), cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


async def execute(
    by: str, directory: str, command: str, pod: str, conf: dict[str, Any], speaks: frozenset[str]
) -> PluginExecution:
    """One execution, or the same in-process."""
    env = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": f"id-of-{pod}",
        "CNI_NETNS": f"/run/netns/{pod}",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "",
        "CNI_PATH": directory,
    }
    binary, stdin = f"{directory}/{conf['type']}", json.dumps(conf).encode()
    if by == REAL:
        return await execution.run(binary, env, stdin, 120)
    return await backend.run(binary, env, stdin, 120, dialect=dialects.of(speaks))


async def versions(directory: str) -> frozenset[str]:
    """What the plugins of a directory speak."""
    asked = await execution.run(f"{directory}/bridge", {"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"1.0.0"}', 120)
    return frozenset(json.loads(asked.stdout)["supportedVersions"])


def portmap(conf: dict[str, Any], ports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The second plugin of the chain."""
    second = {"cniVersion": conf["cniVersion"], "name": conf["name"], "type": "portmap", "snat": True}
    return second | ({"runtimeConfig": {"portMappings": list(ports)}} if ports else {})


def a_machine() -> None:
    """Make the namespaces of this process a machine without a network."""
    for path in ("/run", "/var/lib"):
        plugin_state.output("mount", "-t", "tmpfs", "tmpfs", path)
    plugin_state.output("ip", "link", "set", "lo", "up")


async def _one_by_one(run: dict[str, Any]) -> dict[str, Any]:
    a_machine()
    for command in run["before"]:
        plugin_state.output("sh", "-c", command)
    directory, conf, by = run["plugins"], run["conf"], run["by"]
    speaks = await versions(directory)
    pods = {f"pod{i}": ports for i, ports in enumerate(run["ports"])}
    made: dict[str, Any] = {}
    results, checked, removed = [], [], []
    for pod, ports in pods.items():
        plugin_state.output("ip", "netns", "add", pod)
        done = await execute(by, directory, "ADD", pod, conf, speaks)
        results.append((done.exit_code, done.stdout.decode()))
        if done.exit_code:
            continue
        made[pod] = {"prevResult": json.loads(done.stdout)}
        done = await execute(by, directory, "ADD", pod, portmap(conf, ports) | made[pod], speaks)
        results.append((done.exit_code, done.stdout.decode()))
    plugin_state.settled(tuple(pods))
    added = plugin_state.of_machine(tuple(pods))
    for pod in made:
        done = await execute(REAL, directory, "CHECK", pod, conf | made[pod], speaks)
        checked.append((done.exit_code, done.stdout.decode()))
    for number, (pod, ports) in enumerate(pods.items()):
        other = by if number % 2 else {REAL: OURS, OURS: REAL}[by]
        for each in (portmap(conf, ports), conf) if pod in made else (conf,):
            done = await execute(other, directory, "DEL", pod, each | made.get(pod, {}), speaks)
            removed.append((done.exit_code, done.stdout.decode()))
    plugin_state.settled(tuple(pods))
    return {
        "results": plugin_state.without_lots(results),
        "checked": checked,
        "added": added,
        "removed": removed,
        "left": plugin_state.of_machine(tuple(pods)),
    }


async def _at_once(directory: str) -> dict[str, Any]:
    """Thirty-two ADDs at once, then as many DELs, half of them each by plugins and in-process."""
    a_machine()
    speaks = await versions(directory)
    ipam = {"type": "host-local", "subnet": "10.99.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}
    conf = {"cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "cni9", "isGateway": True}
    conf |= {"ipMasq": True, "ipam": ipam}
    pods = [f"pod{i}" for i in range(32)]
    for pod in pods:
        plugin_state.output("ip", "netns", "add", pod)

    async def every(command: str, first: str, more: dict[str, Any]) -> list[PluginExecution]:
        second = {REAL: OURS, OURS: REAL}[first]
        return await asyncio.gather(
            *(
                execute((first, second)[i % 2], directory, command, pod, conf | more.get(pod, {}), speaks)
                for i, pod in enumerate(pods)
            )
        )

    added = await every("ADD", REAL, {})
    results = [json.loads(each.stdout) for each in added]
    reserved = sorted(path.name for path in Path("/var/lib/cni/networks/net1").iterdir() if path.name[0].isdigit())
    removed = await every(
        "DEL", OURS, {pod: {"prevResult": result} for pod, result in zip(pods, results, strict=True)}
    )
    lock = await execution.run(
        "/usr/bin/flock", {}, b"", 30, arguments=("-n", "/var/lib/cni/networks/net1/lock", "true")
    )
    return {
        "failed": [each.stdout.decode() for each in (*added, *removed) if each.exit_code],
        "addresses": [result["ips"][0]["address"].partition("/")[0] for result in results if "ips" in result],
        "reserved": reserved,
        "locked": lock.exit_code,
        "left": sorted(path.name for path in Path("/var/lib/cni/networks/net1").iterdir()),
        "rules": [line for line in plugin_state.output("iptables-save", "-t", "nat").splitlines() if "CNI-" in line],
    }


if __name__ == "__main__":
    doing = _one_by_one(json.loads(sys.argv[2])) if sys.argv[1] == "one-by-one" else _at_once(sys.argv[2])
    print(json.dumps(asyncio.run(doing)))

"""The in-process network is indistinguishable from that of the plugins: both are run, and what they leave compared.

Each run is a child in network and mount namespaces of its own, with /run and /var/lib of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxd.cni import execution
from sandboxd.cni.in_process import backend, dialects
from sandboxd.steps import PluginExecution
from tests.root import plugin_state

pytestmark = pytest.mark.root

REAL, OURS = "the plugins", "in-process"


def _env(command: str, directory: str, pod: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": f"id-of-{pod}",
        "CNI_NETNS": f"/run/netns/{pod}",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "",
        "CNI_PATH": directory,
    }


async def _execute(by: str, directory: str, command: str, pod: str, conf: dict[str, Any]) -> PluginExecution:
    binary, env, stdin = f"{directory}/{conf['type']}", _env(command, directory, pod), json.dumps(conf).encode()
    if by == REAL:
        return await execution.run(binary, env, stdin, 60)
    asked = await execution.run(binary, {"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"1.0.0"}', 60)
    speaks = frozenset(json.loads(asked.stdout)["supportedVersions"])
    return await backend.run(binary, env, stdin, 60, dialect=dialects.of(speaks))


async def _scenario(case: dict[str, Any]) -> dict[str, Any]:
    """Pods are attached one after the other, asked about and detached."""
    plugin_state.output("mount", "-t", "tmpfs", "tmpfs", "/run")
    plugin_state.output("mount", "-t", "tmpfs", "tmpfs", "/var/lib")
    plugin_state.output("ip", "link", "set", "lo", "up")
    for command in case.get("before", ()):
        plugin_state.output("sh", "-c", command)
    directory, seen = case["plugins"], {}
    pods = [f"pod{i}" for i in range(len(case["ports"]))]
    results, checks, removed = [], [], []
    made = {}
    for pod, ports in zip(pods, case["ports"], strict=True):
        plugin_state.output("ip", "netns", "add", pod)
        done = await _execute(case["makes"], directory, "ADD", pod, case["conf"])
        chain = [done]
        conf = {
            "cniVersion": case["conf"]["cniVersion"],
            "name": case["conf"]["name"],
            "type": "portmap",
            "snat": True,
        }
        if not done.exit_code:
            conf["prevResult"] = made[pod] = json.loads(done.stdout)
            if ports:
                conf["runtimeConfig"] = {"portMappings": ports}
            chain.append(await _execute(case["makes"], directory, "ADD", pod, conf))
        results.append([(each.exit_code, each.stdout.decode()) for each in chain])
    plugin_state.settled(pods)
    seen["added"] = plugin_state.of_machine(pods)
    for pod, ports in zip(pods, case["ports"], strict=True):
        if pod in made:
            done = await _execute(REAL, directory, "CHECK", pod, {**case["conf"], "prevResult": made[pod]})
            checks.append((done.exit_code, done.stdout.decode()))
    for pod, ports in zip(pods, case["ports"], strict=True):
        previous = {"prevResult": made[pod]} if pod in made else {}
        conf = {
            "cniVersion": case["conf"]["cniVersion"],
            "name": case["conf"]["name"],
            "type": "portmap",
            "snat": True,
        }
        if ports:
            conf["runtimeConfig"] = {"portMappings": ports}
        for each in ({**conf, **previous}, {**case["conf"], **previous}):
            if pod in made or each["type"] == "bridge":
                done = await _execute(case["removes"], directory, "DEL", pod, each)
                removed.append((done.exit_code, done.stdout.decode()))
    plugin_state.settled(pods)
    seen["removed"] = plugin_state.of_machine(pods)
    return plugin_state.without_lots(results) and {
        "results": plugin_state.without_lots(results),
        "checks": checks,
        "removed": removed,
        "seen": seen,
    }


def run(case: dict[str, Any]) -> dict[str, Any]:
    """The case in a machine of its own."""
    command = ("unshare", "--net", "--mount", sys.executable, "-X", "dev", "-m", "tests.root.test_in_process")
    done = subprocess.run(
        (*command, json.dumps(case)),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_scenario(json.loads(sys.argv[1])))))

"""Prints what happened: each step in order, with its duration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from sandboxd.pb.host.v1 import host_pb2

_TITLES: Mapping[str, str] = {
    "pod.netns.create": "The network namespace",
    "pod.pause.create": "The pause container is created",
    "cni.add": "The CNI plugin",
    "pod.pause.start": "The pause container runs",
    "container.rootfs": "nginx gets a root file system",
    "container.task.create": "The nginx container is created, in the pod's namespaces",
    "container.task.start": "nginx runs",
}


class Teller:
    """Prints numbered steps."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._number = 0

    def say(self, title: str, *lines: str, seconds: float | None = None) -> None:
        """Print one step: its title, its duration, its details."""
        self._number += 1
        took = f"[dim]{seconds * 1000:8.1f} ms[/dim]" if seconds is not None else " " * 11
        self.console.print(
            f"[bold cyan]{self._number:2}[/bold cyan] {took}  [bold]{escape(title)}[/bold]", soft_wrap=True
        )
        for line in lines:
            self.console.print(f"                  {escape(line)}", soft_wrap=True, highlight=False)

    def tell(self, steps: Iterable[host_pb2.Step], pids: Mapping[str, int]) -> None:
        """Print the steps of a pod's timeline that have a title."""
        for step in sorted(steps, key=lambda s: s.started_at):
            title = _TITLES.get(step.name)
            if title is not None:
                self.say(title, *_lines(step, pids), seconds=step.duration / 1e9)


def _lines(step: host_pb2.Step, pids: Mapping[str, int]) -> list[str]:
    detail = step.detail
    match step.name:
        case "pod.netns.create":
            return [f"{detail['path']}  (inode {detail['inode']}; also in: ip netns list)"]
        case "pod.pause.create" | "pod.pause.start" | "container.task.create" | "container.task.start":
            pid = detail.get("pid") or (str(pids[step.name]) if step.name in pids else "")
            return [f"pid {pid}"] if pid else []
        case "cni.add":
            return _plugin_lines(step.plugin)
        case _:
            return []


def _plugin_lines(plugin: host_pb2.PluginExecution) -> list[str]:
    env = plugin.env
    conf = json.loads(plugin.stdin or b"{}")
    conf.pop("prevResult", None)
    return [
        f"{plugin.command} {plugin.binary}  (exit status {plugin.exit_code})",
        f"CNI_CONTAINERID={env.get('CNI_CONTAINERID', '')[:12]}… CNI_IFNAME={env.get('CNI_IFNAME', '')}"
        f" CNI_NETNS={env.get('CNI_NETNS', '')[:24]}…",
        f"conf    {_compact(conf)}",
        f"result  {_compact(_addresses(plugin.stdout))}",
    ]


def _addresses(stdout: bytes) -> Any:
    try:
        result = json.loads(stdout)
    except ValueError:
        return stdout.decode(errors="replace")
    return {key: result[key] for key in ("ips", "routes") if key in result}


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))

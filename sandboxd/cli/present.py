"""What goes on now: the requests under way, what each of them waits for, and which pods came and went. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from sandboxd.cli import render
from sandboxd.cli.names import SHORT_ID, pod_name
from sandboxd.cli.sentences import sentence
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host

_CHANGES = 10  # that are shown


@dataclass(slots=True, kw_only=True)
class Present:
    """One look after the other at the requests and the pods."""

    now: int = 0  # unix nanoseconds
    running: list[host.Operation] = field(default_factory=list)
    pods: Mapping[str, cri.PodSandbox] = field(default_factory=dict)
    news: list[tuple[str, cri.PodSandbox]] = field(default_factory=list)  # since the look before: "appeared", …
    _told: deque[tuple[int, str, cri.PodSandbox]] = field(default_factory=lambda: deque(maxlen=_CHANGES))
    _looked: bool = False

    def look(self, running: Iterable[host.Operation], pods: Iterable[cri.PodSandbox], now: int) -> None:
        """Take in what is there at `now`. Of the first look nothing is news."""
        before, self.pods = self.pods, {pod.id: pod for pod in pods}
        self.running, self.now = list(running), now
        self.news = _news(before, self.pods) if self._looked else []
        self._looked = True
        self._told.extend((now, what, pod) for what, pod in self.news)

    def shown(self) -> RenderableType:
        """For people."""
        ready = sum(pod.state == cri.SANDBOX_READY for pod in self.pods.values())
        count = f"{len(self.running)} under way; {ready} pods ready, {len(self.pods) - ready} not ready"
        parts: list[RenderableType] = [Text(f"{_clock(self.now)} UTC  {count}", style="bold")]
        if self.running:
            parts += [Text(), render.table(("REQUEST", "SUBJECT", "FOR", "NOW IN", "FOR", "STEP"), self._rows())]
        if self._told:
            parts += [Text(), Text("Pods that came, changed and went", style="bold")]
            parts += [
                Text(render.printable(f"  {_clock(at)}  {what:<9}  {pod_name(pod)}  {pod.id[:SHORT_ID]}"))
                for at, what, pod in reversed(self._told)
            ]
        return Group(*parts)

    def as_dict(self) -> dict[str, Any]:
        """For programs: this look."""
        return {
            "time": self.now,
            "running": [
                {
                    "operation": each.operation,
                    "subject": each.subject,
                    "podSandboxId": each.pod_sandbox_id,
                    "containerId": each.container_id,
                    "startedAt": each.started_at,
                    "step": each.open[-1].name if each.open else "",
                    "stepStartedAt": each.open[-1].started_at if each.open else 0,
                    "waitsFor": sentence(each.open[-1]) if each.open else "",
                }
                for each in self.running
            ],
            "pods": len(self.pods),
            "news": [{"what": what, "id": pod.id, "pod": pod_name(pod)} for what, pod in self.news],
        }

    def _rows(self) -> Iterable[tuple[str, ...]]:
        for each in self.running:
            step = each.open[-1] if each.open else None
            yield (
                each.operation,
                each.subject or each.pod_sandbox_id[:SHORT_ID],
                render.span(max(0, self.now - each.started_at)),
                sentence(step) if step else "it waits for another request about the same",
                render.span(max(0, self.now - step.started_at)) if step else "",
                step.name if step else "",
            )


def _news(
    before: Mapping[str, cri.PodSandbox], now: Mapping[str, cri.PodSandbox]
) -> list[tuple[str, cri.PodSandbox]]:
    gone = [("went", pod) for id_, pod in before.items() if id_ not in now]
    came = [("appeared", pod) for id_, pod in now.items() if id_ not in before]
    changed = [
        ("ready" if pod.state == cri.SANDBOX_READY else "not ready", pod)
        for id_, pod in now.items()
        if id_ in before and before[id_].state != pod.state
    ]
    return [*gone, *changed, *came]


def _clock(moment: int) -> str:
    return datetime.fromtimestamp(moment // 10**9, UTC).strftime("%H:%M:%S")

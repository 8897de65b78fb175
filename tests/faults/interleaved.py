"""Requests side by side on the fakes, in an order that hypothesis chooses.

Each request is a task. Each call that it makes of containerd, a plugin, the kernel or the logger stops at a gate
before its effect and after it, and hypothesis says which of those that stand there goes on. The loop has a time of
its own, so a failing example fails again.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import strategies as st
from hypothesis.stateful import rule

from sandboxd.api.lookup import Lookup
from sandboxd.containers import create, exec, remove, start, stop
from sandboxd.errors import SandboxdError
from sandboxd.model import SandboxState
from sandboxd.pods import recover, teardown
from tests.fakes.bundle import Bundle, container_config, pod_config
from tests.fakes.points import Point
from tests.faults.history import OK, Request
from tests.faults.racing import AT_ONCE, PODS, Race
from tests.faults.unhurried import Stuck, Unhurried, settled
from tests.unit.matrix.conftest import MEMORY
from tests.unit.matrix.verbs import ECHO, PROGRAMS

TURNS = 20_000  # of the gate until everything has ended; what takes more hangs


class Interleaved(Race):
    """Requests of a node of fakes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Unhurried()
        asyncio.set_event_loop(self.loop)
        self.patch = pytest.MonkeyPatch()
        self.log = structlog.testing.capture_logs()
        self.log.__enter__()
        self.directory = tempfile.TemporaryDirectory(prefix="sandboxd-race-", dir=MEMORY)
        self.fakes = Bundle(Path(self.directory.name), self.patch, PROGRAMS)
        self.node = self.fakes.node
        self.lookup = Lookup(self.node.ledger)
        self.moment = 0
        self.clients: dict[str, set[asyncio.Task[None]]] = {pod: set() for pod in PODS}
        self.waiting: list[asyncio.Future[None]] = []
        self.surprises: list[BaseException] = []
        self.fakes.points.watch_threads(self.loop, self.patch)
        self.fakes.points.gate = self._gate

    async def _gate(self, point: Point) -> None:
        turn = self.loop.create_future()
        self.waiting.append(turn)
        try:
            await turn
        finally:
            if turn in self.waiting:
                self.waiting.remove(turn)

    # In which order it takes place.

    @rule(picks=st.lists(st.integers(0, 7), min_size=1, max_size=24))
    def go_on(self, picks: list[int]) -> None:
        """Those that stand at a gate go on, one after the other, as hypothesis says."""
        for pick in picks:
            self._turn(pick)

    @rule()
    def compare(self) -> None:
        """The comparison that goes on for as long as the daemon runs."""
        self.loop.call_soon(self.node.jobs.start, "compare", lambda: recover.compare(self.node))
        settled(self.loop)

    @rule(seconds=st.sampled_from((0.02, 1.5)))
    def time_passes(self, seconds: float) -> None:
        settled(self.loop, seconds)

    @rule()
    def everything_ends(self) -> None:
        for _ in range(TURNS):
            if not (self.waiting or any(self.clients.values()) or self.node.jobs.in_flight()):
                return
            self._turn(0)
        raise Stuck(f"jobs that do not end: {self.node.jobs.in_flight()}")

    def _turn(self, pick: int) -> None:
        if not self.waiting:
            settled(self.loop, 1.0)
            return
        self.waiting.pop(pick % len(self.waiting)).set_result(None)
        settled(self.loop)

    def teardown(self) -> None:
        try:
            self.all_removed()
            for surprise in self.surprises:
                raise surprise
            assert not self.node.jobs.held(), f"locks that are held: {self.node.jobs.held()}"
            assert [*self.fakes.left(), *self.fakes.records()] == []
        finally:
            self._close()

    # How it is asked.

    def pod_id(self, pod: str) -> str:
        seen = [record.id for record in self.lookup.sandboxes("", {}) if record.config.metadata.name == pod]
        return seen[0] if seen else super().pod_id(pod)

    def container_id(self, pod: str, name: str) -> str:
        seen = self.lookup.containers("", self.pod_id(pod), {})
        ids = [record.id for record in seen if record.config.metadata.name == name]
        return ids[0] if ids else super().container_id(pod, name)

    def look(self, pod: str) -> None:
        """Lists wait for nothing, so they take place at once."""
        now = self._now()
        found = [record for record in self.lookup.sandboxes("", {}) if record.config.metadata.name == pod]
        assert len(found) <= 1, [record.id for record in found]
        target = self.pod_id(pod)
        shown = (found[0].id, found[0].state is SandboxState.READY) if found else None
        inside = frozenset((each.id, each.state.name) for each in self.lookup.containers("", target, {}))
        self.answered(pod, Request(verb="ListPods", asked=now, answered=now, answer=shown))
        self.answered(pod, Request(verb="ListContainers", target=target, asked=now, answered=now, answer=inside))

    def send(self, pod: str, verb: str, target: str, name: str, variant: int) -> None:
        while len(self.clients[pod]) >= AT_ONCE:
            self._turn(0)
        asked, call = self._now(), self._call(pod, verb, target, name, variant)

        async def client() -> None:
            answer: object
            try:
                answer = await call or OK
            except SandboxdError as exc:
                answer = type(exc).__name__
            except BaseException as exc:
                self.surprises.append(exc)
                raise
            request = Request(
                verb=verb,
                target=target,
                name=name,
                variant=variant,
                asked=asked,
                answered=self._now(),
                answer=answer,
            )
            self.answered(pod, request)

        task = self.loop.create_task(client())
        self.clients[pod].add(task)
        task.add_done_callback(self.clients[pod].discard)
        settled(self.loop)

    def _call(self, pod: str, verb: str, target: str, name: str, variant: int) -> Coroutine[Any, Any, object]:
        node = self.node
        match verb:
            case "Run":
                config = pod_config(pod)
                config.annotations["variant"] = str(variant)
                return self.fakes.ready_pod(config)
            case "Create":
                inside = container_config(name)
                inside.annotations["variant"] = str(variant)
                return create.create_container(node, target, inside)
            case "Stop":
                return teardown.stop_sandbox(node, target)
            case "Remove":
                return teardown.remove_sandbox(node, target)
            case "Start":
                return start.start_container(node, target)
            case "StopContainer":
                return stop.stop_container(node, target, 5)
            case "RemoveContainer":
                return remove.remove_container(node, target)
        return self._echo(target)

    async def _echo(self, target: str) -> str:
        output, _, code = await exec.exec_sync(self.node, target, ECHO, 0)
        assert code or output == b"hi\n", output
        return "Exit" if code else OK

    def _now(self) -> int:
        self.moment += 1
        return self.moment

    def _close(self) -> None:
        self.fakes.points.gate = None
        for turn in self.waiting:
            turn.cancel()
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.fakes.close()
        self.patch.undo()
        self.log.__exit__(None, None, None)
        self.directory.cleanup()
        asyncio.set_event_loop(None)
        self.loop.close()

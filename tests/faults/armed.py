"""sandboxd with points at which it can be killed, failed, held or stopped: what a fault matrix runs as its daemon.

    arms = Arms(bed)                    # before bed.start_daemon
    arms.plan("RunPodSandbox", "containerd Tasks/Create:after", "kill")
    ...                                 # the request
    assert arms.fired
    arms.disarm()

The product has no failpoints. This program wraps it from outside and runs `sandboxd.__main__`. Points are

    step NAME:begin, :end                       every step of vocabulary.NAMES
    commit WHAT:before, :after                  every transaction of the ledger, by what it does first
    containerd SERVICE/METHOD:before, :after    every call: before it is sent, after it was answered; calls that
                                                write a stream have an :answer for every answer too
    spawn PROGRAM:before, :after                every process
    netns NAME:before, :after                   create, create_user_namespace, restore, remove

An operation is one RPC, with everything that it started, or one `steps.operation` outside of RPCs. Within it points
are numbered from 1, and those with one name are counted (`nth`), because two branches that run side by side do not
arrive in the same order every time. Every point is appended to the record when it is reached.

The plan is a file that is read at every point, so it can be changed while the daemon runs. It is removed when it has
been carried out as often as it says.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from sandboxd import commits
from tests.faults.points import INSIDE, PLACE, Gate, Plan, Point, Points, away, current
from tests.processes import until
from tests.testbed import ROOT, Testbed


class Arms:
    """The plan and the record of one bed, from the test's side."""

    def __init__(self, bed: Testbed) -> None:
        """Make `bed` run this program as its daemon, from the next start on."""
        self._bed = bed
        self._directory = bed.path(INSIDE)
        self._directory.mkdir(parents=True, exist_ok=True)
        bed.daemon_argv = [sys.executable, "-m", "tests.faults.armed"]
        bed.env |= {"PYTHONPATH": str(ROOT), PLACE: INSIDE}

    def plan(
        self,
        verb: str,
        point: str = "",
        action: str = "kill",
        *,
        n: int = 0,
        nth: int = 0,
        seconds: float = 0.0,
        times: int = 1,
    ) -> None:
        """Carry this out from now on, in place of what was planned before."""
        self._remove("reached", "go")
        plan = Plan(verb=verb, point=point, n=n, nth=nth, action=action, seconds=seconds, times=times)
        _replace(self._directory / "plan.json", json.dumps(dataclasses.asdict(plan)))

    def disarm(self) -> None:
        """Plan nothing, and let go on what stopped."""
        self._remove("plan.json")
        (self._directory / "go").touch()

    def clear(self) -> None:
        """Begin a new record."""
        self._remove("record.jsonl")

    @property
    def points(self) -> list[Point]:
        """What was reached since the record began."""
        with suppress(FileNotFoundError):
            text = (self._directory / "record.jsonl").read_text(encoding="utf-8")
            return [Point(**json.loads(line)) for line in text.splitlines()]
        return []

    @property
    def fired(self) -> bool:
        """Whether something planned was carried out since the record began."""
        return any(point.did for point in self.points)

    def until_stopped(self) -> None:
        """Wait until it has come to where it was to stop. `disarm`, or another plan and `go`, lets it go on."""
        until((self._directory / "reached").exists, what="the daemon has come to its point")

    def go(self) -> None:
        """Let it go on; what is planned stays planned."""
        (self._directory / "go").touch()

    def _remove(self, *names: str) -> None:
        for name in names:
            (self._directory / name).unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


class _Channel:
    """containerd's channel, with points around its calls."""

    def __init__(self, channel: Any, gate: Gate) -> None:
        self._channel = channel
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def unary_unary(self, path: str, *args: Any, **kwargs: Any) -> Any:
        begin, name = self._channel.unary_unary(path, *args, **kwargs), _call_name(path)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._gate.wait(f"{name}:before", away, kwargs.get("timeout"))
            try:
                answer = await begin(*args, **kwargs)
            except grpc.aio.AioRpcError:
                await self._gate.wait(f"{name}:after", away, kwargs.get("timeout"))
                raise
            await self._gate.wait(f"{name}:after", away, kwargs.get("timeout"))
            return answer

        return call

    def unary_stream(self, path: str, *args: Any, **kwargs: Any) -> Any:
        begin = self._channel.unary_stream(path, *args, **kwargs)
        return lambda *args, **kwargs: _Stream(begin(*args, **kwargs), _call_name(path), self._gate, answers=False)

    def stream_stream(self, path: str, *args: Any, **kwargs: Any) -> Any:
        begin = self._channel.stream_stream(path, *args, **kwargs)
        return lambda *args, **kwargs: _Stream(begin(*args, **kwargs), _call_name(path), self._gate, answers=True)


def _call_name(path: str) -> str:
    """ "/containerd.services.tasks.v1.Tasks/Create" is "containerd Tasks/Create"."""
    service, method = path.split("/")[-2:]
    return f"containerd {service.rpartition('.')[2]}/{method}"


class _Stream:
    """A call with a stream of answers."""

    def __init__(self, call: Any, name: str, gate: Gate, *, answers: bool) -> None:
        self._call = call
        self._name = name
        self._gate = gate
        self._answers = answers
        self._begun = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def __aiter__(self) -> AsyncIterator[Any]:
        await self._begin()
        async for answer in self._call:
            yield answer
        await self._gate.wait(f"{self._name}:after", self._lost)

    async def write(self, request: Any) -> None:
        await self._begin()
        await self._call.write(request)

    async def read(self) -> Any:
        await self._begin()
        answer = await self._call.read()
        if answer is grpc.aio.EOF:
            await self._gate.wait(f"{self._name}:after", self._lost)
        elif self._answers:
            await self._gate.wait(f"{self._name}:answer", self._lost)
        return answer

    async def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            await self._gate.wait(f"{self._name}:before", self._lost)

    def _lost(self) -> Exception:
        self._call.cancel()
        return away()


def arm(directory: Path) -> None:
    """Wrap the product. It must not have been started."""
    points = Points(directory)
    gate = Gate(points)
    _arm_operations(points)
    _arm_steps(gate)
    _arm_ledger(gate)
    _arm_containerd(gate)
    _arm_spawns(gate)
    _arm_netns(gate)


def _put(where: object, name: str, wrapper: object) -> None:
    """Put a wrapper in place of what is there, which must be there: or its points would silently go."""
    assert hasattr(where, name), f"{where} has no {name}: tests/faults/armed.py wraps it"
    setattr(where, name, wrapper)


def _arm_operations(points: Points) -> None:
    from sandboxd import steps
    from sandboxd.api.edge import Edge

    admit, operation = Edge._admit, steps.operation

    def begin(edge: Edge, name: str, implemented: bool) -> None:
        current.set(points.operation(name.rpartition("/")[2]))
        admit(edge, name, implemented)

    @contextmanager
    def begin_outside(name: str, **about: str) -> Iterator[None]:
        token = current.set(current.get() or points.operation(name))
        try:
            with operation(name, **about):
                yield
        finally:
            current.reset(token)

    _put(Edge, "_admit", begin)
    _put(steps, "operation", begin_outside)


def _arm_steps(gate: Gate) -> None:
    from sandboxd import errors, steps

    real = steps.step

    @contextmanager
    def step(name: str, **detail: object) -> Iterator[steps.Step]:
        def error() -> Exception:
            return errors.NotReady(f"armed: {name} fails")

        with real(name, **detail) as this:
            gate.sync(f"step {name}:begin", error)
            yield this
            gate.sync(f"step {name}:end", error)

    _put(steps, "step", step)


def _arm_ledger(gate: Gate) -> None:
    execute, write = commits.Commits._execute, commits.Commits._write

    def executed(self: commits.Commits, statements: Sequence[commits.Statement]) -> None:
        # In the transaction, which is rolled back.
        gate.sync(f"{_named(statements)}:before", lambda: sqlite3.OperationalError("armed: disk I/O error"))
        execute(self, statements)

    def written(self: commits.Commits, statements: Sequence[commits.Statement]) -> None:
        write(self, statements)
        gate.sync(f"{_named(statements)}:after")

    _put(commits.Commits, "_execute", executed)
    _put(commits.Commits, "_write", written)


def _named(statements: Sequence[commits.Statement]) -> str:
    """ "INSERT INTO sandboxes VALUES …" is "commit INSERT sandboxes"."""
    words = statements[0][0] if statements else "what waits"
    return f"commit {' '.join(words.replace('INTO ', '').replace('FROM ', '').split()[:2])}"


def _arm_containerd(gate: Gate) -> None:
    from sandboxd.containerd import client

    class Aio:
        """grpc.aio, as the client uses it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(grpc.aio, name)

        def insecure_channel(self, *args: Any, **kwargs: Any) -> Any:
            return _Channel(grpc.aio.insecure_channel(*args, **kwargs), gate)

    class Grpc:
        aio = Aio()

        def __getattr__(self, name: str) -> Any:
            return getattr(grpc, name)

    _put(client, "grpc", Grpc())


def _arm_spawns(gate: Gate) -> None:
    from sandboxd.supervised import Supervised

    exec_, start = asyncio.BaseEventLoop.subprocess_exec, Supervised.start

    async def subprocess_exec(loop: Any, protocol: Any, program: Any, *args: Any, **kwargs: Any) -> Any:
        name = f"spawn {os.path.basename(os.fsdecode(program))}"
        await gate.wait(f"{name}:before", _too_many)
        made = await exec_(loop, protocol, program, *args, **kwargs)
        await gate.wait(f"{name}:after")
        return made

    def supervised(self: Supervised, argv: Any, **kwargs: Any) -> int:
        name = f"spawn {os.path.basename(argv[0])} {self.pid_file.rpartition('/')[2]}"
        gate.sync(f"{name}:before", _too_many)
        pid = start(self, argv, **kwargs)
        gate.sync(f"{name}:after")
        return pid

    _put(asyncio.BaseEventLoop, "subprocess_exec", subprocess_exec)
    _put(Supervised, "start", supervised)


def _too_many() -> Exception:
    return OSError(errno.EAGAIN, "armed: Resource temporarily unavailable")


def _arm_netns(gate: Gate) -> None:
    from sandboxd import errors, netns

    def around(name: str, error: Callable[[str], Exception]) -> None:
        real = getattr(netns, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await gate.wait(f"netns {name}:before", lambda: error(f"armed: netns {name} fails"))
            answer = await real(*args, **kwargs)
            await gate.wait(f"netns {name}:after", lambda: error(f"armed: netns {name} fails"))
            return answer

        _put(netns, name, call)

    around("create", errors.NotReady)
    around("create_user_namespace", errors.NotReady)
    around("restore", errors.NotReady)
    around("remove", errors.CleanupIncomplete)


def main() -> None:
    """Arm the product and run it."""
    arm(Path(os.environ[PLACE]))
    from sandboxd.__main__ import main as run

    run()


if __name__ == "__main__":
    main()

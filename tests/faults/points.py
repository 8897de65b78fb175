"""The points of an armed daemon: counted, recorded, and what is planned for one carried out there (see `armed`)."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

PLACE = "SANDBOXD_ARMED"  # the variable that names the directory of plan and record, inside the bed
INSIDE = "/var/log/armed"
HELD_SECONDS = 120.0  # at most, at a point where it was to stop
ANY = "*"  # of a plan's verb: every operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to happen, where."""

    verb: str  # an RPC's name, or that of an operation outside of RPCs, or ANY
    point: str = ""  # its name; or
    n: int = 0  # its number within the operation
    nth: int = 0  # of the points with this name within an operation; 0 is each of them
    action: str  # kill, fail, hang, late (as if it had hung until the call's own limit), stop
    seconds: float = 0.0  # to hang; a call with a limit of its own then fails at its limit
    times: int = 1  # how often; 0 is for as long as the plan is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point that was reached."""

    operation: int  # a number of the operation, unique in the record together with `pid`
    pid: int
    verb: str
    n: int
    name: str
    nth: int
    did: str = ""  # the action, where one was carried out

    @property
    def identity(self) -> tuple[str, int]:
        """What finds it again in another run."""
        return self.name, self.nth


@dataclass(slots=True)
class Operation:
    number: int
    verb: str
    reached: int = 0
    by_name: Counter[str] = field(default_factory=Counter)


current: ContextVar[Operation | None] = ContextVar("armed_operation", default=None)


class Points:
    """Counts, records, and says what is to be done."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._operations = 0
        self._outside = Operation(number=0, verb="")
        self._done: tuple[Plan | None, int] = (None, 0)

    def operation(self, verb: str) -> Operation:
        self._operations += 1
        return Operation(number=self._operations, verb=verb)

    def arrive(self, name: str) -> Plan | None:
        """Note that a point was reached; what to do there, unless it is the end."""
        operation = current.get() or self._outside
        operation.reached += 1
        operation.by_name[name] += 1
        n, nth = operation.reached, operation.by_name[name]
        plan = self._plan()
        if plan is not None and not (
            plan.verb in (ANY, operation.verb)
            and (name == plan.point if plan.point else n == plan.n)
            and plan.nth in (0, nth)
        ):
            plan = None
        point = Point(
            operation=operation.number,
            pid=os.getpid(),
            verb=operation.verb,
            n=n,
            name=name,
            nth=nth,
            did=plan.action if plan else "",
        )
        self._record(json.dumps(dataclasses.asdict(point)))
        if plan is not None:
            self._carried_out(plan)
            if plan.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return plan

    def stop_looks(self) -> Iterator[float]:
        """The pauses to make at a point where to stop, until it is to go on."""
        (self._directory / "reached").touch()
        deadline = time.monotonic() + HELD_SECONDS
        while not (self._directory / "go").exists() and time.monotonic() < deadline:
            yield 0.01

    def _plan(self) -> Plan | None:
        with suppress(FileNotFoundError):
            return Plan(**json.loads((self._directory / "plan.json").read_bytes()))
        return None

    def _carried_out(self, plan: Plan) -> None:
        self._done = (plan, self._done[1] + 1 if self._done[0] == plan else 1)
        if plan.times and self._done[1] >= plan.times:
            (self._directory / "plan.json").unlink(missing_ok=True)
            self._done = (None, 0)

    def _record(self, line: str) -> None:
        fd = os.open(self._directory / "record.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(fd, f"{line}\n".encode())
        finally:
            os.close(fd)


class Gate:
    """Passes points, and does there what is planned."""

    def __init__(self, points: Points) -> None:
        self._points = points

    def sync(self, name: str, error: Callable[[], Exception] | None = None) -> None:
        """Pass one where nothing can be awaited: the whole daemon hangs with it, as it would with a slow disk."""
        if plan := self._points.arrive(name):
            if plan.action == "hang":
                time.sleep(plan.seconds)
            elif plan.action == "stop":
                for pause in self._points.stop_looks():
                    time.sleep(pause)
            elif plan.action == "fail" and error is not None:
                raise error()

    async def wait(self, name: str, error: Callable[[], Exception] | None = None, limit: float | None = None) -> None:
        """Pass one; `limit` is the call's own, in seconds, at which it fails with DEADLINE_EXCEEDED."""
        if plan := self._points.arrive(name):
            if plan.action == "hang":
                await asyncio.sleep(plan.seconds if limit is None else min(plan.seconds, limit))
                if limit is not None and plan.seconds >= limit:
                    raise refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
            elif plan.action == "late" and limit is not None:
                raise refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
            elif plan.action == "stop":
                for pause in self._points.stop_looks():
                    await asyncio.sleep(pause)
            elif plan.action == "fail" and error is not None:
                raise error()


def refusal(code: grpc.StatusCode, words: str) -> Exception:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details=words)


def away() -> Exception:
    return refusal(grpc.StatusCode.UNAVAILABLE, "armed: the connection is lost")

"""The one instrument: every step of every operation passes through `step`.

    with steps.operation("RunPodSandbox", sandbox_id=id):
        with steps.step("netns.create", path=path) as s:
            ...
            s.note(inode=inode)

When a step ends, one frozen `StepRecord` goes to every subscriber: the log line, the pod's timeline in the
ledger, metrics and spans are all made from it. Nothing else times or logs such work.

What is noted on a step is read by whoever may read the log: names, paths, counts, never values of the request
(environment, arguments, credentials).

The operation is carried by a context variable, so it follows awaits and the jobs started from within.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import structlog

from sandboxd import disclosure

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginExecution:
    """One execution of a CNI plugin binary, whole, so that a person can repeat it by hand."""

    command: str  # ADD, DEL, CHECK, STATUS, VERSION, GC
    binary: str  # absolute path
    env: Mapping[str, str]  # the CNI_* variables
    stdin: bytes
    stdout: bytes
    stderr: bytes
    exit_code: int  # negative: ended by that signal
    duration: int  # nanoseconds
    timed_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A step that has ended."""

    operation: str
    name: str
    sandbox_id: str
    container_id: str
    started_at: int  # unix nanoseconds
    duration: int  # nanoseconds
    error: str  # "" when it succeeded
    detail: Mapping[str, str] = field(default_factory=dict)
    plugin: PluginExecution | None = None


class Step:
    """A step in progress: what is learnt on the way is noted on it."""

    __slots__ = ("detail", "plugin")

    def __init__(self, detail: dict[str, str]) -> None:
        self.detail = detail
        self.plugin: PluginExecution | None = None

    def note(self, **detail: object) -> None:
        """Add facts to the step's detail; `None` is left out."""
        self.detail.update({key: str(value) for key, value in detail.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    name: str
    sandbox_id: str
    container_id: str


_current: ContextVar[_Operation | None] = ContextVar("sandboxd_operation", default=None)
_subscribers: list[Callable[[StepRecord], None]] = []


def subscribe(receive: Callable[[StepRecord], None]) -> Callable[[], None]:
    """Hand every record to `receive` from now on; call the returned function to stop."""
    _subscribers.append(receive)
    return lambda: _subscribers.remove(receive)


@contextmanager
def operation(name: str, *, sandbox_id: str = "", container_id: str = "") -> Iterator[None]:
    """Name what the steps inside belong to. A nested operation keeps the outer one's name."""
    outer = _current.get()
    token = _current.set(
        _Operation(
            name=outer.name if outer else name,
            sandbox_id=sandbox_id or (outer.sandbox_id if outer else ""),
            container_id=container_id or (outer.container_id if outer else ""),
        )
    )
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def step(name: str, **detail: object) -> Iterator[Step]:
    """Time a step, record how it ended, and let its error pass through unchanged."""
    current = _current.get() or _Operation(name="", sandbox_id="", container_id="")
    this = Step({key: str(value) for key, value in detail.items() if value is not None})
    started_at, began = time.time_ns(), time.perf_counter_ns()
    error = ""
    try:
        yield this
    except BaseException as exc:
        error = disclosure.words(exc)
        raise
    finally:
        record = StepRecord(
            operation=current.name,
            name=name,
            sandbox_id=current.sandbox_id,
            container_id=current.container_id,
            started_at=started_at,
            duration=time.perf_counter_ns() - began,
            error=error,
            detail=dict(this.detail),
            plugin=this.plugin,
        )
        for receive in tuple(_subscribers):
            try:
                receive(record)
            except Exception as broken:
                # Observing must never change what is observed.
                log.warning("step subscriber failed", step=name, error=disclosure.words(broken))

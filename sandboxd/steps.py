"""The one instrument: every step of every operation passes through `step`.

    with steps.operation("RunPodSandbox", sandbox_id=id):
        with steps.step("pod.netns.create", path=path) as s:
            ...
            s.note(inode=inode)

When a step ends, one frozen `StepRecord` goes to every subscriber: the log line, the pod's timeline in the
ledger, metrics and spans are all made from it. Nothing else times or logs such work. The same goes for operations,
and for the RPCs, which the gRPC edge times. A subscriber is called within the span of what has ended (`spans`).

What a step changes outside of the daemon are its acts: a call to containerd, a file. The one place that makes such
calls and those that write files note them, whoever called; they belong to the innermost step.

Everyone who may read the log can read a step's details: note names, paths and counts, never values of the request
(environment, arguments, credentials).

The operation is carried by a context variable, so it follows awaits and the jobs started within it. While it runs,
`running` tells what it has done and what it waits for. One that fails is a `Story`, which outlives what it was about.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from sandboxd import disclosure, spans

log = structlog.get_logger(__name__)

T = TypeVar("T")

STEPS_KEPT = 400  # of an operation, and of a pod; the oldest are dropped first
ACTS_KEPT = 200  # of an operation; of later ones only the number is noted


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginExecution:
    """One execution of a CNI plugin, recorded in full, so that a person can repeat it by hand."""

    command: str  # ADD, DEL, CHECK, STATUS, VERSION, GC
    binary: str  # absolute path
    env: Mapping[str, str]  # the CNI_* variables
    stdin: bytes
    stdout: bytes
    stderr: bytes
    exit_code: int  # negative: killed by that signal
    duration: int  # nanoseconds
    timed_out: bool = False
    ended_by: str = ""  # "" by itself, "sandboxd", or "other" for a signal that the daemon did not send
    backend: str = ""  # "" is a process; "in-process": the daemon did what the binary would have done


@dataclass(frozen=True, slots=True)
class Act:
    """Something that a step changed outside of the daemon, or tried to."""

    what: str  # containerd's service and method ("Snapshots.Prepare"), or what was made: "file", "fifo"
    about: str  # the key of the call: an id, a snapshot, an image, a lease; or the path
    started_at: int  # unix nanoseconds
    duration: int = 0  # nanoseconds
    outcome: str = ""  # "" when it succeeded, or the name of a gRPC status
    size: int = -1  # bytes, -1 for what has none


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChange:
    """A thing of a network that appeared, went or changed; `network_state` has the words."""

    place: str  # "pod" or "host"
    kind: str
    name: str
    before: Mapping[str, str] | None  # None: it was not there
    after: Mapping[str, str] | None  # None: it is gone
    belongs_to: str  # "pod", "network", or "" for what happened meanwhile


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
    acts: tuple[Act, ...] = ()  # in the order in which they ended
    changes: tuple[NetworkChange, ...] = ()


class Step:
    """A step in progress; details can be noted on it until it ends."""

    __slots__ = ("acts", "acts_left_out", "changes", "detail", "plugin")

    def __init__(self, detail: dict[str, str]) -> None:
        self.detail = detail
        self.plugin: PluginExecution | None = None
        self.acts: list[Act] = []
        self.acts_left_out = 0
        self.changes: tuple[NetworkChange, ...] = ()

    def note(self, **detail: object) -> None:
        """Add to the step's detail; a `None` is left out."""
        self.detail.update({key: str(value) for key, value in detail.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """An operation that failed, whole."""

    operation: str
    subject: str  # what it was about, for people: "namespace/pod", a container's name, an image
    sandbox_id: str
    container_id: str
    started_at: int  # unix nanoseconds
    duration: int  # nanoseconds
    error: str
    steps: tuple[StepRecord, ...] = ()  # in the order in which they ended
    times: int = 1  # that the same failed in the same way, one after the other


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRecord:
    """An operation that has ended."""

    operation: str
    subject: str
    sandbox_id: str
    container_id: str
    started_at: int  # unix nanoseconds
    duration: int  # nanoseconds
    error: str  # "" when it succeeded


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcRecord:
    """An RPC that has been answered, or that its client has left."""

    method: str  # "runtime.v1.RuntimeService/Version"
    code: str  # gRPC's name of the status
    started_at: int  # unix nanoseconds
    duration: int  # nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A step that has not ended."""

    name: str
    started_at: int  # unix nanoseconds
    detail: Mapping[str, str]
    acts: tuple[Act, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An operation under way, as it is now."""

    operation: str
    subject: str
    sandbox_id: str
    container_id: str
    started_at: int
    ended: tuple[StepRecord, ...]  # in the order in which they ended
    open: tuple[Open, ...]  # in the order in which they began: each is within those before it, or beside them


@dataclass(slots=True, kw_only=True, eq=False)
class _Course:
    """An operation as it goes on."""

    operation: str
    subject: str
    sandbox_id: str
    container_id: str
    started_at: int
    ended: deque[StepRecord] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))
    open: dict[int, tuple[str, int, Step]] = field(default_factory=dict)  # name, start
    acts: int = 0  # so far

    def now(self) -> Running:
        return Running(
            operation=self.operation,
            subject=self.subject,
            sandbox_id=self.sandbox_id,
            container_id=self.container_id,
            started_at=self.started_at,
            ended=tuple(self.ended),
            open=tuple(
                Open(name=name, started_at=started_at, detail=dict(step.detail), acts=tuple(step.acts))
                for name, started_at, step in self.open.values()
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    name: str
    sandbox_id: str
    container_id: str
    course: _Course


_current: ContextVar[_Operation | None] = ContextVar("sandboxd_operation", default=None)
_innermost: ContextVar[Step | None] = ContextVar("sandboxd_step", default=None)
_subscribers: list[Callable[[StepRecord], None]] = []
_failed: list[Callable[[Story], None]] = []
_operations: list[Callable[[OperationRecord], None]] = []
_rpcs: list[Callable[[RpcRecord], None]] = []
_running: dict[int, _Course] = {}  # oldest first
_numbers = itertools.count()


def subscribe(receive: Callable[[StepRecord], None]) -> Callable[[], None]:
    """Pass every record to `receive` from now on; call the returned function to stop."""
    _subscribers.append(receive)
    return lambda: _subscribers.remove(receive)


def subscribe_failures(receive: Callable[[Story], None]) -> Callable[[], None]:
    """The same for operations that fail."""
    _failed.append(receive)
    return lambda: _failed.remove(receive)


def subscribe_operations(receive: Callable[[OperationRecord], None]) -> Callable[[], None]:
    """The same for operations, however they end."""
    _operations.append(receive)
    return lambda: _operations.remove(receive)


def subscribe_rpcs(receive: Callable[[RpcRecord], None]) -> Callable[[], None]:
    """The same for RPCs."""
    _rpcs.append(receive)
    return lambda: _rpcs.remove(receive)


def running() -> tuple[Running, ...]:
    """The operations under way, oldest first."""
    return tuple(course.now() for course in _running.values())


@contextmanager
def operation(name: str, *, sandbox_id: str = "", container_id: str = "", subject: str = "") -> Iterator[None]:
    """Name the operation of the steps inside. One within another is a part of it and keeps its name.

    `subject` says for people what it is about.
    """
    outer = _current.get()
    if outer is not None:
        with _within(
            _Operation(
                name=outer.name,
                sandbox_id=sandbox_id or outer.sandbox_id,
                container_id=container_id or outer.container_id,
                course=outer.course,
            )
        ):
            yield
        return
    this = _Course(
        operation=name,
        subject=subject,
        sandbox_id=sandbox_id,
        container_id=container_id,
        started_at=time.time_ns(),
    )
    number, began = next(_numbers), time.perf_counter_ns()
    _running[number] = this
    error = ""
    with spans.within(spans.begin()):
        try:
            with _within(_Operation(name=name, sandbox_id=sandbox_id, container_id=container_id, course=this)):
                yield
        except BaseException as exc:
            error = disclosure.words(exc)
            if isinstance(exc, Exception):
                _tell(this, time.perf_counter_ns() - began, exc)
            raise
        finally:
            del _running[number]
            _ended(this, time.perf_counter_ns() - began, error)


@contextmanager
def _within(this: _Operation) -> Iterator[None]:
    token = _current.set(this)
    try:
        yield
    finally:
        _current.reset(token)


def _tell(this: _Course, duration: int, cause: Exception) -> None:
    story = Story(
        operation=this.operation,
        subject=this.subject,
        sandbox_id=this.sandbox_id,
        container_id=this.container_id,
        started_at=this.started_at,
        duration=duration,
        error=disclosure.whole(cause),
        steps=tuple(this.ended),
    )
    for receive in tuple(_failed):
        try:
            receive(story)
        except Exception as broken:
            log.error(
                "a failed operation could not be kept", operation=story.operation, error=disclosure.words(broken)
            )


def _ended(this: _Course, duration: int, error: str) -> None:
    record = OperationRecord(
        operation=this.operation,
        subject=this.subject,
        sandbox_id=this.sandbox_id,
        container_id=this.container_id,
        started_at=this.started_at,
        duration=duration,
        error=error,
    )
    _pass_on(record, _operations, this.operation)


def answered(record: RpcRecord) -> None:
    """Pass on that an RPC has ended; for the gRPC edge."""
    _pass_on(record, _rpcs, record.method)


def _pass_on(record: T, receivers: list[Callable[[T], None]], what: str) -> None:
    for receive in tuple(receivers):
        try:
            receive(record)
        except Exception as broken:
            log.error("subscriber failed", of=what, error=disclosure.words(broken))


def step(name: str, **detail: object) -> AbstractContextManager[Step]:
    """Time a step, record how it ended, and let its error pass through unchanged."""
    return _Timed(name, Step({key: str(value) for key, value in detail.items() if value is not None}))


class _Timed:
    """The context of one step. A class, since a generator's context takes twice as long and there are many."""

    __slots__ = ("began", "current", "name", "number", "outer", "outer_span", "span", "started_at", "this")

    def __init__(self, name: str, this: Step) -> None:
        self.name = name
        self.this = this

    def __enter__(self) -> Step:
        self.current = current = _current.get()
        self.started_at, self.began = time.time_ns(), time.perf_counter_ns()
        self.number = next(_numbers)
        if current is not None:
            current.course.open[self.number] = self.name, self.started_at, self.this
        self.outer = _innermost.get()
        _innermost.set(self.this)
        self.outer_span = spans.current()
        self.span = spans.begin()
        if self.span is not None:
            spans.enter(self.span)
        return self.this

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        error = "" if exc is None else disclosure.words(exc)
        _innermost.set(self.outer)
        current = self.current
        record = _record(current, self.name, self.this, self.started_at, time.perf_counter_ns() - self.began, error)
        if current is not None:
            current.course.open.pop(self.number, None)
            current.course.ended.append(record)
        for receive in tuple(_subscribers):
            try:
                receive(record)
            except Exception as broken:
                # Observing must never change what is observed.
                log.error("step subscriber failed", step=self.name, error=disclosure.words(broken))
        if self.span is not None:
            spans.enter(self.outer_span)


def _record(
    current: _Operation | None, name: str, this: Step, started_at: int, duration: int, error: str
) -> StepRecord:
    if this.acts_left_out:
        this.note(acts_left_out=this.acts_left_out)
    return StepRecord(
        operation=current.name if current else "",
        name=name,
        sandbox_id=current.sandbox_id if current else "",
        container_id=current.container_id if current else "",
        started_at=started_at,
        duration=duration,
        error=error,
        detail=dict(this.detail),
        plugin=this.plugin,
        acts=tuple(this.acts),
        changes=this.changes,
    )


def act(what: str, about: str, *, started_at: int = 0, duration: int = 0, outcome: str = "", size: int = -1) -> None:
    """Note on the innermost step what was just done; see Act. Outside of any step nothing is noted.

    An act without a start is one of this moment. Cheap: it is put into words when somebody asks.
    """
    this = _innermost.get()
    if this is None:
        return
    current = _current.get()
    if current is not None:
        current.course.acts += 1
        if current.course.acts > ACTS_KEPT:
            this.acts_left_out += 1
            return
    this.acts.append(Act(what, about, started_at or time.time_ns(), duration, outcome, size))

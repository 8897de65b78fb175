"""containerd's containers, tasks and processes in memory, as `sandboxd.containerd.tasks` and `processes` show them.

A process does what its `Program` says. The first process of a container ignores every signal that it does not
handle, as the kernel has it for the init of a pid namespace; SIGKILL ends it. Streams are the caller's FIFOs, held
as the shim holds them, so that what a process has written can be read until the last of it.

Held to the real thing by `tests/root/contracts/test_runtime.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal as signals
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandboxd.containerd.client import OWNER_LABEL
from sandboxd.containerd.records import Stored
from sandboxd.containerd.snapshots import Mount
from sandboxd.containerd.tasks import Exit, RuntimeOptions, Task, TaskState
from sandboxd.errors import AlreadyExists, NotFound, NotReady, SandboxdError, TimedOut, Unavailable
from tests.fakes.points import Points

NEVER_STARTED = -62_135_596_800 * 10**9  # when a task ended that never ran: year 1, as Go has it
NOT_EXECUTED = 255  # the exit code of a process whose program could not be executed
FIRST_PID = 1 << 23  # beyond any that a kernel gives: nobody takes a fake process for a real one


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a process does."""

    output: bytes = b""  # written to its stdout at once
    code: int | None = None  # with which it ends at once; None runs until a signal ends it
    handles: Mapping[int, int] = field(default_factory=dict)  # signal -> the exit code that it answers with
    missing: bool = False  # there is no such program


class Process:
    """A process that was created, and how it fares."""

    def __init__(self, program: Program, pid: int, streams: Mapping[str, str], *, init: bool, terminal: bool) -> None:
        """`streams` are paths of FIFOs; with a terminal, stderr is not one of them."""
        self.state = TaskState.CREATED
        self.exit: Exit | None = None
        self.ended = asyncio.Event()
        self.program = program
        self.pid = pid
        self._streams = {name: path for name, path in streams.items() if not terminal or name != "stderr"}
        self._init = init
        self._pending: list[int] = []
        self.deaf = False  # frozen, it does not act even on SIGKILL
        self._fds: dict[str, int] = {}

    def open(self) -> None:
        """Open its streams, if it has any; raises OSError when one is not there, or has no reader.

        The shim would wait for a reader; here there is nobody for whom that could be worth it.
        """
        try:
            for name, path in self._streams.items() if any(self._streams.values()) else ():
                if name == "stdin":
                    if path:
                        self._fds[name] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                    continue
                # The shim takes no output without the other. It reads the FIFO, too, so that nothing is lost.
                writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._fds[name] = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                os.close(writing)
        except OSError:
            self._close()
            raise

    def start(self) -> None:
        """Run: write, and end if that is all there is to do."""
        self.state = TaskState.RUNNING
        if self.program.output and "stdout" in self._fds:
            os.write(self._fds["stdout"], self.program.output)
        if self.program.code is not None:
            self.end(self.program.code)

    def signal(self, number: int) -> None:
        """What the signal does to it; while it is frozen, only SIGKILL does anything, unless it is `deaf`."""
        if self.exit is not None:
            return
        if number == signals.SIGKILL and not (self.deaf and self.state is TaskState.PAUSED):
            self.end(128 + number)
        elif self.state is TaskState.PAUSED:
            self._pending.append(number)
        elif number in self.program.handles:
            self.end(self.program.handles[number])
        elif not self._init:
            self.end(128 + number)

    def thaw(self) -> None:
        """Run on; the signals that came meanwhile arrive."""
        self.state = TaskState.RUNNING
        pending, self._pending = self._pending, []
        for number in pending:
            self.signal(number)

    def end(self, code: int) -> None:
        """It has ended; its streams end with it."""
        self.state, self.exit = TaskState.STOPPED, Exit(code=code, at=time.time_ns())
        self._close()
        self.ended.set()

    def close_stdin(self) -> None:
        """Close the shim's end of its stdin."""
        if (fd := self._fds.pop("stdin", -1)) >= 0:
            os.close(fd)

    def _close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


@dataclass(slots=True, kw_only=True)
class Container:
    """A record, and its task if there is one."""

    spec: str
    labels: Mapping[str, str]
    snapshot_key: str
    runtime: RuntimeOptions
    kept: bytes = b""
    snapshotter: str = ""
    created_at: int = field(default_factory=time.time_ns)


@dataclass(slots=True, kw_only=True)
class Running:
    """A task: its first process, and those exec'd into it."""

    init: Process
    execs: dict[str, Process] = field(default_factory=dict)
    rootfs: tuple[Mount, ...] = ()
    limits: dict[str, Any] = field(default_factory=dict)


class Runtime:
    """Containers and tasks. `programs` says what the processes with a command do; any other runs until SIGKILL.

    No wait with a timeout takes longer than `patience` seconds: nothing outside the test could end what is waited
    for.
    """

    def __init__(self, points: Points, programs: Mapping[tuple[str, ...], Program] | None = None) -> None:
        self.programs = dict(programs or {})
        self.containers: dict[str, Container] = {}
        self.tasks: dict[str, Running] = {}
        self.patience = 0.01
        self.away = ""  # why it is known not to answer
        self.on_exit: Callable[[str], None] = lambda container_id: None
        self.processes = Processes(points, self)
        self.records = Records(points, self)
        self.owner = ""  # the mark on what is made here
        self._points = points
        self._pids = itertools.count(FIRST_PID)

    def trouble(self) -> str:
        return self.away

    def left(self) -> list[str]:
        """Everything that is there."""
        execs = [f"process {name} of {task_id}" for task_id, task in self.tasks.items() for name in task.execs]
        return [*(f"container {name}" for name in self.containers), *(f"task {name}" for name in self.tasks), *execs]

    def close(self) -> None:
        """End every process, so that no descriptor stays open."""
        for task in self.tasks.values():
            for process in (task.init, *task.execs.values()):
                process.signal(signals.SIGKILL)

    def put(self, container_id: str, exit: Exit | None = None, program: Program | None = None) -> Process:
        """A container that was made elsewhere: its task runs `program`, or has ended so."""
        self.containers[container_id] = Container(
            spec=json.dumps({"process": {"args": []}}), labels={}, snapshot_key="", runtime=RuntimeOptions(type="")
        )
        init = Process(program or Program(), next(self._pids), {}, init=True, terminal=False)
        self.tasks[container_id] = Running(init=init)
        init.start()
        if exit is not None:
            init.end(exit.code)
            init.exit = exit
        return init

    def task(self, container_id: str) -> Running:
        """The task, which containerd finds by way of its container's record; raises NotFound."""
        if container_id not in self.containers:
            raise NotFound(f'container "{container_id}" in namespace "fake": not found')
        if container_id not in self.tasks:
            raise NotFound(f"task {container_id} not found")
        return self.tasks[container_id]

    def process(self, argv: Iterable[str], streams: Mapping[str, str], *, init: bool, terminal: bool) -> Process:
        """A process that is to run this command."""
        program = self.programs.get(tuple(argv), Program())
        return Process(program, next(self._pids), streams, init=init, terminal=terminal)

    # Containers

    async def create_container(
        self,
        container_id: str,
        *,
        spec: Mapping[str, Any],
        image: str,
        snapshotter: str,
        snapshot_key: str,
        labels: Mapping[str, str],
        runtime: RuntimeOptions,
        keep: bytes = b"",
    ) -> None:
        async with self._points.at("runtime.create_container", Unavailable):
            if container_id in self.containers:
                raise AlreadyExists(f'container record {container_id}: container "{container_id}": already exists')
            self.containers[container_id] = Container(
                spec=json.dumps(spec),
                labels={**labels, OWNER_LABEL: self.owner} if self.owner else dict(labels),
                snapshot_key=snapshot_key,
                snapshotter=snapshotter,
                runtime=runtime,
                kept=keep,
            )

    async def spec(self, container_id: str) -> dict[str, Any]:
        async with self._points.at("runtime.spec", Unavailable, NotFound):
            parsed: dict[str, Any] = json.loads(self._record(container_id).spec)
            return parsed

    async def set_spec(
        self,
        container_id: str,
        spec: Mapping[str, Any],
        *,
        keep: bytes = b"",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        async with self._points.at("runtime.set_spec", Unavailable):
            record = self._record(container_id)
            record.spec, record.kept = json.dumps(spec), keep or record.kept
            record.labels = {**record.labels, **(labels or {})}

    async def delete_container(self, container_id: str) -> None:
        async with self._points.at("runtime.delete_container", Unavailable):
            # Its task, if there is one, can no longer be reached; it is only listed.
            self.containers.pop(container_id, None)

    async def container_ids(self) -> set[str]:
        async with self._points.at("runtime.container_ids", Unavailable):
            return set(self.containers)

    def _record(self, container_id: str) -> Container:
        if container_id not in self.containers:
            raise NotFound(f'container record {container_id}: container "{container_id}": not found')
        return self.containers[container_id]

    # Tasks

    async def create(
        self,
        container_id: str,
        rootfs: Sequence[Mount],
        *,
        stdout: str = "",
        stderr: str = "",
        stdin: str = "",
        terminal: bool = False,
    ) -> int:
        async with self._points.at("runtime.create", NotReady, Unavailable, TimedOut):
            argv = json.loads(self._record(container_id).spec)["process"]["args"]
            if container_id in self.tasks:
                raise AlreadyExists(f"task of {container_id}: task {container_id}: already exists")
            streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
            init = self.process(argv, streams, init=True, terminal=terminal)
            if init.program.missing:
                raise NotReady(f"task of {container_id}: OCI runtime create failed: {argv[0]}: no such file")
            try:
                init.open()
            except OSError as exc:
                raise NotReady(f"task of {container_id}: failed to start io pipe copy: {exc}") from exc
            self.tasks[container_id] = Running(init=init, rootfs=tuple(rootfs))
            return init.pid

    async def start(self, container_id: str) -> int:
        async with self._points.at("runtime.start", NotReady, Unavailable, TimedOut):
            init = self.task(container_id).init
            if init.state is not TaskState.CREATED:
                raise NotReady(f"task of {container_id}: cannot start a {init.state.value} process")
            init.start()
            self._tell(container_id, init)
            return init.pid

    async def kill(self, container_id: str, signal: int) -> None:
        async with self._points.at("runtime.kill", Unavailable, TimedOut):
            try:
                task = self.task(container_id)
            except NotFound:
                return
            task.init.signal(signal)
            if task.init.exit is not None:
                for process in task.execs.values():  # the pid namespace ends with its init
                    process.signal(signals.SIGKILL)
                self._tell(container_id, task.init)

    async def wait(self, container_id: str, timeout: float | None = None) -> Exit:
        async with self._points.at("runtime.wait", Unavailable, TimedOut):
            init = self.task(container_id).init
            try:
                async with asyncio.timeout(None if timeout is None else min(timeout, self.patience)):
                    await init.ended.wait()
            except TimeoutError as exc:
                raise TimedOut(f"waiting for the task of {container_id}: context deadline exceeded") from exc
            assert init.exit is not None
            return init.exit

    async def pause(self, container_id: str) -> None:
        async with self._points.at("runtime.pause", NotReady, Unavailable, TimedOut):
            init = self.task(container_id).init
            if init.state is not TaskState.RUNNING:
                raise NotReady(f"pausing the task of {container_id}: cannot pause a {init.state.value} container")
            init.state = TaskState.PAUSED

    async def resume(self, container_id: str) -> None:
        async with self._points.at("runtime.resume", NotReady, Unavailable, TimedOut):
            try:
                init = self.task(container_id).init
            except NotFound:
                return
            if init.state is TaskState.PAUSED:
                init.thaw()
                self._tell(container_id, init)

    async def checkpoint(
        self, container_id: str, *, image_path: str, work_path: str, terminal: bool, timeout: float
    ) -> None:
        async with self._points.at("runtime.checkpoint", NotReady, Unavailable, TimedOut):
            init = self.task(container_id).init
            if init.state not in (TaskState.RUNNING, TaskState.PAUSED):
                raise NotReady(f"checkpoint of {container_id}: cannot checkpoint a {init.state.value} container")
            for path in (f"{image_path}/pages-1.img", f"{work_path}/dump.log"):
                with open(path, "wb") as file:
                    file.write(b"fake")

    async def update(self, container_id: str, resources: Mapping[str, Any]) -> None:
        async with self._points.at("runtime.update", NotReady, Unavailable, TimedOut):
            task = self.task(container_id)
            if task.init.state is TaskState.STOPPED:
                raise NotReady(f"resources of {container_id}: cannot update a stopped container")
            task.limits |= resources

    async def delete(self, container_id: str) -> Exit | None:
        async with self._points.at("runtime.delete", SandboxdError, Unavailable, TimedOut):
            try:
                init = self.task(container_id).init
            except NotFound:
                return None
            if init.state is TaskState.CREATED:
                init.end(0)
                init.exit = Exit(code=0, at=NEVER_STARTED)
            if init.state is not TaskState.STOPPED:
                raise SandboxdError(
                    f"removing the task of {container_id}: cannot delete a {init.state.value} process"
                )
            del self.tasks[container_id]
            return init.exit

    async def get(self, container_id: str) -> Task:
        async with self._points.at("runtime.get", Unavailable):
            return _seen(container_id, self.task(container_id).init)

    async def list(self) -> dict[str, Task]:
        async with self._points.at("runtime.list", Unavailable):
            return {name: _seen(name, task.init) for name, task in self.tasks.items()}

    def _tell(self, container_id: str, process: Process) -> None:
        if process.exit is not None:
            self.on_exit(container_id)


def _seen(container_id: str, init: Process) -> Task:
    return Task(id=container_id, pid=init.pid, state=init.state, exit=init.exit)


class Records:
    """The records of a runtime."""

    def __init__(self, points: Points, runtime: Runtime) -> None:
        self._points = points
        self._runtime = runtime

    async def list(self) -> dict[str, Stored]:
        async with self._points.at("runtime.records.list", Unavailable):
            return {
                container_id: Stored(
                    id=container_id,
                    labels=record.labels,
                    extension=record.kept,
                    snapshotter=record.snapshotter,
                    snapshot_key=record.snapshot_key,
                    created_at=record.created_at,
                )
                for container_id, record in self._runtime.containers.items()
            }


class Processes:
    """Processes exec'd into the tasks of a `Runtime`."""

    def __init__(self, points: Points, runtime: Runtime) -> None:
        self._points = points
        self._runtime = runtime

    async def add(
        self,
        container_id: str,
        exec_id: str,
        process: Mapping[str, Any],
        *,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        terminal: bool = False,
    ) -> None:
        async with self._points.at("processes.add", NotReady, Unavailable):
            task = self._runtime.task(container_id)
            if task.init.state not in (TaskState.CREATED, TaskState.RUNNING):
                raise NotReady(f"exec in {container_id}: cannot exec in a {task.init.state.value} state")
            if exec_id in task.execs:
                raise AlreadyExists(f"exec in {container_id}: id {exec_id}: already exists")
            streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
            task.execs[exec_id] = self._runtime.process(process["args"], streams, init=False, terminal=terminal)

    async def start(self, container_id: str, exec_id: str) -> int:
        async with self._points.at("processes.start", NotReady, Unavailable, TimedOut):
            process = self._process(container_id, exec_id)
            if process.state is not TaskState.CREATED:
                raise NotReady(f"exec in {container_id}: cannot start a {process.state.value} process")
            try:
                process.open()
            except OSError as exc:
                raise NotReady(f"exec in {container_id}: {exc}") from exc
            if process.program.missing:
                process.end(NOT_EXECUTED)
                raise NotReady(f"exec in {container_id}: OCI runtime exec failed: no such file or directory")
            process.start()
            return process.pid

    async def kill(self, container_id: str, exec_id: str, signal: int) -> None:
        async with self._points.at("processes.kill", Unavailable, TimedOut):
            try:
                process = self._process(container_id, exec_id)
            except NotFound:
                return
            if process.state is TaskState.CREATED:
                raise NotReady(f"signal {signal} to a process of {container_id}: process not created")
            process.signal(signal)

    async def wait(self, container_id: str, exec_id: str) -> Exit:
        async with self._points.at("processes.wait", Unavailable):
            process = self._process(container_id, exec_id)
            await process.ended.wait()
            assert process.exit is not None
            return process.exit

    async def delete(self, container_id: str, exec_id: str) -> None:
        async with self._points.at("processes.delete", SandboxdError, Unavailable, TimedOut):
            try:
                process = self._process(container_id, exec_id)
            except NotFound:
                return
            if process.state is TaskState.RUNNING:
                raise SandboxdError(f"removing a process of {container_id}: cannot delete a running process")
            process.end(0)
            del self._runtime.task(container_id).execs[exec_id]

    async def resize(self, container_id: str, exec_id: str, *, width: int, height: int) -> None:
        async with self._points.at("processes.resize", Unavailable):
            pass

    async def close_stdin(self, container_id: str, exec_id: str) -> None:
        async with self._points.at("processes.close_stdin", Unavailable):
            try:
                self._process(container_id, exec_id).close_stdin()
            except NotFound:
                pass

    async def pid(self, container_id: str, exec_id: str) -> int:
        async with self._points.at("processes.pid", Unavailable):
            try:
                process = self._process(container_id, exec_id)
            except NotFound:
                return 0
            return process.pid if process.state in (TaskState.RUNNING, TaskState.PAUSED) else 0

    async def pids(self, container_id: str) -> frozenset[int]:
        async with self._points.at("processes.pids", Unavailable):
            execs = self._runtime.task(container_id).execs.values()
            return frozenset(each.pid for each in execs if each.state in (TaskState.RUNNING, TaskState.PAUSED))

    def _process(self, container_id: str, exec_id: str) -> Process:
        task = self._runtime.task(container_id)
        if not exec_id:
            return task.init
        if exec_id not in task.execs:
            raise NotFound(f"process does not exist {exec_id}: not found")
        return task.execs[exec_id]

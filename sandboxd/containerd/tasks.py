"""Containers and tasks: the records, and the processes that run.

In containerd a container is a record (spec, runtime, snapshot) and a task is its running process tree, kept by a
shim. A task's exit is seen by `wait`, `get` or the event stream, and its resources are freed by `delete`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf import any_pb2, field_mask_pb2

from sandboxd.containerd.client import Containerd, translate
from sandboxd.containerd.records import EXTENSION, extension, nanoseconds
from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import NotFound, NotReady, SandboxdError, TimedOut, Unclassified
from sandboxd.pb.containerd.runc.options import oci_pb2 as runc_options
from sandboxd.pb.containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from sandboxd.pb.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from sandboxd.pb.containerd.types import mount_pb2
from sandboxd.pb.containerd.types.task import task_pb2

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
RESOURCES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
RUNC_OPTIONS_TYPE = "containerd.runc.v1.Options"
RUNC_CHECKPOINT_TYPE = "containerd.runc.v1.CheckpointOptions"

CALL_SECONDS = 30.0  # bookkeeping calls
RUNTIME_SECONDS = 120.0  # calls that execute the OCI runtime; generous, a loaded disk can be very slow


class TaskState(enum.Enum):
    """The state of a task."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


_STATES = {
    task_pb2.Status.CREATED: TaskState.CREATED,
    task_pb2.Status.RUNNING: TaskState.RUNNING,
    task_pb2.Status.PAUSED: TaskState.PAUSED,
    task_pb2.Status.PAUSING: TaskState.RUNNING,
    task_pb2.Status.STOPPED: TaskState.STOPPED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a task ended."""

    code: int  # 128 + signal when a signal ended it
    at: int  # unix nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task as containerd sees it now."""

    id: str
    pid: int
    state: TaskState
    exit: Exit | None  # when stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """How the shim runs a container."""

    type: str  # the shim, "io.containerd.runc.v2"
    binary: str = ""  # OCI runtime, "" is the shim's default
    systemd_cgroup: bool = False
    root: str = ""  # of the OCI runtime's state, "" is the shim's default
    io_uid: int = 0  # owner of the container's streams
    io_gid: int = 0


class Tasks:
    """containerd's container and task services."""

    def __init__(self, client: Containerd) -> None:
        self._meta = client.metadata
        self._owned = client.owned
        self._freed: set[str] = set()  # ids whose task was deleted here, so that there is nothing to ask about it
        self._unsure: set[str] = set()  # those for which one may still be created: nobody said what became of that
        self._containers = containers_pb2_grpc.ContainersStub(client.channel)
        self._tasks = tasks_pb2_grpc.TasksStub(client.channel)

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
        """Store the container's record, marked as ours; raises AlreadyExists when the id is taken.

        containerd keeps the bytes `keep` with it, for `Records.list` to return.
        """
        options = runc_options.Options(
            binary_name=runtime.binary,
            systemd_cgroup=runtime.systemd_cgroup,
            root=runtime.root,
            io_uid=runtime.io_uid,
            io_gid=runtime.io_gid,
        )
        container = containers_pb2.Container(
            id=container_id,
            labels={**labels, **self._owned},
            image=image,
            runtime=containers_pb2.Container.Runtime(
                name=runtime.type,
                options=any_pb2.Any(type_url=RUNC_OPTIONS_TYPE, value=options.SerializeToString()),
            ),
            spec=any_pb2.Any(type_url=SPEC_TYPE, value=json.dumps(spec).encode()),
            snapshotter=snapshotter,
            snapshot_key=snapshot_key,
            extensions=extension(keep),
        )
        with translate(f"container record {container_id}"):
            await self._containers.Create(
                containers_pb2.CreateContainerRequest(container=container),
                metadata=self._meta,
                timeout=CALL_SECONDS,
            )

    async def spec(self, container_id: str) -> dict[str, Any]:
        """The stored OCI runtime spec."""
        with translate(f"container record {container_id}"):
            answer = await self._containers.Get(
                containers_pb2.GetContainerRequest(id=container_id), metadata=self._meta, timeout=CALL_SECONDS
            )
        parsed: dict[str, Any] = json.loads(answer.container.spec.value)
        return parsed

    async def set_spec(
        self,
        container_id: str,
        spec: Mapping[str, Any],
        *,
        keep: bytes = b"",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Replace the stored OCI runtime spec, with `keep` also the bytes that are kept with it, and these labels.

        Other labels stay. A running task is not affected. Raises NotFound.
        """
        container = containers_pb2.Container(
            id=container_id,
            spec=any_pb2.Any(type_url=SPEC_TYPE, value=json.dumps(spec).encode()),
            extensions=extension(keep),
            labels=labels,
        )
        changed = ["spec", *([f"extensions.{EXTENSION}"] if keep else ()), *(f"labels.{key}" for key in labels or ())]
        with translate(f"container record {container_id}"):
            await self._containers.Update(
                containers_pb2.UpdateContainerRequest(
                    container=container, update_mask=field_mask_pb2.FieldMask(paths=changed)
                ),
                metadata=self._meta,
                timeout=CALL_SECONDS,
            )

    async def update(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Change the limits of a running task to these `linux.resources`.

        Raises NotFound when there is no task, NotReady with the runtime's words when it refuses.
        """
        request = tasks_pb2.UpdateTaskRequest(
            container_id=container_id,
            resources=any_pb2.Any(type_url=RESOURCES_TYPE, value=json.dumps(resources).encode()),
        )
        with runtime_words(), translate(f"resources of {container_id}"):
            await self._tasks.Update(request, metadata=self._meta, timeout=RUNTIME_SECONDS)

    async def delete_container(self, container_id: str) -> None:
        """Remove the container's record. Idempotent."""
        self._freed.discard(container_id)
        self._unsure.discard(container_id)
        try:
            with translate(f"container record {container_id}"):
                await self._containers.Delete(
                    containers_pb2.DeleteContainerRequest(id=container_id),
                    metadata=self._meta,
                    timeout=CALL_SECONDS,
                )
        except NotFound:
            pass

    async def create(
        self, container_id: str, rootfs: Sequence[Mount], *, stdout: str = "", stderr: str = "", stdin: str = "",
        terminal: bool = False,
    ) -> int:  # fmt: skip
        """Start the shim and have the OCI runtime create the container; return the init process's pid.

        Empty stream paths discard. Raises NotReady with the runtime's words when it refuses.
        """
        request = tasks_pb2.CreateTaskRequest(
            container_id=container_id,
            rootfs=[
                mount_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in rootfs
            ],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=terminal,
        )
        self._freed.discard(container_id)
        self._unsure.add(container_id)
        with runtime_words(), translate(f"task of {container_id}"):
            answer = await self._tasks.Create(request, metadata=self._meta, timeout=RUNTIME_SECONDS)
        self._unsure.discard(container_id)
        return int(answer.pid)

    async def start(self, container_id: str) -> int:
        """Start a created task; return its pid. Raises NotReady with the runtime's words when it refuses."""
        with runtime_words(), translate(f"task of {container_id}"):
            answer = await self._tasks.Start(
                tasks_pb2.StartRequest(container_id=container_id), metadata=self._meta, timeout=RUNTIME_SECONDS
            )
        return int(answer.pid)

    async def kill(self, container_id: str, signal: int) -> None:
        """Signal the task's init process; no error if it has ended or is gone."""
        if container_id in self._freed:
            return
        try:
            with translate(f"signal {signal} to the task of {container_id}"):
                await self._tasks.Kill(
                    tasks_pb2.KillRequest(container_id=container_id, signal=signal),
                    metadata=self._meta,
                    timeout=CALL_SECONDS,
                )
        except NotFound:
            pass
        except SandboxdError:
            if await self._running(container_id):
                raise

    async def wait(self, container_id: str, timeout: float | None = None) -> Exit:
        """Wait for the task to end; raises NotFound when there is none, TimedOut after `timeout` seconds."""
        self._demand_task(container_id)
        try:
            with translate(f"waiting for the task of {container_id}"):
                answer = await self._tasks.Wait(
                    tasks_pb2.WaitRequest(container_id=container_id), metadata=self._meta, timeout=timeout
                )
        except (NotFound, TimedOut):
            raise
        except SandboxdError:
            task = await self.get(container_id)
            if task.exit is None:
                raise
            return task.exit
        return Exit(code=answer.exit_status, at=nanoseconds(answer.exited_at))

    async def pause(self, container_id: str) -> None:
        """Freeze all processes of a running task; raises NotFound, NotReady with the runtime's words."""
        with runtime_words(), translate(f"pausing the task of {container_id}"):
            await self._tasks.Pause(
                tasks_pb2.PauseTaskRequest(container_id=container_id), metadata=self._meta, timeout=RUNTIME_SECONDS
            )

    async def resume(self, container_id: str) -> None:
        """Resume a paused task; no error if it is not paused or is gone."""
        try:
            if (await self.get(container_id)).state is not TaskState.PAUSED:
                return
            with runtime_words(), translate(f"resuming the task of {container_id}"):
                await self._tasks.Resume(
                    tasks_pb2.ResumeTaskRequest(container_id=container_id),
                    metadata=self._meta,
                    timeout=RUNTIME_SECONDS,
                )
        except NotFound:
            pass
        except SandboxdError:
            if await self._running(container_id):
                raise

    async def checkpoint(
        self, container_id: str, *, image_path: str, work_path: str, terminal: bool, timeout: float
    ) -> None:
        """Have CRIU write the task's memory and state to `image_path`, its log to `work_path`; the task runs on.

        Both directories must exist. containerd itself stores nothing. Raises NotFound, NotReady with the runtime's
        words, TimedOut after `timeout` seconds.
        """
        options = runc_options.CheckpointOptions(
            open_tcp=True,
            external_unix_sockets=True,
            terminal=terminal,
            file_locks=True,
            image_path=image_path,
            work_path=work_path,
        )
        request = tasks_pb2.CheckpointTaskRequest(
            container_id=container_id,
            options=any_pb2.Any(type_url=RUNC_CHECKPOINT_TYPE, value=options.SerializeToString()),
        )
        with runtime_words(), translate(f"checkpoint of {container_id}"):
            await self._tasks.Checkpoint(request, metadata=self._meta, timeout=timeout)

    async def delete(self, container_id: str) -> Exit | None:
        """Free a stopped task's resources, the shim included if it was the last; None if it was already gone."""
        if container_id in self._freed:
            return None
        ended = await self._deleted(container_id)
        if ended is not None and container_id not in self._unsure:
            self._freed.add(container_id)
        return ended

    async def _deleted(self, container_id: str) -> Exit | None:
        try:
            with translate(f"removing the task of {container_id}"):
                answer = await self._tasks.Delete(
                    tasks_pb2.DeleteTaskRequest(container_id=container_id),
                    metadata=self._meta,
                    timeout=RUNTIME_SECONDS,
                )
        except NotFound:
            return None
        except SandboxdError:
            if await self._known(container_id):
                raise
            return None
        return Exit(code=answer.exit_status, at=nanoseconds(answer.exited_at))

    # A shim that exits by itself closes its connection in the middle of any call ("ttrpc: closed"). The state of the
    # task is then looked up: that counts, not how the call ended.

    async def _known(self, container_id: str) -> bool:
        try:
            await self.get(container_id)
        except NotFound:
            return False
        except SandboxdError:
            return True  # as far as we can tell
        return True

    async def _running(self, container_id: str) -> bool:
        try:
            return (await self.get(container_id)).exit is None
        except NotFound:
            return False
        except SandboxdError:
            return True

    async def get(self, container_id: str) -> Task:
        """The task now; raises NotFound when there is none."""
        self._demand_task(container_id)
        with translate(f"task of {container_id}"):
            answer = await self._tasks.Get(
                tasks_pb2.GetRequest(container_id=container_id), metadata=self._meta, timeout=CALL_SECONDS
            )
        return _task(answer.process)

    async def list(self) -> dict[str, Task]:
        """Every task in our namespace, by container id."""
        with translate("tasks"):
            answer = await self._tasks.List(tasks_pb2.ListTasksRequest(), metadata=self._meta, timeout=CALL_SECONDS)
        tasks = {process.id: _task(process) for process in answer.tasks}
        self._freed -= tasks.keys()  # somebody else has made it another one
        return tasks

    def _demand_task(self, container_id: str) -> None:
        if container_id in self._freed:
            raise NotFound(f"task of {container_id}: it was deleted")


@contextmanager
def runtime_words() -> Iterator[None]:
    """Errors that containerd has no kind for are, on these calls, the OCI runtime refusing."""
    try:
        yield
    except Unclassified as exc:
        raise NotReady(str(exc)) from exc.__cause__


def _task(process: task_pb2.Process) -> Task:
    state = _STATES.get(process.status, TaskState.UNKNOWN)
    # 1.6 names the container in `id` only when listing, in `container_id` only for exec'd processes.
    end = Exit(code=process.exit_status, at=nanoseconds(process.exited_at)) if state is TaskState.STOPPED else None
    return Task(id=process.id, pid=process.pid, state=state, exit=end)

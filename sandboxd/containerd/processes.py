"""Processes of a task: those exec'd into a running container, and the terminal and stdin of any.

A process is named by its container and an exec id; the id "" is the container's own init process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import any_pb2

from sandboxd.containerd.client import Containerd, translate
from sandboxd.containerd.records import nanoseconds
from sandboxd.containerd.tasks import CALL_SECONDS, RUNTIME_SECONDS, Exit, runtime_words
from sandboxd.errors import NotFound, SandboxdError
from sandboxd.pb.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc

PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"


class Processes:
    """The part of containerd's task service that handles single processes."""

    def __init__(self, client: Containerd) -> None:
        self._meta = client.metadata
        self._tasks = tasks_pb2_grpc.TasksStub(client.channel)

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
        """Add a process to the shim, to be started; paths are FIFOs, "" discards. Raises NotFound, NotReady."""
        request = tasks_pb2.ExecProcessRequest(
            container_id=container_id,
            exec_id=exec_id,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=terminal,
            spec=any_pb2.Any(type_url=PROCESS_TYPE, value=json.dumps(process).encode()),
        )
        with runtime_words(), translate(f"exec in {container_id}"):
            await self._tasks.Exec(request, metadata=self._meta, timeout=CALL_SECONDS)

    async def start(self, container_id: str, exec_id: str) -> int:
        """Start it; return its pid. Raises NotReady with the runtime's words when it cannot be executed."""
        request = tasks_pb2.StartRequest(container_id=container_id, exec_id=exec_id)
        with runtime_words(), translate(f"exec in {container_id}"):
            answer = await self._tasks.Start(request, metadata=self._meta, timeout=RUNTIME_SECONDS)
        return int(answer.pid)

    async def kill(self, container_id: str, exec_id: str, signal: int) -> None:
        """Signal it; no error if it has ended or is gone."""
        request = tasks_pb2.KillRequest(container_id=container_id, exec_id=exec_id, signal=signal)
        try:
            with translate(f"signal {signal} to a process of {container_id}"):
                await self._tasks.Kill(request, metadata=self._meta, timeout=CALL_SECONDS)
        except NotFound:
            pass

    async def wait(self, container_id: str, exec_id: str) -> Exit:
        """Wait for it to end, for as long as it takes; raises NotFound when there is none."""
        request = tasks_pb2.WaitRequest(container_id=container_id, exec_id=exec_id)
        with translate(f"waiting for a process of {container_id}"):
            answer = await self._tasks.Wait(request, metadata=self._meta)
        return Exit(code=answer.exit_status, at=nanoseconds(answer.exited_at))

    async def delete(self, container_id: str, exec_id: str) -> None:
        """Have the shim forget an ended process. Idempotent."""
        request = tasks_pb2.DeleteProcessRequest(container_id=container_id, exec_id=exec_id)
        try:
            with translate(f"removing a process of {container_id}"):
                await self._tasks.DeleteProcess(request, metadata=self._meta, timeout=CALL_SECONDS)
        except NotFound:
            pass

    async def resize(self, container_id: str, exec_id: str, *, width: int, height: int) -> None:
        """Set the size of its terminal in characters; no error if the process has ended."""
        request = tasks_pb2.ResizePtyRequest(container_id=container_id, exec_id=exec_id, width=width, height=height)
        try:
            with translate(f"terminal of {container_id}"):
                await self._tasks.ResizePty(request, metadata=self._meta, timeout=CALL_SECONDS)
        except SandboxdError:
            if await self._runs(container_id, exec_id):
                raise

    async def close_stdin(self, container_id: str, exec_id: str) -> None:
        """Close its stdin, whose FIFO the shim would otherwise hold open; no error if the process has ended."""
        request = tasks_pb2.CloseIORequest(container_id=container_id, exec_id=exec_id, stdin=True)
        try:
            with translate(f"stdin of {container_id}"):
                await self._tasks.CloseIO(request, metadata=self._meta, timeout=CALL_SECONDS)
        except SandboxdError:
            if await self._runs(container_id, exec_id):
                raise

    async def pid(self, container_id: str, exec_id: str) -> int:
        """Its pid; 0 when it has ended or does not exist. Raises Unavailable."""
        request = tasks_pb2.GetRequest(container_id=container_id, exec_id=exec_id)
        try:
            with translate(f"process of {container_id}"):
                answer = await self._tasks.Get(request, metadata=self._meta, timeout=CALL_SECONDS)
        except NotFound:
            return 0
        return 0 if answer.process.exited_at.seconds > 0 else int(answer.process.pid)

    async def pids(self, container_id: str) -> frozenset[int]:
        """The pids of all that the shim knows to be exec'd into a container, by whomever. Raises NotFound."""
        with translate(f"processes of {container_id}"):
            answer = await self._tasks.ListPids(
                tasks_pb2.ListPidsRequest(container_id=container_id), metadata=self._meta, timeout=CALL_SECONDS
            )
        # The details are an exec's id; what the container's first process has forked has none.
        return frozenset(each.pid for each in answer.processes if each.HasField("info"))

    async def _runs(self, container_id: str, exec_id: str) -> bool:
        try:
            return await self.pid(container_id, exec_id) > 0
        except SandboxdError:
            return False

"""ExecSync and Exec: further processes in a running container.

A process has FIFOs of its own for its streams, in a directory with its id. Its stdin reaches the shim through one
that we hold open for reading and writing, so opening it never blocks; the shim is told when stdin ends.
The caller that starts a process closes it: `close` kills it and its process group if it is still running, and removes
its files. The directory is removed last, so one that is not in use belongs to a process that an earlier daemon, or a
containerd that was down, left behind: see `end_leftovers`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import structlog

from sandboxd import disclosure, steps, trees
from sandboxd.containerd.tasks import Exit
from sandboxd.containers import runtime_reads
from sandboxd.containers.admission import Admission
from sandboxd.containers.output import Output
from sandboxd.containers.stdin import Stdin
from sandboxd.errors import InvalidRequest, NotFound, NotReady, SandboxdError, TimedOut, Unavailable
from sandboxd.jobs import in_pieces
from sandboxd.logs.client import fifo_paths, make_fifos
from sandboxd.model import ContainerRecord
from sandboxd.node import Node
from sandboxd.operations import running_container
from sandboxd.pb.cri.v1 import api_pb2 as cri

log = structlog.get_logger(__name__)

END_SECONDS = 30.0  # for a SIGKILL to show; longer means a process stuck in the kernel
DRAIN_SECONDS = 2.0  # how long a background child may hold the streams after the process itself has ended
READ_BYTES = 65536


class Process:
    """A process exec'd into a container, with its streams."""

    def __init__(self, node: Node, container: ContainerRecord, *, tty: bool) -> None:
        self._node = node
        self._container_id = container.id
        self._container_pid = container.pid
        self._sandbox_id = container.sandbox_id
        self._tty = tty
        self.id = secrets.token_hex(16)
        self._directory = f"{node.places.execs(container.id)}/{self.id}"
        self._stdin: Stdin | None = None
        self._readers: dict[str, asyncio.StreamReader] = {}
        self._pipes: list[asyncio.ReadTransport] = []
        self._end: Exit | None = None
        self._killed = False
        self._driven = AsyncExitStack()
        self._admission = Admission(node, container)

    async def admit(self, *, session: bool) -> None:
        """Wait until the pod takes another process; nothing is begun before. See `Admission.wait`."""
        await self._admission.wait(session=session)

    async def start(self, argv: Sequence[str], streams: Sequence[str], within: float | None = None) -> None:
        """Start it, once admitted, with these of stdin, stdout and stderr, `within` seconds if that is not None.

        Raises NotReady with the runtime's words, TimedOut; clean then.
        """
        with (
            steps.operation("Exec", sandbox_id=self._sandbox_id, container_id=self._container_id),
            steps.step("container.exec", command=disclosure.program(argv)) as step,
            disclosure.program_only(argv),
        ):
            await self._driven.enter_async_context(self._node.jobs.exclusive(_driven(self.id)))
            try:
                await asyncio.to_thread(runtime_reads.check_running, self._container_pid)
                spec = await self._node.runtime.spec(self._container_id)
                fifos = make_fifos(self._directory, needed(streams, tty=self._tty))
                await self._open(fifos, streams)
                await self._node.runtime.processes.add(
                    self._container_id,
                    self.id,
                    process_spec(spec["process"], argv, tty=self._tty),
                    stdin=fifos.get("stdin", ""),
                    stdout=fifos.get("stdout", ""),
                    stderr=fifos.get("stderr", ""),
                    terminal=self._tty,
                )
                step.note(pid=await self._started(argv, within))
                await self._admission.started()
                if self._killed:  # while it was being started, when there was nothing to kill
                    await self.kill()
            except BaseException as exc:
                await self.close(cut_off=isinstance(exc, Unavailable | TimedOut | asyncio.CancelledError))
                raise

    async def _started(self, argv: Sequence[str], within: float | None) -> int:
        """Have the runtime start it; its pid. A runtime that takes too long is ended."""
        try:
            async with asyncio.timeout(within):
                return await self._node.runtime.processes.start(self._container_id, self.id)
        except TimeoutError as exc:
            await asyncio.to_thread(_end_runtime, self.id)
            raise TimedOut(f"{disclosure.program(argv)} was not started within {within:g} s") from exc
        except TimedOut:
            await asyncio.to_thread(_end_runtime, self.id)
            raise

    async def _open(self, fifos: dict[str, str], wanted: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        for stream, path in fifos.items():
            if stream == "stdin":
                self._stdin = Stdin(path, os.O_RDWR)
                continue
            file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
            protocol = asyncio.Protocol()  # reads and discards
            if stream in wanted:
                self._readers[stream] = asyncio.StreamReader(limit=READ_BYTES)
                protocol = asyncio.StreamReaderProtocol(self._readers[stream])
            transport, _ = await loop.connect_read_pipe(functools.partial(_itself, protocol), file)
            self._pipes.append(transport)

    async def write_stdin(self, data: bytes) -> None:
        """Hand data to the process; returns when all of it is in its pipe."""
        assert self._stdin is not None, "stdin was not asked for"
        await self._stdin.write(data)

    async def close_stdin(self) -> None:
        """Let the process see the end of its stdin."""
        assert self._stdin is not None, "stdin was not asked for"
        self._stdin.close()
        await self._node.runtime.processes.close_stdin(self._container_id, self.id)

    def stdout(self) -> AsyncIterator[bytes]:
        """The output until its end."""
        return self._read("stdout")

    def stderr(self) -> AsyncIterator[bytes]:
        """The errors until their end."""
        return self._read("stderr")

    async def _read(self, stream: str) -> AsyncIterator[bytes]:
        reader = self._readers[stream]
        while data := await reader.read(READ_BYTES):
            yield data

    async def resize(self, *, width: int, height: int) -> None:
        """Set the terminal's size, in characters."""
        await self._node.runtime.processes.resize(self._container_id, self.id, width=width, height=height)

    async def wait(self) -> int:
        """The exit code, as soon as the process has ended; output may remain to be read then."""
        if self._end is None:
            self._end = await self._node.runtime.processes.wait(self._container_id, self.id)
        return self._end.code

    async def kill(self) -> None:
        """Kill the process, or the runtime that starts it, and wait until it has ended. Idempotent.

        One that is being started is killed once it runs.
        """
        self._killed = True
        await asyncio.to_thread(_end_runtime, self.id)
        await _kill(self._node, self._container_id, self.id)
        try:
            await self.wait()
        except NotFound:
            pass

    async def close(self, *, cut_off: bool = False) -> None:
        """Release everything; kill the process if it is still running, also one of a start that was cut off."""
        for pipe in self._pipes:
            pipe.close()
        if self._stdin is not None:
            self._stdin.close()
        try:
            await _end(self._node, self._container_id, self.id)
            if cut_off:
                await _end_unknown(self._node, self._container_id, self.id)
        except SandboxdError as exc:
            log.warning("a process could not be ended, retrying later", process=self.id, error=str(exc))
        else:
            await in_pieces(trees.remove(self._directory))
        finally:
            await self._driven.aclose()
            await self._admission.leave()


async def _end(node: Node, container_id: str, exec_id: str) -> None:
    """Kill a process if it is running, and remove it from the shim. Idempotent.

    Raises TimedOut when it does not end, Unavailable when containerd cannot be asked.
    """
    with _discarded(f"{node.places.execs(container_id)}/{exec_id}"):
        try:
            await node.runtime.processes.delete(container_id, exec_id)
            return  # it has ended, or was never started
        except SandboxdError:
            pass
        # It runs, or it is still being started, which may take for ever.
        await asyncio.to_thread(_end_runtime, exec_id)
        await _kill(node, container_id, exec_id)
        try:
            async with asyncio.timeout(END_SECONDS):
                await node.runtime.processes.wait(container_id, exec_id)
        except NotFound:
            return
        except TimeoutError as exc:
            raise TimedOut(f"process {exec_id} did not end {END_SECONDS:g} s after SIGKILL") from exc
        await node.runtime.processes.delete(container_id, exec_id)


def _end_runtime(exec_id: str) -> None:
    """SIGKILL the OCI runtime if it is still starting this process. Blocks: run it in a thread."""
    for pid in runtime_reads.starting(exec_id):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


async def _kill(node: Node, container_id: str, exec_id: str) -> None:
    """SIGKILL a process and the rest of its group. Idempotent.

    A shell without job control starts its children in its own group; killed alone, it would leave them running.
    """
    pid = await node.runtime.processes.pid(container_id, exec_id)
    if pid:
        _kill_group(pid, container_id)
    await node.runtime.processes.kill(container_id, exec_id, signal.SIGKILL)


def _kill_group(pid: int, container_id: str) -> None:
    try:
        # The pid may have been reused: the kernel says whether it is still in this container.
        # Groups 0 and 1 would be our own group and every process.
        if (
            pid > 1
            and container_id in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
            and os.getpgid(pid) == pid != os.getpgrp()
        ):
            os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass  # it has just ended


async def _end_unknown(node: Node, container_id: str, exec_id: str) -> None:
    """SIGKILL what runs in a container although its shim knows nothing of it.

    The shim ends the OCI runtime when its caller goes away, such as a containerd that dies or a request that takes
    too long, and takes the process for one that was never started. It may have begun to run by then. Raises NotReady
    while another is being started, which looks the same.

    In the machine's pid namespace a child of the shim may be anybody's orphan: there it stays until its container
    ends.
    """
    container = node.ledger.containers.get(container_id)
    if container is None or container.config.linux.security_context.namespace_options.pid == cri.NODE:
        return
    found = await asyncio.to_thread(runtime_reads.executed, container_id, container.pid)
    if not found:
        return
    for other in os.listdir(node.places.execs(container_id)):
        driven = other != exec_id and _driven(other) in node.jobs.held()
        if driven and not await node.runtime.processes.pid(container_id, other):
            raise NotReady(f"process {exec_id} of {container_id} is looked for once {other} has been started")
    try:
        known = await node.runtime.processes.pids(container_id)
    except NotFound:
        return  # the container has ended, and with it all that was in it
    for pid in set(found) - known:
        log.warning("ending a process whose start was cut off", container=container_id, process=exec_id, pid=pid)
        _kill_group(pid, container_id)


@contextmanager
def _discarded(directory: str) -> Iterator[None]:
    """Discard the process's output inside the block: the shim waits up to ten seconds until it is read."""
    loop = asyncio.get_running_loop()

    def discard(fd: int) -> None:
        try:
            if not os.read(fd, READ_BYTES):
                loop.remove_reader(fd)
        except BlockingIOError:
            pass

    fds = [os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) for path in fifo_paths(directory).values()]
    for fd in fds:
        loop.add_reader(fd, discard, fd)
    try:
        yield
    finally:
        for fd in fds:
            loop.remove_reader(fd)
            os.close(fd)


async def end_leftovers(node: Node, container_id: str) -> None:
    """Kill the processes in a container that are left behind. Raises SandboxdError at the first that cannot be."""
    directory = node.places.execs(container_id)
    for exec_id in os.listdir(directory) if os.path.isdir(directory) else ():
        if _driven(exec_id) not in node.jobs.held():
            log.info("ending a process that was left behind", container=container_id, process=exec_id)
            await _end(node, container_id, exec_id)
            await _end_unknown(node, container_id, exec_id)
            await in_pieces(trees.remove(f"{directory}/{exec_id}"))


def _driven(exec_id: str) -> str:
    """The key that is held while a client here drives a process."""
    return f"exec:{exec_id}"


def _itself(protocol: asyncio.Protocol) -> asyncio.Protocol:
    return protocol


def needed(streams: Sequence[str], *, tty: bool) -> tuple[str, ...]:
    """The streams to make for a client that wants these: the shim takes all outputs or none, as the program runs
    although it reports a failure. A terminal has one output."""
    outputs = ("stdout",) if tty else ("stdout", "stderr")
    return tuple(dict.fromkeys((*streams, *outputs))) if streams else ()


def process_spec(init: dict[str, Any], argv: Sequence[str], *, tty: bool) -> dict[str, Any]:
    """The container's own process with another command: user, environment, capabilities and limits are its own."""
    env = [entry for entry in init.get("env", []) if not entry.startswith("TERM=")]
    return {**init, "args": list(argv), "terminal": tty, "env": [*env, "TERM=xterm"] if tty else init.get("env", [])}


def check_command(argv: Sequence[str]) -> None:
    """Raises InvalidRequest when there is nothing to execute."""
    if not argv:
        raise InvalidRequest("cmd: there is no command")


class Pending:
    """A process that a client will drive and close: admitted, while the client may still leave, then started."""

    def __init__(
        self, node: Node, container_id: str, argv: Sequence[str], *, tty: bool, streams: Sequence[str]
    ) -> None:
        self._node = node
        self._container_id = container_id
        self._argv = argv
        self._tty = tty
        self._streams = streams
        self._process: Process | None = None

    async def admit(self) -> None:
        """Wait until it may be started, and have a place for it. Raises NotFound, NotReady, Exhausted."""
        process = Process(self._node, running_container(self._node, self._container_id), tty=self._tty)
        await process.admit(session=True)
        self._process = process

    async def start(self) -> Process:
        """Start it, once admitted."""
        assert self._process is not None, "not admitted"
        await self._process.start(self._argv, self._streams)
        return self._process


async def exec_sync(
    node: Node, container_id: str, argv: Sequence[str], timeout: int, output: Output | None = None
) -> tuple[bytes, bytes, int]:
    """Run a command to its end: (stdout, stderr, exit code). `timeout` is in seconds; 0 or less is none.

    It counts from when the process may be started. Who passes `output` says when it has been `sent`.

    Raises TimedOut when it takes longer, Exhausted when too many wait. However this ends, and also when the caller is
    cancelled, the process is gone afterwards.
    """
    check_command(argv)
    timeout = max(timeout, 0)
    process = Process(node, running_container(node, container_id), tty=False)
    await process.admit(session=False)
    kept = output if output is not None else Output(node)
    job = node.jobs.spawn(("ExecSync", process.id), lambda: _sync(node, process, argv, timeout, kept))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        # Only the client is gone. The job ends with its process, and cleans up as it always does.
        kept.sent()
        node.jobs.start(("ExecSync", process.id, "kill"), process.kill)
        raise
    finally:
        if output is None:
            kept.sent()


async def _sync(
    node: Node, process: Process, argv: Sequence[str], timeout: int, output: Output
) -> tuple[bytes, bytes, int]:
    began = time.monotonic()
    await process.start(argv, ("stdout", "stderr"), timeout or None)
    pouring = asyncio.gather(
        output.pour(process.stdout(), output.stdout), output.pour(process.stderr(), output.stderr)
    )
    try:
        try:
            async with asyncio.timeout(max(0.0, timeout - (time.monotonic() - began)) if timeout else None):
                code = await process.wait()
        except TimeoutError as exc:
            await process.kill()
            why = "; its output waited for that of others to be sent" if output.has_waited() else ""
            raise TimedOut(f"{disclosure.program(argv)} did not end within {timeout} s and was killed{why}") from exc
        await _rest(pouring, output)
        return *output.take(), code
    finally:
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
        output.collected()
        # A job: the shim takes seconds to forget a process whose child still holds the streams.
        node.jobs.start(("ExecSync", process.id, "close"), process.close)


async def _rest(pouring: asyncio.Future[Any], output: Output) -> None:
    """Wait for what the process wrote last; for as long as it takes if it is our room that it waits for."""
    while True:
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await asyncio.shield(pouring)
                return
        except TimeoutError:
            if not (output.has_waited() and output.wanted):
                return  # a child in the background holds the streams; what there is so far is the answer

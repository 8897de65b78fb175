"""One execution of one plugin: the only place of this package that starts a process.

It runs in a session of its own, with the given variables as its whole environment, bounded in time and in output. On
timeout and on cancellation its process group is killed: delegates such as an IPAM plugin are children of the plugin,
and would otherwise live on and hold the locks that the next pod waits for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import cast

from sandboxd.cni.result import OUTPUT_LIMIT
from sandboxd.errors import NotReady
from sandboxd.steps import PluginExecution

LINGER_SECONDS = 1.0  # for the rest of the output of a plugin that has exited
REAP_SECONDS = 5.0  # for a killed plugin to exit
BUSY_RETRIES = 5
BUSY_SECONDS = 0.1  # between two retries


async def run(
    binary: str,
    env: Mapping[str, str],
    stdin: bytes,
    timeout: float,
    cut_off: Callable[[PluginExecution], object] = lambda execution: None,
    *,
    arguments: Sequence[str] = (),
) -> PluginExecution:
    """Run one plugin until it exits, for at most `timeout` seconds; never raises for how it ended.

    Plugins take no arguments; iptables does. `cut_off` gets the execution when it is cancelled. Raises NotReady when
    it cannot be started at all.
    """
    began = time.perf_counter_ns()
    transport, output = await _spawn(binary, env, arguments)
    timed_out, ours = False, False

    def execution() -> PluginExecution:
        code = transport.get_returncode()
        return PluginExecution(
            command=env.get("CNI_COMMAND", ""),
            binary=binary,
            env=dict(env),
            stdin=stdin,
            stdout=bytes(output.kept[1]),
            stderr=bytes(output.kept[2]),
            exit_code=-signal.SIGKILL if code is None else code,
            duration=time.perf_counter_ns() - began,
            timed_out=timed_out,
            ended_by="sandboxd" if ours else "other" if code is not None and code < 0 else "",
        )

    try:
        feed = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
        feed.write(stdin)
        feed.write_eof()
        try:
            async with asyncio.timeout(timeout):
                await output.exited.wait()
        except TimeoutError:
            timed_out, ours = True, _kill(transport)
        with suppress(TimeoutError):
            async with asyncio.timeout(REAP_SECONDS if timed_out else LINGER_SECONDS):
                await output.exited.wait()
                await output.ended.wait()
    except BaseException:
        ours = _kill(transport) or ours
        with suppress(TimeoutError):
            async with asyncio.timeout(REAP_SECONDS):
                await output.exited.wait()
        cut_off(execution())
        raise
    finally:
        # Stops reading from a child that the plugin left behind. The process itself is reaped by the loop.
        transport.close()
    return execution()


class _Output(asyncio.SubprocessProtocol):
    """Keeps the first bytes of stdout and stderr, and signals when the process and its output have ended."""

    def __init__(self) -> None:
        self.kept = {1: bytearray(), 2: bytearray()}
        self.exited = asyncio.Event()
        self.ended = asyncio.Event()
        self._open = {1, 2}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        # The rest is read and dropped: a plugin that talks too much must not block on a full pipe.
        self.kept[fd] += data[: OUTPUT_LIMIT - len(self.kept[fd])]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.ended.set()

    def process_exited(self) -> None:
        self.exited.set()


async def _spawn(
    binary: str, env: Mapping[str, str], arguments: Sequence[str]
) -> tuple[asyncio.SubprocessTransport, _Output]:
    loop = asyncio.get_running_loop()
    for attempt in range(BUSY_RETRIES + 1):
        try:
            return await loop.subprocess_exec(_Output, binary, *arguments, env=env, cwd="/", start_new_session=True)
        except OSError as exc:
            # An installer is still writing the binary and will be done in a moment.
            if exc.errno == errno.ETXTBSY and attempt < BUSY_RETRIES:
                await asyncio.sleep(BUSY_SECONDS)
                continue
            words = exc.strerror or str(exc)
            if exc.errno == errno.ENOENT and os.path.exists(binary):
                words = "the interpreter or loader that it names is not there; install it again"
            raise NotReady(f"CNI plugin {binary} cannot be executed: {words}") from exc
    raise AssertionError("the last attempt returns or raises")


def kill_group(group: int) -> None:
    """Kill every process of a process group, if there is one; the caller knows that it is a plugin's."""
    if group <= 1:
        raise ValueError(f"{group} is no process group of a plugin")
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _kill(transport: asyncio.SubprocessTransport) -> bool:
    """Kill the plugin's process group, unless the plugin was reaped: its pid may have been reused by then.

    The answer says whether it was there to be killed.
    """
    if transport.get_returncode() is not None:
        return False
    kill_group(transport.get_pid())
    return True

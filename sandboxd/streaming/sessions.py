"""The interface of a streaming session; implemented by `pods` and `containers`, driven by `stdio` and `forwarding`.

A request belongs to a token: nothing has been started yet. `open` starts the session once the client has opened all
its streams, and runs as a job: if the client disconnects before it returns, the new session is closed at once.
`open` and every method may raise any SandboxdError; its message is sent to the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from sandboxd.streaming.remotecommand import Streams


class Stdio(Protocol):
    """The standard streams of a process. Methods of streams that were not requested are never called."""

    async def write_stdin(self, data: bytes) -> None:
        """Write data to the process; returns when there is room for more.

        Raises OSError or SandboxdError when the process no longer reads.
        """
        ...

    async def close_stdin(self) -> None:
        """End the input: the client has sent everything, or disconnected. Idempotent.

        For attach this ends the container's stdin only with stdin_once.
        """
        ...

    def stdout(self) -> AsyncIterator[bytes]:
        """The output until its end (with a terminal, all of it), not read ahead: a slow reader blocks the process."""
        ...

    def stderr(self) -> AsyncIterator[bytes]:
        """The same for the error output; called only without a terminal."""
        ...

    async def resize(self, *, width: int, height: int) -> None:
        """Set the terminal's size in characters; called only with a terminal, perhaps after the process has ended."""
        ...

    async def close(self) -> None:
        """Release all resources, and end an exec'd process that still runs. Called exactly once in any case."""
        ...


class ExecSession(Stdio, Protocol):
    """A process that was started for this client."""

    async def wait(self) -> int:
        """The exit code, as soon as the process has ended; unread output may remain."""
        ...


class AttachSession(Stdio, Protocol):
    """The container's own process, which continues after the client disconnects."""

    async def wait(self) -> None:
        """Return when the container has ended."""
        ...


class PortForward(Protocol):
    """Connections into one pod."""

    async def open(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a port on the pod's localhost. Raises SandboxdError or OSError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    """`subject` names the container in log lines and errors; `private` are texts that must not appear in any.

    `admit` returns once the process may be started; until then nothing is begun, and the client may leave.
    """

    subject: str
    streams: Streams
    admit: Callable[[], Coroutine[Any, Any, None]]
    open: Callable[[], Coroutine[Any, Any, ExecSession]]
    private: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """`subject` names the container in log lines and errors."""

    subject: str
    streams: Streams
    open: Callable[[], Coroutine[Any, Any, AttachSession]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PortForwardRequest:
    """`subject` names the pod. `ports` are the CRI request's; only WebSocket channels need them."""

    subject: str
    ports: tuple[int, ...]
    target: PortForward


Request = ExecRequest | AttachRequest | PortForwardRequest

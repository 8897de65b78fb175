"""What a streaming session must offer; implemented by `pods` and `containers`, driven by `stdio` and `forwarding`.

A request is what a token stands for: nothing has been started yet. `open` starts it when the client has come with
all its streams, and runs as a job: a client that leaves meanwhile does not interrupt it, the session is closed as
soon as it is there. `open` and every method may raise any SandboxdError; its sentence reaches the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from sandboxd.streaming.remotecommand import Streams


class Stdio(Protocol):
    """The standard streams of a process. Methods of streams that were not asked for are never called."""

    async def write_stdin(self, data: bytes) -> None:
        """Hand data to the process; returns when there is room for more.

        Raises OSError or SandboxdError when the process will read no more.
        """
        ...

    async def close_stdin(self) -> None:
        """The client has sent everything, or left. For attach this ends the container's stdin only with stdin_once.

        May be called again.
        """
        ...

    def stdout(self) -> AsyncIterator[bytes]:
        """The output until its end, not read ahead: what is not taken blocks the process. With a terminal, all."""
        ...

    def stderr(self) -> AsyncIterator[bytes]:
        """The same for errors; without a terminal only."""
        ...

    async def resize(self, *, width: int, height: int) -> None:
        """Set the terminal's size, in characters. Called with a terminal only, possibly after the process ended."""
        ...

    async def close(self) -> None:
        """Let go of everything. Called exactly once, whatever happened. Ends an exec'd process that still runs."""
        ...


class ExecSession(Stdio, Protocol):
    """A process that was started for this client."""

    async def wait(self) -> int:
        """The exit code, as soon as the process has ended; output may remain to be read then."""
        ...


class AttachSession(Stdio, Protocol):
    """The container's own process, which goes on when the client leaves."""

    async def wait(self) -> None:
        """Returns when the container has ended."""
        ...


class PortForward(Protocol):
    """Connections into one pod."""

    async def open(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a port on the pod's localhost. Raises SandboxdError or OSError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    """`subject` names the container in log lines and errors; `private` are texts that must not be in any."""

    subject: str
    streams: Streams
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

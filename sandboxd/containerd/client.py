"""The connection to containerd: one channel, the namespace header, and the translation of its errors.

gRPC reconnects a lost channel by itself; while it does, calls fail with Unavailable rather than wait (rule 7 of
the design: reads never wait). `wait_until_serving` is for callers that can wait.

A containerd that is stopped, or stuck, keeps its connection and answers nothing. Each call to it would run into its
own limit, and a request makes many. `look` notices; from then on calls fail at once, so that a request waits for one
limit in all: that of the call that was under way.
"""

from __future__ import annotations

import asyncio
import os
import socket as sockets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import grpc
import grpc.aio
import structlog
from google.protobuf import empty_pb2

from sandboxd import errors, spans, steps
from sandboxd.containerd import calls
from sandboxd.pb.containerd.services.version.v1 import version_pb2_grpc

log = structlog.get_logger(__name__)

# containerd's own limit for a message in either direction.
MESSAGE_BYTES = 16 << 20
OWNER_LABEL = "sandboxd.io/owner"
_SO_SNDBUFFORCE = 32  # socket(7); asm-generic/socket.h

_MEANING: dict[grpc.StatusCode, type[errors.SandboxdError]] = {
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: errors.NotReady,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Exhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.TimedOut,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """The version that containerd reports."""

    version: str
    revision: str


@contextmanager
def translate(what: str) -> Iterator[None]:
    """Turn containerd's errors into ours: `what` says what failed, containerd's words follow."""
    try:
        yield
    except grpc.aio.AioRpcError as exc:
        kind = _MEANING.get(exc.code(), errors.Unclassified)
        details = exc.details() or exc.code().name
        if kind is errors.Unclassified and _is_our_deadline(exc.code(), details):
            kind = errors.TimedOut
        if kind is errors.Unavailable:
            details = f"containerd does not answer ({details})"
        raise kind(f"{what}: {details}") from exc
    except grpc.aio.UsageError as exc:
        # A shutdown closes the channel before interrupted work has cleaned up; the next start finishes that.
        raise errors.Unavailable(f"{what}: {exc}") from exc


def _is_our_deadline(code: grpc.StatusCode, details: str) -> bool:
    """Whether our own deadline ran out on the other side before it did here.

    Either in the shim, which says so in words, or in containerd, whose gRPC server then resets the stream. Nothing
    else there does (a call that is cancelled here never gets an answer).
    """
    return "context deadline exceeded" in details or (code is grpc.StatusCode.CANCELLED and "RST_STREAM" in details)


class Containerd:
    """A channel to one containerd, in one of its namespaces."""

    def __init__(self, socket: str, namespace: str, owner: str = "") -> None:
        """`owner` marks the leases and drafts that are made over this channel, for a later daemon to know its own."""
        self.socket = socket
        self.owner = owner
        self.in_use: set[str] = set()  # leases and drafts that work under way here needs
        self.tidying = asyncio.Lock()  # held while what a containerd that died left half made is removed
        self.namespace = namespace
        self.metadata = (("containerd-namespace", namespace),)
        self.absence = ""  # why there is nobody to connect to, where that is known
        self._silent = False
        self._channel = grpc.aio.insecure_channel(
            f"unix://{socket}",
            options=(
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.max_send_message_length", MESSAGE_BYTES),
                # A restarted containerd should be found at once, not after gRPC's default of up to two minutes.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                # The socket is a file: a proxy in the environment does not apply.
                ("grpc.enable_http_proxy", 0),
                ("grpc.default_authority", "localhost"),
            ),
        )
        self.channel: grpc.aio.Channel = cast("grpc.aio.Channel", _Guarded(self._channel, self._demand_answers))

    @property
    def owned(self) -> dict[str, str]:
        """The labels of what is ours and has neither a pod's nor a container's id."""
        return {OWNER_LABEL: self.owner} if self.owner else {}

    def owns(self, labels: Mapping[str, str]) -> bool:
        """Whether something with these labels can be ours: a daemon of an earlier version marked nothing."""
        return labels.get(OWNER_LABEL, self.owner) == self.owner

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    def trouble(self) -> str:
        """What is known to be wrong with the connection, "" when nothing is. Makes no call."""
        state = self._channel.get_state()
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            return f"containerd at {self.socket} does not answer" + (f": {self.absence}" if self.absence else "")
        if self._silent:
            return f"containerd at {self.socket} is connected and has stopped answering"
        return ""

    async def look(self, timeout: float) -> bool:
        """Ask whether containerd answers, and remember it; whether it does again, after it did not.

        The answer may take `timeout` seconds. That nothing is connected is known without asking.
        """
        before = self._silent
        try:
            await self.version(timeout)
        except errors.TimedOut as exc:
            self._silent = True
            if not before:
                log.warning("containerd has stopped answering, calls to it fail until it does again", error=str(exc))
        except errors.SandboxdError:
            self._silent = False  # it is gone, which the channel knows
        else:
            return before
        return False

    def _demand_answers(self) -> None:
        if self._silent:
            raise errors.Unavailable(self.trouble())

    def widen(self, count: int) -> None:
        """Give the connection room for messages of `count` bytes, if possible.

        The system's default of about 200 KiB makes both sides wake up ten times for 2 MiB. gRPC has no
        option for it, so we look for the socket among our own. A new connection has to be widened again.
        """
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError), _duplicate(int(name)) as connection:
                if connection.family == sockets.AF_UNIX and connection.getpeername() == self.socket:
                    # The first is capped by the system's limit; the second, with CAP_NET_ADMIN, is not.
                    for option in (sockets.SO_SNDBUF, _SO_SNDBUFFORCE):
                        connection.setsockopt(sockets.SOL_SOCKET, option, count)

    async def version(self, timeout: float = 5.0) -> Version:
        """Ask for the version; raises Unavailable when containerd does not answer in `timeout` seconds."""
        with translate(f"containerd at {self.socket}"):
            stub = version_pb2_grpc.VersionStub(self._channel)
            answer = await stub.Version(empty_pb2.Empty(), timeout=timeout)
        self._silent = False
        return Version(version=answer.version, revision=answer.revision)

    async def wait_until_serving(self, timeout: float | None) -> Version:
        """Wait for containerd to answer; raises Unavailable after `timeout` seconds, None is for ever."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        return await self.version()
                    except (errors.Unavailable, errors.TimedOut):
                        await self._state_change()
        except TimeoutError as exc:
            raise errors.Unavailable(f"containerd at {self.socket} did not answer within {timeout:g} s") from exc

    async def _state_change(self) -> None:
        """Return when the channel leaves the failed state it is in."""
        state = self._channel.get_state(try_to_connect=True)
        if state is not grpc.ChannelConnectivity.READY:
            await self._channel.wait_for_state_change(state)
        else:
            # Connected, but the service is not registered yet: give containerd a moment.
            await asyncio.sleep(0.05)


@contextmanager
def noted(what: str, about: str, size: int = -1) -> Iterator[None]:
    """Note a call that changes something, and how it ends, on the step that makes it (`steps.act`)."""
    started_at, began = time.time_ns(), time.perf_counter_ns()
    outcome = ""
    try:
        yield
    except grpc.aio.AioRpcError as exc:
        outcome = exc.code().name
        raise
    except errors.SandboxdError as exc:
        outcome = next((code.name for code, kind in _MEANING.items() if isinstance(exc, kind)), "UNKNOWN")
        raise
    except BaseException as exc:
        outcome = "CANCELLED" if isinstance(exc, asyncio.CancelledError) else "UNKNOWN"
        raise
    finally:
        duration = time.perf_counter_ns() - began
        steps.act(what, about, started_at=started_at, duration=duration, outcome=outcome, size=size)


class _Guarded:
    """A channel on which no call is begun while `demand` raises.

    A call is told in which span it is made; one that changes something is noted.
    """

    def __init__(self, channel: grpc.aio.Channel, demand: Callable[[], None]) -> None:
        self._channel = channel
        self._demand = demand

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        guarded = self._guarded(self._channel.unary_unary(method, *args, **kwargs))
        what = calls.name(method)
        if (about := calls.CHANGING.get(what)) is None:
            return guarded

        def call(request: Any, *args: Any, **kwargs: Any) -> Any:
            return _noted(what, about(request), guarded(request, *args, **kwargs))

        return call

    def unary_stream(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return self._guarded(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return self._guarded(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return self._guarded(self._channel.stream_stream(*args, **kwargs))

    def _guarded(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._demand()
            if span := spans.current():
                kwargs["metadata"] = (*(kwargs.get("metadata") or ()), *span.headers)
            return begin(*args, **kwargs)

        return call


async def _noted(what: str, about: str, call: Awaitable[Any]) -> Any:
    with noted(what, about):
        return await call


@contextmanager
def _duplicate(number: int) -> Iterator[sockets.socket]:
    """A socket of ours under another number, since this one can be closed and reused any moment. Raises OSError."""
    copy = os.dup(number)
    try:
        duplicate = sockets.socket(fileno=copy)
    except OSError:  # it is not a socket
        os.close(copy)
        raise
    with duplicate:
        yield duplicate

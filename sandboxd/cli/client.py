"""The connection to the daemon, and the meaning of a failed call for the user.

A call that fails raises Failure: a message with the daemon's own words and, where one is known, a next step, and
an exit code. Commands do not look at gRPC codes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import socket
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import TypeVar

import click
import grpc

from sandboxd.cli.render import printable
from sandboxd.pb.cri.v1 import api_pb2_grpc as cri_grpc
from sandboxd.pb.host.v1 import host_pb2_grpc as host_grpc

Req = TypeVar("Req")
Resp = TypeVar("Resp")

_IN_FLIGHT = 64  # concurrent calls: a long list must not overload the daemon
_CONNECT_TIMEOUT = 5.0  # seconds; connecting is only slow when the accept queue is full
_MAX_MESSAGE = 16 * 1024 * 1024  # bytes, as kubelet and crictl allow
_GO_NOISE = re.compile(r"rpc error: code = \w+ desc = ")


class Exit(IntEnum):
    """The exit statuses of sandboxctl."""

    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


class Failure(Exception):
    """The command failed. `code` is the gRPC status if a call failed."""

    def __init__(
        self, message: str, *, exit_code: int = Exit.FAILED, hint: str = "", code: grpc.StatusCode | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.hint = hint
        self.code = code

    def show(self) -> None:
        """Print the message to stderr, and the next step on its own line."""
        click.echo(f"sandboxctl: {printable(self.message)}", err=True)
        if self.hint:
            click.echo(f"  {printable(self.hint)}", err=True)


class Daemon:
    """The daemon at a unix socket. Connects at the first call; one call may take `timeout` seconds."""

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        """Close the connection and cancel calls in flight; operations that they started in the daemon go on."""
        self._stack.close()

    @functools.cached_property
    def runtime(self) -> cri_grpc.RuntimeServiceStub:
        return cri_grpc.RuntimeServiceStub(self._channel)

    @functools.cached_property
    def images(self) -> cri_grpc.ImageServiceStub:
        return cri_grpc.ImageServiceStub(self._channel)

    @functools.cached_property
    def host(self) -> host_grpc.HostStub:
        return host_grpc.HostStub(self._channel)

    @functools.cached_property
    def _channel(self) -> grpc.Channel:
        _require_listener(self.path)
        channel = grpc.insecure_channel(
            f"unix:{os.path.abspath(self.path)}",
            options=[("grpc.max_receive_message_length", _MAX_MESSAGE)],
        )
        self._stack.callback(channel.close)
        return channel

    def call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Req, Resp],
        request: Req,
        doing: str,
        *,
        extra: float = 0.0,
    ) -> Resp:
        """Make one call. `doing` completes "cannot …"; `extra` seconds are added to the time-out.

        Raises Failure if the call fails.
        """
        with self.translating(doing):
            return method(request, timeout=self.timeout + extra)

    def each(
        self, method: grpc.UnaryUnaryMultiCallable[Req, Resp], requests: Iterable[Req], doing: str
    ) -> Iterator[Resp | None]:
        """Make many calls concurrently; the answers come in order, None where the object no longer exists.

        Raises Failure if one of them fails for any other reason.
        """
        pending = iter(requests)
        while batch := list(itertools.islice(pending, _IN_FLIGHT)):
            calls = [method.future(request, timeout=self.timeout) for request in batch]
            for call in calls:
                try:
                    with self.translating(doing):
                        yield call.result()
                except Failure as failure:
                    if failure.code != grpc.StatusCode.NOT_FOUND:
                        raise
                    yield None

    @contextlib.contextmanager
    def translating(self, doing: str) -> Iterator[None]:
        """Turn a failed call inside the block into a Failure. For streams; `call` does this itself."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._failure(error, doing) from error

    def _failure(self, error: grpc.RpcError, doing: str) -> Failure:
        code, words = grpc.StatusCode.UNKNOWN, str(error)
        if isinstance(error, grpc.Call):
            code, words = error.code(), error.details() or error.code().name
        words = _GO_NOISE.sub("", words)
        exit_code, hint = Exit.FAILED, ""
        if code is grpc.StatusCode.NOT_FOUND:
            exit_code = Exit.NOT_FOUND
        elif code is grpc.StatusCode.UNAVAILABLE:
            exit_code = Exit.UNREACHABLE
            hint = "the daemon is starting, stopping or has lost containerd: try again, then look at its log"
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
            words = f"no answer within {self.timeout:g} s" if words == "Deadline Exceeded" else words
            hint = "the daemon may still be working on it; a longer --timeout before the command waits for it"
        elif code is grpc.StatusCode.UNIMPLEMENTED:
            words = "the daemon does not support it"
            hint = "compare `sandboxctl version`: the daemon may be older than this client"
        elif code is grpc.StatusCode.PERMISSION_DENIED:
            hint = "run it as root"
        return Failure(f"cannot {doing}: {words}", exit_code=exit_code, hint=hint, code=code)


def _require_listener(path: str) -> None:
    """Raise Failure if there is no daemon at the socket, or this user may not connect to it.

    gRPC's own message would be about subchannels.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_TIMEOUT)
        try:
            probe.connect(path)
        except PermissionError as error:
            raise Failure(
                f"this user may not use the socket {path}",
                exit_code=Exit.UNREACHABLE,
                hint="run it as root (sudo sandboxctl …), or join the group that the daemon's socket_group names",
            ) from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            problem = "there is no socket" if isinstance(error, FileNotFoundError) else "nothing is listening"
            raise Failure(
                f"is sandboxd running? {problem} at {path}",
                exit_code=Exit.UNREACHABLE,
                hint="start it, or give the path of its socket: sandboxctl --socket PATH, or SANDBOXD_SOCKET=PATH",
            ) from error
        except OSError as error:  # the path is too long or not a socket, or its queue stays full
            raise Failure(
                f"cannot connect to {path}: {error.strerror or error}", exit_code=Exit.UNREACHABLE
            ) from error

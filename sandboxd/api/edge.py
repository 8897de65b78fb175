"""What every RPC passes: the gate until recovery is done, errors to gRPC codes, the policy on cancellation, its time.

A call that streams its answer may go on for days: of each such method so many are open at once, no more.

It also keeps what is private in a request out of the log of an unexpected error.

When a client disconnects, grpc.aio cancels the handler; the jobs that the handler waits for go on. A CancelledError
from elsewhere (a job cut off by shutdown) must not escape: grpc.aio would send no status at all and leave the client
waiting until its deadline. It becomes UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog

from sandboxd import disclosure, errors, spans, steps
from sandboxd.steps import RpcRecord

log = structlog.get_logger(__name__)

# The only place where gRPC codes are chosen; the most specific class decides.
CODES: dict[type[errors.SandboxdError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unsupported: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.NotReady: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AccessDenied: grpc.StatusCode.UNAUTHENTICATED,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.CleanupIncomplete: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PluginFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unclassified: grpc.StatusCode.INTERNAL,
    errors.SandboxdError: grpc.StatusCode.INTERNAL,
}

# The same for errors that are never raised on purpose, with the message for the client; all others are INTERNAL.
UNEXPECTED: dict[type[Exception], tuple[grpc.StatusCode, str]] = {
    MemoryError: (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "sandboxd had not enough memory for this request",
    ),
    RecursionError: (
        grpc.StatusCode.INTERNAL,
        "something in this request, or in what it is about, is nested more deeply than sandboxd can follow",
    ),
}

# What any write may meet at any time, wherever it is.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
# Calls of one method that stream their answers at once: subscribers to the events, followers of logs, and the like.
# Each has a queue and buffers of its own.
MOST_STREAMS = 200
# What a limit of this machine fails with (fork(2), open(2)), wherever it is met.
_LIMITS = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})

# Of a status message: percent-encoding can triple it, and a client takes 8 KiB of trailers.
MESSAGE_BYTES = 2500


def code_of(error: errors.SandboxdError) -> grpc.StatusCode:
    """The gRPC code that a client sees for `error`."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def _on_the_wire(message: str) -> str:
    """The message as gRPC can send it; the log has all of it.

    gRPC sends no status at all for a message with a lone surrogate (from a file name that is not UTF-8), and turns
    one that is too long into an error of its own.
    """
    data = message.encode("utf-8", "backslashreplace")
    if len(data) <= MESSAGE_BYTES:
        return data.decode("utf-8")
    return data[:MESSAGE_BYTES].decode("utf-8", "ignore") + " … (cut off, sandboxd's log has the rest)"


class Edge(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """The interceptor that wraps every method of every service, each once; it is of one server."""

    def __init__(
        self,
        not_serving: Callable[[], str],
        ended: Callable[[RpcRecord], None] = steps.answered,
        private: Callable[[Any], Iterable[str]] = lambda request: (),
    ) -> None:
        """`not_serving` says why requests are not served yet, "" when they are.

        `ended` is called at the end of each call, within its span; its code is CANCELLED when the client
        disconnected. `private` returns the texts of a request, and of the objects that it names, that no log may
        show; it is called only when something has gone wrong.
        """
        self.in_flight: Counter[str] = Counter()  # calls, by method
        self._wrapped: dict[str, Any] = {}  # handlers, by method
        self._not_serving = not_serving
        self._ended = ended
        self._private = private

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        """The wrapped handler of the method that is called."""
        wrapped = self._wrapped.get(details.method)
        if wrapped is None:
            handler = await continuation(details)
            if handler is None:
                return None
            wrapped = self._wrapped[details.method] = self._wrap(details.method.removeprefix("/"), handler)
        return wrapped

    def _wrap(self, name: str, handler: Any) -> Any:
        arguments = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(self._streaming(name, behaviour), **arguments)
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(self._single(name, behaviour), **arguments)

    def _single(self, name: str, behaviour: Callable[..., Awaitable[Any]]) -> Any:
        implemented = inspect.iscoroutinefunction(behaviour)

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            disclosure.withhold(lambda: self._private(request))
            this = _Call(name, context, self.in_flight, self._ended)
            try:
                self._admit(name, implemented)
                answer = await behaviour(request, context)
            except (Exception, asyncio.CancelledError) as exc:
                await self._answer(this, exc, context)
            this.end(grpc.StatusCode.OK)
            return answer

        return call

    def _streaming(self, name: str, behaviour: Callable[..., AsyncIterator[Any]]) -> Any:
        implemented = inspect.isasyncgenfunction(behaviour)

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            disclosure.withhold(lambda: self._private(request))
            this = _Call(name, context, self.in_flight, self._ended)
            try:
                self._admit(name, implemented)
                if self.in_flight[name] > MOST_STREAMS:
                    raise errors.Exhausted(
                        f"{MOST_STREAMS} calls of {_short(name)} are open at once; end one of them"
                    )
                async for message in behaviour(request, context):
                    yield message
            except (Exception, asyncio.CancelledError) as exc:
                await self._answer(this, exc, context)
            except GeneratorExit:
                # The client disconnected while a message was being sent.
                this.end(grpc.StatusCode.CANCELLED)
                raise
            this.end(grpc.StatusCode.OK)

        return call

    def _admit(self, name: str, implemented: bool) -> None:
        if not implemented:
            raise _NotAdmitted(grpc.StatusCode.UNIMPLEMENTED, f"{_short(name)} is not implemented yet")
        if reason := self._not_serving():
            raise _NotAdmitted(grpc.StatusCode.UNAVAILABLE, reason)

    async def _answer(
        self, this: _Call, error: BaseException, context: grpc.aio.ServicerContext[Any, Any]
    ) -> NoReturn:
        """End the call with the status for `error`."""
        task = asyncio.current_task()
        # grpc.aio cancels the task of a call whose client disconnected before its context knows.
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            this.end(grpc.StatusCode.CANCELLED)
            raise error
        code, words = _status(this.name, error)
        this.end(code)
        await context.abort(code, _on_the_wire(words))
        raise AssertionError("abort raises")


class _Call:
    """One call: in flight, and current in its task, from here to `end`."""

    def __init__(
        self,
        name: str,
        context: grpc.aio.ServicerContext[Any, Any],
        in_flight: Counter[str],
        ended: Callable[[RpcRecord], None],
    ) -> None:
        self.name = name
        self._in_flight = in_flight
        self._ended = ended
        self._started_at, self._began = time.time_ns(), time.perf_counter_ns()
        self._span = spans.begin(spans.remote(context.invocation_metadata() or ()))
        spans.enter(self._span)  # the task is this call's
        in_flight[name] += 1

    def end(self, code: grpc.StatusCode) -> None:
        """It is over, before its client knows."""
        self._in_flight[self.name] -= 1
        duration = time.perf_counter_ns() - self._began
        # A generator that nobody advances any more is closed from anywhere.
        with spans.within(self._span):
            log.debug("rpc", method=_short(self.name), code=code.name, seconds=round(duration / 1e9, 4))
            self._ended(RpcRecord(method=self.name, code=code.name, started_at=self._started_at, duration=duration))


# What a client finds out by asking, and goes on; an operator should see all other refusals.
_EXPECTED = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.CANCELLED})


class _NotAdmitted(Exception):
    """The call is refused before it reaches its handler."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        super().__init__(words)
        self.code = code


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _status(name: str, error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The code and message for `error`, which is logged."""
    if isinstance(error, _NotAdmitted):
        return error.code, str(error)
    if isinstance(error, asyncio.CancelledError):
        return grpc.StatusCode.UNAVAILABLE, "sandboxd is shutting down"
    if isinstance(error, errors.SandboxdError):
        code = code_of(error)
        level = logging.INFO if code in _EXPECTED else logging.WARNING
        log.log(level, "request refused", method=_short(name), code=code.name, error=disclosure.whole(error))
        return code, disclosure.whole(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        words = f"there is no room for this: {disclosure.whole(error)}"
        log.warning("request refused", method=_short(name), code=grpc.StatusCode.RESOURCE_EXHAUSTED.name, error=words)
        return grpc.StatusCode.RESOURCE_EXHAUSTED, words
    log.error("request failed unexpectedly", method=_short(name), exc_info=error)
    for kind, answer in UNEXPECTED.items():
        if isinstance(error, kind):
            return answer
    if _is_limit(error):
        return grpc.StatusCode.RESOURCE_EXHAUSTED, (
            f"sandboxd has met a limit of this machine ({disclosure.whole(error)}): allow it more processes and "
            "threads (pids.max, TasksMax) or open files (LimitNOFILE)"
        )
    return grpc.StatusCode.INTERNAL, f"internal error, see sandboxd's log: {disclosure.whole(error)}"


def _is_limit(error: BaseException) -> bool:
    """Whether there was no room for one more thread, process or descriptor."""
    if isinstance(error, OSError):
        return error.errno in _LIMITS
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)

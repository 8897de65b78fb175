"""Where in a distributed trace this code is: the current span, and the headers that hand it on.

A span is begun by `steps` and by the gRPC edge, for each RPC, operation and step, and by nobody else. Here is only
which one is current; what becomes of one that has ended is its observers' business (`insight.traces`). The current
span follows awaits and the jobs started within it, like the operation.

Off, which is the default, there is never a span.

Formats: https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"

# Later versions may append fields, which are not ours to read.
_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
)
_MAX_STATE_CHARS = 512  # what everyone must be able to pass on
_STATE = re.compile(r"[\x20-\x7e]+")
_SAMPLED = 0x01


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span, or the client's, of which only the ids are known."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16
    parent_id: str = ""  # the span around it, "" when a trace begins with this one
    is_remote_parent: bool = False  # the parent is the client's
    sampled: bool  # whether it is recorded; the same in all of a trace
    state: str = ""  # the client's tracestate, passed on as it is

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What hands the span on, as header and value."""
        parent = f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"
        return ((TRACEPARENT, parent), *(((TRACESTATE, self.state),) if self.state else ()))


class _Sampler:
    """How much is traced; `ratio` None is nothing, and off."""

    ratio: float | None = None

    def takes(self, trace_id: str) -> bool:
        """Whether a trace that begins here is recorded: by its id, so that others who count like this agree."""
        return self.ratio is not None and int(trace_id[16:], 16) < self.ratio * 2**64


_sampler = _Sampler()
_current: ContextVar[Span | None] = ContextVar("sandboxd_span", default=None)


def turn_on(ratio: float) -> None:
    """Begin spans from now on; of the traces that no client has begun, record so many (0 to 1)."""
    _sampler.ratio = ratio


def turn_off() -> None:
    """Begin none any more."""
    _sampler.ratio = None


def current() -> Span | None:
    """The span that this code is in; None outside of one, and when tracing is off."""
    return _current.get()


def begin(parent: Span | None = None) -> Span | None:
    """A new span below `parent`, or below the current one; without either it begins a trace. None when off."""
    if _sampler.ratio is None:
        return None
    outer = parent or _current.get()
    if outer is None:
        trace_id = secrets.token_hex(16)
        return Span(trace_id=trace_id, span_id=secrets.token_hex(8), sampled=_sampler.takes(trace_id))
    return Span(
        trace_id=outer.trace_id,
        span_id=secrets.token_hex(8),
        parent_id=outer.span_id,
        is_remote_parent=parent is not None,
        sampled=outer.sampled,
        state=outer.state,
    )


def enter(span: Span | None) -> None:
    """Make it the current one for the rest of this task, and for the tasks that it starts."""
    _current.set(span)


@contextmanager
def within(span: Span | None) -> Iterator[None]:
    """Make it the current one while the body runs; None changes nothing."""
    if span is None:
        yield
        return
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


def remote(headers: Iterable[tuple[str, str | bytes]]) -> Span | None:
    """The client's span, from the headers of its request; None without one, and when tracing is off.

    A header that is not valid is as good as none, as the specification demands.
    """
    if _sampler.ratio is None:
        return None
    found = {key: value for key, value in headers if key in (TRACEPARENT, TRACESTATE)}
    matched = _TRACEPARENT.match(_text(found.get(TRACEPARENT)))
    if matched is None or not _is_valid(matched):
        return None
    state = _text(found.get(TRACESTATE))
    return Span(
        trace_id=matched["trace"],
        span_id=matched["span"],
        sampled=bool(int(matched["flags"], 16) & _SAMPLED),
        state=state if len(state) <= _MAX_STATE_CHARS and _STATE.fullmatch(state) else "",
    )


def environment() -> dict[str, str]:
    """The current span for a program that is started in it, as variables; {} when there is none.

    https://opentelemetry.io/docs/specs/otel/context/env-carriers/
    """
    span = _current.get()
    return {key.upper(): value for key, value in span.headers} if span else {}


def _is_valid(matched: re.Match[str]) -> bool:
    if matched["version"] == "ff" or not int(matched["trace"], 16) or not int(matched["span"], 16):
        return False
    rest = matched.string[matched.end() :]
    return not rest or (matched["version"] != "00" and rest.startswith("-"))


def _text(value: str | bytes | None) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value or ""

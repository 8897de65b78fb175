"""The protocols of exec and attach: versions, streams, terminal sizes, outcomes.

Source: the `channel.k8s.io` protocol family of Kubernetes (k8s.io/cri-streaming and k8s.io/streaming, v0.37).

          transport        streams                                   outcome on the error stream
    v1    SPDY, WebSocket  error, stdin, stdout, stderr              text of a failure, nothing on success
    v2    SPDY             the same; stdin can be half-closed        the same
    v3    SPDY             also resize, with a terminal              the same
    v4    SPDY, WebSocket  the same                                  a JSON Status, with the exit code
    v5    WebSocket        the same; stdin can be half-closed        the same

SPDY clients open the streams that they need and name them in a header; on WebSocket each has a fixed channel.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sandboxd.errors import InvalidRequest

STREAM_TYPE = "streamtype"  # the header that names a stream

SPDY_PROTOCOLS: Mapping[str, int] = {
    "v4.channel.k8s.io": 4,
    "v3.channel.k8s.io": 3,
    "v2.channel.k8s.io": 2,
    "channel.k8s.io": 1,
}
WEBSOCKET_PROTOCOLS: Mapping[str, int] = {
    "v5.channel.k8s.io": 5,
    "v4.channel.k8s.io": 4,
    "v4.base64.channel.k8s.io": 4,
    "channel.k8s.io": 1,
    "base64.channel.k8s.io": 1,
}
UNNAMED_VERSION = 1  # for a client that offers no protocol at all

CHANNELS: Mapping[int, str] = {0: "stdin", 1: "stdout", 2: "stderr", 3: "error", 4: "resize"}

_MAX_RESIZE_BYTES = 4096  # of one resize message


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """The streams that the CRI request asks for."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalSize:
    """Columns and rows, both at least 1."""

    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The process ended by itself; attach reports code 0 for the end of the container."""

    code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """There was no process, or its exit code is unknown."""

    message: str


Outcome = Exited | Failed


def check(streams: Streams) -> None:
    """Raise InvalidRequest for combinations that CRI forbids (ExecRequest, AttachRequest)."""
    if streams.tty and streams.stderr:
        raise InvalidRequest("tty and stderr exclude each other: a terminal has one output; ask for stdout only")
    if not (streams.stdin or streams.stdout or streams.stderr):
        raise InvalidRequest("no stream was requested: set at least one of stdin, stdout and stderr")


def offered(values: Iterable[str]) -> tuple[str, ...]:
    """The protocols in these header values, in order of preference."""
    return tuple(name for value in values for part in value.split(",") if (name := part.strip()))


def choose(client: Sequence[str], server: Iterable[str]) -> str | None:
    """The first of the client's protocols that the server supports."""
    supported = frozenset(server)
    return next((name for name in client if name in supported), None)


def expected(version: int, streams: Streams, *, websocket: bool = False) -> frozenset[str]:
    """The streams of a client of this version: it opens them over SPDY, and has fixed channels over WebSocket."""
    needed = {
        "error": True,
        "stdin": streams.stdin,
        "stdout": streams.stdout,
        "stderr": streams.stderr and not streams.tty,
        "resize": streams.tty and (websocket or version >= 3),
    }
    return frozenset(name for name, is_needed in needed.items() if is_needed)


class StreamSet:
    """The streams of one session, recorded as they are opened."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._ids: dict[str, int] = {}

    def add(self, stream: int, headers: Mapping[str, str]) -> str | None:
        """Record a stream and return its name; None if it is not expected, or was opened already."""
        name = headers.get(STREAM_TYPE, "")
        if name not in self._names or name in self._ids:
            return None
        self._ids[name] = stream
        return name

    @property
    def missing(self) -> frozenset[str]:
        """The names of the streams that are not open yet."""
        return self._names - self._ids.keys()

    def stream(self, name: str) -> int | None:
        """The id of a named stream."""
        return self._ids.get(name)

    def name(self, stream: int) -> str | None:
        """The name of a stream."""
        return next((name for name, known in self._ids.items() if known == stream), None)


class ResizeReader:
    """Reads terminal sizes: consecutive JSON objects, split anywhere.

    Impossible sizes are skipped. After anything that is not such an object, all further input is ignored: a terminal
    of the wrong size is better than a session that ends.
    """

    def __init__(self) -> None:
        self._text = ""
        self._deaf = False

    def read(self, data: bytes) -> list[TerminalSize]:
        """The sizes that these bytes complete."""
        sizes: list[TerminalSize] = []
        if self._deaf:
            return sizes
        self._text += data.decode("latin-1")  # sizes are ASCII, and Latin-1 decodes any byte
        while True:
            self._text = self._text.lstrip()
            end = self._text.find("}") + 1  # the object has two numbers, hence no further brace
            if not end:
                self._deaf = len(self._text) > _MAX_RESIZE_BYTES or self._text[:1] not in ("", "{")
                break
            document, self._text = self._text[:end], self._text[end:]
            try:
                size = _size(document)
            except (ValueError, RecursionError):
                self._deaf = True
                break
            if size is not None:
                sizes.append(size)
        if self._deaf:
            self._text = ""
        return sizes


def _size(document: str) -> TerminalSize | None:
    if len(document) > _MAX_RESIZE_BYTES:
        raise ValueError("too long")
    values = json.loads(document)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    # Go's decoder, which the clients were written against, ignores the case of field names.
    fields = {name.lower(): value for name, value in values.items()}
    match fields.get("width"), fields.get("height"):
        case int(width), int(height) if 0 < width <= 65535 and 0 < height <= 65535:
            return TerminalSize(width=int(width), height=int(height))
    return None


def outcome_message(version: int, outcome: Outcome) -> bytes:
    """The final message on the error stream."""
    if version < 4:
        return _text(outcome).encode()
    return json.dumps(_status(outcome), separators=(",", ":")).encode()


def _text(outcome: Outcome) -> str:
    match outcome:
        case Failed(message=message):
            return message
        case Exited(code=0):
            return ""
        case Exited(code=code):
            return f"command terminated with exit code {code}"


def _status(outcome: Outcome) -> dict[str, object]:
    match outcome:
        case Exited(code=0):
            return {"metadata": {}, "status": "Success"}
        case Exited(code=code):
            return {
                "metadata": {},
                "status": "Failure",
                "message": _text(outcome),
                "reason": "NonZeroExitCode",
                # Clients parse the code into eight bits and fail on larger numbers.
                "details": {"causes": [{"reason": "ExitCode", "message": str(min(code, 255) if code > 0 else 255)}]},
            }
        case Failed(message=message):
            return {
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            }

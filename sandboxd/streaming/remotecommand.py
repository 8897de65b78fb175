"""What exec and attach clients and servers agree on: protocols, streams, sizes, outcomes.

Source: the `channel.k8s.io` protocol family of Kubernetes (k8s.io/cri-streaming and k8s.io/streaming, v0.37).

          transport        streams                                   outcome on the error stream
    v1    SPDY, WebSocket  error, stdin, stdout, stderr              text of a failure, nothing on success
    v2    SPDY             the same; stdin can be half-closed        the same
    v3    SPDY             also resize, with a terminal              the same
    v4    SPDY, WebSocket  the same                                  a JSON Status, with the exit code
    v5    WebSocket        the same; stdin can be half-closed        the same

SPDY clients open the streams that they want and name them in a header; on WebSocket each has its fixed channel.
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
UNNAMED_VERSION = 1  # of a client that offers no protocol at all

CHANNELS: Mapping[int, str] = {0: "stdin", 1: "stdout", 2: "stderr", 3: "error", 4: "resize"}

_MOST_RESIZE = 4096  # bytes of one resize message


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """What the CRI request asked for."""

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
    """There was no process, or its fate is unknown."""

    message: str


Outcome = Exited | Failed


def check(streams: Streams) -> None:
    """Refuse what the CRI forbids (ExecRequest, AttachRequest). Raises InvalidRequest."""
    if streams.tty and streams.stderr:
        raise InvalidRequest("tty and stderr exclude each other: a terminal has one output; ask for stdout only")
    if not (streams.stdin or streams.stdout or streams.stderr):
        raise InvalidRequest("no stream was asked for: set at least one of stdin, stdout and stderr")


def offered(values: Iterable[str]) -> tuple[str, ...]:
    """The protocols in these header values, most wanted first."""
    return tuple(name for value in values for part in value.split(",") if (name := part.strip()))


def choose(client: Sequence[str], server: Iterable[str]) -> str | None:
    """The first of the client's protocols that the server has too."""
    known = frozenset(server)
    return next((name for name in client if name in known), None)


def expected(version: int, streams: Streams, *, websocket: bool = False) -> frozenset[str]:
    """The streams that a client of this version has: opened by it over SPDY, fixed channels over WebSocket."""
    wanted = {
        "error": True,
        "stdin": streams.stdin,
        "stdout": streams.stdout,
        "stderr": streams.stderr and not streams.tty,
        "resize": streams.tty and (websocket or version >= 3),
    }
    return frozenset(name for name, is_wanted in wanted.items() if is_wanted)


class StreamSet:
    """The streams of one session as they arrive."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._ids: dict[str, int] = {}

    def add(self, stream: int, headers: Mapping[str, str]) -> str | None:
        """The name under which the stream was taken; None if nobody waits for it (any more)."""
        name = headers.get(STREAM_TYPE, "")
        if name not in self._names or name in self._ids:
            return None
        self._ids[name] = stream
        return name

    @property
    def missing(self) -> frozenset[str]:
        """The names that have not arrived."""
        return self._names - self._ids.keys()

    def stream(self, name: str) -> int | None:
        """The id of a named stream."""
        return self._ids.get(name)

    def name(self, stream: int) -> str | None:
        """The name of a stream."""
        return next((name for name, known in self._ids.items() if known == stream), None)


class ResizeReader:
    """Reads terminal sizes, JSON objects one after the other, cut anywhere.

    Sizes that no terminal can have are left out. After something that is not such an object nothing more is read:
    a terminal of the wrong size is better than a session ended over it.
    """

    def __init__(self) -> None:
        self._text = ""
        self._deaf = False

    def read(self, data: bytes) -> list[TerminalSize]:
        """The sizes that these bytes complete."""
        sizes: list[TerminalSize] = []
        if self._deaf:
            return sizes
        self._text += data.decode("latin-1")  # sizes are ASCII, and no byte may fail to decode
        while True:
            self._text = self._text.lstrip()
            end = self._text.find("}") + 1  # the object holds two numbers, hence no further brace
            if not end:
                self._deaf = len(self._text) > _MOST_RESIZE or self._text[:1] not in ("", "{")
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
    if len(document) > _MOST_RESIZE:
        raise ValueError("too long")
    values = json.loads(document)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    # Go's decoder, which the clients were written against, does not mind the case of a field's name.
    fields = {name.lower(): value for name, value in values.items()}
    match fields.get("width"), fields.get("height"):
        case int(width), int(height) if 0 < width <= 65535 and 0 < height <= 65535:
            return TerminalSize(width=int(width), height=int(height))
    return None


def outcome_message(version: int, outcome: Outcome) -> bytes:
    """What the error stream says at the end."""
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
                # Clients read the code into eight bits and fail on more.
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

"""The protocol between the daemon and the logger on the logger's unix socket. Pure.

A frame is four bytes of length (big endian, of what follows), one byte for its kind, and the payload:

    J   a message: one JSON object in UTF-8
    O E a piece of a container's output to stdout or stderr, unchanged (after an `attach`)

A connection begins with a request. On the daemon's own connection each has an `op` and a number `id`; the answer
carries the same `id`, with `error` (a sentence) if it failed. Answers may overtake each other. Messages without an
`id` are the logger's notices for the daemon's log: `{"notice": …, …}`.

    hello                          answers protocol, version, and the containers that are being logged
    open                           container, fifos, log, max_line, came_first, must_write
    reopen drain close             container; drain answers when the last output has been written
    retain                         containers: all others are closed
    leave                          the daemon stops; answers whether the logger, having nothing to do, ends as well
    count                          answers the bytes of output that were read, and of entries that were lost
    retire                         stop reading, keep unfinished lines for the next logger, answer and end

A connection that begins with `watch` or `attach` (container) gets an answer and then, until `{"end": why}`, a
`{"changed": true}` after each write, or the raw output from then on.

`hello` and `retire` are the same in every version: that is how a logger of another version is replaced.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

PROTOCOL = 1
MAX_FRAME_BYTES = 64 << 20  # a hello that lists tens of thousands of containers stays far below

MESSAGE = b"J"
OUTPUT = {"stdout": b"O", "stderr": b"E"}
STREAMS = {kind: stream for stream, kind in OUTPUT.items()}

_HEAD = struct.Struct(">Ic")
HEAD_BYTES = _HEAD.size


def pid_file(socket: str) -> str:
    """The pid file of the logger that listens on `socket`."""
    return f"{socket.removesuffix('.sock')}.pid"


class Garbled(ConnectionError):
    """The other side does not speak this protocol."""


def frame(kind: bytes, payload: bytes) -> bytes:
    """One frame."""
    return _HEAD.pack(len(payload) + 1, kind) + payload


def message(**fields: Any) -> bytes:
    """A frame with a message."""
    return frame(MESSAGE, json.dumps(fields, separators=(",", ":")).encode())


def head(data: bytes) -> tuple[bytes, int]:
    """Read a frame's first HEAD_BYTES: its kind and how many bytes follow. Raises Garbled."""
    length, kind = _HEAD.unpack(data)
    if not 0 < length <= MAX_FRAME_BYTES or (kind != MESSAGE and kind not in STREAMS):
        raise Garbled(f"not a frame of the logger's protocol: {data!r}")
    return kind, length - 1


def parse(payload: bytes) -> dict[str, Any]:
    """Read a message. Raises Garbled."""
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise Garbled(f"not a message of the logger's protocol: {payload[:100]!r}") from exc
    if not isinstance(fields, dict):
        raise Garbled(f"not a message of the logger's protocol: {payload[:100]!r}")
    return fields


class Frames:
    """Cuts received bytes into frames, however they arrive."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The frames that `data` completes, as (kind, payload). Raises Garbled."""
        self._held += data
        while len(self._held) >= HEAD_BYTES:
            kind, length = head(bytes(self._held[:HEAD_BYTES]))
            end = HEAD_BYTES + length
            if len(self._held) < end:
                return
            payload = bytes(self._held[HEAD_BYTES:end])
            del self._held[:end]
            yield kind, payload

"""The events of every transport: streams that open, carry data and end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOpened:
    """The client opened a stream. Header names are lower case."""

    stream: int
    headers: Mapping[str, str] = field(default_factory=dict)
    fin: bool = False  # the client will send nothing on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Bytes on a stream, in order; how they are split into events has no meaning."""

    stream: int
    data: bytes
    fin: bool = False  # nothing follows


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReset:
    """The client reset the stream, in both directions."""

    stream: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoneAway:
    """The client announced that it is leaving. `final`: it has also stopped reading."""

    final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolError:
    """The client broke the protocol. `data_to_send` has the reply that says so; no event follows."""

    reason: str


Event = StreamOpened | Data | StreamReset | GoneAway | ProtocolError


class Multiplexer(Protocol):
    """The server's end of one connection that carries many streams. No IO; never raises on its input."""

    def begin(self) -> list[Event]:
        """Events that precede the client's first byte. Called once, first."""
        ...

    def receive_data(self, data: bytes) -> list[Event]:
        """The events that these bytes complete."""
        ...

    def receive_eof(self) -> list[Event]:
        """The client closed its side: a ProtocolError if something was unfinished."""
        ...

    def reply(self, stream: int) -> None:
        """Accept a stream that the client opened."""
        ...

    def send_data(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Queue data. Does nothing on a stream that is not open."""
        ...

    def reset(self, stream: int, *, refused: bool = False) -> None:
        """Reset a stream. Does nothing if it is not open."""
        ...

    def close(self, reason: str = "") -> None:
        """End the connection; with a reason, as an error. Nothing can be sent after it."""
        ...

    def data_to_send(self) -> bytes:
        """What has been queued since the last call."""
        ...

"""What every transport turns its bytes into: streams that open, carry data and end."""

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
    """Bytes on a stream, in order; how they are cut into events means nothing."""

    stream: int
    data: bytes
    fin: bool = False  # nothing follows


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReset:
    """The client gave the stream up, in both directions."""

    stream: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoneAway:
    """The client said that it is leaving. `final`: it also stopped listening."""

    final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolError:
    """The client broke the protocol. It has been told so in `data_to_send`; no event follows."""

    reason: str


Event = StreamOpened | Data | StreamReset | GoneAway | ProtocolError


class Multiplexer(Protocol):
    """The server's end of one connection that carries many streams. No IO; never raises on what it is fed."""

    def begin(self) -> list[Event]:
        """Events that precede the client's first byte. Called once, first."""
        ...

    def receive_data(self, data: bytes) -> list[Event]:
        """What these bytes complete."""
        ...

    def receive_eof(self) -> list[Event]:
        """The client closed its side: a ProtocolError if in the middle of something."""
        ...

    def reply(self, stream: int) -> None:
        """Accept a stream that the client opened."""
        ...

    def send_data(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Queue data; on a stream that is no longer open this does nothing."""
        ...

    def reset(self, stream: int, *, refused: bool = False) -> None:
        """Give a stream up; it may be one that is not open any more."""
        ...

    def close(self, reason: str = "") -> None:
        """Say goodbye; with a reason, say that something is wrong. Nothing can be sent after it."""
        ...

    def data_to_send(self) -> bytes:
        """What has been queued since the last call."""
        ...

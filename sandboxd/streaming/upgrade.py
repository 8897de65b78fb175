"""What a client can ask of a streaming connection, and a refusal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SPDY = "SPDY/3.1"
WEBSOCKET = "websocket"
PROTOCOL_HEADER = "X-Stream-Protocol-Version"  # SPDY: the client's offers, and the server's choice
ACCEPTED_HEADER = "X-Accepted-Stream-Protocol-Versions"  # in a refusal: the supported protocols


class Refused(Exception):
    """The request gets this answer, and the connection ends."""

    def __init__(self, status: int, reason: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = tuple(headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request to upgrade. `transport` is SPDY or WEBSOCKET; `rest` followed the request."""

    method: str
    path: str
    transport: str
    protocols: tuple[str, ...]
    head: bytes
    rest: bytes

"""Port-forward: which two streams form a connection, and to which port.

Source: k8s.io/cri-streaming v0.37, portforward. Over SPDY (`portforward.k8s.io`), also tunnelled through a WebSocket,
a client opens an error and a data stream for each connection. Their headers name the port and, except in very old
clients, a request id that both share. Over WebSocket channels the ports are those of the CRI request: the i-th
connection has channel 2i for data and 2i+1 for its error, and each begins with the port in two bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sandboxd.errors import InvalidRequest
from sandboxd.streaming.remotecommand import STREAM_TYPE

SPDY_PROTOCOLS = ("portforward.k8s.io",)
TUNNEL_PROTOCOLS = ("SPDY/3.1+portforward.k8s.io",)
CHANNEL_PROTOCOLS = ("v4.channel.k8s.io", "v4.base64.channel.k8s.io")
WEBSOCKET_PROTOCOLS = TUNNEL_PROTOCOLS + CHANNEL_PROTOCOLS

PORT = "port"
REQUEST_ID = "requestid"

MAX_CHANNEL_PORTS = 100  # a channel number is one byte, and 255 has another meaning


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One forwarded connection."""

    port: int
    data: int
    error: int


@dataclass(slots=True)
class _Half:
    port: int
    data: int | None = None
    error: int | None = None


class Pairing:
    """Pairs the streams of one client."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Half] = {}

    def add(self, stream: int, headers: Mapping[str, str]) -> tuple[str, Pair | None]:
        """The request that the stream belongs to, and the pair if the stream completes it.

        Raises InvalidRequest if the headers lack a valid kind or port, or the request already has such a stream.
        """
        kind = headers.get(STREAM_TYPE, "")
        if kind not in ("data", "error"):
            raise InvalidRequest(f"stream type {kind[:60]!r}: port-forward uses data and error")
        port = _port(headers.get(PORT, ""))
        # Clients without request ids open error, then data, with consecutive ids.
        request = headers.get(REQUEST_ID) or str(stream if kind == "error" else stream - 2)
        half = self._waiting.get(request) or _Half(port)
        if half.port != port or getattr(half, kind) is not None:
            raise InvalidRequest(f"request {request[:60]!r} already has its {kind} stream, or another port")
        setattr(half, kind, stream)
        if half.data is None or half.error is None:
            self._waiting[request] = half
            return request, None
        self._waiting.pop(request, None)
        return request, Pair(port=port, data=half.data, error=half.error)

    def drop(self, request: str) -> tuple[int | None, int | None]:
        """Forget an incomplete request and return its data and error streams, None for one that is not open."""
        half = self._waiting.pop(request, None)
        return (half.data, half.error) if half else (None, None)

    @property
    def waiting(self) -> int:
        """How many requests lack a stream."""
        return len(self._waiting)


def channel_headers(ports: Sequence[int]) -> dict[int, dict[str, str]]:
    """The channels of a WebSocket, each with the headers that the stream would have over SPDY.

    Raises InvalidRequest without ports, or with too many.
    """
    if not 0 < len(ports) <= MAX_CHANNEL_PORTS:
        raise InvalidRequest(
            f"{len(ports)} ports in the PortForward request: WebSocket channels take 1 to {MAX_CHANNEL_PORTS}"
        )
    return {
        2 * index + offset: {STREAM_TYPE: kind, PORT: str(port), REQUEST_ID: str(index)}
        for index, port in enumerate(ports)
        for offset, kind in enumerate(("data", "error"))
    }


def port_prefix(port: int) -> bytes:
    """The first bytes on each WebSocket channel of a connection."""
    return port.to_bytes(2, "little")


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65535:
        return int(text)
    raise InvalidRequest(f"port {text[:60]!r}: must be a number from 1 to 65535")

"""The HTTP part of a streaming connection: one request, then a switch to another protocol or a refusal."""

from __future__ import annotations

from collections.abc import Iterable

import h11

from sandboxd.streaming.remotecommand import offered
from sandboxd.streaming.upgrade import PROTOCOL_HEADER, SPDY, WEBSOCKET, Asked, Refused

MAX_HEAD_BYTES = 32 * 1024  # of the request line and headers


class Exchange:
    """Reads the request and writes the answer, without IO."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._raw = b""
        self._head_only = False

    def receive_data(self, data: bytes) -> Asked | None:
        """The request, once it is complete. Raises Refused for one that cannot be served."""
        self._raw += data
        try:
            self._http.receive_data(data)
            request = self._http.next_event()
            if request is h11.NEED_DATA:
                return None
            if not isinstance(request, h11.Request):
                raise Refused(400, "the connection ended before its request")
            self._head_only = request.method == b"HEAD"
            if not isinstance(self._http.next_event(), h11.EndOfMessage):
                raise Refused(400, "a request for a stream must not have a body")
        except h11.RemoteProtocolError as exc:
            raise Refused(exc.error_status_hint, f"not a valid HTTP request: {exc}") from exc
        return self._asked(request)

    def switch(self, headers: Iterable[tuple[str, str]]) -> bytes:
        """The answer that ends HTTP on this connection. For WebSocket, its own core writes it."""
        return self._http.send(h11.InformationalResponse(status_code=101, headers=list(headers))) or b""

    def refuse(self, refused: Refused) -> bytes:
        """The answer that ends the connection."""
        body = f"{refused.reason}\n".encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *refused.headers,
        ]
        answer = self._http.send(h11.Response(status_code=refused.status, headers=headers)) or b""
        if not self._head_only:
            answer += self._http.send(h11.Data(data=body)) or b""
        return answer + (self._http.send(h11.EndOfMessage()) or b"")

    def _asked(self, request: h11.Request) -> Asked:
        rest = self._http.trailing_data[0]
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers]

        def values(header: str) -> tuple[str, ...]:
            return offered(value for name, value in headers if name == header.lower())

        method = request.method.decode("latin-1")
        if method not in ("GET", "POST"):
            raise Refused(405, f"{method} cannot open a stream; use GET or POST", [("Allow", "GET, POST")])
        connection = {value.lower() for value in values("connection")}
        upgrade = {value.lower() for value in values("upgrade")}
        if "upgrade" in connection and WEBSOCKET in upgrade:
            if method != "GET":
                raise Refused(405, "a WebSocket is opened with GET", [("Allow", "GET")])
            transport, protocols = WEBSOCKET, values("sec-websocket-protocol")
        elif "upgrade" in connection and SPDY.lower() in upgrade:
            transport, protocols = SPDY, values(PROTOCOL_HEADER)
        else:
            raise Refused(
                426, f"connect with an upgrade to {SPDY} or {WEBSOCKET}", [("Upgrade", f"{SPDY}, {WEBSOCKET}")]
            )
        return Asked(
            method=method,
            path=request.target.decode("latin-1").partition("?")[0],
            transport=transport,
            protocols=protocols,
            head=self._raw[: len(self._raw) - len(rest)],
            rest=bytes(rest),
        )

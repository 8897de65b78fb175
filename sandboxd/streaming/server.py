"""The streaming server, which serves the URLs of Exec, Attach and PortForward.

    /exec/TOKEN  /attach/TOKEN  /portforward/TOKEN      GET or POST, with an upgrade to SPDY/3.1 or WebSocket

A token is all that a client needs, so the server listens on loopback unless configured otherwise. The first upgrade
request uses its token up. Refusals: 400 not HTTP, 403 no common protocol, 404 unknown token, 405 other methods,
426 no upgrade, 429 too many sessions at once, 503 shutting down.

Any local user can connect. The number of connections without a token is limited, so that they cannot exhaust the
daemon's descriptors and memory; the oldest is closed for a new one, so that clients with a token are still served.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog

from sandboxd.errors import InvalidRequest, NotFound, Unavailable
from sandboxd.jobs import Jobs
from sandboxd.streaming import portforward, remotecommand, spdy, upgrade
from sandboxd.streaming.forwarding import Forwarding, Room
from sandboxd.streaming.link import READ_BYTES, Limits, Link
from sandboxd.streaming.sessions import AttachRequest, ExecRequest, PortForwardRequest, Request
from sandboxd.streaming.stdio import Stdio
from sandboxd.streaming.streams import Multiplexer
from sandboxd.streaming.tokens import Tokens
from sandboxd.streaming.upgrade import Asked, Refused

if TYPE_CHECKING:
    from sandboxd.streaming.exchange import Exchange
    from sandboxd.streaming.websocket import WebSocket

log = structlog.get_logger(__name__)

_KINDS: Mapping[type[Request], str] = {
    ExecRequest: "exec",
    AttachRequest: "attach",
    PortForwardRequest: "portforward",
}

Session = Stdio | Forwarding


class StreamingServer:
    """Issues URLs and serves the clients that connect to them."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Port 0 means any free port. With `tls` the URLs are https."""
        self._jobs = jobs
        self._host = host
        self._port = port
        self._tls = tls
        self._limits = limits or Limits()
        self._tokens: Tokens[Request] = Tokens(
            random=random, clock=clock, seconds=self._limits.token, most=self._limits.tokens
        )
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[None], None] = {}  # those without a token yet, oldest first
        self.sessions: set[Session] = set()
        self._forwarded = Room(self._limits.forwarded)

    async def start(self) -> None:
        """Listen. Raises Unavailable if the address is not available."""
        try:
            handshake = self._limits.head if self._tls else None
            self._server = await asyncio.start_server(
                self._accepted, self._host, self._port, ssl=self._tls, ssl_handshake_timeout=handshake
            )
        except OSError as exc:
            raise Unavailable(
                f"streaming: cannot listen on {self._host} port {self._port}: {exc.strerror or exc}; "
                f"free it or configure another"
            ) from exc
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self, grace: float = 0.0) -> None:
        """Stop accepting, give sessions `grace` seconds to end, then end them. Jobs close what they opened."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._connections and grace > 0:
            await asyncio.wait(tuple(self._connections), timeout=grace)
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @property
    def base_url(self) -> str:
        """The beginning of every URL, without a trailing slash."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self._port}"

    def url_for(self, request: Request, size: int = 0) -> str:
        """A URL that serves this request, which holds about `size` bytes, once, within a minute.

        Raises InvalidRequest for an invalid combination of streams; Exhausted if too many URLs are unused, or hold
        too much; Unavailable when the server is not listening.
        """
        if self._server is None:
            raise Unavailable("streaming: the server is not listening; try again once sandboxd is ready")
        if not isinstance(request, PortForwardRequest):
            remotecommand.check(request.streams)
        return f"{self.base_url}/{_KINDS[type(request)]}/{self._tokens.issue(request, size)}"

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio.start_server created this task; it ends with the connection.
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._strangers[task] = None
        if len(self._strangers) > self._limits.strangers:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.cancel()
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            # By `close`, or for a newer connection. The task ends here in any case, and asyncio's own callback would
            # log the cancellation as an error.
            pass
        except OSError as exc:
            log.debug("streaming connection lost", error=str(exc))
        except Exception:
            log.exception("streaming connection failed")
        finally:
            await self._disconnect(writer)
            self._strangers.pop(task, None)
            self._connections.discard(task)

    async def _disconnect(self, writer: asyncio.StreamWriter) -> None:
        """Close the connection; a client that does not read what was written must not keep it open forever."""
        try:
            writer.close()
            async with asyncio.timeout(self._limits.linger):
                await writer.wait_closed()
        except (OSError, asyncio.CancelledError):  # OSError includes TimeoutError
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Here and not above: only clients that come need HTTP and WebSocket, a twentieth of what starting takes.
        from sandboxd.streaming.exchange import Exchange

        exchange = Exchange()
        try:
            asked = await self._asked(exchange, reader)
            if asked is None:
                return
            request = self._request(asked)
            if (task := asyncio.current_task()) is not None:
                self._strangers.pop(task, None)
            session = self._session(asked, request, exchange, reader, writer)
        except Refused as refused:
            async with asyncio.timeout(self._limits.linger):
                writer.write(exchange.refuse(refused))
                await writer.drain()
                if writer.can_write_eof():
                    writer.write_eof()
                while await reader.read(READ_BYTES):
                    pass
            return
        kind = _KINDS[type(request)]
        self.sessions.add(session)
        log.info("stream opened", kind=kind, subject=request.subject, transport=asked.transport)
        ended = "sandboxd stopped"
        try:
            ended = await session.run()
        finally:
            self.sessions.discard(session)
            log.info("stream closed", kind=kind, subject=request.subject, ended=ended)

    async def _asked(self, exchange: Exchange, reader: asyncio.StreamReader) -> Asked | None:
        try:
            async with asyncio.timeout(self._limits.head):
                while data := await reader.read(READ_BYTES):
                    if asked := exchange.receive_data(data):
                        return asked
        except TimeoutError:
            raise Refused(408, f"no request within {self._limits.head:g} s") from None
        return None

    def _request(self, asked: Asked) -> Request:
        """The request behind the token, which is used up by this."""
        if len(self.sessions) >= self._limits.sessions:
            raise Refused(
                429,
                f"{self._limits.sessions} streams are open; close one and try again",
                [("Retry-After", "5")],
            )
        kind, _, token = asked.path.removeprefix("/").partition("/")
        try:
            request = self._tokens.redeem(token)
        except NotFound as exc:
            raise Refused(404, str(exc)) from exc
        if _KINDS[type(request)] != kind:
            raise Refused(404, "no such streaming session: its URL is of another kind")
        return request

    def _session(
        self,
        asked: Asked,
        request: Request,
        exchange: Exchange,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> Session:
        """Choose the protocol, write the answer to the upgrade, and create the session."""
        websocket = asked.transport == upgrade.WEBSOCKET
        versions = remotecommand.WEBSOCKET_PROTOCOLS if websocket else remotecommand.SPDY_PROTOCOLS
        if isinstance(request, PortForwardRequest):
            chosen = _chosen(asked, portforward.WEBSOCKET_PROTOCOLS if websocket else portforward.SPDY_PROTOCOLS)
        else:
            chosen = _chosen(asked, tuple(versions))
        mux: Multiplexer
        if not websocket:
            mux = spdy.Connection()
            headers = [("Connection", "Upgrade"), ("Upgrade", upgrade.SPDY)]
            if chosen is not None:
                headers.append((upgrade.PROTOCOL_HEADER, chosen))
            answer = exchange.switch(headers)
        else:
            from sandboxd.streaming.websocket import WebSocket  # as with Exchange

            socket = WebSocket(chosen)
            if not socket.accept(asked.head):
                # Its own answer says what is wrong with the handshake; then the connection ends.
                if not (answer := socket.data_to_send()):
                    raise Refused(400, "not a valid WebSocket handshake")
                writer.write(answer)
                raise ConnectionAbortedError("not an acceptable WebSocket handshake")
            answer = socket.data_to_send()
            mux = _websocket_mux(socket, chosen, request)
        writer.write(answer)
        link = Link(reader, writer, mux, limits=self._limits, received=asked.rest)
        if isinstance(request, PortForwardRequest):
            fixed = websocket and chosen not in portforward.TUNNEL_PROTOCOLS
            connections = len(request.ports) if fixed else None
            return Forwarding(link, request, connections=connections, room=self._forwarded)
        version = versions[chosen] if chosen is not None else remotecommand.UNNAMED_VERSION
        return Stdio(link, request, version=version, websocket=websocket, jobs=self._jobs)


def _chosen(asked: Asked, served: tuple[str, ...]) -> str | None:
    """The protocol to use; None if the client offers none, as old ones do."""
    if not asked.protocols:
        return None
    chosen = remotecommand.choose(asked.protocols, served)
    if chosen is None:
        raise Refused(
            403,
            f"no common protocol: the client offers {', '.join(asked.protocols)}; served are {', '.join(served)}",
            [(upgrade.ACCEPTED_HEADER, protocol) for protocol in served],
        )
    return chosen


def _websocket_mux(socket: WebSocket, chosen: str | None, request: Request) -> Multiplexer:
    from sandboxd.streaming.websocket import Channels, Tunnel  # as with Exchange

    if chosen in portforward.TUNNEL_PROTOCOLS:
        return Tunnel(socket, spdy.Connection())
    base64_text = chosen is not None and "base64" in chosen
    if isinstance(request, PortForwardRequest):
        try:
            streams = portforward.channel_headers(request.ports)
        except InvalidRequest as exc:
            raise Refused(400, str(exc)) from exc
        prefixes = {channel: portforward.port_prefix(int(h[portforward.PORT])) for channel, h in streams.items()}
        return Channels(socket, streams=streams, greetings=prefixes, base64_text=base64_text)
    version = remotecommand.WEBSOCKET_PROTOCOLS[chosen] if chosen is not None else remotecommand.UNNAMED_VERSION
    names = remotecommand.expected(version, request.streams, websocket=True)
    channels = {channel: name for channel, name in remotecommand.CHANNELS.items() if name in names}
    first = next(channel for channel, name in channels.items() if name in ("stdout", "stderr", "error"))
    return Channels(
        socket,
        streams={channel: {remotecommand.STREAM_TYPE: name} for channel, name in channels.items()},
        greetings={first: b""},  # tells the client that the session exists
        base64_text=base64_text,
        half_close=version >= 5,
    )

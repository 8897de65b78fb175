"""Metrics over plain HTTP, for Prometheus to scrape: GET /metrics, and nothing else.

One request per connection. Anyone who can reach the address can read them; it is off unless one is configured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus

import h11
import structlog

from sandboxd.errors import Unavailable

log = structlog.get_logger(__name__)

METRICS_PATH = "/metrics"
READ_BYTES = 16 << 10  # at a time
MAX_HEAD_BYTES = 16 << 10  # of the request line and headers
MAX_CONNECTIONS = 32
CONNECTION_SECONDS = 10.0  # from accept to close


class MetricsServer:
    """Serves the result of `exposition`, as `content_type`."""

    def __init__(
        self, exposition: Callable[[], bytes], content_type: str, *, seconds: float = CONNECTION_SECONDS
    ) -> None:
        self._exposition = exposition
        self._content_type = content_type
        self._seconds = seconds
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; 0 means any free one. Raises Unavailable if the address is not available."""
        try:
            self._server = await asyncio.start_server(self._accepted, host, port)
        except OSError as exc:
            raise Unavailable(f"metrics: cannot listen on {host} port {port}: {exc.strerror or exc}") from exc
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening and close all connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio.start_server created this task; it ends with the connection.
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) <= MAX_CONNECTIONS:
                async with asyncio.timeout(self._seconds):
                    await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # only `close` cancels, and asyncio's own callback would log it as an error
        except (OSError, TimeoutError) as exc:
            log.debug("metrics connection lost", error=str(exc) or type(exc).__name__)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        head_only = False
        try:
            while (event := http.next_event()) is h11.NEED_DATA:
                http.receive_data(await reader.read(READ_BYTES))
            if not isinstance(event, h11.Request):
                return  # the connection was closed without a request
            head_only = event.method == b"HEAD"
            status, content_type, body = self._answer(event)
        except h11.RemoteProtocolError as exc:
            status, content_type, body = exc.error_status_hint, "text/plain", f"{exc}\n".encode()
        headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Connection", "close")]
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append(("Allow", "GET, HEAD"))
        writer.write(http.send(h11.Response(status_code=status, headers=headers)) or b"")
        if not head_only:
            writer.write(http.send(h11.Data(data=body)) or b"")
        await writer.drain()

    def _answer(self, request: h11.Request) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        if request.target.partition(b"?")[0].decode("latin-1") != METRICS_PATH:
            return HTTPStatus.NOT_FOUND, "text/plain", f"metrics are at {METRICS_PATH}\n".encode()
        if request.method not in (b"GET", b"HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"metrics are read with GET\n"
        return HTTPStatus.OK, self._content_type, self._exposition()

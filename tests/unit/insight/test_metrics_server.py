"""/metrics over HTTP, asked by the standard library's client and by hand."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import AsyncIterator

import pytest

from sandboxd.errors import Unavailable
from sandboxd.insight import metrics_server
from sandboxd.insight.metrics_server import MetricsServer

TEXT = b"x_total 1.0\n" * 10_000
TYPE = "text/plain; version=0.0.4; charset=utf-8"


@pytest.fixture
async def server() -> AsyncIterator[MetricsServer]:
    made = MetricsServer(lambda: TEXT, TYPE, seconds=20.0)
    yield made
    await made.close()


async def ask(server: MetricsServer, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    port = await server.start("127.0.0.1", 0)

    def request() -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path)
        answer = connection.getresponse()
        try:
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    return await asyncio.to_thread(request)


async def raw(server: MetricsServer, data: bytes) -> bytes:
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    if writer.can_write_eof():
        writer.write_eof()
    try:
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("path", ["/metrics", "/metrics?name=x"])
async def test_the_metrics_are_at_their_path(server: MetricsServer, path: str) -> None:
    status, headers, body = await ask(server, "GET", path)

    assert (status, body) == (200, TEXT)
    assert headers["Content-Type"] == TYPE


async def test_a_head_request_has_the_headers_only(server: MetricsServer) -> None:
    status, headers, body = await ask(server, "HEAD", "/metrics")

    assert (status, body) == (200, b"")
    assert headers["Content-Length"] == str(len(TEXT))


@pytest.mark.parametrize(
    ("method", "path", "expected"), [("GET", "/", 404), ("GET", "/metrics/x", 404), ("DELETE", "/metrics", 405)]
)
async def test_anything_else_is_refused(server: MetricsServer, method: str, path: str, expected: int) -> None:
    status, headers, _ = await ask(server, method, path)

    assert status == expected
    assert headers.get("Allow") == ("GET, HEAD" if expected == 405 else None)


@pytest.mark.parametrize(
    ("data", "beginning"),
    [
        (b"", b""),
        (b"GET /metr", b"HTTP/1.1 400 "),
        (b"\x16\x03\x01 not http\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"x" * metrics_server.MAX_HEAD_BYTES * 2, b"HTTP/1.1 431 "),
    ],
    ids=["nothing", "half a request", "no HTTP", "too large a head"],
)
async def test_what_is_no_request_gets_a_status_or_nothing(
    server: MetricsServer, data: bytes, beginning: bytes
) -> None:
    assert (await raw(server, data))[: len(beginning) or None] == beginning


async def test_a_client_that_says_nothing_is_left(server: MetricsServer) -> None:
    server._seconds = 0.01
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()


async def test_clients_that_say_nothing_have_a_number(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "MAX_CONNECTIONS", 1)
    port = await server.start("127.0.0.1", 0)
    _, first = await asyncio.open_connection("127.0.0.1", port)
    reader, second = await asyncio.open_connection("127.0.0.1", port)

    async with asyncio.timeout(20):
        assert await reader.read() == b""
    first.close()
    second.close()


async def test_closing_ends_what_is_open(server: MetricsServer) -> None:
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(10_000):
        if server._connections:
            break
        await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await server.close()
        assert await reader.read() == b""
    writer.close()


async def test_an_address_that_is_taken_says_so(server: MetricsServer) -> None:
    port = await server.start("127.0.0.1", 0)

    with pytest.raises(Unavailable, match=f"metrics: cannot listen on 127.0.0.1 port {port}"):
        await MetricsServer(lambda: b"", TYPE).start("127.0.0.1", port)

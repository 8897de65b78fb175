"""Who gets a stream, and what everybody else is told."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urlsplit

import pytest

from sandboxd.errors import Exhausted, InvalidRequest, Unavailable
from sandboxd.jobs import Jobs
from sandboxd.streaming.link import Limits
from sandboxd.streaming.server import StreamingServer
from tests.streaming import tls
from tests.streaming.clients import SPDY, messages, opened, until, websocket
from tests.streaming.spdy_client import SpdyClient
from tests.unit.streaming.conftest import Serve
from tests.unit.streaming.fakes import Container, Pod, cat, says, sleeps

UPGRADE = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"


async def raw(server: StreamingServer, request: bytes) -> tuple[int, str, bytes]:
    """Status, head and body of the answer to any bytes."""
    parts = urlsplit(server.base_url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), body


def asking(path: str, method: str = "POST", headers: str = UPGRADE) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()


async def test_a_url_works_once(serve: Serve) -> None:
    """The second client finds nothing."""
    server = await serve()
    url = server.url_for(Container(says(b"x")).exec(stdout=True))
    first = await SpdyClient.connect(url, SPDY)
    second = await SpdyClient.connect(url, SPDY)
    assert (first.status, second.status) == (101, 404)
    await first.close()
    await second.close()


async def test_a_url_expires_after_a_minute(serve: Serve) -> None:
    """By the injected clock."""
    now = [0.0]
    server = await serve(clock=lambda: now[0])
    early, late = (server.url_for(Container(says(b"x")).exec(stdout=True)) for _ in range(2))
    now[0] = 59.9
    client = await SpdyClient.connect(early, SPDY)
    assert client.status == 101
    await client.close()
    now[0] = 60.0
    client = await SpdyClient.connect(late, SPDY)
    assert client.status == 404
    await client.close()


async def test_a_url_of_one_kind_opens_no_other(serve: Serve) -> None:
    """/exec is not /portforward."""
    server = await serve()
    url = server.url_for(Container(cat).exec(stdin=True))
    client = await SpdyClient.connect(url.replace("/exec/", "/portforward/"), SPDY)
    assert client.status == 404
    await client.close()


async def test_connections_without_a_token_are_bounded_and_keep_nobody_out(serve: Serve) -> None:
    """Of too many the oldest is closed, while those with a token stay."""
    server = await serve(limits=Limits(strangers=3))
    served = await SpdyClient.connect(server.url_for(Container(sleeps).exec(stdout=True)), SPDY)
    parts = urlsplit(server.base_url)
    strangers = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(5)]
    for reader, _ in strangers[:2]:
        assert await reader.read() == b""
    assert not any(reader.at_eof() for reader, _ in strangers[2:])

    client = await SpdyClient.connect(server.url_for(Container(says(b"x")).exec(stdout=True)), SPDY)
    assert (served.status, client.status) == (101, 101)

    for _, writer in strangers:
        writer.close()
    await client.close()
    await served.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_spdy_is_upgraded_to_with_get_and_post(serve: Serve, method: str) -> None:
    """Clients use either."""
    server = await serve()
    client = await SpdyClient.connect(server.url_for(Pod().request()), method=method)
    assert (client.status, client.response["upgrade"]) == (101, "SPDY/3.1")
    await client.close()


@pytest.mark.parametrize(
    ("request_bytes", "status", "says_so"),
    [
        (asking("/"), 404, "unknown"),
        (asking("/exec/"), 404, "unknown"),
        (asking("/exec/nosuchtoken"), 404, "unknown"),
        (asking("/exec/a/b"), 404, "unknown"),
        (asking("/exec/x", "PUT"), 405, "PUT"),
        (asking("/exec/x", "HEAD"), 405, ""),
        (asking("/exec/x", headers=""), 426, "SPDY/3.1"),
        (asking("/exec/x", headers="Connection: Upgrade\r\nUpgrade: h2c\r\n"), 426, "websocket"),
        (asking("/exec/x", headers="Upgrade: SPDY/3.1\r\n"), 426, "websocket"),
        (asking("/exec/x", headers="Connection: Upgrade\r\nUpgrade: websocket\r\n"), 405, "GET"),
        (asking("/exec/x", headers=UPGRADE + "Content-Length: 5\r\n") + b"hello", 400, "body"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "not a valid HTTP request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000, 431, "not a valid HTTP request"),
        (b"nonsense\r\n\r\n", 400, "not a valid HTTP request"),
    ],
)
async def test_requests_for_nothing_are_answered(
    serve: Serve, request_bytes: bytes, status: int, says_so: str
) -> None:
    """With the status that fits and a sentence, and the connection is closed."""
    server = await serve()
    answered, head, body = await raw(server, request_bytes)
    assert (answered, says_so in body.decode() or says_so in head) == (status, True)
    assert "connection: close" in head.lower()


async def test_a_refused_request_does_not_use_the_token_up(serve: Serve) -> None:
    """A browser's or a proxy's probe without upgrade does no harm."""
    server = await serve()
    url = server.url_for(Pod().request())
    assert (await raw(server, asking(urlsplit(url).path, "GET", "")))[0] == 426
    client = await SpdyClient.connect(url)
    assert client.status == 101
    await client.close()


@pytest.mark.parametrize("damage", ["", "Sec-WebSocket-Key: \x01\r\n"], ids=["no key", "not to be read"])
async def test_a_websocket_handshake_that_is_none_is_refused(serve: Serve, damage: str) -> None:
    """There is an answer also where the HTTP around it was fine and the WebSocket library has nothing to say."""
    server = await serve()
    url = server.url_for(Container(sleeps).exec(stdout=True))
    request = asking(urlsplit(url).path, "GET", f"Connection: Upgrade\r\nUpgrade: websocket\r\n{damage}")
    assert (await raw(server, request))[0] == 400
    assert not server.sessions


async def test_a_client_that_sends_no_request_is_ended(serve: Serve) -> None:
    """After the limit, with 408."""
    server = await serve(limits=Limits(head=0.05, linger=0.5))
    assert (await raw(server, b"GET /exec/"))[0] == 408


async def test_urls_that_wait_are_bounded(serve: Serve) -> None:
    """Asking for more is refused, and possible again once one is used."""
    server = await serve(limits=Limits(tokens=2, linger=0.5))
    urls = [server.url_for(Pod().request()) for _ in range(2)]
    with pytest.raises(Exhausted, match="2 streaming URLs"):
        server.url_for(Pod().request())
    client = await SpdyClient.connect(urls[0])
    server.url_for(Pod().request())
    await client.close()


async def test_too_many_streams_at_once_are_told_to_come_back(serve: Serve) -> None:
    """429 with Retry-After, and the URL is not used up."""
    server = await serve(limits=Limits(sessions=1, linger=0.5))
    first = await SpdyClient.connect(server.url_for(Pod().request()))
    url = server.url_for(Pod().request())
    second = await SpdyClient.connect(url)
    assert (second.status, second.response["retry-after"]) == (429, "5")
    await first.close()
    await until(lambda: not server.sessions)
    third = await SpdyClient.connect(url)
    assert third.status == 101
    for client in (second, third):
        await client.close()


@pytest.mark.parametrize(
    ("streams", "problem"), [({"stdout": True, "stderr": True, "tty": True}, "tty"), ({}, "no stream")]
)
async def test_streams_that_exclude_each_other_get_no_url(
    serve: Serve, streams: dict[str, bool], problem: str
) -> None:
    """As the CRI says."""
    server = await serve()
    with pytest.raises(InvalidRequest, match=problem):
        server.url_for(Container(cat).exec(**streams))


async def test_a_port_that_is_taken_is_an_error_naming_it(serve: Serve) -> None:
    """And a server that does not listen hands out no URL."""
    server = await serve()
    other = StreamingServer(jobs=Jobs(), port=urlsplit(server.base_url).port or 0)
    with pytest.raises(Unavailable, match=str(urlsplit(server.base_url).port)):
        await other.start()
    with pytest.raises(Unavailable, match="not listening"):
        other.url_for(Pod().request())


async def test_ipv6_addresses_are_bracketed(serve: Serve) -> None:
    """As a URL needs it."""
    server = await serve(host="::1")
    assert server.base_url.startswith("http://[::1]:")
    client = await SpdyClient.connect(server.url_for(Pod().request()))
    assert client.status == 101
    await client.close()


async def test_tls_carries_spdy_and_websocket(serve: Serve) -> None:
    """The URLs are https, and nothing of the end of the output is lost."""
    server = await serve(tls=tls.server_context())
    container = Container(cat)
    url = server.url_for(container.exec(stdin=True, stdout=True))
    assert url.startswith("https://127.0.0.1:")
    payload = bytes(range(256)) * 8192
    client = await SpdyClient.connect(url, SPDY, tls=tls.client_context())
    ids = await opened(client, "error", "stdin", "stdout")
    await client.send(ids["stdin"], payload, fin=True)
    assert await client.all_of(ids["stdout"]) == payload
    await client.close()
    ws = await websocket(
        server.url_for(container.exec(stdin=True, stdout=True)), "v5.channel.k8s.io", ssl=tls.client_context()
    )
    await ws.send(b"\0hello")
    await ws.send(b"\xff\0")
    assert (await messages(ws))[1] == b"hello"


async def test_plain_http_to_a_tls_server_gets_nowhere(serve: Serve) -> None:
    """The handshake fails, the server goes on."""
    server = await serve(tls=tls.server_context())
    parts = urlsplit(server.base_url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(asking("/exec/x"))
    assert b"HTTP" not in await reader.read()
    writer.close()
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection(parts.hostname, parts.port, ssl=ssl.create_default_context())

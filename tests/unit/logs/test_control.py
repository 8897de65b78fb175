"""Requests find their answers, and a logger that ends leaves nobody waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandboxd.errors import NotReady
from sandboxd.logs import wire
from sandboxd.logs.control import Control


class Peer(asyncio.Protocol):
    """The other end: does what the test says with each request."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.transport: Any = None
        self.held = wire.Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for _, payload in self.held.feed(data):
            request = wire.parse(payload)
            self.requests.append(request)
            match request["op"]:
                case "echo":
                    self.transport.write(
                        wire.message(notice="hm") + wire.message(id=request["id"], echo=request["x"])
                    )
                case "refuse":
                    self.transport.write(wire.message(id=request["id"], error="no"))
                case "swap" if len(self.requests) == 2:
                    for one in reversed(self.requests):
                        self.transport.write(wire.message(id=one["id"], x=one["x"]))
                case "die":
                    self.transport.close()
                case "nonsense":
                    self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.fixture
def notices() -> list[dict[str, Any]]:
    return []


@pytest.fixture
async def control(tmp_path: Path, notices: list[dict[str, Any]]) -> AsyncIterator[Control]:
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(Peer, str(tmp_path / "s"))
    _, made = await loop.create_unix_connection(lambda: Control(notices.append), str(tmp_path / "s"))
    yield made
    made.close()
    await made.lost.wait()
    server.close()
    await server.wait_closed()


async def test_an_answer_and_a_notice(control: Control, notices: list[dict[str, Any]]) -> None:
    assert (await control.call("echo", x=5))["echo"] == 5
    assert notices == [{"notice": "hm"}]


async def test_answers_find_their_requests_in_any_order(control: Control) -> None:
    first, second = await asyncio.gather(control.call("swap", x=1), control.call("swap", x=2))

    assert (first["x"], second["x"]) == (1, 2)


async def test_a_refusal_has_the_loggers_words(control: Control) -> None:
    with pytest.raises(NotReady, match="no"):
        await control.call("refuse")


@pytest.mark.parametrize("op", ["die", "nonsense"])
async def test_whoever_waits_learns_that_the_logger_has_ended(control: Control, op: str) -> None:
    waiting = asyncio.gather(control.call("never"), control.call(op), return_exceptions=True)

    assert all(isinstance(one, ConnectionError) for one in await waiting)
    assert control.lost.is_set()
    with pytest.raises(ConnectionError):
        await control.call("echo", x=1)


async def test_a_request_that_was_given_up_is_forgotten(control: Control) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await control.call("never")

    assert control._waiting == {}
    assert (await control.call("echo", x=1))["echo"] == 1

"""The logger never waits for a client."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator

import pytest

from sandboxd.logs import connection as module
from sandboxd.logs import wire
from sandboxd.logs.connection import Connection


class Pair:
    """A connection and its other end."""

    def __init__(self) -> None:
        here, self.there = socket.socketpair()
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.selector = selectors.DefaultSelector()
        self.connection = Connection(here, self.selector)
        self.there.settimeout(30)

    @property
    def wants_to_write(self) -> bool:
        return any(key.events & selectors.EVENT_WRITE for key in self.selector.get_map().values())


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.connection.close()
    made.selector.close()
    made.there.close()


def test_messages_are_received(pair: Pair) -> None:
    pair.there.sendall(wire.message(op="a") + wire.message(op="b")[:-1])
    assert [m["op"] for m in pair.connection.received()] == ["a"]
    pair.there.sendall(wire.message(op="b")[-1:])
    assert [m["op"] for m in pair.connection.received()] == ["b"]
    assert list(pair.connection.received()) == []


@pytest.mark.parametrize("end", ["hang up", "another language"])
def test_a_client_that_leaves_or_talks_nonsense_is_let_go(pair: Pair, end: str) -> None:
    closed: list[bool] = []
    pair.connection.on_close = lambda: closed.append(True)
    if end == "hang up":
        pair.there.close()
    else:
        pair.there.sendall(b"GET / HTTP/1.1\r\n\r\n")

    assert list(pair.connection.received()) == []
    assert not pair.connection.open and closed == [True]
    assert not pair.selector.get_map()


def test_what_a_client_does_not_take_waits_and_is_sent_later_in_order(pair: Pair) -> None:
    sent: list[int] = []
    pair.connection.on_sent = lambda: sent.append(pair.connection.unsent)
    frames = [wire.frame(b"O", bytes([i]) * 10_000) for i in range(20)]
    for frame in frames:
        pair.connection.send(frame)
    assert pair.connection.unsent > 0 and pair.wants_to_write

    received = b""
    while len(received) < sum(map(len, frames)):
        received += pair.there.recv(1 << 16)
        pair.connection.flush()

    assert received == b"".join(frames)
    assert pair.connection.unsent == 0 and not pair.wants_to_write
    assert sent[-1] == 0


def test_a_finished_connection_closes_when_everything_is_sent(pair: Pair) -> None:
    frame = wire.frame(b"O", b"x" * 100_000)
    pair.connection.send(frame)
    pair.connection.finish()
    assert pair.connection.open
    received = b""
    while data := pair.there.recv(1 << 16):
        received += data
        if pair.connection.open:
            pair.connection.flush()

    assert received == frame
    assert not pair.connection.open


def test_a_client_that_takes_nothing_does_not_fill_the_memory(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNREAD_BYTES", 100_000)
    for _ in range(20):
        pair.connection.send(wire.frame(b"O", b"x" * 10_000))

    assert not pair.connection.open and pair.connection.unsent == 0


def test_sending_to_one_that_has_gone_is_no_error(pair: Pair) -> None:
    pair.there.close()
    pair.connection.send(wire.message(x=1))
    pair.connection.send(wire.message(x=1))
    pair.connection.flush() if pair.connection.open else None
    pair.connection.close()

    assert not pair.connection.open

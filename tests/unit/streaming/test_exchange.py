"""One HTTP request, read from any pieces, is understood or refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.streaming.exchange import Exchange
from sandboxd.streaming.upgrade import SPDY, WEBSOCKET, Asked, Refused
from sandboxd.streaming.websocket import WebSocket

HEAD = (
    b"POST /exec/TOKEN?x=1 HTTP/1.1\r\nHost: h\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n"
    b"connection: keep-alive, upgrade\r\nUPGRADE: SPDY/3.1\r\n"
    b"X-Stream-Protocol-Version: v4.channel.k8s.io, v3.channel.k8s.io\r\n"
    b"X-Stream-Protocol-Version: channel.k8s.io\r\n\r\n"
)


def read(pieces: Iterable[bytes]) -> tuple[Asked | None, bytes]:
    """The request, and what had not been fed when it was complete."""
    exchange, left, asked = Exchange(), b"", None
    for piece in pieces:
        if asked is None:
            asked = exchange.receive_data(piece)
        else:
            left += piece
    return asked, left


@given(st.lists(st.integers(0, len(HEAD) + 20), max_size=6), st.binary(max_size=20))
def test_a_request_is_read_from_any_pieces(cuts: list[int], rest: bytes) -> None:
    """What follows it is kept, byte for byte."""
    data = HEAD + rest
    for bounds in (cuts, range(1, len(data)), []):
        edges = [0, *sorted({cut for cut in bounds if 0 < cut < len(data)}), len(data)]
        asked, left = read(data[a:b] for a, b in itertools.pairwise(edges))
        assert asked is not None
        assert (asked.method, asked.path, asked.transport) == ("POST", "/exec/TOKEN", SPDY)
        assert asked.protocols == ("v4.channel.k8s.io", "v3.channel.k8s.io", "channel.k8s.io")
        assert asked.head == HEAD
        assert asked.rest + left == rest


def test_websocket_protocols_are_read_from_their_own_header() -> None:
    """Even ones that are no legal tokens."""
    head = b"GET /portforward/T HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n"
    head += b"Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io, v4.channel.k8s.io\r\n\r\n"
    asked = Exchange().receive_data(head)
    assert asked is not None
    assert asked.transport == WEBSOCKET
    assert asked.protocols == ("SPDY/3.1+portforward.k8s.io", "v4.channel.k8s.io")


def test_the_switch_is_the_whole_answer() -> None:
    """101 with the headers that were chosen."""
    exchange = Exchange()
    exchange.receive_data(HEAD)
    answer = exchange.switch([("Connection", "Upgrade"), ("Upgrade", SPDY)])
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.endswith(b"\r\n\r\n")
    assert b"Upgrade: SPDY/3.1\r\n" in answer


@pytest.mark.parametrize("fed", [b"", b"GET /", HEAD])
def test_a_refusal_can_be_written_at_any_point(fed: bytes) -> None:
    """Before, in the middle of and after the request."""
    exchange = Exchange()
    if fed:
        exchange.receive_data(fed)
    answer = exchange.refuse(Refused(408, "too slow", [("Retry-After", "5")]))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b"\r\n\r\ntoo slow\n")
    assert b"Retry-After: 5\r\n" in answer


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=5))
def test_no_bytes_raise_anything_but_a_refusal_that_can_be_written(pieces: list[bytes]) -> None:
    """Whatever comes instead of HTTP."""
    exchange = Exchange()
    try:
        for piece in pieces:
            exchange.receive_data(piece)
    except Refused as refused:
        assert exchange.refuse(refused).startswith(b"HTTP/1.1 4")


WEBSOCKET_HEAD = (
    b"GET /exec/TOKEN HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
)


@settings(max_examples=300)
@given(st.sampled_from([HEAD, WEBSOCKET_HEAD]), st.integers(0, 250), st.integers(0, 8), st.binary(max_size=8))
def test_a_damaged_request_is_understood_or_refused(head: bytes, at: int, length: int, patch: bytes) -> None:
    """And so is the WebSocket handshake in it, by the library or by us."""
    exchange = Exchange()
    try:
        asked = exchange.receive_data(head[:at] + patch + head[at + length :])
    except Refused as refused:
        assert exchange.refuse(refused).startswith(b"HTTP/1.1 4")
        return
    if asked is not None and asked.transport == WEBSOCKET:
        socket = WebSocket(None)
        accepted = socket.accept(asked.head)
        answer = socket.data_to_send()
        assert answer.startswith(b"HTTP/1.1 101 ") if accepted else answer[:10] in (b"", b"HTTP/1.1 4")

"""WebSocket multiplexers: channels and tunnels, whatever the cuts and whatever the bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from sandboxd.streaming.spdy import Connection
from sandboxd.streaming.streams import Data, Event, GoneAway, Multiplexer, ProtocolError, StreamOpened
from sandboxd.streaming.websocket import MAX_FRAME_BYTES, Channels, Tunnel, WebSocket
from tests.streaming.spdy_client import Frames, data_frame
from tests.unit.streaming.test_spdy import merged

HANDSHAKE = (
    b"GET /exec/T HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: a/b, c\r\n\r\n"
)


def frame(opcode: Opcode, data: bytes, *, fin: bool = True, mask: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=mask)


def binary(data: bytes) -> bytes:
    return frame(Opcode.BINARY, data)


def websocket() -> WebSocket:
    accepted = WebSocket("a/b")
    assert accepted.accept(HANDSHAKE)
    assert b"\r\nSec-WebSocket-Protocol: a/b\r\n" in accepted.data_to_send()
    return accepted


def channels(*, base64_text: bool = False, half_close: bool = True) -> Channels:
    return Channels(
        websocket(),
        streams={0: {"streamtype": "stdin"}, 1: {"streamtype": "stdout"}, 4: {"streamtype": "resize"}},
        greetings={1: b""},
        base64_text=base64_text,
        half_close=half_close,
    )


def tunnel() -> Tunnel:
    return Tunnel(websocket(), Connection())


def said(mux: Multiplexer) -> list[tuple[Opcode, bytes]]:
    """The frames that the server sends, as a client reads them."""
    client = Protocol(Side.CLIENT)
    client.receive_data(mux.data_to_send())
    return [(event.opcode, bytes(event.data)) for event in client.events_received() if isinstance(event, Frame)]


def fed(mux: Multiplexer, data: bytes, cuts: Sequence[int]) -> list[Event]:
    events = mux.begin()
    bounds = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in itertools.pairwise(bounds):
        events += mux.receive_data(data[start:end])
    return merged(events)


@pytest.mark.parametrize(
    "request_head",
    [
        HANDSHAKE.replace(b"Sec-WebSocket-Key", b"X"),
        HANDSHAKE.replace(b"Version: 13", b"Version: 8"),
        HANDSHAKE.replace(b"GET", b"POST"),
        HANDSHAKE.replace(b"AAAA", b"A"),
    ],
)
def test_a_handshake_that_is_none_is_answered_and_refused(request_head: bytes) -> None:
    """With an HTTP error of the core's own."""
    refused = WebSocket(None)
    assert not refused.accept(request_head)
    assert refused.data_to_send().startswith(b"HTTP/1.1 4") or not refused.data_to_send()


def test_channels_open_all_streams_and_greet() -> None:
    """With the headers that a SPDY client would have sent."""
    mux = channels()
    opened = mux.begin()
    assert [event.stream for event in opened if isinstance(event, StreamOpened)] == [0, 1, 4]
    assert said(mux) == [(Opcode.BINARY, b"\1")]


def test_channel_messages_become_data_and_data_messages() -> None:
    """Fragments count, unknown channels and empty messages do not."""
    mux = channels()
    data = binary(b"\0ab") + frame(Opcode.BINARY, b"\4x", fin=False) + frame(Opcode.CONT, b"y")
    data += binary(b"\7nobody") + binary(b"") + frame(Opcode.TEXT, b"\0text")
    assert merged(mux.receive_data(data)) == [
        Data(stream=0, data=b"ab"),
        Data(stream=4, data=b"xy"),
        Data(stream=0, data=b"text"),
    ]
    mux.send_data(1, b"out")
    mux.send_data(7, b"nobody")
    mux.send_data(1, b"!", fin=True)
    mux.send_data(1, b"late")
    assert said(mux) == [(Opcode.BINARY, b"\1out"), (Opcode.BINARY, b"\1!")]


def test_base64_channels_speak_text() -> None:
    """In both directions."""
    mux = channels(base64_text=True)
    assert mux.receive_data(frame(Opcode.TEXT, b"0aGk=")) == [Data(stream=0, data=b"hi")]
    mux.send_data(1, b"hi")
    assert said(mux) == [(Opcode.TEXT, b"1aGk=")]


def test_a_v5_close_message_ends_one_channel_once() -> None:
    """Later data on it is dropped; other channels go on."""
    mux = channels()
    data = binary(b"\xff\0") + binary(b"\xff\0") + binary(b"\0late") + binary(b"\xff\x09") + binary(b"\4x")
    assert mux.receive_data(data) == [Data(stream=0, data=b"", fin=True), Data(stream=4, data=b"x")]


def test_before_v5_channel_255_is_just_unknown() -> None:
    """It says nothing."""
    assert channels(half_close=False).receive_data(binary(b"\xff\0") + binary(b"\0x")) == [Data(stream=0, data=b"x")]


def test_pings_are_answered_and_a_close_is_echoed() -> None:
    """The close is the client's goodbye for good; nothing is sent after it."""
    mux = channels()
    data = frame(Opcode.PING, b"p") + frame(Opcode.CLOSE, b"\x03\xe8") + binary(b"\0late")
    assert mux.receive_data(data) == [GoneAway(final=True)]
    mux.send_data(1, b"x")
    mux.close()
    assert said(mux) == [(Opcode.PONG, b"p"), (Opcode.CLOSE, b"\x03\xe8")]


def test_closing_says_normal_or_why_not() -> None:
    """1000, or 1002 with as much of the reason as fits."""
    well, badly = channels(), channels()
    well.close()
    badly.close("ö" * 200)
    assert said(well) == [(Opcode.CLOSE, b"\x03\xe8")]
    ((opcode, payload),) = said(badly)
    assert (opcode, payload[:2], len(payload) <= 125) == (Opcode.CLOSE, b"\x03\xea", True)
    assert payload[2:].decode() == "ö" * 60


def test_a_tunnel_carries_spdy_in_both_directions() -> None:
    """Frames in messages, answers in messages."""
    mux, client = tunnel(), Frames()
    raw = client.syn_stream(1, {"streamtype": "data"}) + data_frame(1, b"abc")
    events = mux.receive_data(binary(raw[:9]) + binary(raw[9:]))
    assert merged(events) == [StreamOpened(stream=1, headers={"streamtype": "data"}), Data(stream=1, data=b"abc")]
    mux.reply(1)
    mux.send_data(1, b"out", fin=True)
    mux.close()
    frames = [parsed for opcode, data in said(mux) if opcode is Opcode.BINARY for parsed in client.parse(data)]
    assert [parsed[:2] for parsed in frames] == [("reply", 1), ("data", 1), ("goaway", 1)]


HOSTILE: dict[str, tuple[Callable[[], Multiplexer], bytes]] = {
    "not masked": (channels, frame(Opcode.BINARY, b"\0x", mask=False)),
    "too long": (channels, b"\x82\xff" + (MAX_FRAME_BYTES + 1).to_bytes(8, "big")),
    "as long as can be said": (channels, b"\x82\xff" + b"\xff" * 8),
    "a continuation of nothing": (channels, frame(Opcode.CONT, b"x")),
    "a reserved bit": (channels, b"\xc2\x80\0\0\0\0"),
    "a reserved opcode": (channels, b"\x8f\x80\0\0\0\0"),
    "an end of no channel": (channels, binary(b"\xff")),
    "an end of two channels": (channels, binary(b"\xff\0\0")),
    "half a reason to close": (channels, frame(Opcode.CLOSE, b"x")),
    "not base64": (lambda: channels(base64_text=True), frame(Opcode.TEXT, b"0!")),
    "text in a tunnel": (tunnel, frame(Opcode.TEXT, b"x")),
    "not SPDY/3.1": (tunnel, binary(b"\x80\x02\0\1\0\0\0\0")),
    "every bit": (tunnel, b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize(("make", "attack"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_input_ends_the_connection(make: Callable[[], Multiplexer], attack: bytes) -> None:
    """One ProtocolError, a close frame that is not 1000, then silence."""
    mux = make()
    events = mux.receive_data(attack)
    assert [type(event) for event in events] == [ProtocolError]
    opcode, payload = said(mux)[-1]
    assert opcode is Opcode.CLOSE
    assert int.from_bytes(payload[:2], "big") in (1002, 1009)
    assert mux.receive_data(binary(b"\0x")) == []
    mux.send_data(1, b"x")
    assert mux.data_to_send() == b""


MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.just(Opcode.BINARY), st.binary(max_size=30)),
        st.tuples(
            st.just(Opcode.BINARY),
            st.tuples(st.sampled_from([0, 1, 4, 255]), st.binary(max_size=9)).map(
                lambda pair: bytes([pair[0]]) + pair[1]
            ),
        ),
        st.tuples(st.just(Opcode.PING), st.binary(max_size=5)),
        st.tuples(st.just(Opcode.TEXT), st.just(b"0aGk=")),
        st.tuples(st.just(Opcode.CLOSE), st.just(b"\x03\xe8")),
    ),
    max_size=8,
)


@settings(max_examples=150)
@given(
    st.sampled_from(["channels", "base64", "tunnel"]),
    MESSAGES,
    st.binary(max_size=8),
    st.lists(st.integers(0, 300), max_size=8),
)
def test_how_the_bytes_are_cut_changes_nothing(
    kind: str, messages: list[tuple[Opcode, bytes]], garbage: bytes, cuts: list[int]
) -> None:
    """Whole, byte by byte, or split anywhere; with garbage at the end."""
    makers: dict[str, Callable[[], Multiplexer]] = {
        "channels": channels,
        "base64": lambda: channels(base64_text=True),
        "tunnel": tunnel,
    }
    make = makers[kind]
    data = b"".join(frame(opcode, payload) for opcode, payload in messages) + garbage
    whole, single, split = make(), make(), make()
    events = fed(whole, data, [])
    assert fed(single, data, range(1, len(data))) == events
    assert fed(split, data, cuts) == events
    answers = [said(mux) for mux in (whole, single, split)]
    if any(isinstance(event, ProtocolError) for event in events):
        # Only the words may differ: of two errors in one piece, either may be the one that is told.
        assert [answer[-1][0] for answer in answers] == [Opcode.CLOSE] * 3
    else:
        assert answers[0] == answers[1] == answers[2]

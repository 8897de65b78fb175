"""SPDY/3.1: frames in, events out, whatever the cuts and whatever the bytes."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.streaming import spdy
from sandboxd.streaming.spdy import MAX_CONTROL_BYTES, MAX_STREAMS, Connection
from sandboxd.streaming.streams import Data, Event, GoneAway, ProtocolError, StreamOpened, StreamReset
from tests.streaming.spdy_client import FIN, Frames, control, data_frame

PING = control(6, 0, struct.pack(">I", 1))
GOAWAY = control(7, 0, bytes(8))


def rst(stream: int) -> bytes:
    return control(3, 0, struct.pack(">II", stream, 5))


def merged(events: Iterable[Event]) -> list[Event]:
    """The same events with neighbouring data of one stream put together: how data is cut means nothing."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, Data) and isinstance(last, Data) and last.stream == event.stream and not last.fin:
            result[-1] = Data(stream=event.stream, data=last.data + event.data, fin=event.fin)
        else:
            result.append(event)
    return result


def fed(connection: Connection, data: bytes, cuts: Sequence[int]) -> list[Event]:
    """What these bytes lead to when they arrive in these pieces."""
    events: list[Event] = []
    bounds = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in itertools.pairwise(bounds):
        events += connection.receive_data(data[start:end])
    return merged(events)


def sent(connection: Connection) -> list[tuple[str, int, bytes, bool]]:
    return Frames().parse(connection.data_to_send())


def test_streams_open_carry_data_and_end() -> None:
    """The life of a stream that both sides finish."""
    connection, client = Connection(), Frames()
    events = connection.receive_data(
        client.syn_stream(1, {"streamtype": "stdin"}) + data_frame(1, b"abc") + data_frame(1, b"d", FIN)
    )
    assert merged(events) == [
        StreamOpened(stream=1, headers={"streamtype": "stdin"}),
        Data(stream=1, data=b"abcd", fin=True),
    ]
    connection.reply(1)
    connection.send_data(1, b"out")
    connection.send_data(1, b"", fin=True)
    replied, *data = sent(connection)
    assert replied[:2] == ("reply", 1)
    assert data == [("data", 1, b"out", False), ("data", 1, b"", True)]
    assert connection.open_streams == 0


def test_a_stream_may_be_opened_and_ended_at_once() -> None:
    """FIN on SYN_STREAM: the client will send nothing, but listens."""
    connection = Connection()
    events = connection.receive_data(Frames().syn_stream(1, {"streamtype": "error"}, FIN))
    assert events == [StreamOpened(stream=1, headers={"streamtype": "error"}, fin=True)]
    connection.send_data(1, b"x", fin=True)
    assert sent(connection) == [("data", 1, b"x", True)]


def test_a_unidirectional_stream_is_never_written_to() -> None:
    """The client does not listen on it."""
    connection = Connection()
    connection.receive_data(Frames().syn_stream(1, {"a": "b"}, 2))
    connection.reply(1)
    connection.send_data(1, b"x")
    assert connection.data_to_send() == b""


def test_headers_frames_are_inflated_and_can_end_a_stream() -> None:
    """Their own headers mean nothing here."""
    connection, client = Connection(), Frames()
    data = client.syn_stream(1, {"a": "1"}) + control(8, FIN, struct.pack(">I", 1) + client.block({"b": "2"}))
    data += client.syn_stream(3, {"c": "3"})
    assert connection.receive_data(data) == [
        StreamOpened(stream=1, headers={"a": "1"}),
        Data(stream=1, data=b"", fin=True),
        StreamOpened(stream=3, headers={"c": "3"}),
    ]


def test_pings_of_the_client_are_echoed_and_answers_to_ours_ignored() -> None:
    """Clients' are odd."""
    connection = Connection()
    assert connection.receive_data(PING + control(6, 0, struct.pack(">I", 2))) == []
    assert connection.data_to_send() == PING


@pytest.mark.parametrize(
    "frame",
    [
        control(4, 0, struct.pack(">III", 1, 4, 100)),
        control(4, 0, struct.pack(">I", 0)),
        control(9, 0, struct.pack(">II", 1, 65536)),
        control(10, 0, b"credential"),
        control(77, 255, b"from the future"),
        data_frame(0, b""),
    ],
)
def test_frames_that_mean_nothing_to_us_are_skipped(frame: bytes) -> None:
    """The connection goes on."""
    connection = Connection()
    assert connection.receive_data(frame + Frames().syn_stream(1, {})) == [StreamOpened(stream=1, headers={})]


def test_goaway_is_told_once_it_comes() -> None:
    """And is not the end: open streams go on."""
    assert Connection().receive_data(GOAWAY) == [GoneAway(final=False)]


def test_a_reset_ends_both_directions() -> None:
    """Afterwards nothing is sent, and what was under way is dropped."""
    connection, client = Connection(), Frames()
    assert connection.receive_data(client.syn_stream(1, {}) + rst(1) + rst(1) + data_frame(1, b"late")) == [
        StreamOpened(stream=1, headers={}),
        StreamReset(stream=1),
    ]
    connection.reply(1)
    connection.send_data(1, b"x", fin=True)
    connection.reset(1)
    assert connection.data_to_send() == b""


def test_our_reset_is_sent_once_and_late_data_dropped() -> None:
    """The client may not have seen it yet."""
    connection, client = Connection(), Frames()
    connection.receive_data(client.syn_stream(1, {}) + client.syn_stream(3, {}))
    connection.reset(1, refused=True)
    connection.reset(1)
    connection.reset(3)
    assert connection.receive_data(data_frame(1, b"late", FIN) + data_frame(3, b"late")) == []
    assert [(kind, stream, body[-1]) for kind, stream, body, _ in sent(connection)] == [
        ("reset", 1, 3),
        ("reset", 3, 5),
    ]


def test_data_after_the_end_resets_the_stream() -> None:
    """STREAM_ALREADY_CLOSED; the connection goes on."""
    connection, client = Connection(), Frames()
    events = connection.receive_data(client.syn_stream(1, {}, FIN) + data_frame(1, b"more") + PING)
    assert events == [StreamOpened(stream=1, headers={}, fin=True), StreamReset(stream=1)]
    assert [frame[:3] for frame in sent(connection)] == [("reset", 1, b"\0\0\0\x09"), ("ping", 1, b"")]


@pytest.mark.parametrize("stream", [1, 2, 99])
def test_data_on_a_stream_that_never_was_is_answered_with_a_reset(stream: int) -> None:
    """INVALID_STREAM; its bytes are read past."""
    connection = Connection()
    assert connection.receive_data(data_frame(stream, b"payload") + PING) == []
    assert [frame[:3] for frame in sent(connection)] == [("reset", stream, b"\0\0\0\x02"), ("ping", 1, b"")]


def test_too_many_streams_are_refused_one_by_one() -> None:
    """Each can be opened later, when others have ended."""
    connection, client = Connection(), Frames()
    data = b"".join(client.syn_stream(2 * number + 1, {}) for number in range(MAX_STREAMS + 1))
    assert len(connection.receive_data(data)) == MAX_STREAMS == connection.open_streams
    assert sent(connection) == [("reset", 2 * MAX_STREAMS + 1, b"\0\0\0\x03", False)]
    connection.receive_data(rst(1))
    assert connection.receive_data(client.syn_stream(2 * MAX_STREAMS + 3, {"a": "1"})) == [
        StreamOpened(stream=2 * MAX_STREAMS + 3, headers={"a": "1"})
    ]


def test_after_our_goaway_new_streams_are_refused_and_old_ones_go_on() -> None:
    """Their headers are still inflated, or the next block could not be read."""
    connection, client = Connection(), Frames()
    connection.receive_data(client.syn_stream(1, {"a": "1"}))
    connection.close()
    connection.close()
    assert connection.receive_data(client.syn_stream(3, {"b": "2"}) + data_frame(1, b"x")) == [
        Data(stream=1, data=b"x")
    ]
    assert [frame[:3] for frame in sent(connection)] == [("goaway", 1, bytes(4)), ("reset", 3, b"\0\0\0\x03")]


def test_data_is_cut_into_the_largest_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """FIN is on the last only; nothing and no FIN is no frame."""
    monkeypatch.setattr(spdy, "MAX_DATA_BYTES", 4)
    connection = Connection()
    connection._streams[1] = spdy._Stream(client_done=False, server_done=False)
    connection.send_data(1, b"")
    connection.send_data(1, b"abcdefgh", fin=True)
    assert sent(connection) == [("data", 1, b"abcd", False), ("data", 1, b"efgh", True)]


def syn(body: bytes) -> bytes:
    return control(1, 0, body)


HOSTILE: dict[str, Callable[[Frames], bytes]] = {
    "another version": lambda f: control(1, 0, b"", version=2),
    "HTTP": lambda f: b"\x80GET / HTTP/1.1\r\n\r\n",
    "a control frame too long": lambda f: struct.pack(">HHI", 0x8003, 1, MAX_CONTROL_BYTES + 1),
    "an unknown control frame too long": lambda f: struct.pack(">HHI", 0x8003, 77, 2**24 - 1),
    "a short SYN_STREAM": lambda f: syn(b"\0" * 9),
    "an even stream id": lambda f: f.syn_stream(2, {}),
    "stream id zero": lambda f: f.syn_stream(0, {}),
    "a stream id again": lambda f: f.syn_stream(1, {}) + f.syn_stream(1, {}),
    "a stream id going back": lambda f: f.syn_stream(5, {}) + f.syn_stream(3, {}),
    "headers that do not inflate": lambda f: syn(struct.pack(">IIH", 1, 0, 0) + b"nonsense"),
    "no header block": lambda f: syn(struct.pack(">IIH", 1, 0, 0)),
    "a SYN_REPLY": lambda f: control(2, 0, struct.pack(">I", 2) + f.block({})),
    "HEADERS without id": lambda f: control(8, 0, b"\0"),
    "HEADERS that do not inflate": lambda f: control(8, 0, b"\0\0\0\1\xff\xff"),
    "a short RST_STREAM": lambda f: control(3, 0, bytes(4)),
    "a long PING": lambda f: control(6, 0, bytes(8)),
    "an empty PING": lambda f: control(6, 0, b""),
    "a short GOAWAY": lambda f: control(7, 0, bytes(4)),
    "a short WINDOW_UPDATE": lambda f: control(9, 0, bytes(7)),
    "SETTINGS without count": lambda f: control(4, 0, b""),
    "SETTINGS with another count": lambda f: control(4, 0, struct.pack(">I", 0xFFFFFFFF)),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_input_ends_the_connection(attack: str) -> None:
    """One ProtocolError, last; GOAWAY with its status; then silence in both directions."""
    connection, client = Connection(), Frames()
    events = connection.receive_data(HOSTILE[attack](client))
    assert isinstance(events[-1], ProtocolError)
    assert not any(isinstance(event, ProtocolError) for event in events[:-1])
    assert sent(connection)[-1][0] == "goaway"
    assert connection.receive_data(PING + GOAWAY) == []
    assert connection.receive_eof() == []
    connection.reply(1)
    connection.send_data(1, b"x", fin=True)
    connection.reset(1)
    connection.close("again")
    assert connection.data_to_send() == b""


@pytest.mark.parametrize("rest", [1, 7, 8, 11])
def test_an_end_in_the_middle_of_a_frame_is_an_error(rest: int) -> None:
    """Between frames it is none."""
    whole, cut = Connection(), Connection()
    frame = data_frame(1, b"data")
    assert (whole.receive_data(frame), whole.receive_eof()) == ([], [])
    cut.receive_data(frame[:rest])
    assert isinstance(cut.receive_eof()[0], ProtocolError)


def test_large_data_frames_are_not_gathered() -> None:
    """A 16 MiB frame is passed on as it comes; nothing of it stays."""
    connection = Connection()
    connection.receive_data(Frames().syn_stream(1, {}))
    connection.receive_data(struct.pack(">II", 1, 2**24 - 1))
    for _ in range(10):
        assert connection.receive_data(b"x" * 1000) == [Data(stream=1, data=b"x" * 1000)]
        assert len(connection._buffer) == 0


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """A client's bytes: mostly well-formed, in an order of its own."""
    client = Frames()
    steps = st.tuples(
        st.sampled_from(["syn", "data", "rst", "ping", "headers", "settings", "window", "goaway", "unknown", "raw"]),
        st.integers(0, 6),
        st.booleans(),
        st.binary(max_size=40),
    )
    out, opened = b"", 0
    for kind, stream, fin, payload in draw(st.lists(steps, max_size=12)):
        match kind:
            case "syn":
                opened += 2
                out += client.syn_stream(opened - 1 if stream else stream, {"streamtype": payload.hex()}, FIN * fin)
            case "data":
                out += data_frame(stream, payload, FIN * fin)
            case "rst":
                out += rst(stream)
            case "ping":
                out += control(6, 0, struct.pack(">I", stream))
            case "headers":
                out += control(8, FIN * fin, struct.pack(">I", stream) + client.block({"x": payload.hex()}))
            case "settings":
                out += control(4, 0, struct.pack(">I", 0))
            case "window":
                out += control(9, 0, bytes(8))
            case "goaway":
                out += GOAWAY
            case "unknown":
                out += control(100 + stream, 0, payload)
            case "raw":
                out += payload if fin else b""
    return out[: draw(st.integers(0, len(out)))] if draw(st.booleans()) else out


@settings(max_examples=300)
@given(conversations(), st.lists(st.integers(0, 600), max_size=8))
def test_how_the_bytes_are_cut_changes_nothing(data: bytes, cuts: list[int]) -> None:
    """Whole, byte by byte, or split anywhere: the same events, the same answer."""
    whole, single, split = Connection(), Connection(), Connection()
    events = fed(whole, data, [])
    assert fed(single, data, range(1, len(data))) == events
    assert fed(split, data, cuts) == events
    assert whole.receive_eof() == single.receive_eof() == split.receive_eof()
    assert whole.data_to_send() == single.data_to_send() == split.data_to_send()


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_no_bytes_raise(pieces: list[bytes]) -> None:
    """Random input gives events, at most one of them an error, and a bounded answer."""
    connection = Connection()
    events = [event for piece in pieces for event in connection.receive_data(piece)]
    events += connection.receive_eof()
    assert sum(isinstance(event, ProtocolError) for event in events) <= 1
    assert len(connection.data_to_send()) <= 3 * sum(map(len, pieces)) + 16


@settings(max_examples=300)
@given(conversations(), st.integers(0, 400), st.integers(0, 4), st.binary(max_size=6))
def test_a_damaged_conversation_ends_at_most_the_connection(data: bytes, at: int, length: int, patch: bytes) -> None:
    """One error, and it is the last event."""
    connection = Connection()
    events = connection.receive_data(data[:at] + patch + data[at + length :]) + connection.receive_eof()
    assert not any(isinstance(event, ProtocolError) for event in events[:-1])
    assert connection.open_streams <= spdy.MAX_STREAMS

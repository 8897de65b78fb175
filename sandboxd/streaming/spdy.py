"""SPDY/3.1, the server's side, without IO: bytes in, events out, bytes to send.

Source: "SPDY Protocol - Draft 3.1". This omits what the Kubernetes clients omit: server push, credentials and flow
control (both sides read WINDOW_UPDATE and ignore it), so that the only back-pressure is to stop reading.

1. Every header block is inflated before its frame is checked, or the next one could not be read.
2. Data frames (up to 16 MiB) are passed on as they arrive; control frames are buffered whole, up to a limit.
3. An error that concerns one stream resets that stream; one that leaves the connection's state in doubt ends it.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

from sandboxd.streaming.spdy_headers import BadHeaders, HeaderReader, HeaderWriter
from sandboxd.streaming.streams import Data, Event, GoneAway, ProtocolError, StreamOpened, StreamReset

VERSION = 3
MAX_CONTROL_BYTES = 64 * 1024  # of a control frame's body
MAX_STREAMS = 2048  # open at once; further ones are refused
MAX_DATA_BYTES = 2**24 - 1  # in one data frame

_HEADER = Struct(">II")  # control bit, version and type, or stream id; then flags and length
_WORD = Struct(">I")
_CONTROL = 1 << 31
_ID = _CONTROL - 1


class FrameType(IntEnum):
    """Control frames; other types are skipped, as the draft requires."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Flag(IntFlag):
    """Frame flags."""

    FIN = 1
    UNIDIRECTIONAL = 2  # SYN_STREAM: the client expects no data on this stream


class Status(IntEnum):
    """Why a stream is reset (RST_STREAM)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5
    STREAM_ALREADY_CLOSED = 9


class GoAwayStatus(IntEnum):
    """Why a connection ends (GOAWAY)."""

    OK = 0
    PROTOCOL_ERROR = 1


_EXACT_LENGTH = {
    FrameType.RST_STREAM: 8,
    FrameType.PING: 4,
    FrameType.GOAWAY: 8,
    FrameType.WINDOW_UPDATE: 8,
}


class _Broken(Exception):
    """The client broke the protocol; caught before it leaves this module."""


class _Stream:
    __slots__ = ("client_done", "server_done")

    def __init__(self, *, client_done: bool, server_done: bool) -> None:
        self.client_done = client_done
        self.server_done = server_done


class Connection:
    """One SPDY connection; a `streams.Multiplexer`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._output = bytearray()
        self._streams: dict[int, _Stream] = {}
        self._last = 0  # the highest stream id that the client used
        self._data_left = 0  # bytes of the current data frame still to come
        self._data_stream = 0
        self._data_fin = False
        self._reader = HeaderReader()
        self._writer = HeaderWriter()
        self._leaving = False  # GOAWAY sent: no new streams
        self._broken = False

    @property
    def open_streams(self) -> int:
        """How many streams are open in at least one direction."""
        return len(self._streams)

    def begin(self) -> list[Event]:
        """No events: the client speaks first."""
        return []

    def receive_data(self, data: bytes) -> list[Event]:
        """The events that these bytes complete; no event follows a ProtocolError."""
        events: list[Event] = []
        if self._broken:
            return events
        self._buffer += data
        try:
            while self._read_some(events):
                pass
        except (_Broken, BadHeaders) as exc:
            events.append(self._end(str(exc)))
        return events

    def receive_eof(self) -> list[Event]:
        """The client closed the connection: an error if a frame was unfinished."""
        if self._broken or not (self._buffer or self._data_left):
            return []
        return [self._end("the connection ended in the middle of a frame")]

    def reply(self, stream: int) -> None:
        """Accept a stream (SYN_REPLY without headers, as clients expect)."""
        if stream in self._streams and not self._streams[stream].server_done:
            self._control(FrameType.SYN_REPLY, _WORD.pack(stream) + self._writer.write({}))

    def send_data(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Queue data, split into frames. Does nothing on a stream that is closed in this direction."""
        state = self._streams.get(stream)
        if state is None or state.server_done or not (data or fin):
            return
        for start in range(0, len(data) or 1, MAX_DATA_BYTES):
            piece = data[start : start + MAX_DATA_BYTES]
            last = fin and start + MAX_DATA_BYTES >= len(data)
            self._output += _HEADER.pack(stream, (Flag.FIN if last else 0) << 24 | len(piece))
            self._output += piece
        if fin:
            state.server_done = True
            self._forget_if_done(stream, state)

    def reset(self, stream: int, *, refused: bool = False) -> None:
        """Reset a stream; does nothing if it is not open."""
        if self._streams.pop(stream, None) is not None:
            self._reset(stream, Status.REFUSED_STREAM if refused else Status.CANCEL)

    def close(self, reason: str = "") -> None:
        """Queue GOAWAY. It cannot carry the reason itself."""
        self._go_away(GoAwayStatus.PROTOCOL_ERROR if reason else GoAwayStatus.OK)

    def data_to_send(self) -> bytes:
        """What has been queued since the last call."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def _read_some(self, events: list[Event]) -> bool:
        """Consume one frame, or a piece of a data frame, from the buffer; False when there is too little."""
        if self._data_left:
            return self._read_data(events)
        if len(self._buffer) < _HEADER.size:
            return False
        first, second = _HEADER.unpack_from(self._buffer)
        flags, length = second >> 24, second & MAX_DATA_BYTES
        if not first & _CONTROL:
            del self._buffer[: _HEADER.size]
            self._begin_data(first, flags, length, events)
            return True
        version, kind = first >> 16 & 0x7FFF, first & 0xFFFF
        if version != VERSION:
            raise _Broken(f"the client speaks SPDY/{version}, not SPDY/{VERSION}")
        if length > MAX_CONTROL_BYTES:
            raise _Broken(f"a control frame of {length} bytes; at most {MAX_CONTROL_BYTES} are read")
        end = _HEADER.size + length
        if len(self._buffer) < end:
            return False
        body = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        self._control_frame(kind, flags, body, events)
        return True

    def _begin_data(self, stream: int, flags: int, length: int, events: list[Event]) -> None:
        state = self._streams.get(stream)
        if state is not None and state.client_done:
            del self._streams[stream]
            self._reset(stream, Status.STREAM_ALREADY_CLOSED)
            events.append(StreamReset(stream=stream))
        elif state is None and (stream > self._last or not stream % 2):
            self._reset(stream, Status.INVALID_STREAM)
        # Otherwise an unknown stream is one that we closed while this frame was in transit; it is skipped.
        self._data_stream, self._data_left, self._data_fin = stream, length, bool(flags & Flag.FIN)
        if not length:
            self._data(b"", events)

    def _read_data(self, events: list[Event]) -> bool:
        if not self._buffer:
            return False
        piece = bytes(self._buffer[: self._data_left])
        del self._buffer[: len(piece)]
        self._data_left -= len(piece)
        self._data(piece, events)
        return True

    def _data(self, piece: bytes, events: list[Event]) -> None:
        fin = self._data_fin and not self._data_left
        self._received(self._data_stream, piece, fin, events)

    def _received(self, stream: int, piece: bytes, fin: bool, events: list[Event]) -> None:
        state = self._streams.get(stream)
        if state is None or state.client_done or not (piece or fin):
            return
        events.append(Data(stream=stream, data=piece, fin=fin))
        if fin:
            state.client_done = True
            self._forget_if_done(stream, state)

    def _control_frame(self, kind: int, flags: int, body: bytes, events: list[Event]) -> None:
        try:
            frame = FrameType(kind)
        except ValueError:
            return
        if len(body) != _EXACT_LENGTH.get(frame, len(body)):
            raise _Broken(f"a {frame.name} frame of {len(body)} bytes")
        match frame:
            case FrameType.SYN_STREAM:
                self._syn_stream(flags, body, events)
            case FrameType.SYN_REPLY:
                raise _Broken("a SYN_REPLY, but the server opened no stream")
            case FrameType.HEADERS:
                if len(body) < 4:
                    raise _Broken("a HEADERS frame without a stream id")
                self._reader.read(body[4:])
                self._received(_WORD.unpack_from(body)[0] & _ID, b"", bool(flags & Flag.FIN), events)
            case FrameType.RST_STREAM:
                stream = _WORD.unpack_from(body)[0] & _ID
                if self._streams.pop(stream, None) is not None:
                    events.append(StreamReset(stream=stream))
            case FrameType.SETTINGS:
                if len(body) < 4 or len(body) != 4 + 8 * _WORD.unpack_from(body)[0]:
                    raise _Broken("a SETTINGS frame whose count and length disagree")
            case FrameType.PING:
                if _WORD.unpack(body)[0] % 2:  # even ones would answer our pings, and we send none
                    self._control(FrameType.PING, body)
            case FrameType.GOAWAY:
                events.append(GoneAway(final=False))
            case FrameType.WINDOW_UPDATE:
                pass

    def _syn_stream(self, flags: int, body: bytes, events: list[Event]) -> None:
        if len(body) < 10:
            raise _Broken(f"a SYN_STREAM frame of {len(body)} bytes")
        headers = self._reader.read(body[10:])
        stream = _WORD.unpack_from(body)[0] & _ID
        if not stream % 2 or stream <= self._last:
            raise _Broken(f"stream id {stream} after {self._last}: a client's are odd and grow")
        self._last = stream
        if self._leaving or len(self._streams) >= MAX_STREAMS:
            self._reset(stream, Status.REFUSED_STREAM)
            return
        fin = bool(flags & Flag.FIN)
        state = _Stream(client_done=fin, server_done=bool(flags & Flag.UNIDIRECTIONAL))
        if fin and state.server_done:
            return  # closed in both directions from the start
        self._streams[stream] = state
        events.append(StreamOpened(stream=stream, headers=headers, fin=fin))

    def _forget_if_done(self, stream: int, state: _Stream) -> None:
        if state.client_done and state.server_done:
            del self._streams[stream]

    def _end(self, reason: str) -> Event:
        self._broken = True
        self._go_away(GoAwayStatus.PROTOCOL_ERROR)
        self._buffer.clear()
        self._streams.clear()
        return ProtocolError(reason=reason)

    def _go_away(self, status: GoAwayStatus) -> None:
        if not self._leaving:
            self._leaving = True
            self._control(FrameType.GOAWAY, _WORD.pack(self._last) + _WORD.pack(status))

    def _reset(self, stream: int, status: Status) -> None:
        self._control(FrameType.RST_STREAM, _WORD.pack(stream) + _WORD.pack(status))

    def _control(self, kind: FrameType, body: bytes) -> None:
        self._output += _HEADER.pack(_CONTROL | VERSION << 16 | kind, len(body))
        self._output += body

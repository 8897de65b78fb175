"""WebSocket as a multiplexer: the channel protocols, and SPDY tunnelled through it.

The protocol itself is `websockets`' sans-IO core (RFC 6455). Messages may come in any number of fragments and are
passed on fragment by fragment; at most a single frame is buffered, up to SPDY's largest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from sandboxd.streaming import channels, spdy
from sandboxd.streaming.streams import Data, Event, GoneAway, ProtocolError, StreamOpened

MAX_FRAME_BYTES = spdy.MAX_DATA_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """A part of a message; `last` ends it."""

    data: bytes
    text: bool
    last: bool


class WebSocket:
    """The server's end of one WebSocket."""

    def __init__(self, subprotocol: str | None) -> None:
        self._subprotocol = subprotocol
        self._protocol = ServerProtocol(max_size=(None, MAX_FRAME_BYTES))
        self._text = False  # whether the message being received is text
        self._ended = False

    def accept(self, head: bytes) -> bool:
        """Answer the client's handshake (the request up to its empty line, inclusive); False if it is unacceptable.

        The answer is empty if the handshake could not be parsed.
        """
        self._protocol.receive_data(head)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                # The protocol is chosen already, and the core would refuse names that are not tokens (RFC 7230),
                # such as Kubernetes' `SPDY/3.1+portforward.k8s.io` with its slash. So they are hidden from it.
                if "Sec-WebSocket-Protocol" in event.headers:
                    del event.headers["Sec-WebSocket-Protocol"]
                response = self._protocol.accept(event)
                if self._subprotocol is not None and response.status_code == 101:
                    response.headers["Sec-WebSocket-Protocol"] = self._subprotocol
                self._protocol.send_response(response)
                return response.status_code == 101
        return False  # the parser did not recognize a request, and gives no answer

    def receive_data(self, data: bytes) -> list[Fragment | GoneAway | ProtocolError]:
        """The fragments that these bytes complete; nothing follows a GoneAway or ProtocolError."""
        received: list[Fragment | GoneAway | ProtocolError] = []
        if self._ended:
            return received
        self._protocol.receive_data(data)
        for frame in self._protocol.events_received():
            if not isinstance(frame, Frame):
                continue
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                if frame.opcode is not Opcode.CONT:
                    self._text = frame.opcode is Opcode.TEXT
                received.append(Fragment(data=bytes(frame.data), text=self._text, last=frame.fin))
            elif frame.opcode is Opcode.CLOSE:
                self._ended = True
                received.append(GoneAway(final=True))
        error = self._protocol.parser_exc
        if error is not None and not self._ended:
            self._ended = True
            received.append(ProtocolError(reason=f"WebSocket: {error}"))
        return received

    def send(self, data: bytes, *, text: bool = False) -> None:
        """Queue one message. Does nothing after either side has sent its close frame."""
        if self._protocol.state is State.OPEN:
            (self._protocol.send_text if text else self._protocol.send_binary)(data)

    def close(self, reason: str = "") -> None:
        """Queue the close frame."""
        if self._protocol.state is State.OPEN:
            code = CloseCode.PROTOCOL_ERROR if reason else CloseCode.NORMAL_CLOSURE
            # A control frame's payload has 125 bytes, two of them the code (RFC 6455 section 5.5).
            self._protocol.send_close(code, reason.encode()[:120].decode(errors="ignore"))

    def data_to_send(self) -> bytes:
        """What has been queued since the last call."""
        # An empty chunk asks for the TCP connection to be closed; the link does that anyway.
        return b"".join(self._protocol.data_to_send())


class Channels:
    """The streams of a channel protocol; a `streams.Multiplexer`. All are open from the start."""

    def __init__(
        self,
        websocket: WebSocket,
        *,
        streams: Mapping[int, Mapping[str, str]],
        greetings: Mapping[int, bytes],
        base64_text: bool = False,
        half_close: bool = False,
    ) -> None:
        """`streams` maps channels to headers like those of a SPDY stream, `greetings` to their first message.
        `half_close`: the client can end a channel (v5)."""
        self._websocket = websocket
        self._streams = dict(streams)
        self._greetings = dict(greetings)
        self._base64 = base64_text
        self._half_close = half_close
        self._reader = channels.ChannelReader(base64_text=base64_text)
        self._client_done: set[int] = set()
        self._server_done: set[int] = set()
        self._closing = b""  # of a v5 close message: the channels named so far
        self._broken = False

    def begin(self) -> list[Event]:
        """Open all streams; the greetings tell the client that the session exists."""
        for channel, data in self._greetings.items():
            self._send(channel, data)
        return [StreamOpened(stream=channel, headers=headers) for channel, headers in self._streams.items()]

    def receive_data(self, data: bytes) -> list[Event]:
        """The events that these bytes complete; data on channels that the session does not have is dropped."""
        events: list[Event] = []
        if self._broken:
            return events
        for item in self._websocket.receive_data(data):
            if not isinstance(item, Fragment):
                events.append(item)
                break
            try:
                self._message(item, events)
            except channels.BadMessage as exc:
                self._broken = True
                self._websocket.close(str(exc))
                events.append(ProtocolError(reason=str(exc)))
                break
        return events

    def receive_eof(self) -> list[Event]:
        """No events: a client may disconnect without a close frame."""
        return []

    def reply(self, stream: int) -> None:
        """Do nothing: the streams are open already."""

    def send_data(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Queue one message. The protocol has no end of a stream; after `fin` nothing is sent on it."""
        if stream not in self._streams or stream in self._server_done:
            return
        if data:
            self._send(stream, data)
        if fin:
            self._server_done.add(stream)

    def reset(self, stream: int, *, refused: bool = False) -> None:
        """Stop sending and reading on a stream; the protocol cannot tell the client."""
        self._client_done.add(stream)
        self._server_done.add(stream)

    def close(self, reason: str = "") -> None:
        """Queue the close frame."""
        self._websocket.close(reason)

    def data_to_send(self) -> bytes:
        """What has been queued since the last call."""
        return self._websocket.data_to_send()

    def _send(self, channel: int, data: bytes) -> None:
        message = channels.message(channel, data, base64_text=self._base64)
        self._websocket.send(message, text=self._base64)

    def _message(self, fragment: Fragment, events: list[Event]) -> None:
        channel, data = self._reader.read(fragment.data, last=fragment.last)
        if self._half_close and channel == channels.CLOSE:
            self._close_message(data, fragment.last, events)
        elif channel in self._streams and channel not in self._client_done and data:
            events.append(Data(stream=channel, data=data))

    def _close_message(self, data: bytes, last: bool, events: list[Event]) -> None:
        named = self._closing + data
        self._closing = b"" if last else named
        if len(named) > 1 or (last and not named):
            raise channels.BadMessage("a close message must name one channel")
        if last and named[0] in self._streams and named[0] not in self._client_done:
            self._client_done.add(named[0])
            events.append(Data(stream=named[0], data=b"", fin=True))


class Tunnel:
    """SPDY in binary messages, split anywhere; a `streams.Multiplexer`."""

    def __init__(self, websocket: WebSocket, inner: spdy.Connection) -> None:
        self._websocket = websocket
        self._inner = inner
        self._broken = False

    def begin(self) -> list[Event]:
        """No events: the client speaks first."""
        return self._inner.begin()

    def receive_data(self, data: bytes) -> list[Event]:
        """The events that the tunnelled bytes complete."""
        events: list[Event] = []
        if self._broken:
            return events
        for item in self._websocket.receive_data(data):
            if not isinstance(item, Fragment):
                events.append(item)
            elif item.text:
                events.append(ProtocolError(reason="a text message in a SPDY tunnel"))
            else:
                events += self._inner.receive_data(item.data)
            if events and isinstance(events[-1], ProtocolError):
                self._broken = True
                self.close(events[-1].reason)
                break
        return events

    def receive_eof(self) -> list[Event]:
        """An error if a SPDY frame was unfinished."""
        return self._inner.receive_eof()

    def reply(self, stream: int) -> None:
        """Accept a stream."""
        self._inner.reply(stream)

    def send_data(self, stream: int, data: bytes, *, fin: bool = False) -> None:
        """Queue data."""
        self._inner.send_data(stream, data, fin=fin)

    def reset(self, stream: int, *, refused: bool = False) -> None:
        """Reset a stream."""
        self._inner.reset(stream, refused=refused)

    def close(self, reason: str = "") -> None:
        """Queue GOAWAY and the close frame."""
        self._inner.close(reason)
        self._wrap()
        self._websocket.close(reason)

    def data_to_send(self) -> bytes:
        """What has been queued since the last call."""
        self._wrap()
        return self._websocket.data_to_send()

    def _wrap(self) -> None:
        if data := self._inner.data_to_send():
            self._websocket.send(data)

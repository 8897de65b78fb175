"""The logger's side of one connection: frames in, frames out, never blocking."""

from __future__ import annotations

import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from sandboxd.logs import wire

RECEIVE_BYTES = 1 << 16
MAX_UNREAD_BYTES = 64 << 20  # of answers; a client that leaves more unread is not a daemon


class Connection:
    """One client of the logger."""

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._selector = selector
        self._frames = wire.Frames()
        self._out: deque[memoryview] = deque()
        self._closing = False
        self.unsent = 0  # bytes
        self.open = True
        self.on_close: Callable[[], None] = lambda: None
        self.on_sent: Callable[[], None] = lambda: None
        selector.register(sock, selectors.EVENT_READ, self)

    def received(self) -> Iterator[dict[str, Any]]:
        """The messages received; closes the connection when the other side did, or does not speak our protocol."""
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for kind, payload in self._frames.feed(data):
                if kind == wire.MESSAGE:
                    yield wire.parse(payload)
        except wire.Garbled:
            self.close()

    def send(self, frame: bytes) -> None:
        """Queue a frame and send as much as possible now."""
        if not self.open:
            return
        self._out.append(memoryview(frame))
        self.unsent += len(frame)
        if len(self._out) == 1:
            self.flush()
        if self.unsent > MAX_UNREAD_BYTES:
            self.close()

    def flush(self) -> None:
        """Send as much as possible now."""
        before = self.unsent
        try:
            while self._out:
                sent = self._sock.send(self._out[0])
                self.unsent -= sent
                if sent == len(self._out[0]):
                    self._out.popleft()
                else:
                    self._out[0] = self._out[0][sent:]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._closing and not self._out:
            self.close()
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        if self._selector.get_key(self._sock).events != events:
            self._selector.modify(self._sock, events, self)
        if self.unsent < before:
            self.on_sent()

    def finish(self, within: float = 0.0) -> None:
        """Close once everything is sent; with `within`, wait up to so many seconds for that."""
        self._closing = True
        if not self.open:
            return
        if within:
            self._sock.settimeout(within)
        self.flush()

    def close(self) -> None:
        """Close now. Idempotent."""
        if not self.open:
            return
        self.open = False
        self._out.clear()
        self.unsent = 0
        self._selector.unregister(self._sock)
        self._sock.close()
        self.on_close()

"""The logger: one process per daemon that reads every container's output, and outlives the daemon.

One thread and two selectors: the daemon and the followers come first, and are served again between any two reads of
output, so that no flood delays them by more than the handling of one read (`pump.READ_BYTES`). It imports little and
holds little: no asyncio, no grpc, and of output only what a slow listener has not read yet.

It ends by itself when it has nothing to log and no daemon: at once when a daemon reports that it stops, otherwise
after `idle` seconds. Its state comes from the daemon's ledger; beside the FIFOs it leaves the beginnings of lines
(`pump`). SIGTERM ends it like `retire`; the daemon then starts another.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import sandboxd
from sandboxd.logs import wire
from sandboxd.logs.connection import Connection
from sandboxd.logs.listeners import Attached, Drained, Watching
from sandboxd.logs.pump import ContainerPump, Counts

SLOW_BYTES = 4 << 20  # unsent to an attached client; with more, the container's output waits for it
STALL_SECONDS = 10.0  # after which such a client is cut off if it has read nothing
MAX_NOTICES = 100  # kept for the next daemon


class Logger:
    """All pumps and all clients."""

    def __init__(self, listener: socket.socket, path: str, idle: float) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._path = path
        self._idle = idle
        self._quiet_since = time.monotonic()
        self._ending = False
        self._pumps: dict[str, ContainerPump] = {}
        self._counts = Counts()
        self._fifos = selectors.EpollSelector()
        self._sockets = selectors.EpollSelector()
        self._daemons: set[Connection] = set()
        self._slow: dict[Attached, float] = {}  # since when it has read nothing
        self._notices: deque[dict[str, Any]] = deque(maxlen=MAX_NOTICES)
        self._sockets.register(listener, selectors.EVENT_READ)
        self._sockets.register(self._fifos, selectors.EVENT_READ)
        self._operations: dict[str, Callable[[Connection, dict[str, Any]], dict[str, Any] | None]] = {
            "hello": self._hello,
            "open": self._open,
            "reopen": self._reopen,
            "drain": self._drain,
            "close": self._close,
            "retain": self._retain,
            "leave": self._leave,
            "count": self._count,
            "retire": self._retire,
            "watch": self._watch,
            "attach": self._attach,
        }

    def run(self) -> None:
        """Serve until there is no output to log and no daemon, or until asked to end."""
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # a signal alone does not end a wait (PEP 475)
        self._sockets.register(woken, selectors.EVENT_READ)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        while not self._ending:
            self.turn()
        # First the names, then the FIFOs, then the sockets: a daemon that sees us go cannot connect to us again.
        for path in (wire.pid_file(self._path), self._path):
            try:
                os.unlink(path)
            except OSError:
                pass
        for pump in self._pumps.values():
            pump.keep()
        for key in tuple(self._sockets.get_map().values()):
            if isinstance(key.data, Connection):
                key.data.finish(within=1.0)
                key.data.close()
        self._listener.close()

    def turn(self) -> None:
        """Wait for something to do, and do it."""
        if self._look_after(self._patience()):
            for key, _ in self._fifos.select(0):
                self._read(key.data, key.fd)
                self._look_after(0)
                if self._ending:
                    return
        self._cut_off()
        if self._daemons or not all(pump.ended for pump in self._pumps.values()):
            self._quiet_since = time.monotonic()
        elif time.monotonic() - self._quiet_since >= self._idle:
            self._end()

    def _patience(self) -> float | None:
        """How long to wait at most, in seconds."""
        if self._slow:
            return 1.0
        if self._daemons or not all(pump.ended for pump in self._pumps.values()):
            return None
        return max(self._quiet_since + self._idle - time.monotonic(), 0.0)

    def _look_after(self, timeout: float | None) -> bool:
        """Serve the clients; returns whether there is output to read."""
        output = False
        for key, events in self._sockets.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._fifos:
                output = True
            elif isinstance(key.data, Connection) and key.data.open:
                if events & selectors.EVENT_WRITE:
                    key.data.flush()
                if events & selectors.EVENT_READ and key.data.open:
                    for request in key.data.received():
                        self._handle(key.data, request)
        return output

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # the client has gone again, or we are out of descriptors for the moment
            return
        Connection(sock, self._sockets)

    def _read(self, pump: ContainerPump, fd: int) -> None:
        try:
            pump.read(fd)
        except Exception:  # a failure of one container must not end the logs of the others
            _say(traceback.format_exc())
            self._notice("container output cannot be handled and is no longer logged", container=pump.container_id)
            pump.close()

    def _handle(self, connection: Connection, request: dict[str, Any]) -> None:
        number = request.get("id")
        try:
            answer = self._operations[str(request.get("op"))](connection, request)
        except OSError as exc:
            answer = {"error": f"{exc.strerror or exc}: {exc.filename}" if exc.filename else str(exc)}
        except _Refused as exc:
            answer = {"error": str(exc), "unknown": True}
        except (KeyError, TypeError, ValueError) as exc:
            answer = {"error": f"the logger does not understand {request.get('op')!r}: {type(exc).__name__} {exc}"}
        except Exception as exc:  # nor must a failure of one request
            _say(traceback.format_exc())
            answer = {"error": f"the logger failed on {request.get('op')!r}: {type(exc).__name__} {exc}"}
        if answer is not None:
            connection.send(wire.message(**answer, id=number))

    def _notice(self, words: str, **fields: str) -> None:
        notice = {"notice": words, **fields}
        _say(f"{notice}\n")
        if not self._daemons:
            self._notices.append(notice)
        for daemon in tuple(self._daemons):
            daemon.send(wire.message(**notice))

    def _end(self) -> None:
        self._ending = True

    # Requests of the daemon. None as an answer means that it comes later or has been sent.

    def _hello(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any] | None:
        self._daemons.add(connection)
        connection.on_close = lambda: self._daemons.discard(connection)
        containers = {
            pump.container_id: {"fifos": pump.fifos, "log": pump.log_path, "ended": pump.ended}
            for pump in self._pumps.values()
        }
        connection.send(
            wire.message(
                id=request.get("id"), protocol=wire.PROTOCOL, version=sandboxd.__version__, containers=containers
            )
        )
        while self._notices:
            connection.send(wire.message(**self._notices.popleft()))
        return None

    def _open(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        container_id, came_first = str(request["container"]), frozenset(request["came_first"])
        must_write = bool(request["must_write"])
        pump = self._pumps.get(container_id)
        if pump is not None and not must_write:
            pump.check(came_first)
            return {}
        if pump is not None:
            self._forget(pump)  # left by an interrupted start: its streams have ended, or will never begin
        self._pumps[container_id] = ContainerPump(
            container_id,
            request["fifos"],
            request["log"],
            int(request["max_line"]),
            self._fifos,
            lambda words: self._notice(words, container=container_id),
            came_first=came_first,
            must_write=must_write,
            counts=self._counts,
        )
        return {}

    def _reopen(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        self._pump(request).reopen()
        return {}

    def _drain(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any] | None:
        pump = self._pumps.get(str(request["container"]))
        if pump is None:
            return {}
        if pump.ended:
            self._forget(pump)
            return {}
        pump.listeners.add(Drained(self._forget, pump, connection, request.get("id")))
        return None

    def _close(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        pump = self._pumps.get(str(request["container"]))
        if pump is not None:
            self._forget(pump)
        return {}

    def _retain(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        retained = frozenset(request["containers"])
        for pump in tuple(self._pumps.values()):
            if pump.container_id not in retained:
                self._forget(pump)
        return {}

    def _leave(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        self._ending = all(pump.ended for pump in self._pumps.values())
        return {"ending": self._ending}

    def _count(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        return {"read": self._counts.read, "lost": self._counts.lost}

    def _retire(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        self._ending = True
        return {"ending": True}

    def _watch(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any] | None:
        return self._listen(Watching(connection), request)

    def _attach(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any] | None:
        attached = Attached(connection, self._pump(request), self._balance)
        return self._listen(attached, request)

    def _listen(self, listener: Attached | Watching, request: dict[str, Any]) -> dict[str, Any] | None:
        pump, connection = self._pump(request), listener.connection
        connection.send(wire.message(id=request.get("id")))
        if pump.ended:
            listener.ended("")
            return None

        def gone() -> None:
            pump.listeners.discard(listener)
            if isinstance(listener, Attached):
                self._balance(listener, False)

        connection.on_close = gone
        pump.listeners.add(listener)
        return None

    def _pump(self, request: dict[str, Any]) -> ContainerPump:
        container_id = str(request["container"])
        pump = self._pumps.get(container_id)
        if pump is None:
            raise _Refused(f"container {container_id} is not being logged")
        return pump

    def _forget(self, pump: ContainerPump) -> None:
        self._pumps.pop(pump.container_id, None)
        pump.close()

    # Attached clients that are slower than their container

    def _balance(self, listener: Attached, progress: bool) -> None:
        """Make the container wait while an attached client, which must get every byte, is far behind."""
        pump = listener.pump
        if listener not in pump.listeners or listener.connection.unsent <= SLOW_BYTES:
            self._slow.pop(listener, None)
        elif progress or listener not in self._slow:
            self._slow[listener] = time.monotonic()
        pump.pause(any(other in self._slow for other in pump.listeners))

    def _cut_off(self) -> None:
        for listener, since in tuple(self._slow.items()):
            if time.monotonic() - since >= STALL_SECONDS:
                self._notice(
                    "an attached client read nothing for too long and was cut off",
                    container=listener.pump.container_id,
                )
                listener.connection.close()


def _say(text: str) -> None:
    """Write to the logger's own log, if there is room."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        pass


class _Refused(Exception):
    """The daemon asked for something that does not exist."""


def main(argv: list[str]) -> None:
    """`python -m sandboxd.logs SOCKET IDLE_SECONDS`, with the listening socket as standard input."""
    path, idle = argv
    listener = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.chdir("/")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # three for each container
    Logger(listener, path, float(idle)).run()

"""The listeners to a container's output, on the logger's side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sandboxd.logs import wire
from sandboxd.logs.connection import Connection
from sandboxd.logs.pump import ContainerPump


class Drained:
    """A daemon that waits for the last output of a container; the container is then forgotten."""

    def __init__(
        self, forget: Callable[[ContainerPump], None], pump: ContainerPump, connection: Connection, number: Any
    ) -> None:
        self._forget, self._pump, self._connection, self._number = forget, pump, connection, number

    def output(self, stream: str, data: bytes) -> None:
        """Nothing to report yet."""

    def ended(self, why: str) -> None:
        """Forget the pump and answer."""
        self._forget(self._pump)
        self._connection.send(wire.message(id=self._number))


class Watching:
    """A follower that reads the log file and is notified when it grows."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def output(self, stream: str, data: bytes) -> None:
        """Notify it, unless an earlier notice has not been sent yet."""
        if not self.connection.unsent:
            self.connection.send(wire.message(changed=True))

    def ended(self, why: str) -> None:
        """Send the end and close."""
        self.connection.send(wire.message(end=why))
        self.connection.finish()


class Attached:
    """A client that receives the output itself. `balance` is called when more is queued, or some was sent (True)."""

    def __init__(
        self, connection: Connection, pump: ContainerPump, balance: Callable[[Attached, bool], None]
    ) -> None:
        self.connection, self.pump = connection, pump
        self._balance = balance
        connection.on_sent = lambda: balance(self, True)

    def output(self, stream: str, data: bytes) -> None:
        """Pass it on."""
        self.connection.send(wire.frame(wire.OUTPUT[stream], data))
        self._balance(self, False)

    def ended(self, why: str) -> None:
        """Send the end and close."""
        self.connection.send(wire.message(end=why))
        self.connection.finish()

"""What the listeners of a container tell their clients."""

from __future__ import annotations

from typing import Any, cast

from sandboxd.logs import wire
from sandboxd.logs.connection import Connection
from sandboxd.logs.listeners import Attached, Drained, Watching
from sandboxd.logs.pump import ContainerPump


class Line:
    """Stands for a connection; `unsent` is the test's to set."""

    def __init__(self) -> None:
        self.unsent = 0
        self.sent: list[tuple[bytes, bytes]] = []
        self.finished = False
        self.on_sent: Any = None

    def send(self, frame: bytes) -> None:
        self.sent += wire.Frames().feed(frame)

    def finish(self) -> None:
        self.finished = True


def messages(line: Line) -> list[dict[str, Any]]:
    return [wire.parse(payload) for _, payload in line.sent]


PUMP = cast("ContainerPump", object())


def test_a_drain_is_answered_when_the_pump_is_forgotten() -> None:
    line, forgotten = Line(), []
    waiting = Drained(lambda pump: forgotten.append((pump, list(line.sent))), PUMP, cast("Connection", line), 7)
    waiting.output("stdout", b"x")
    assert line.sent == []
    waiting.ended("")

    assert forgotten == [(PUMP, [])]
    assert messages(line) == [{"id": 7}]


def test_a_change_that_was_not_sent_yet_stands_for_the_next_one_too() -> None:
    line = Line()
    watching = Watching(cast("Connection", line))
    watching.output("stdout", b"x")
    line.unsent = 10
    watching.output("stdout", b"x")
    line.unsent = 0
    watching.output("stderr", b"x")
    watching.ended("")

    assert messages(line) == [{"changed": True}, {"changed": True}, {"end": ""}]
    assert line.finished


def test_an_attached_client_gets_each_stream_as_it_is() -> None:
    line, balanced = Line(), []
    attached = Attached(cast("Connection", line), PUMP, lambda _, progress: balanced.append(progress))
    attached.output("stdout", b"\x1b[0m")
    attached.output("stderr", b"e")
    line.on_sent()
    attached.ended("why")

    assert line.sent == [(b"O", b"\x1b[0m"), (b"E", b"e"), (b"J", b'{"end":"why"}')]
    assert balanced == [False, False, True]
    assert line.finished

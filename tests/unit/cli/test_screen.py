"""A terminal that was drawn on is given back as it was, however the command ends."""

from __future__ import annotations

import io
import os
import pty
import signal
import sys
import termios
from collections.abc import Callable, Iterator

import pytest

from sandboxd.cli import screen

HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"
ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Makes standard input and output a terminal; its other end. For the test to call: pytest sets its own first."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "r+b", buffering=0) as file:
        stream = io.TextIOWrapper(file, write_through=True)

        def attached() -> int:
            monkeypatch.setattr(sys, "stdin", stream)
            monkeypatch.setattr(sys, "stdout", stream)
            return ours

        yield attached
    os.close(ours)


def written(terminal: int) -> str:
    """All that was, which ends with leaving the alternate screen."""
    told = b""
    while LEFT.encode() not in told:
        told += os.read(terminal, 1 << 16)
    return told.decode()


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError, None])
def test_the_terminal_is_given_back(attach: Callable[[], int], end: type[BaseException] | None) -> None:
    terminal = attach()
    before = termios.tcgetattr(sys.stdin)
    try:
        with screen.screen() as place:
            place.draw("something")
            assert termios.tcgetattr(sys.stdin) != before, "keys are not shown"
            if end:
                raise end
    except (KeyboardInterrupt, RuntimeError):
        pass
    assert termios.tcgetattr(sys.stdin) == before
    told = written(terminal)
    assert told.index(ENTERED) < told.index("something") < told.index(LEFT)
    assert told.index(HIDDEN) < told.rindex(SHOWN)


def test_a_signal_that_ends_the_command_gives_it_back_too(attach: Callable[[], int]) -> None:
    terminal = attach()
    with pytest.raises(SystemExit), screen.screen() as place:
        place.draw("something")
        signal.raise_signal(signal.SIGTERM)
    assert LEFT in written(terminal)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_q_ends_the_wait_and_other_keys_do_not(attach: Callable[[], int]) -> None:
    terminal = attach()
    with screen.screen() as place:
        os.write(terminal, b"x")
        assert place.waited(0.05)
        os.write(terminal, b"q")
        assert not place.waited(60)


def test_what_is_no_terminal_is_not_drawn_on(attach: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    attach()
    assert screen.usable()
    monkeypatch.setenv("TERM", "dumb")
    assert not screen.usable()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not screen.usable()

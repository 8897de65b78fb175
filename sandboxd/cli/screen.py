"""A terminal that is drawn again and again, on its alternate screen, and given back however the command ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from types import FrameType

from rich.console import Console, RenderableType
from rich.live import Live

_KEYS = 64  # bytes of what is typed at once
_TERMINATED = 128 + signal.SIGTERM


class Screen:
    """What `screen` yields."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def draw(self, what: RenderableType) -> None:
        """Show this in place of what was there; what does not fit is cut off."""
        self._live.update(what, refresh=True)

    def waited(self, seconds: float) -> bool:
        """Wait, and say whether to go on: not when somebody types q."""
        if not sys.stdin.isatty():
            pause(seconds)
            return True
        deadline = time.monotonic() + seconds
        keys = sys.stdin.fileno()
        while (left := deadline - time.monotonic()) > 0:
            if select.select([keys], [], [], left)[0]:
                typed = os.read(keys, _KEYS)
                if not typed or b"q" in typed.lower():
                    return False
        return True


def pause(seconds: float) -> None:
    """Wait from one look to the next."""
    select.select([], [], [], seconds)


def usable() -> bool:
    """Whether stdout is a terminal on which something can be drawn in place."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    """The terminal, until the block ends or the command is interrupted or terminated."""
    with _ended_in_order(), _typed_without_return():
        live = Live(console=Console(highlight=False), screen=True, auto_refresh=False)
        with live:
            yield Screen(live)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM ends the block as an exception does, so that the terminal is given back."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _typed_without_return() -> Iterator[None]:
    """Keys are read as they are typed and not shown; ^C interrupts as ever."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)

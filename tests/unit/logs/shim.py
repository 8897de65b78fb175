"""The shim's part in these tests, and reading back what was logged."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from pathlib import Path

from sandboxd.logs.format import parse


class Writer:
    """The shim's end of a FIFO: read and write, as it opens it."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        if not os.path.exists(path):
            os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def write(self, data: bytes) -> None:
        assert os.write(self.fd, data) == len(data)

    def write_all(self, data: bytes, *, end: bool = False) -> None:
        """More than a pipe holds; blocks until somebody has read."""
        os.set_blocking(self.fd, True)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.fd, rest) :]
        if end:
            self.end()

    def end(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def lines(path: Path | str) -> list[tuple[str, bytes]]:
    """(stream, text) of every entry in the file; each line must be one."""
    if not Path(path).exists():
        return []
    found = []
    for line in Path(path).read_bytes().split(b"\n")[:-1]:
        entry = parse(line)
        assert entry is not None, line
        found.append((entry.stream, entry.text))
    return found


def texts(path: Path | str) -> list[bytes]:
    """The texts of the entries in the file."""
    return [text for _, text in lines(path)]


def read_until(selector: selectors.BaseSelector, check: Callable[[], object]) -> None:
    """Have the pumps behind `selector` read until `check` holds; nothing to read for half a minute fails."""
    while not check():
        ready = selector.select(30)
        assert ready, "nothing comes any more"
        for key, _ in ready:
            key.data.read(key.fd)


def read_all(selector: selectors.BaseSelector) -> None:
    """Have the pumps read what is there now."""
    while ready := selector.select(0):
        for key, _ in ready:
            key.data.read(key.fd)


def descriptors() -> set[str]:
    """What this process has open."""
    return set(os.listdir("/proc/self/fd"))


def redirect(fd: int, path: str) -> None:
    """Let a descriptor lead somewhere else, like a disk that is full ("/dev/full")."""
    other = os.open(path, os.O_WRONLY)
    os.dup2(other, fd, inheritable=False)
    os.close(other)


def remove_chain(path: str, top: Path) -> None:
    """Remove nested empty directories up to `top`, however many: pytest's own cleaning up recurses."""
    while path != str(top):
        os.rmdir(path)
        path = os.path.dirname(path)

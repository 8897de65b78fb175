"""What somebody else may have put where a regular file should be."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Stranger:
    """One kind of thing, and the words by which it is refused."""

    def __init__(self, words: str, make: Callable[[Path], None]) -> None:
        self._words = words
        self._make = make

    @contextmanager
    def at(self, path: Path) -> Iterator[str]:
        """The thing is at `path` meanwhile, and what it leads to is afterwards as it was; gives the words."""
        target = path.parent / "somebody-elses"
        target.write_bytes(b"first line\nlast line without an end")
        self._make(path)
        try:
            yield self._words
        finally:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        assert target.read_bytes() == b"first line\nlast line without an end"
        target.unlink()
        assert not (path.parent / "nobody").exists()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _device(number: int) -> Callable[[Path], None]:
    return lambda path: os.mknod(path, 0o020666, os.makedev(1, number))


_AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="makes a device node")

STRANGERS = [
    pytest.param(Stranger("a FIFO", os.mkfifo), id="fifo"),
    pytest.param(Stranger("a socket", _socket), id="socket"),
    pytest.param(Stranger("a directory", os.mkdir), id="directory"),
    pytest.param(Stranger("a symbolic link", lambda path: path.symlink_to("somebody-elses")), id="link"),
    pytest.param(Stranger("a symbolic link", lambda path: path.symlink_to("nobody")), id="dangling link"),
    pytest.param(Stranger("a symbolic link", lambda path: path.symlink_to(path.name)), id="link to itself"),
    pytest.param(Stranger("a symbolic link", lambda path: path.symlink_to("/dev/zero")), id="link to a device"),
    pytest.param(Stranger("a device", _device(3)), id="null", marks=_AS_ROOT),
    pytest.param(Stranger("a device", _device(5)), id="zero", marks=_AS_ROOT),
]

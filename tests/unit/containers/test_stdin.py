"""The writing end of a stdin FIFO: no byte lost, no loop blocked, and an end that wakes whoever waits."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.containers.stdin import Stdin


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = str(tmp_path / "stdin")
    os.mkfifo(path)
    return path


@pytest.fixture
def reader(fifo: str) -> Iterator[int]:
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    yield fd
    os.close(fd)


async def test_more_than_a_pipe_holds_is_written_as_it_is_read(fifo: str, reader: int) -> None:
    stdin = Stdin(fifo, os.O_WRONLY)
    payload = os.urandom(1 << 20)
    writing = asyncio.ensure_future(stdin.write(payload))
    read = bytearray()
    while len(read) < len(payload):
        await asyncio.sleep(0)
        try:
            read += os.read(reader, 65536)
        except BlockingIOError:
            continue
    await writing
    assert read == payload
    stdin.close()
    assert os.read(reader, 1) == b""


def test_without_a_reader_it_cannot_be_opened_for_writing_only(fifo: str) -> None:
    with pytest.raises(OSError) as error:
        Stdin(fifo, os.O_WRONLY)
    assert error.value.errno == errno.ENXIO


def test_opened_for_reading_too_it_waits_for_nobody(fifo: str) -> None:
    stdin = Stdin(fifo, os.O_RDWR)
    stdin.close()


async def test_closing_wakes_a_write_that_waits_for_room(fifo: str, reader: int) -> None:
    stdin = Stdin(fifo, os.O_WRONLY)
    writing = asyncio.ensure_future(stdin.write(bytes(1 << 20)))
    await asyncio.sleep(0)
    assert not writing.done()
    stdin.close()
    stdin.close()
    with pytest.raises(BrokenPipeError):
        await writing
    with pytest.raises(BrokenPipeError):
        await stdin.write(b"x")


async def test_a_cancelled_write_leaves_nothing_in_the_loop(fifo: str, reader: int) -> None:
    """The number of the descriptor may belong to another file next."""
    stdin = Stdin(fifo, os.O_WRONLY)
    writing = asyncio.ensure_future(stdin.write(bytes(1 << 20)))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    fd = stdin._fd
    assert not asyncio.get_running_loop().remove_writer(fd)
    stdin.close()


async def test_a_reader_that_has_gone_is_an_error(fifo: str) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    stdin = Stdin(fifo, os.O_WRONLY)
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        await stdin.write(b"x")
    stdin.close()

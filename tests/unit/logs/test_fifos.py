"""FIFOs are made once, found again, and keep what is in them while a keeper has them open."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sandboxd.logs.fifos import Keeper, fifo_paths, make_fifos
from tests.unit.logs.shim import Writer, descriptors


def test_fifos_are_made_once_and_found_again(tmp_path: Path) -> None:
    directory = str(tmp_path / "c" / "io")
    assert fifo_paths(directory) == {}

    made = make_fifos(directory, ("stdout", "stderr"))
    inodes = [os.stat(path).st_ino for path in made.values()]

    assert make_fifos(directory, ("stdout", "stderr")) == fifo_paths(directory) == made
    assert [os.stat(path).st_ino for path in made.values()] == inodes
    assert all(stat.S_ISFIFO(os.stat(path).st_mode) for path in made.values())
    assert [os.stat(path).st_mode & 0o777 for path in (directory, *made.values())] == [0o700, 0o600, 0o600]


def test_only_the_streams_that_were_wanted_are_found(tmp_path: Path) -> None:
    directory = str(tmp_path)
    make_fifos(directory, ("stdout",))

    assert fifo_paths(directory) == {"stdout": f"{directory}/stdout"}


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_in_a_fifo_outlives_its_writer_only_while_it_is_kept(tmp_path: Path, kept: bool) -> None:
    fifos = make_fifos(str(tmp_path), ("stdout",))
    keeper = Keeper(fifos if kept else {})
    writer = Writer(fifos["stdout"])
    writer.write(b"last words")
    writer.end()

    fd = os.open(fifos["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(fd, 100) == (b"last words" if kept else b"")
    os.close(fd)
    keeper.close()


def test_a_stream_is_abandoned_when_its_writers_came_and_went(tmp_path: Path) -> None:
    fifos = make_fifos(str(tmp_path), ("stdout", "stderr"))
    keeper = Keeper(fifos)
    assert keeper.abandoned() == set()
    writer = Writer(fifos["stderr"])
    assert keeper.abandoned() == set()
    writer.end()
    assert keeper.abandoned() == {"stderr"}
    keeper.close()


def test_a_keeper_leaves_no_descriptor_open(tmp_path: Path) -> None:
    fifos = make_fifos(str(tmp_path), ("stdout",))
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        Keeper({**fifos, "stderr": str(tmp_path / "none")})
    assert descriptors() == before
    keeper = Keeper(fifos)
    keeper.close()
    keeper.close()
    assert descriptors() == before

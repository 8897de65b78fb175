"""Only regular files are opened, whatever is there, and finding out never waits."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sandboxd.logs import regular as module
from sandboxd.logs.regular import make_directory, open_regular
from tests.unit.logs.shim import remove_chain
from tests.unit.logs.strangers import STRANGERS, Stranger

FLAGS = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT | os.O_APPEND]


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_is_not_a_regular_file_is_refused_by_its_kind(tmp_path: Path, stranger: Stranger, flags: int) -> None:
    path = tmp_path / "file"
    before = descriptors()
    with stranger.at(path) as words, pytest.raises(OSError, match=words) as refused:
        open_regular(str(path), flags)

    assert refused.value.filename == str(path)
    assert descriptors() == before


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_comes_after_the_look_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stranger: Stranger, flags: int
) -> None:
    path = tmp_path / "file"
    before = descriptors()

    def absent(_: Any) -> Any:
        raise FileNotFoundError

    with stranger.at(path):
        monkeypatch.setattr(module.os, "lstat", absent)  # type: ignore[attr-defined]
        with pytest.raises(OSError):
            open_regular(str(path), flags)
        monkeypatch.undo()

    assert descriptors() == before


def test_a_regular_file_is_opened_and_made_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        open_regular(str(path), os.O_RDONLY)
    for _ in range(2):
        with open(open_regular(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640), "wb") as file:
            file.write(b"x")

    assert path.read_bytes() == b"xx"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_lease_that_somebody_has_on_the_file_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which the holder is told
    try:
        with path.open("rb") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            with pytest.raises(BlockingIOError):
                open_regular(str(path), os.O_RDWR)
    finally:
        signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("parts", [1, 3, 1500])
def test_a_directory_is_made_with_its_parents_however_many(tmp_path: Path, parts: int) -> None:
    path = str(tmp_path) + "/d" * parts
    make_directory(path)
    make_directory(path)

    assert os.path.isdir(path)
    remove_chain(path, tmp_path)


@pytest.mark.parametrize("tail", ["/a" * 60_000, "/" + "a" * 300, "/file/a", "/fifo/a/b", "/loop/a"])
def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path, tail: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError):
        make_directory(f"{tmp_path}{tail}")

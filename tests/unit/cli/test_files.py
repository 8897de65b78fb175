"""Files are written whole, or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sandboxd.cli import files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_replaced_with_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    with files.replaced(str(path)) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    other = tmp_path / "other"
    other.touch()
    assert path.read_text() == "after" and mode(path) == mode(other)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "out"]


def test_a_private_file_is_its_owners_also_where_another_could_be_read_before(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.touch(0o644)
    with files.replaced(str(path), private=True) as file:
        file.write(b"secret")
    assert mode(path) == 0o600


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    with pytest.raises(RuntimeError), files.replaced(str(path)) as file:
        file.write(b"half")
        raise RuntimeError
    assert [each.read_text() for each in tmp_path.iterdir()] == ["before"]


def test_a_symbolic_link_and_a_device_are_kept(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.touch()
    link.symlink_to(target)
    for path in (str(link), "/dev/null"):
        with files.replaced(path) as file:
            file.write(b"x")
    assert link.is_symlink() and target.read_text() == "x" and Path("/dev/null").is_char_device()

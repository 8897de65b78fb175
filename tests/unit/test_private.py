"""The daemon's directories and files have the modes that they are to have, whatever the umask or what was there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd import private
from sandboxd.errors import NotReady
from sandboxd.places import Places


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o277], ids=oct, autouse=True)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_a_directory_gets_its_mode_and_its_missing_parents_are_nobodys_to_write(tmp_path: Path) -> None:
    private.directory(f"{tmp_path}/a/b/c", 0o700)
    assert [mode(tmp_path / place) for place in ("a", "a/b", "a/b/c")] == [0o755, 0o755, 0o700]


@pytest.mark.parametrize("before", [0o777, 0o711, 0o500, 0o1777])
def test_a_directory_that_is_there_is_set_right_and_keeps_what_is_in_it(tmp_path: Path, before: int) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").touch()
    (tmp_path / "d").chmod(before)
    private.directory(f"{tmp_path}/d", 0o711)
    assert mode(tmp_path / "d") == 0o711
    assert (tmp_path / "d" / "file").exists()


def test_making_a_directory_that_is_there_leaves_its_mode_alone(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o751)
    private.make(f"{tmp_path}/d", 0o700)
    assert mode(tmp_path / "d") == 0o751


def test_a_link_to_a_directory_on_another_disk_is_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    private.directory(f"{tmp_path}/link", 0o700)
    assert mode(tmp_path / "disk") == 0o700


def test_something_else_at_a_directorys_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "d").touch()
    for path in (f"{tmp_path}/d", f"{tmp_path}/d/below"):
        with pytest.raises(NotReady, match=path):
            private.directory(path, 0o700)


def test_a_directory_of_another_user_becomes_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owned: list[tuple[str, int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: owned.append((path, uid, gid)))
    private.directory(f"{tmp_path}/d", 0o700)
    assert owned == [(f"{tmp_path}/d", 4242, -1)]


def test_a_file_system_that_keeps_no_modes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o755)
    monkeypatch.setattr(os, "chmod", lambda path, mode: None)
    with pytest.raises(NotReady, match="does not keep modes"):
        private.directory(f"{tmp_path}/d", 0o700)


def test_files_are_for_this_user_only_also_those_that_were_there(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("kept")
    (tmp_path / "old").chmod(0o666)
    private.write(f"{tmp_path}/new", "text")
    with open(tmp_path / "old", "a", opener=private.opener) as file:
        file.write(" and more")
    assert (tmp_path / "new").read_text() == "text"
    assert (tmp_path / "old").read_text() == "kept and more"
    assert {mode(tmp_path / name) for name in ("old", "new")} == {0o600}


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic"):
        private.write(f"{tmp_path}/link", "text")
    assert (tmp_path / "victim").read_text() == "precious"


def test_everything_of_the_daemons_is_closed_but_the_way_to_its_socket(tmp_path: Path) -> None:
    root, state = f"{tmp_path}/lib/sandboxd", f"{tmp_path}/run/sandboxd"
    for path in (f"{root}/volumes", f"{state}/sandboxes"):
        os.makedirs(path)
        os.chmod(path, 0o777)
    os.mkdir(f"{state}/containerd")
    logs = (f"{state}/logger.log", f"{state}/containerd/containerd.log")
    for path in logs:
        Path(path).touch()
        os.chmod(path, 0o666)
    closed = Places(root=root, state=state, netns="", cgroup_driver="cgroupfs", cgroup_parent="/").closed
    private.prepare(root, state, closed=closed)
    private.prepare(root, state, closed=closed)
    assert mode(state) == 0o711
    assert {mode(path) for path in logs} == {0o600}
    assert {mode(path) for path in (root, *closed, *(entry.path for entry in os.scandir(root)))} == {0o700}
    assert {"pod-files", "volumes", "image-volumes"} <= set(os.listdir(root))


def test_one_directory_for_both_is_closed(tmp_path: Path) -> None:
    private.prepare(f"{tmp_path}/d", f"{tmp_path}/d", closed=())
    assert mode(tmp_path / "d") == 0o700

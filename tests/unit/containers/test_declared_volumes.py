"""A volume has what the image has at its place: all of it, as it is, and in no more space."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from sandboxd import trees
from sandboxd.containerd.snapshots import Mount
from sandboxd.containers import declared_volumes
from sandboxd.errors import NotReady
from sandboxd.oci.userns import IdMap
from tests.deep import DEEP, deep_path, nest

__all__ = ["deep_path"]  # a fixture


@pytest.fixture(autouse=True)
def anybody(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Owners are noted and not set: only root may."""
    owners: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda fd, uid, gid: owners.append((uid, gid)))
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, **_: owners.append((uid, gid)))
    return owners


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The root of an image with a directory /data."""
    (tmp_path / "image" / "data").mkdir(parents=True)
    return tmp_path / "image"


def create(directory: Path, image: Path, paths: Sequence[str] = ("/data",), ids: IdMap | None = None) -> Path:
    """The first volume."""
    mounts = [Mount(type="bind", source=str(image))]
    work = declared_volumes.create(str(directory), paths, mounts, ids)
    while True:
        try:
            next(work)
        except StopIteration as end:
            made: Mapping[str, str] = end.value
            return Path(made[paths[0]])


def test_every_kind_of_entry_is_copied_with_mode_and_times(tmp_path: Path, image: Path) -> None:
    data = image / "data"
    (data / "below").mkdir()
    (data / "below" / "file").write_text("content")
    (data / "link").symlink_to("/etc/passwd")
    os.mkfifo(data / "fifo")
    os.mknod(data / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(data / "device", stat.S_IFCHR | 0o600, os.makedev(0, 1)) if os.geteuid() == 0 else None
    (data / "below" / "file").chmod(0o4751)
    (data / "below").chmod(0o1770)
    (data / "fifo").chmod(0o620)
    for path in (*data.rglob("*"), data):
        os.utime(path, ns=(1_000_000_001, 2_000_000_002), follow_symlinks=False)

    made = create(tmp_path / "volumes", image)

    for path in (data, *data.rglob("*")):
        info, copy = path.lstat(), (made / path.relative_to(data)).lstat()
        assert (copy.st_mode, copy.st_mtime_ns, copy.st_rdev) == (info.st_mode, info.st_mtime_ns, info.st_rdev), path
    assert (made / "below" / "file").read_text() == "content"
    assert os.readlink(made / "link") == "/etc/passwd"
    assert os.listdir(tmp_path / "volumes") == ["0"]


def test_a_place_that_the_image_does_not_have_is_an_empty_directory(tmp_path: Path, image: Path) -> None:
    made = create(tmp_path / "volumes", image, ["/none"])
    assert os.listdir(made) == []
    assert stat.S_IMODE(made.stat().st_mode) == 0o755


def test_a_deep_tree_is_copied(deep_path: Path) -> None:
    (deep_path / "image" / "data").mkdir(parents=True)
    nest(deep_path / "image" / "data", files=True)
    made = create(deep_path / "volumes", deep_path / "image")
    at = trees.Descent(os.open(made, trees.DIRECTORY))
    events = [event for event, _ in trees.walk(at)]
    at.close()
    assert {event: events.count(event) for event in trees.Event} == dict.fromkeys(trees.Event, DEEP)


def test_links_to_one_file_remain_that(tmp_path: Path, image: Path) -> None:
    """1,000 links to a file of 1 GB would else be a terabyte."""
    (image / "data" / "one").write_text("content")
    (image / "data" / "below").mkdir()
    for name in ("two", "below/three"):
        (image / "data" / name).hardlink_to(image / "data" / "one")
    (image / "elsewhere").hardlink_to(image / "data" / "one")
    made = create(tmp_path / "volumes", image)
    assert len({(made / name).stat().st_ino for name in ("one", "two", "below/three")}) == 1
    assert (made / "one").stat().st_nlink == 3
    assert os.listdir(tmp_path / "volumes") == ["0"]


def test_a_file_with_more_links_than_the_disk_allows_is_copied_again(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image / "data" / "0").write_text("content")
    for i in range(1, 5):
        (image / "data" / f"{i}").hardlink_to(image / "data" / "0")
    real, allowed = os.link, 3

    def link(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        if os.stat(source, dir_fd=src_dir_fd).st_nlink >= allowed:
            raise OSError(31, "Too many links")
        real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "link", link)
    made = create(tmp_path / "volumes", image)
    assert [(made / f"{i}").read_text() for i in range(5)] == ["content"] * 5


def test_holes_remain_holes(tmp_path: Path, image: Path) -> None:
    with (image / "data" / "sparse").open("wb") as file:
        file.seek(1 << 34)
        file.write(b"middle")
        file.truncate(1 << 36)
    made = create(tmp_path / "volumes", image)
    info = (made / "sparse").stat()
    assert (info.st_size, info.st_blocks * 512 < 1 << 20) == (1 << 36, True)
    with (made / "sparse").open("rb") as file:
        file.seek(1 << 34)
        assert file.read(6) == b"middle"


def test_what_is_long_is_copied_piece_by_piece(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared_volumes, "CHUNK", 4096)
    (image / "data" / "file").write_bytes(b"x" * 40_960)
    work = declared_volumes.create(str(tmp_path / "volumes"), ["/data"], [Mount(type="bind", source=str(image))])
    assert len(list(work)) >= 10
    monkeypatch.setattr(trees, "PIECE_ENTRIES", 2)
    for i in range(20):
        (image / "data" / f"{i}").mkdir()
    work = declared_volumes.create(str(tmp_path / "more"), ["/data"], [Mount(type="bind", source=str(image))])
    assert len(list(work)) >= 20


def test_a_disk_that_refuses_is_told(tmp_path: Path, image: Path) -> None:
    (tmp_path / "volumes").write_text("")
    with pytest.raises(NotReady, match="cannot be made"):
        create(tmp_path / "volumes", image)

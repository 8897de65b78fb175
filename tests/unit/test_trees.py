"""What images and containers made is walked and removed whole, whatever it is and whoever still changes it."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd import trees
from sandboxd.errors import CleanupIncomplete
from sandboxd.trees import Descent, Event
from tests.deep import DEEP, deep_path, nest

__all__ = ["deep_path"]  # a fixture


def remove(path: Path, **limits: Any) -> int:
    """Remove to the end; return the number of pieces."""
    return sum(1 for _ in trees.remove(str(path), **limits)) + 1


@pytest.fixture
def top(tmp_path: Path) -> Path:
    made = tmp_path / "top"
    made.mkdir()
    return made


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the tree that nothing may touch."""
    made = tmp_path / "outside"
    (made / "below").mkdir(parents=True)
    (made / "below" / "precious").write_text("x")
    return made


def untouched(outside: Path) -> bool:
    return (outside / "below" / "precious").read_text() == "x" and len(list(outside.iterdir())) == 1


class Calls:
    """Counts the calls of a function of `os`, and lets a test do something before each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, before: Callable[..., None] | None = None) -> None:
        self.count = 0
        self.results: list[Any] = []
        self._real, self._before = getattr(os, name), before
        monkeypatch.setattr(os, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self._before is not None:
            self._before(*args, **kwargs)
        result = self._real(*args, **kwargs)
        self.results.append(result)
        return result


def test_what_is_not_there_is_removed(tmp_path: Path) -> None:
    assert remove(tmp_path / "none") == 1


def test_a_tree_deeper_than_any_path_and_any_stack_is_removed(top: Path) -> None:
    nest(top, DEEP, files=True)
    remove(top)
    assert not top.exists()


def test_names_of_255_bytes_are_removed_at_any_depth(top: Path) -> None:
    nest(top, 300, "n" * 255)
    remove(top)
    assert not top.exists()


def test_the_descriptors_do_not_grow_with_the_depth(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nest(top, 500, files=True)
    opened = Calls(monkeypatch, "open")
    remove(top)
    assert opened.count > 500
    assert max(opened.results) - min(opened.results) < 50  # of 500 levels; threads of other tests open files too


def test_the_work_is_linear_in_the_depth(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    for depth in (100, 400):
        top.mkdir(exist_ok=True)
        nest(top, depth, files=True)
        with monkeypatch.context() as patch:
            calls = [Calls(patch, name) for name in ("open", "rename", "rmdir", "unlink", "scandir")]
            remove(top)
            counted.append(sum(call.count for call in calls))
    assert counted[1] < 6 * counted[0]


def test_many_entries_are_removed_piece_by_piece(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(20):
        (top / f"{i}").mkdir()
        for j in range(150):
            (top / f"{i}" / f"{j}").touch()
    unlinked = Calls(monkeypatch, "unlink")
    seen = [0, *(unlinked.count for _ in trees.remove(str(top)))]
    assert not top.exists()
    assert unlinked.count == 3000
    assert len(seen) > 3
    assert max(b - a for a, b in itertools.pairwise(seen)) <= trees.PIECE_ENTRIES


def test_a_directory_with_more_subdirectories_than_are_moved_at_once_is_removed(top: Path) -> None:
    for i in range(300):
        (top / "wide" / f"{i}" / "below").mkdir(parents=True)
    remove(top)
    assert not top.exists()


def test_cut_off_at_any_piece_the_next_removal_goes_on(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "PIECE_ENTRIES", 3)
    nest(top, 40, files=True)
    for _ in range(1000):
        cut = trees.remove(str(top))
        if next(cut, "done") == "done":
            break
        cut.close()
    assert not top.exists()


KINDS = st.sampled_from(["file", "link", "away", "fifo", "socket", "device"])
NAMES = (
    st.binary(min_size=1, max_size=12)
    .filter(lambda name: b"/" not in name and b"\0" not in name)
    .filter(lambda name: name not in (b".", b".."))
)
TREES = st.recursive(KINDS, lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=25)


def grow(directory: bytes, made: Any, away: bytes) -> None:
    """Make what a model says: a dictionary is a directory, a word is one of KINDS."""
    for name, kind in made.items() if isinstance(made, dict) else ():
        path = os.path.join(directory, name)
        if isinstance(kind, dict):
            os.mkdir(path)
            grow(path, kind, away)
        elif kind == "file":
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o000))
        elif kind == "link":
            os.symlink(b"..", path)
        elif kind == "away":
            os.symlink(away, path)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        else:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))


@given(made=TREES)
def test_any_tree_is_removed_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, made: Any) -> None:
    base = tmp_path_factory.mktemp("any")
    (base / "outside" / "below").mkdir(parents=True)
    (base / "outside" / "below" / "precious").write_text("x")
    (base / "top").mkdir()
    grow(os.fsencode(base / "top"), made, os.fsencode(base / "outside"))
    remove(base / "top")
    assert os.listdir(base) == ["outside"]
    assert untouched(base / "outside")


@given(made=TREES)
def test_a_walk_meets_everything_once(tmp_path_factory: pytest.TempPathFactory, made: Any) -> None:
    top = tmp_path_factory.mktemp("walk")
    grow(os.fsencode(top), made, b"/outside")
    at = Descent(os.open(top, trees.DIRECTORY))
    found, names = [], [""]
    for event, name in trees.walk(at):
        if event is Event.LEFT:
            assert names.pop() == f"{names[-1]}/{name}"
            continue
        path = f"{names[-1]}/{name}"
        found.append(path)
        here = os.fstat(at.fd)
        if event is Event.ENTERED:
            names.append(path)
        assert os.path.samestat(here, os.stat(f"{top}{names[-1]}"))
    at.close()
    expected = [
        f"{directory}/{name}".removeprefix(str(top))
        for directory, directories, files in os.walk(top)
        for name in (*directories, *files)
    ]
    assert sorted(found) == sorted(expected)


def test_a_deep_tree_is_walked_down_and_up(deep_path: Path) -> None:
    nest(deep_path, DEEP, files=True)
    at = Descent(os.open(deep_path, trees.DIRECTORY))
    events = [event for event, _ in trees.walk(at)]
    assert os.path.samestat(os.fstat(at.fd), deep_path.stat())
    at.close()
    assert {event: events.count(event) for event in Event} == dict.fromkeys(Event, DEEP)


def test_a_walk_ends_when_its_directory_is_moved_away(top: Path, outside: Path) -> None:
    (top / "a" / "b").mkdir(parents=True)
    at = Descent(os.open(top, trees.DIRECTORY))
    with pytest.raises(OSError, match="was moved") as caught:
        for event, name in trees.walk(at):
            if (event, name) == (Event.ENTERED, "b"):
                os.rename(top / "a" / "b", outside / "b")
    at.close()
    assert caught.value.errno == errno.ESTALE


def exchange(directory: Path, outside: Path) -> None:
    """What a process that outlived its container may do at any moment."""
    os.rename(directory, f"{directory}.hidden")
    os.symlink(outside, directory)


def test_a_directory_that_becomes_a_link_before_it_is_moved_leads_nowhere(
    top: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top / "volume" / "below").mkdir(parents=True)
    done: list[str] = []

    def before(name: str, *_: Any, **__: Any) -> None:
        if name == "below" and not done:
            done.append(name)
            moved = next(top.glob("*/below")).parent
            exchange(moved / "below", outside)

    Calls(monkeypatch, "rename", before)
    remove(top)
    assert done
    assert not top.exists()
    assert untouched(outside)


def test_a_file_that_becomes_a_directory_before_it_is_removed_goes_too(
    top: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top / "volume").mkdir()
    (top / "volume" / "x").touch()
    real = os.unlink
    done: list[str] = []

    def before(name: str, *, dir_fd: int) -> None:
        if name == "x" and not done:
            done.append(name)
            real(name, dir_fd=dir_fd)
            os.mkdir(name, dir_fd=dir_fd)
            os.symlink(outside, f"/proc/self/fd/{dir_fd}/x/link")

    Calls(monkeypatch, "unlink", before)
    remove(top)
    assert done
    assert not top.exists()
    assert untouched(outside)


def test_a_directory_that_is_taken_out_of_the_tree_under_our_hands_is_not_followed(
    top: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds a directory open can move what is in it; only what is still in the tree is removed."""
    (top / "volume" / "a" / "b").mkdir(parents=True)
    real = os.rename

    def before(name: str, *_: Any, src_dir_fd: int, **__: Any) -> None:
        if name == "a":
            real(name, outside / "kept", src_dir_fd=src_dir_fd)

    Calls(monkeypatch, "rename", before)
    remove(top)
    assert not top.exists()
    assert (outside / "kept" / "b").is_dir()


def refusing(code: int, refused: Callable[..., bool]) -> Callable[..., None]:
    def before(*args: Any, **kwargs: Any) -> None:
        if refused(*args, **kwargs):
            raise OSError(code, os.strerror(code))

    return before


def test_what_something_is_mounted_on_is_left_alone_and_named(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (top / "volume" / "mounted" / "theirs").mkdir(parents=True)
    (top / "volume" / "other").mkdir()
    with monkeypatch.context() as patch:
        Calls(patch, "rename", refusing(errno.EBUSY, lambda name, *_, **__: name == "mounted"))
        with pytest.raises(CleanupIncomplete, match=r"mounted \(it was /volume/mounted\): Device or resource busy"):
            remove(top)
    (left,) = top.iterdir()
    assert [path.relative_to(left) for path in left.rglob("*")] == [Path("mounted"), Path("mounted/theirs")]
    remove(top)
    assert not top.exists()


def test_a_top_that_something_is_mounted_on_is_left_alone(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (top / "theirs").touch()
    ids = iter(("1", "2"))
    monkeypatch.setattr(trees, "_mount_id", lambda fd: next(ids))
    with pytest.raises(CleanupIncomplete, match="something is mounted there"):
        remove(top)
    assert (top / "theirs").exists()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSPC, errno.ENOKEY])
def test_where_directories_cannot_be_moved_they_are_emptied_in_place(
    top: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    nest(top, 60, files=True)
    nest(top / "deep" / "deep", 5, "beside")
    Calls(monkeypatch, "rename", refusing(code, lambda *_, **__: True))
    remove(top)
    assert not top.exists()


def test_what_can_neither_be_moved_nor_reached_in_place_is_told_and_goes_when_it_can_be_moved(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "MAX_IN_PLACE", 20)
    nest(top, 60)
    with monkeypatch.context() as patch:
        Calls(patch, "rename", refusing(errno.ENOKEY, lambda *_, **__: True))
        with pytest.raises(CleanupIncomplete, match="nested too deeply to be emptied in place"):
            remove(top)
    remove(top)
    assert not top.exists()


def test_what_is_in_a_subvolume_is_moved_to_its_root(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on btrfs: the subvolume itself can go to the top, what is in it can not. The work stays linear."""
    (top / "volume" / "subvolume").mkdir(parents=True)
    nest(top / "volume" / "subvolume", 500, "inside")
    number = os.stat(top).st_ino

    def refused(name: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> bool:
        return name == "inside" and os.fstat(dst_dir_fd).st_ino == number

    Calls(monkeypatch, "rename", refusing(errno.EXDEV, refused))
    opened = Calls(monkeypatch, "open")
    remove(top)
    assert not top.exists()
    assert opened.count < 10_000


def test_the_mark_immutable_is_taken_away_where_it_is_in_the_way(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real marks are tried in tests/root."""
    (top / "marked").touch()
    marks = {(top / "marked").stat().st_ino}

    def unprotect(fd: int) -> bool:
        marks.discard(os.fstat(fd).st_ino)
        return True

    monkeypatch.setattr(trees, "_unprotect", unprotect)

    def refused(name: str, *, dir_fd: int) -> bool:
        return os.stat(name, dir_fd=dir_fd).st_ino in marks

    Calls(monkeypatch, "unlink", refusing(errno.EPERM, refused))
    remove(top)
    assert not top.exists()


def test_what_cannot_be_removed_is_named_with_its_place_shortened_and_made_visible(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nest(top, 200, "d\n\udcff", files=True)
    Calls(monkeypatch, "unlink", refusing(errno.EPERM, lambda *_, **__: True))
    with pytest.raises(CleanupIncomplete) as caught:
        remove(top)
    words = str(caught.value)
    assert words.isprintable()
    assert "Operation not permitted" in words
    assert "it was /d\\n\\udcff/" in words
    assert f"and {trees.MAX_PROBLEMS - 3} more" in words, "it gives up instead of gathering problems for ever"
    assert len(words) < 1500


def test_a_directory_that_is_never_empty_is_given_up(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (top / "busy").mkdir()

    def write(name: str, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None:
            os.close(os.open(f"/proc/self/fd/{dir_fd}/{name}/new", os.O_CREAT | os.O_WRONLY))

    rmdir = Calls(monkeypatch, "rmdir", write)
    with pytest.raises(CleanupIncomplete, match="something keeps creating files in it"):
        remove(top)
    assert rmdir.count == trees.MAX_PASSES


def test_a_removal_that_takes_too_long_says_so_and_the_next_goes_on(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "PIECE_ENTRIES", 10)
    nest(top, 50, files=True)
    with pytest.raises(CleanupIncomplete, match=r"is not removed yet: \d+ entries removed so far"):
        remove(top, seconds=-1)
    remove(top)
    assert not top.exists()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_directory_is_not_removed_as_one(top: Path, outside: Path, kind: str) -> None:
    path = top / "x"
    path.touch() if kind == "file" else path.symlink_to(outside)
    with pytest.raises(CleanupIncomplete, match="cannot be removed"):
        remove(path)
    assert untouched(outside)


@pytest.fixture
def special(tmp_path: Path) -> Iterator[Path]:
    """A directory with one of each kind."""
    (tmp_path / "file").write_text("content")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    with socket.socket(socket.AF_UNIX) as bound:
        at = os.open(tmp_path, trees.DIRECTORY)
        bound.bind(f"/proc/self/fd/{at}/socket")
        os.close(at)
        yield tmp_path


def test_only_a_regular_file_is_opened(special: Path) -> None:
    with open(trees.open_file(str(special / "file"))) as file:
        assert file.read() == "content"
    for name in ("directory", "link", "fifo", "device", "socket"):
        with pytest.raises(OSError, match="not a regular file"):
            trees.open_file(str(special / name))

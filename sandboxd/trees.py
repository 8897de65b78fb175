"""Trees of files that images and containers made: walked, and removed, whatever their makers did.

Such a tree may be 100,000 directories deep, so that no path to its end fits into PATH_MAX, may have a million names
in one directory, and a process that outlived its container may exchange directories for links meanwhile. Hence:

1. Nothing recurses and nothing puts paths together: every call names one entry of an open directory, and no link is
   followed.
2. The number of descriptors does not depend on the tree.
3. What takes long is a generator: each `next` handles about `PIECE` entries. Run by `jobs.in_pieces`, it lets others
   have their turn, and ends early at a shutdown.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import secrets
import stat
import struct
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial

from sandboxd.errors import CleanupIncomplete

PIECE = 1000  # entries: some ten milliseconds
MOST_SECONDS = 600.0  # for one removal; whoever asks again goes on where it ended
MOST_PROBLEMS = 20  # after which a removal gives up
MOST_PASSES = 100  # over a directory that is never empty
MOST_IN_PLACE = 1000  # levels below what could not be moved: each keeps the names of all above it

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_MOVED_AT_ONCE = 64  # directories out of one other; the space that their names take where they go is bounded so
_NOT_A_DIRECTORY = (errno.ENOTDIR, errno.ELOOP)
# Told by a file system that cannot move what it could remove: a subvolume or another project quota, a directory that
# is encrypted and whose key is gone, no space for the name, too many subdirectories.
_CANNOT_MOVE = (errno.EXDEV, errno.ENOKEY, errno.ENOSPC, errno.EDQUOT, errno.EMLINK)
_LONG = struct.calcsize("l")
_GET_FLAGS, _SET_FLAGS = (2 << 30) | (_LONG << 16) | 0x6601, (1 << 30) | (_LONG << 16) | 0x6602  # ioctl_iflags(2)
_PROTECTED = 0x10 | 0x20  # immutable, append only


class Descent:
    """A directory that is walked down from and up to again. `fd` is where it is now; close it in the end."""

    def __init__(self, fd: int) -> None:
        """`fd` is closed by the first step down, or by `close`."""
        self.fd = fd
        self._above: list[tuple[int, int]] = []

    def down(self, name: str) -> None:
        """Enter a directory; raises OSError, ENOTDIR or ELOOP for anything else."""
        fd = os.open(name, DIRECTORY, dir_fd=self.fd)
        here = os.fstat(self.fd)
        self._above.append((here.st_dev, here.st_ino))
        os.close(self.fd)
        self.fd = fd

    def up(self) -> None:
        """Back to where `down` was called; raises OSError (ESTALE) when the directory was moved meanwhile."""
        fd = os.open("..", DIRECTORY, dir_fd=self.fd)
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) != self._above[-1]:
            os.close(fd)
            raise OSError(errno.ESTALE, "a directory was moved while it was walked")
        self._above.pop()
        os.close(self.fd)
        self.fd = fd

    def close(self) -> None:
        """Close the descriptor; the object cannot be used any more."""
        os.close(self.fd)


class Event(Enum):
    """What a walk came to."""

    FILE = auto()  # not a directory; it is in `fd`
    ENTERED = auto()  # a directory: `fd` is it
    LEFT = auto()  # the same directory, after all that is in it; `fd` is the one that it is in


def walk(at: Descent) -> Iterator[tuple[Event, str]]:
    """Everything below a directory, each with its name; `at.fd` is valid until the next.

    What vanishes meanwhile is left out. Raises OSError, ESTALE when a directory is moved away under the walk.
    """
    names: list[str] = []  # of the directories that lead to where we are
    todo: list[list[str]] = []  # the directories that remain to be entered, in each of them
    while True:
        below = []
        with os.scandir(at.fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                else:
                    yield Event.FILE, entry.name
        todo.append(below)
        while not _enter_one(at, todo[-1], names):
            todo.pop()
            if not todo:
                return
            at.up()
            yield Event.LEFT, names.pop()
        yield Event.ENTERED, names[-1]


def _enter_one(at: Descent, below: list[str], names: list[str]) -> bool:
    """Go down into one of `below` that is still there; False when none is."""
    while below:
        name = below.pop()
        try:
            at.down(name)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, *_NOT_A_DIRECTORY):
                raise
            continue
        names.append(name)
        return True
    return False


def open_file(name: str, dir_fd: int | None = None) -> int:
    """Open a regular file for reading; the caller closes it.

    Nothing else is ever opened: a FIFO could block, and a device do something. Raises OSError, EINVAL for what is not
    a regular file.
    """
    at = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(at).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        return os.open(f"/proc/self/fd/{at}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(at)


def remove(path: str, seconds: float = MOST_SECONDS) -> Generator[None, None, None]:
    """Remove one of our own directories and all that is in it, a piece at a time; gone is done.

    Nobody else can reach `path` itself; what is in it is anybody's. Immutable files lose the mark. A mount below it
    is left alone, with the directories that lead to it. Cut off at any moment, the next call goes on from there.
    Raises CleanupIncomplete, saying what stays and why, or when it is not done within `seconds`.
    """
    try:
        top = os.open(path, DIRECTORY)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise CleanupIncomplete(f"{path} cannot be removed: {exc.strerror}") from exc
    deadline = time.monotonic() + seconds
    try:
        removal = _Removal(path, top)
        while not removal.piece():
            if time.monotonic() > deadline:
                raise CleanupIncomplete(f"{path} is not removed yet: {removal.removed} entries of it are")
            yield
    except OSError as exc:
        raise CleanupIncomplete(f"{path} cannot be removed: {exc.strerror}") from exc
    finally:
        os.close(top)


@dataclass(slots=True)
class _Directory:
    """One that is to be emptied and removed."""

    where: tuple[str, ...]  # the names from the top; () is the top itself
    was: str  # where its maker had it, shortened, for people
    passes: int = 0
    kept: set[str] = field(default_factory=set)  # what cannot be removed


class _Removal:
    """A removal under way: the top, and what is known to be left.

    Each directory that is found is moved to the top before anybody looks into it, under a name that no container can
    use. So the tree becomes flat as it goes: one descriptor does, the depth costs nothing, and whoever still runs in
    the tree cannot exchange one of its directories for a link between two of our calls. The kernel refuses to move
    what something is mounted on (EBUSY), in one step with the move: nothing is removed from another file system, nor
    from another place in the same one. Where directories cannot be moved, they are emptied in place, down to a depth.
    """

    def __init__(self, path: str, top: int) -> None:
        self.removed = 0
        self._path = path
        self._top = top
        self._prefix = f".{secrets.token_hex(3)}-"
        self._numbers = itertools.count()
        self._left = [_Directory((), "")]
        self._problems: list[str] = []
        above = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_CLOEXEC)
        try:
            if _mount_id(above) != _mount_id(top):
                raise OSError(errno.EBUSY, "something is mounted there")
        finally:
            os.close(above)

    def piece(self) -> bool:
        """Handle about PIECE entries; True when the directory is gone. Raises CleanupIncomplete, OSError."""
        budget = PIECE
        while budget > 0:
            directory = self._left.pop()
            budget -= 1 + self._empty(directory, budget)
            if not self._left:
                if not self._problems:
                    return True
                raise self._incomplete()
            if len(self._problems) >= MOST_PROBLEMS:
                raise self._incomplete()
        return False

    def _incomplete(self) -> CleanupIncomplete:
        first, rest = self._problems[:3], len(self._problems[3:])
        words = "; ".join(first) + (f"; and {rest} more" if rest else "")
        return CleanupIncomplete(f"{self._path} cannot be removed: {words}")

    def _empty(self, directory: _Directory, budget: int) -> int:
        """Handle up to `budget` entries of a directory, and remove it if that was all; return what it cost."""
        try:
            fd = self._open(directory.where)
        except OSError as exc:
            if exc.errno in _NOT_A_DIRECTORY:
                # It was exchanged between the listing and the move. Where it is now, nobody exchanges anything.
                self._gone(directory)
            elif exc.errno != errno.ENOENT:
                self._note(directory, None, exc)
            return 0
        below: list[_Directory] = []
        count, whole = 0, True
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.name in directory.kept or self._was_moved(directory, entry.name):
                        continue
                    if count and (count >= budget or len(below) >= _MOVED_AT_ONCE):
                        whole = False
                        break
                    count += 1
                    moved = self._handle(fd, directory, entry)
                    if moved is not None:
                        below.append(moved)
        finally:
            os.close(fd)
        holds_some = any(each.where[:-1] == directory.where for each in below)
        if not whole or holds_some or not self._gone(directory):
            self._left.append(directory)  # below those that are in it
        self._left += below
        return count + len(directory.where)

    def _was_moved(self, directory: _Directory, name: str) -> bool:
        return not directory.where and name.startswith(self._prefix)

    def _handle(self, fd: int, directory: _Directory, entry: os.DirEntry[str]) -> _Directory | None:
        """Remove an entry; a directory is moved to the top, or left where it is, and returned."""
        name = entry.name
        try:
            if not entry.is_dir(follow_symlinks=False):
                try:
                    _insist(fd, name, partial(os.unlink, name, dir_fd=fd))
                    self.removed += 1
                    return None
                except IsADirectoryError:
                    pass  # it has become one
            return self._move(fd, directory, name)
        except FileNotFoundError:
            pass
        except OSError as exc:
            directory.kept.add(name)
            self._note(directory, name, exc)
        return None

    def _move(self, fd: int, directory: _Directory, name: str) -> _Directory:
        """Move a directory as far up as the file system lets it."""
        was = _shortened(f"{directory.was}/{name}")
        # What is in a btrfs subvolume can go no further up than to its root, which the subvolume itself can leave.
        for home in ((), directory.where[:1])[: len(directory.where) + 1]:
            new = f"{self._prefix}{next(self._numbers)}"
            there = self._open(home)
            try:
                _insist(fd, name, partial(os.rename, name, new, src_dir_fd=fd, dst_dir_fd=there))
                return _Directory((*home, new), was)
            except OSError as exc:
                if exc.errno not in _CANNOT_MOVE:
                    raise
            finally:
                os.close(there)
        if len(directory.where) > MOST_IN_PLACE:
            raise OSError(errno.EXDEV, "it cannot be moved, and is nested too deeply to be emptied where it is")
        return _Directory((*directory.where, name), was)

    def _gone(self, directory: _Directory) -> bool:
        """Remove a directory that was emptied; False when it is to be gone through again."""
        if directory.kept or (self._problems and not directory.where):
            return True  # it stays, and it was noted why
        try:
            self._remove_at(directory.where)
        except FileNotFoundError:
            pass
        except OSError as exc:
            if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
                directory.passes += 1
                if directory.passes < MOST_PASSES:
                    return False
                exc = OSError(exc.errno, "something keeps making files in it")
            self._note(directory, None, exc)
        return True

    def _remove_at(self, where: tuple[str, ...]) -> None:
        """Remove an empty directory, or whatever else has come to be at its place."""
        if not where:
            os.rmdir(self._path)
            return
        fd, name = self._open(where[:-1]), where[-1]
        try:
            try:
                _insist(fd, name, partial(os.rmdir, name, dir_fd=fd))
            except NotADirectoryError:
                _insist(fd, name, partial(os.unlink, name, dir_fd=fd))
        finally:
            os.close(fd)
        self.removed += 1

    def _open(self, where: tuple[str, ...]) -> int:
        """The directory at `where`, to be closed. Raises OSError, EBUSY where something is mounted on the way."""
        at = Descent(os.open(".", DIRECTORY, dir_fd=self._top))
        try:
            for name in where:
                at.down(name)
            # What was moved had nothing mounted on it; what is emptied in place might have by now.
            if len(where) > 1 and _mount_id(at.fd) != _mount_id(self._top):
                raise OSError(errno.EBUSY, "something is mounted there")
        except BaseException:
            at.close()
            raise
        return at.fd

    def _note(self, directory: _Directory, name: str | None, problem: OSError) -> None:
        """Keep a problem to be told: where the entry is by now, and where it was."""
        last = () if name is None else (name,)
        now, was = "/".join(("", *directory.where, *last)), "/".join((directory.was, *last))
        words = f"{self._path}{_printable(_shortened(now))}"
        if now != was:
            words += f" (it was {_printable(_shortened(was))})"
        self._problems.append(f"{words}: {problem.strerror}")


def _insist(fd: int, name: str, act: Callable[[], None]) -> None:
    """Do something to an entry of a directory; if it is not permitted, take away the marks that forbid it."""
    try:
        act()
    except PermissionError:
        # Both, and not only the first that had a mark.
        marked = [_unprotect(fd), _unprotect_entry(fd, name)]
        if not any(marked):
            raise
        act()


def _unprotect_entry(fd: int, name: str) -> bool:
    try:
        at = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return False
    try:
        mode = os.fstat(at).st_mode
        # No others have marks, and opening them could block or do something.
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return False
        opened = os.open(f"/proc/self/fd/{at}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _unprotect(opened)
        finally:
            os.close(opened)
    except OSError:
        return False
    finally:
        os.close(at)


def _unprotect(fd: int) -> bool:
    """Take the marks "immutable" and "append only" from a file or directory; whether it had one."""
    flags = bytearray(_LONG)
    try:
        fcntl.ioctl(fd, _GET_FLAGS, flags)
        (value,) = struct.unpack_from("i", flags)
        if not value & _PROTECTED:
            return False
        struct.pack_into("i", flags, 0, value & ~_PROTECTED)
        fcntl.ioctl(fd, _SET_FLAGS, flags)
    except OSError:
        return False  # the file system has no such marks, or we may not
    return True


def _mount_id(fd: int) -> str:
    """Which mount a descriptor is of (proc_pid_fdinfo(5)); a bind mount has the device of what it shows."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "")


def _shortened(path: str) -> str:
    """A path for people: its beginning and its last part, when it is long."""
    if len(path) <= 160:
        return path
    beginning, last = path.partition("/…/")[0][:100], path.rpartition("/")[2][-50:]
    return f"{beginning}/…/{last}"


def _printable(text: str) -> str:
    """The text on one line, with whatever a container put into a file's name made visible."""
    data = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in data)

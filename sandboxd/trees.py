"""Walking and removing trees of files from images and containers, which may be hostile.

Such a tree may be 100,000 directories deep, so that no path to its end fits into PATH_MAX. It may have a million
names in one directory, and a process that outlived its container may replace directories by links during the walk.
Hence:

1. Nothing recurses and nothing joins paths: every call names one entry of an open directory, and no link is followed.
2. The number of descriptors does not depend on the tree.
3. Long operations are generators: each `next` handles about `PIECE_ENTRIES` entries. Run by `jobs.in_pieces`, they
   let other work have its turn, and end early at a shutdown.
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

PIECE_ENTRIES = 1000  # some ten milliseconds
MAX_SECONDS = 600.0  # for one removal; the next one continues where it ended
MAX_PROBLEMS = 20  # after which a removal gives up
MAX_PASSES = 100  # over a directory that is never empty
MAX_IN_PLACE = 1000  # levels below a directory that could not be moved: each keeps the names of all above it

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_MOVED_AT_ONCE = 64  # directories out of one other, which bounds the space for their names in the destination
_NOT_A_DIRECTORY = (errno.ENOTDIR, errno.ELOOP)
# Errors of a file system that cannot move what it could remove: a subvolume or another project quota, an encrypted
# directory whose key is gone, no space for the name, too many subdirectories.
_CANNOT_MOVE = (errno.EXDEV, errno.ENOKEY, errno.ENOSPC, errno.EDQUOT, errno.EMLINK)
_LONG = struct.calcsize("l")
_GET_FLAGS, _SET_FLAGS = (2 << 30) | (_LONG << 16) | 0x6601, (1 << 30) | (_LONG << 16) | 0x6602  # ioctl_iflags(2)
_PROTECTED = 0x10 | 0x20  # immutable, append only


class Descent:
    """A position in a tree that moves down and up again. `fd` is the current directory; close it in the end."""

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
        """Return to where `down` was called; raises OSError (ESTALE) when the directory has been moved."""
        fd = os.open("..", DIRECTORY, dir_fd=self.fd)
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) != self._above[-1]:
            os.close(fd)
            raise OSError(errno.ESTALE, "a directory was moved during the walk")
        self._above.pop()
        os.close(self.fd)
        self.fd = fd

    def close(self) -> None:
        """Close the descriptor; the object can no longer be used."""
        os.close(self.fd)


class Event(Enum):
    """What a walk has reached."""

    FILE = auto()  # not a directory; `fd` is its directory
    ENTERED = auto()  # a directory; `fd` is the directory itself
    LEFT = auto()  # the same directory, after everything in it; `fd` is its parent


def walk(at: Descent) -> Iterator[tuple[Event, str]]:
    """Everything below a directory, each entry with its name; `at.fd` is valid until the next.

    What vanishes during the walk is left out. Raises OSError, ESTALE when a directory is moved during the walk.
    """
    names: list[str] = []  # of the directories that lead to the current one
    todo: list[list[str]] = []  # in each of them, the directories that remain to be entered
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
    """Enter one of `below` that still exists; False when none does."""
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

    Nothing else is ever opened: a FIFO could block, and opening a device can have effects. Raises OSError, EINVAL for
    anything but a regular file.
    """
    at = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(at).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        return os.open(f"/proc/self/fd/{at}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(at)


def remove(path: str, seconds: float = MAX_SECONDS) -> Generator[None, None, None]:
    """Remove one of our own directories and everything in it, a piece at a time. Idempotent.

    Other users cannot reach `path` itself, but may have made anything in it. Immutable files lose that flag. A mount
    below it is left alone, with the directories that lead to it. After an interruption at any moment, the next call
    continues from there. Raises CleanupIncomplete, saying what remains and why, or when `seconds` have passed.
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
                raise CleanupIncomplete(f"{path} is not removed yet: {removal.removed} entries removed so far")
            yield
    except OSError as exc:
        raise CleanupIncomplete(f"{path} cannot be removed: {exc.strerror}") from exc
    finally:
        os.close(top)


@dataclass(slots=True)
class _Directory:
    """A directory to be emptied and removed."""

    where: tuple[str, ...]  # the names from the top; () is the top itself
    was: str  # its original path, shortened, for people
    passes: int = 0
    kept: set[str] = field(default_factory=set)  # entries that cannot be removed


class _Removal:
    """A removal in progress: the top, and what is known to remain.

    Each directory is moved to the top before it is read, under a name that no container can use. So the tree becomes
    flat on the way: one descriptor is enough, the depth costs nothing, and a process that still runs in the tree
    cannot replace one of its directories by a link between two of our calls. The kernel atomically refuses to move a
    mount point (EBUSY): nothing is removed from another file system, nor from another place in the same one. Where
    directories cannot be moved, they are emptied in place, down to a limited depth.
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
        """Handle about PIECE_ENTRIES; True when the directory is gone. Raises CleanupIncomplete, OSError."""
        budget = PIECE_ENTRIES
        while budget > 0:
            directory = self._left.pop()
            budget -= 1 + self._empty(directory, budget)
            if not self._left:
                if not self._problems:
                    return True
                raise self._incomplete()
            if len(self._problems) >= MAX_PROBLEMS:
                raise self._incomplete()
        return False

    def _incomplete(self) -> CleanupIncomplete:
        first, rest = self._problems[:3], len(self._problems[3:])
        problems = "; ".join(first) + (f"; and {rest} more" if rest else "")
        return CleanupIncomplete(f"{self._path} cannot be removed: {problems}")

    def _empty(self, directory: _Directory, budget: int) -> int:
        """Handle up to `budget` entries of a directory, and remove it if those were all; return the cost."""
        try:
            fd = self._open(directory.where)
        except OSError as exc:
            if exc.errno in _NOT_A_DIRECTORY:
                # It was replaced between the listing and the move. Nothing can be replaced where it is now.
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
        holds_some = any(inner.where[:-1] == directory.where for inner in below)
        if not whole or holds_some or not self._gone(directory):
            self._left.append(directory)  # on the stack, below its subdirectories
        self._left += below
        return count + len(directory.where)

    def _was_moved(self, directory: _Directory, name: str) -> bool:
        return not directory.where and name.startswith(self._prefix)

    def _handle(self, fd: int, directory: _Directory, entry: os.DirEntry[str]) -> _Directory | None:
        """Remove an entry; a directory is moved to the top, or left in place, and returned."""
        name = entry.name
        try:
            if not entry.is_dir(follow_symlinks=False):
                try:
                    _insist(fd, name, partial(os.unlink, name, dir_fd=fd))
                    self.removed += 1
                    return None
                except IsADirectoryError:
                    pass  # it has become a directory
            return self._move(fd, directory, name)
        except FileNotFoundError:
            pass
        except OSError as exc:
            directory.kept.add(name)
            self._note(directory, name, exc)
        return None

    def _move(self, fd: int, directory: _Directory, name: str) -> _Directory:
        """Move a directory as far up as the file system allows."""
        was = _shortened(f"{directory.was}/{name}")
        # A directory in a btrfs subvolume can move no further than to the root of the subvolume, which itself can.
        for home in ((), directory.where[:1])[: len(directory.where) + 1]:
            new = f"{self._prefix}{next(self._numbers)}"
            destination = self._open(home)
            try:
                _insist(fd, name, partial(os.rename, name, new, src_dir_fd=fd, dst_dir_fd=destination))
                return _Directory((*home, new), was)
            except OSError as exc:
                if exc.errno not in _CANNOT_MOVE:
                    raise
            finally:
                os.close(destination)
        if len(directory.where) > MAX_IN_PLACE:
            raise OSError(errno.EXDEV, "it cannot be moved, and is nested too deeply to be emptied in place")
        return _Directory((*directory.where, name), was)

    def _gone(self, directory: _Directory) -> bool:
        """Remove an emptied directory; False when it has to be emptied again."""
        if directory.kept or (self._problems and not directory.where):
            return True  # it stays, and the reason was noted
        try:
            self._remove_at(directory.where)
        except FileNotFoundError:
            pass
        except OSError as exc:
            if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
                directory.passes += 1
                if directory.passes < MAX_PASSES:
                    return False
                exc = OSError(exc.errno, "something keeps creating files in it")
            self._note(directory, None, exc)
        return True

    def _remove_at(self, where: tuple[str, ...]) -> None:
        """Remove an empty directory, or anything else that has taken its place."""
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
        """The directory at `where`; the caller closes it. Raises OSError, EBUSY for a mount on the way."""
        at = Descent(os.open(".", DIRECTORY, dir_fd=self._top))
        try:
            for name in where:
                at.down(name)
            # A directory that was moved was not a mount point; one that is emptied in place may have become one.
            if len(where) > 1 and _mount_id(at.fd) != _mount_id(self._top):
                raise OSError(errno.EBUSY, "something is mounted there")
        except BaseException:
            at.close()
            raise
        return at.fd

    def _note(self, directory: _Directory, name: str | None, problem: OSError) -> None:
        """Keep a problem for the report: where the entry is now, and where it was originally."""
        last = () if name is None else (name,)
        now, was = "/".join(("", *directory.where, *last)), "/".join((directory.was, *last))
        place = f"{self._path}{_printable(_shortened(now))}"
        if now != was:
            place += f" (it was {_printable(_shortened(was))})"
        self._problems.append(f"{place}: {problem.strerror}")


def _insist(fd: int, name: str, act: Callable[[], None]) -> None:
    """Act on an entry of a directory; if that is not permitted, clear the flags that forbid it and try again."""
    try:
        act()
    except PermissionError:
        # A list, so that both are cleared.
        cleared = [_unprotect(fd), _unprotect_entry(fd, name)]
        if not any(cleared):
            raise
        act()


def _unprotect_entry(fd: int, name: str) -> bool:
    try:
        at = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return False
    try:
        mode = os.fstat(at).st_mode
        # Nothing else has such flags, and opening it could block or have effects.
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
    """Clear the flags "immutable" and "append only" of a file or directory; returns whether one was set."""
    flags = bytearray(_LONG)
    try:
        fcntl.ioctl(fd, _GET_FLAGS, flags)
        (value,) = struct.unpack_from("i", flags)
        if not value & _PROTECTED:
            return False
        struct.pack_into("i", flags, 0, value & ~_PROTECTED)
        fcntl.ioctl(fd, _SET_FLAGS, flags)
    except OSError:
        return False  # the file system has no such flags, or we lack the permission
    return True


def _mount_id(fd: int) -> str:
    """The mount of a descriptor (proc_pid_fdinfo(5)); st_dev does not tell bind mounts apart."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "")


def _shortened(path: str) -> str:
    """A path for people: if long, only its beginning and its last part."""
    if len(path) <= 160:
        return path
    beginning, last = path.partition("/…/")[0][:100], path.rpartition("/")[2][-50:]
    return f"{beginning}/…/{last}"


def _printable(text: str) -> str:
    """The text on one line; unprintable characters, which containers may put into file names, are escaped."""
    data = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in data)

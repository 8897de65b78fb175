"""Opening regular files in directories that others may write to.

Whoever may write a pod's log directory decides what is found there: a FIFO, whose reader never comes, a device, a
link to somebody else's file. A log file is a regular file or it is refused, and finding that out never waits.
"""

from __future__ import annotations

import errno
import os
import stat

# Waits neither for a FIFO's other end nor for a lease (fcntl(2), F_SETLEASE), and no terminal becomes ours.
_CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: (errno.ELOOP, "a symbolic link"),
    stat.S_IFDIR: (errno.EISDIR, "a directory"),
    stat.S_IFIFO: (errno.EINVAL, "a FIFO"),
    stat.S_IFSOCK: (errno.EINVAL, "a socket"),
    stat.S_IFCHR: (errno.EINVAL, "a device"),
    stat.S_IFBLK: (errno.EINVAL, "a device"),
}


def open_regular(path: str, flags: int, mode: int = 0o600) -> int:
    """A descriptor of the regular file at `path`; `flags` with O_CREAT makes it where there is nothing.

    The path's last part is not followed; its parents may be links. `flags` must not hold O_TRUNC: what is there is
    known only after it was opened.

    Raises OSError; for what is not a regular file it says what it is.
    """
    try:
        _require_regular(os.lstat(path).st_mode, path)  # opening a device can do things
    except FileNotFoundError:
        pass
    fd = os.open(path, flags | _CAREFULLY, mode)
    try:
        _require_regular(os.fstat(fd).st_mode, path)  # whatever came there meanwhile
    except OSError:
        os.close(fd)
        raise
    return fd


def make_directory(path: str) -> None:
    """Make the directory with its parents; one that is there is fine. Raises OSError, also for too long a path."""
    missing = []
    while path not in ("", "/"):
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            break
        except FileNotFoundError:
            missing.append(path)
            path = os.path.dirname(path)
        else:
            break
    for each in reversed(missing):
        try:
            os.mkdir(each, 0o755)
        except FileExistsError:
            pass


def _require_regular(mode: int, path: str) -> None:
    if not stat.S_ISREG(mode):
        number, words = _KINDS.get(stat.S_IFMT(mode), (errno.EINVAL, "something else"))
        raise OSError(number, f"there is {words} where a regular file must be", path)

"""Opening regular files in directories that others may write to.

A user who may write to a pod's log directory decides what it holds: a FIFO without a reader, a device, a link to
another user's file. Anything but a regular file is refused, and finding that out never blocks.
"""

from __future__ import annotations

import errno
import os
import stat

# Waits neither for a FIFO's other end nor for a lease (fcntl(2), F_SETLEASE), and acquires no controlling terminal.
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
    """A descriptor of the regular file at `path`; with O_CREAT in `flags` it is created if there is nothing.

    The last part of the path is not followed; its parents may be links. `flags` must not contain O_TRUNC: whether it
    is a regular file is known only after it was opened.

    Raises OSError, which says what there is if it is not a regular file.
    """
    try:
        _require_regular(os.lstat(path).st_mode, path)  # opening a device can do things
    except FileNotFoundError:
        pass
    fd = os.open(path, flags | _CAREFULLY, mode)
    try:
        _require_regular(os.fstat(fd).st_mode, path)  # it may have been replaced since
    except OSError:
        os.close(fd)
        raise
    return fd


def make_directory(path: str) -> None:
    """Create the directory with its parents. Idempotent. Raises OSError, also for a path that is too long."""
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
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            pass


def _require_regular(mode: int, path: str) -> None:
    if not stat.S_ISREG(mode):
        number, kind = _KINDS.get(stat.S_IFMT(mode), (errno.EINVAL, "something else"))
        raise OSError(number, f"there is {kind} where a regular file must be", path)

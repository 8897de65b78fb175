"""The daemon's own directories and files, and who may reach them: every mode is decided here.

Other users of the machine must not reach what images, containers and pods put on disk (set-id programs, device nodes,
world-writable files), nor what the daemon stores (environment values, logs, locks). One closed directory protects
everything below it, whatever the modes there are:

    ROOT   0700   everything that survives a reboot
    STATE  0711   passable, because members of the socket's group must reach the socket in it, and because processes
                  in user namespaces must reach the managed containerd's bundles; each entry in it is closed itself

The process's umask does not matter: modes are set explicitly, and those of existing files are corrected.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from sandboxd.errors import NotReady

CLOSED = 0o700
PASSABLE = 0o711
FILE = 0o600

# Inherited by the programs that we start: plugins, containerd and its shims expect what shells and systemd set.
UMASK = 0o022

_PARENT = 0o755


def prepare(root: str, state: str, *, closed: Iterable[str]) -> None:
    """Create the daemon's directories, correct the modes of existing ones and of the files in the passable ones.

    `closed` are those below them that only root may enter. Raises NotReady.
    """
    directory(state, PASSABLE)
    directory(root, CLOSED)  # last: where both are the same directory, it is closed
    for path in closed:
        directory(path, CLOSED)
    # The logger and the managed containerd outlive a daemon, and so do the files that it created for them.
    for place in (state, f"{state}/containerd"):
        _close_files(place)


def directory(path: str, mode: int) -> None:
    """Make `path` a directory of this user with exactly this mode, whether or not it exists.

    Missing parents are created with 0755. Raises NotReady when something else is in its place, or its file system
    does not keep the mode.
    """
    try:
        make(path, mode)
        info = os.stat(path)
        if info.st_uid != os.geteuid():
            os.chown(path, os.geteuid(), -1)
        if stat.S_IMODE(info.st_mode) != mode:
            os.chmod(path, mode)
            if stat.S_IMODE(os.stat(path).st_mode) != mode:
                raise NotReady(f"{path} cannot be closed to other users: its file system does not keep modes")
    except OSError as exc:
        raise NotReady(f"the directory {path} cannot be used: {exc.strerror or exc}") from exc


def _close_files(path: str) -> None:
    try:
        for entry in os.scandir(path) if os.path.isdir(path) else ():
            if entry.is_file(follow_symlinks=False):
                os.chmod(entry.path, FILE)
    except OSError as exc:
        raise NotReady(f"the files in {path} cannot be closed to other users: {exc.strerror or exc}") from exc


def make(path: str, mode: int) -> None:
    """Create the directory `path` with exactly this mode, its missing parents with 0755; an existing one is left
    unchanged. Raises OSError."""
    try:
        os.mkdir(path, CLOSED)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    except FileNotFoundError:
        parent = os.path.dirname(path.rstrip("/"))
        if not parent or os.path.isdir(parent):
            raise
        make(parent, _PARENT)
        make(path, mode)
    else:
        os.chmod(path, mode)


def opener(path: str, flags: int) -> int:
    """For the builtin `open`: only this user can read and write the file, even if it existed before.

    A link in its place is not followed. Raises OSError.
    """
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, FILE)
    try:
        if stat.S_IMODE(os.fstat(fd).st_mode) != FILE:
            os.fchmod(fd, FILE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write(path: str, text: str) -> None:
    """Write a whole file that only this user can read. Raises OSError."""
    with open(path, "w", encoding="utf-8", opener=opener) as file:
        file.write(text)

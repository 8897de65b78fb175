"""Mounts without a kernel: what `sandboxd.syscalls` does, as a table.

It takes the place of that module's functions, so that everything above the system calls is the product's own code.
A mount of a tmpfs hides the directory below it, and takes what was written there along when it is unmounted.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from sandboxd import mountinfo, mounts, syscalls
from sandboxd.mountinfo import Mount
from tests.fakes.points import Points

FIRST_ID = 1 << 30  # of a mount; the kernel's are small


class Kernel:
    """The mounts in one directory; any other path is the real kernel's."""

    def __init__(self, points: Points, directory: Path) -> None:
        self.mounts: dict[str, str] = {}  # mount point -> kind of file system
        self._points = points
        self._hidden = directory / "hidden"
        self._below = f"{directory}/"
        self._ismount = os.path.ismount
        self._listed = mounts.listed

    def left(self) -> list[str]:
        """Everything that is mounted."""
        return [f"{kind} mounted at {target}" for target, kind in self.mounts.items()]

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of the real system calls."""
        for name in ("mount", "umount2", "open_tree", "mount_setattr", "move_mount"):
            patch.setattr(syscalls, name, getattr(self, name))
        patch.setattr(os.path, "ismount", self.ismount)
        patch.setattr(mounts, "listed", self.listed)

    def ismount(self, path: str) -> bool:
        """os.path.ismount, for mounts of ours as well."""
        return str(path) in self.mounts or self._ismount(path)

    def listed(self) -> list[Mount]:
        """mounts.listed, with mounts of ours as well."""
        found = self._listed()
        for number, (target, kind) in enumerate(self.mounts.items(), start=FIRST_ID):
            holding = mountinfo.holding(found, target)
            mount = Mount(
                id=number,
                parent=holding.id if holding else 0,
                root="/",
                point=target,
                options=("rw",),
                propagation=(),
                fstype=kind,
                source=kind,
                super_options=("rw",),
            )
            found.append(mount)
        return found

    def mount(self, source: str, target: str, flags: int, fstype: str = "", data: str = "") -> None:
        with self._points.on("kernel.mount", _no_space):
            self._add(target, fstype or "bind")
            if fstype == "tmpfs":
                self._hidden.mkdir(exist_ok=True)
                os.rename(target, self._aside(target))
                os.mkdir(target, 0o700)

    def umount2(self, target: str, flags: int) -> None:
        with self._points.on("kernel.umount2", _busy):
            if target not in self.mounts:
                raise OSError(errno.EINVAL if os.path.lexists(target) else errno.ENOENT, "umount2", target)
            if self.mounts.pop(target) == "tmpfs":
                shutil.rmtree(target)
                os.rename(self._aside(target), target)

    def open_tree(self, path: str, *, recursive: bool = False) -> int:
        with self._points.on("kernel.open_tree", _no_space):
            return os.open(path, os.O_PATH | os.O_CLOEXEC)

    def mount_setattr(self, fd: int, attributes: int, *, userns_fd: int = -1, recursive: bool = False) -> None:
        with self._points.on("kernel.mount_setattr", _no_space):
            os.fstat(fd)

    def move_mount(self, fd: int, target: str) -> None:
        with self._points.on("kernel.move_mount", _no_space):
            os.fstat(fd)
            self._add(target, "tree")

    def _add(self, target: str, kind: str) -> None:
        assert target.startswith(self._below), f"{target} is not the test's own"
        os.stat(target)
        self.mounts[target] = kind

    def _aside(self, target: str) -> Path:
        return self._hidden / target.removeprefix(self._below).replace("/", "_")


def _no_space(words: str) -> OSError:
    return OSError(errno.ENOSPC, f"mount: {words}")


def _busy(words: str) -> OSError:
    return OSError(errno.EBUSY, f"umount2: {words}")

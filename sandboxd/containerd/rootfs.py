"""Reading files out of a root file system without mounting it.

A snapshot is described by its mounts: one bind mount of a directory, or an overlay of layer directories. Users
are looked up in the image's /etc/passwd before the container exists. Mounting for that would cost more than the
rest of CreateContainer, and leave a mount behind if the daemon died before unmounting. So the overlay is read as the
kernel would: the upper layers first, whiteouts honoured, links followed inside the root
(https://docs.kernel.org/filesystems/overlayfs.html).

The content of the image decides how long this takes, so each step down looks up one name in only those layers that
still show the directory: the cost grows with the depth and the number of such layers, never with a product of depths.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from sandboxd import trees
from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import NotReady
from sandboxd.trees import Descent, Event

MAX_BYTES = 8 << 20  # of a file that is read into memory
MAX_PARTS = 4096  # names that are looked up for one path, those of its links included
_MAX_LINKS = 40  # the kernel's own limit
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a directory, itself not followed."""

    mode: int  # as in stat(2), type and permissions
    target: str = ""  # of a symbolic link
    device: int = 0  # the number of a device
    size: int = 0  # of a file, in bytes


Look = Callable[[Sequence[str]], Entry | None]


@contextmanager
def looking(mounts: Sequence[Mount]) -> Iterator[Look]:
    """Look up entries by the names that lead to them, links not followed: the caller knows of mounts over them.

    Raises NotReady for mounts that cannot be read this way or a layer that cannot be read.
    """
    try:
        with _Root(mounts) as root:
            yield root.look
    except OSError as exc:
        raise NotReady(f"the image's files cannot be read: {exc.strerror}") from exc


def read(mounts: Sequence[Mount], path: str) -> bytes | None:
    """The file at `path` (relative to the root), or None when there is none or it is not a regular file.

    Raises NotReady for a mount that cannot be read this way or a file that is unreasonably large.
    """
    try:
        with _Root(mounts) as root:
            last = root.resolve(path)
            entry = root.find(last) if last else None
            if not last or entry is None or not stat.S_ISREG(entry[1].st_mode):
                return None
            with open(trees.open_file(last, entry[0]), "rb") as file:
                content = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise NotReady(f"{path} in the image cannot be read: {exc.strerror}") from exc
    if len(content) > MAX_BYTES:
        raise NotReady(f"{path} in the image is larger than {MAX_BYTES} bytes")
    return content


def tree(mounts: Sequence[Mount], path: str) -> Iterator[tuple[Event, str, int, os.stat_result]]:
    """The directory at `path` (with the name "") and everything below it: (event, name, descriptor, stat result).

    The descriptor belongs to the uppermost layer that has the entry and is valid until the next item: it is the
    directory itself when that is entered or left, otherwise the directory that holds the entry. Yields nothing when
    there is no directory. Links are entries and are not followed. Raises OSError, and NotReady for a mount that
    cannot be read this way.
    """
    with _Root(mounts) as root:
        last = root.resolve(path)
        if last is None or (last and not root.down(last)):
            return
        root.stay()
        infos = [os.fstat(root.fd)]
        names = [""]
        todo: list[list[str]] = []
        yield Event.ENTERED, "", root.fd, infos[0]
        while infos:
            if len(todo) < len(infos):  # it has just been entered
                below = []
                for name, fd, info in root.entries():
                    if stat.S_ISDIR(info.st_mode):
                        below.append(name)
                    else:
                        yield Event.FILE, name, fd, info
                todo.append(below)
            if todo[-1]:
                names.append(todo[-1].pop())
                if not root.down(names[-1]):
                    raise OSError(errno.ESTALE, "a layer was changed while it was being read")
                infos.append(os.fstat(root.fd))
                yield Event.ENTERED, names[-1], root.fd, infos[-1]
                continue
            todo.pop()
            yield Event.LEFT, names.pop(), root.fd, infos.pop()
            if infos:
                root.up()


class _Root:
    """A directory of the root file system as its layers merge it; at first the root itself.

    One descriptor for each layer that shows the directory, however deep it is.
    """

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self._paths = _layers(mounts)
        self._open: list[Descent] = []
        self._shown: list[list[Descent]] = []  # at each level that was entered: the layers that show it

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close()

    def _start(self) -> None:
        self._close()
        for path in self._paths:
            try:
                self._open.append(Descent(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
            except BaseException:
                self._close()
                raise
        self._shown = [list(self._open)]

    def _close(self) -> None:
        while self._open:
            self._open.pop().close()
        self._shown = []

    @property
    def fd(self) -> int:
        """The directory in the uppermost layer that shows it."""
        return self._shown[-1][0].fd

    def find(self, name: str) -> tuple[int, os.stat_result] | None:
        """(the layer's directory, stat result) of an entry; None when there is none."""
        for layer in self._shown[-1]:
            info = _look(name, layer.fd)
            if info is not None:
                return None if _is_whiteout(info) else (layer.fd, info)
        return None

    def look(self, names: Sequence[str]) -> Entry | None:
        """The entry that these names lead to from the root; None when there is none, or a link is on the way."""
        self._to_root()
        if not all(self.down(name) for name in names[:-1]):
            return None
        if not names:
            return Entry(os.fstat(self.fd).st_mode)
        found = self.find(names[-1])
        if found is None:
            return None
        fd, info = found
        target = os.readlink(names[-1], dir_fd=fd) if stat.S_ISLNK(info.st_mode) else ""
        return Entry(info.st_mode, target, info.st_rdev, info.st_size if stat.S_ISREG(info.st_mode) else 0)

    def _to_root(self) -> None:
        while len(self._shown) > 1:
            self.up()

    def entries(self) -> Iterator[tuple[str, int, os.stat_result]]:
        """All entries of the directory: (name, the layer's directory, stat result)."""
        for i, layer in enumerate(self._shown[-1]):
            above = self._shown[-1][:i]
            with os.scandir(layer.fd) as entries:
                for entry in entries:
                    if any(_look(entry.name, upper.fd) is not None for upper in above):
                        continue  # already yielded for the layer above, or hidden by it
                    info = _look(entry.name, layer.fd)
                    if info is not None and not _is_whiteout(info):
                        yield entry.name, layer.fd, info

    def down(self, name: str) -> bool:
        """Enter a directory; False when there is none of that name."""
        shown = []
        for layer in self._shown[-1]:
            info = _look(name, layer.fd)
            if info is None:
                continue
            if not stat.S_ISDIR(info.st_mode):
                break  # a whiteout, or hidden by a directory above, as is everything below; never followed
            layer.down(name)
            shown.append(layer)
            if _is_opaque(layer.fd):
                break
        if not shown:
            return False
        self._shown.append(shown)
        return True

    def up(self) -> None:
        """Return to where `down` was called."""
        for layer in self._shown.pop():
            layer.up()

    def stay(self) -> None:
        """Close the layers that do not show the directory; no `up` from here may follow."""
        self._shown = self._shown[-1:]
        for layer in self._open:
            if layer not in self._shown[0]:
                layer.close()
        self._open = list(self._shown[0])

    def resolve(self, path: str) -> str | None:
        """Follow `path` with all its links to the directory of its last name, and return that name.

        "" when the path is the directory itself; None when there is nothing.
        """
        if "\0" in path:
            return None
        links = parts = 0
        todo = _parts(path)[::-1]
        while todo:
            parts += 1
            part = todo.pop()
            if parts > MAX_PARTS:
                return None
            if part == "..":
                if len(self._shown) > 1:
                    self.up()
                continue
            entry = self.find(part)
            if entry is None:
                return None
            fd, info = entry
            if stat.S_ISLNK(info.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    return None
                target = os.readlink(part, dir_fd=fd)
                if target.startswith("/"):
                    self._to_root()
                todo += _parts(target)[::-1]
            elif not todo:
                return part
            elif not stat.S_ISDIR(info.st_mode) or not self.down(part):
                return None
        return ""


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _look(name: str, fd: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise
        return None


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _is_opaque(fd: int) -> bool:
    """Whether the directory hides what layers below have in its place."""
    for name in _OPAQUE:
        try:
            if os.getxattr(fd, name) == b"y":
                return True
        except OSError:
            pass
    return False


def _layers(mounts: Sequence[Mount]) -> list[str]:
    """The directories that make up the root, uppermost first."""
    if len(mounts) != 1:
        raise NotReady(f"a root file system of {len(mounts)} mounts cannot be read")
    (mount,) = mounts
    if mount.type == "bind":
        return [mount.source]
    if mount.type != "overlay":
        raise NotReady(f"a root file system of type {mount.type!r} cannot be read")
    options = dict(option.split("=", 1) for option in mount.options if "=" in option)
    upper = [options["upperdir"]] if "upperdir" in options else []
    return [directory for directory in (*upper, *options.get("lowerdir", "").split(":")) if directory]

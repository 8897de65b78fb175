"""Reading files out of a root file system without mounting it.

A snapshot is described by its mounts: one bind mount of a directory, or an overlay of layer directories. Users
are looked up in the image's /etc/passwd before the container exists, and mounting for that would cost more than
the rest of CreateContainer, and leave a mount behind if the daemon died meanwhile. So the overlay is read as the
kernel would: the upper layers first, whiteouts honoured, links followed inside the root
(https://docs.kernel.org/filesystems/overlayfs.html).

What an image holds decides how long this takes, so each step down looks at one name in those layers that still count:
the cost grows with the depth and with the layers that go there, and never with the product of depths.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Self

from sandboxd import trees
from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import NotReady
from sandboxd.trees import Descent, Event

MOST_BYTES = 8 << 20  # of a file that is read into memory
MOST_PARTS = 4096  # names that are looked up for one path, its links' included
_MOST_LINKS = 40  # as the kernel's own limit
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


def read(mounts: Sequence[Mount], path: str) -> bytes | None:
    """The file at `path` (relative to the root), or None when there is none or it is not a regular file.

    Raises NotReady for a mount that cannot be read this way or a file that is unreasonably large.
    """
    try:
        with _Root(mounts) as root:
            last = root.resolve(path)
            found = root.find(last) if last else None
            if not last or found is None or not stat.S_ISREG(found[1].st_mode):
                return None
            with open(trees.open_file(last, found[0]), "rb") as file:
                content = file.read(MOST_BYTES + 1)
    except OSError as exc:
        raise NotReady(f"{path} in the image cannot be read: {exc.strerror}") from exc
    if len(content) > MOST_BYTES:
        raise NotReady(f"{path} in the image is larger than {MOST_BYTES} bytes")
    return content


def tree(mounts: Sequence[Mount], path: str) -> Iterator[tuple[Event, str, int, os.stat_result]]:
    """The directory at `path` (with the name "") and all below it: (event, name, descriptor, what it is).

    The descriptor is of the uppermost layer that has it, and valid until the next: of the directory itself when it is
    entered and when it is left, else of the directory that holds the entry. Nothing when there is no directory. Links
    are entries, and not followed. Raises OSError, and NotReady for a mount that cannot be read this way.
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
                    raise OSError(errno.ESTALE, "a layer was changed while it was read")
                infos.append(os.fstat(root.fd))
                yield Event.ENTERED, names[-1], root.fd, infos[-1]
                continue
            todo.pop()
            yield Event.LEFT, names.pop(), root.fd, infos.pop()
            if infos:
                root.up()


class _Root:
    """A directory of the root file system as its layers show it together; at first the root itself.

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
        """(the layer's directory, what it is) of an entry; None when there is none."""
        for layer in self._shown[-1]:
            info = _look(name, layer.fd)
            if info is not None:
                return None if _is_whiteout(info) else (layer.fd, info)
        return None

    def entries(self) -> Iterator[tuple[str, int, os.stat_result]]:
        """All entries of the directory: (name, the layer's directory, what it is)."""
        for i, layer in enumerate(self._shown[-1]):
            above = self._shown[-1][:i]
            with os.scandir(layer.fd) as entries:
                for entry in entries:
                    if any(_look(entry.name, each.fd) is not None for each in above):
                        continue  # it was shown with the layer above, or is hidden by it
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
                break  # a whiteout, or hidden by a directory above, as is all below; never to be followed
            layer.down(name)
            shown.append(layer)
            if _is_opaque(layer.fd):
                break
        if not shown:
            return False
        self._shown.append(shown)
        return True

    def up(self) -> None:
        """Back to where `down` was called."""
        for layer in self._shown.pop():
            layer.up()

    def stay(self) -> None:
        """Close the layers that do not show the directory: nobody will go up from it."""
        self._shown = self._shown[-1:]
        for layer in self._open:
            if layer not in self._shown[0]:
                layer.close()
        self._open = list(self._shown[0])

    def resolve(self, path: str) -> str | None:
        """Go to where `path` leads once all links are followed, up to its last name, which is returned.

        "" when it is the directory itself that was reached; None when there is nothing.
        """
        if "\0" in path:
            return None
        links = parts = 0
        todo = _parts(path)[::-1]
        while todo:
            parts += 1
            part = todo.pop()
            if parts > MOST_PARTS:
                return None
            if part == "..":
                if len(self._shown) > 1:
                    self.up()
                continue
            found = self.find(part)
            if found is None:
                return None
            fd, info = found
            if stat.S_ISLNK(info.st_mode):
                links += 1
                if links > _MOST_LINKS:
                    return None
                target = os.readlink(part, dir_fd=fd)
                if target.startswith("/"):
                    while len(self._shown) > 1:
                        self.up()
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
    """Whether the directory hides what layers below have at its place."""
    for name in _OPAQUE:
        try:
            if os.getxattr(fd, name) == b"y":
                return True
        except OSError:
            pass
    return False


def _layers(mounts: Sequence[Mount]) -> list[str]:
    """The directories that make up the root, the uppermost first."""
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

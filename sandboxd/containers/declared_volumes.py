"""The volumes that an image declares: a directory for each, with what the image has at its place.

They are the container's own, beside its other files, and go with it. What is written there neither fills the
container's layer nor is forbidden by a read-only root file system.

What the image has is copied entry by entry, each by its name in an open directory. A copy takes no more space than
the image did: links to the same file remain that, and holes remain holes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterable, Mapping, Sequence

from sandboxd import trees
from sandboxd.containerd import rootfs
from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import NotReady
from sandboxd.oci.userns import IdMap
from sandboxd.trees import Descent, Event

CHUNK = 16 << 20  # bytes that are copied at once

_OVERLAYS_OWN = ("trusted.overlay.", "user.overlay.")  # attributes that are overlayfs' marks and not the file's
_LINKED = "linked"  # beside the volumes while they are made: another link to each file that has several


def create(
    directory: str, paths: Iterable[str], mounts: Sequence[Mount], ids: IdMap | None = None
) -> Generator[None, None, Mapping[str, str]]:
    """Make a directory below `directory` for each of `paths`, a piece at a time; return which is for which.

    `mounts` is the root file system with what the image has there. With `ids` all belongs to the host's ids for
    the same users. Raises NotReady when the disk refuses; the caller removes `directory`.
    """
    made = {}
    try:
        for number, path in enumerate(paths):
            made[path] = f"{directory}/{number}"
            os.makedirs(made[path], mode=0o755)
            yield from _fill(made[path], f"{directory}/{_LINKED}", mounts, path, ids)
    except OSError as exc:
        raise NotReady(f"the image's volumes cannot be made in {directory}: {exc}") from exc
    return made


def _fill(
    target: str, scratch: str, mounts: Sequence[Mount], path: str, ids: IdMap | None
) -> Generator[None, None, None]:
    into = Descent(os.open(target, trees.DIRECTORY))
    links = _Links(scratch)
    try:
        _own(into.fd, 0, 0, ids)
        for number, (event, name, fd, info) in enumerate(rootfs.tree(mounts, path), start=1):
            if event is Event.FILE:
                yield from _copy(name, fd, info, into.fd, links, ids)
            elif event is Event.LEFT:
                # Now that all is in it: its times stay, and nothing inherits from it.
                _describe(fd, info, into.fd, ids)
                if name:
                    into.up()
            elif name:
                os.mkdir(name, 0o700, dir_fd=into.fd)
                into.down(name)
            if not number % trees.PIECE_ENTRIES:
                yield
    finally:
        links.close()
        into.close()
    yield from trees.remove(scratch)


class _Links:
    """Copied files that have more links in the image; each has a name in a private directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1
        self._known: dict[tuple[int, int], str] = {}

    def close(self) -> None:
        """Close the directory; the caller removes it."""
        if self._fd >= 0:
            os.close(self._fd)

    def link(self, info: os.stat_result, name: str, into: int) -> bool:
        """Link `name` to the copy of the same file; False if there is none or it cannot have another link."""
        known = self._known.get((info.st_dev, info.st_ino))
        if known is None:
            return False
        try:
            os.link(known, name, src_dir_fd=self._fd, dst_dir_fd=into)
        except OSError as exc:
            if exc.errno != errno.EMLINK:
                raise
            return False
        return True

    def remember(self, info: os.stat_result, name: str, into: int) -> None:
        """`name` is the copy of a file that has more links."""
        if self._fd < 0:
            os.mkdir(self._directory, 0o700)
            self._fd = os.open(self._directory, trees.DIRECTORY)
        key, new = (info.st_dev, info.st_ino), str(len(self._known))
        if key in self._known:
            new = self._known[key]
            os.unlink(new, dir_fd=self._fd)
        os.link(name, new, src_dir_fd=into, dst_dir_fd=self._fd)
        self._known[key] = new


def _copy(
    name: str, fd: int, info: os.stat_result, into: int, links: _Links, ids: IdMap | None
) -> Generator[None, None, None]:
    """One entry that is not a directory, with its owner, mode, times and attributes."""
    if stat.S_ISREG(info.st_mode):
        if links.link(info, name, into):
            return
        yield from _copy_file(name, fd, info, into, ids)
        if info.st_nlink > 1:
            links.remember(info, name, into)
        return
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=fd), name, dir_fd=into)
    else:
        os.mknod(name, info.st_mode, info.st_rdev, dir_fd=into)
    uid, gid = _owner(info.st_uid, info.st_gid, ids)
    os.chown(name, uid, gid, dir_fd=into, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=into)
    # There are no calls for attributes relative to a directory, but every open one has a path of its own.
    source, target = f"/proc/self/fd/{fd}/{name}", f"/proc/self/fd/{into}/{name}"
    for attribute in os.listxattr(source, follow_symlinks=False):
        if not attribute.startswith(_OVERLAYS_OWN):
            value = os.getxattr(source, attribute, follow_symlinks=False)
            os.setxattr(target, attribute, value, follow_symlinks=False)
    os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=into, follow_symlinks=False)


def _copy_file(name: str, fd: int, info: os.stat_result, into: int, ids: IdMap | None) -> Generator[None, None, None]:
    source = trees.open_file(name, fd)
    try:
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=into)
        try:
            yield from _copy_content(source, target, os.fstat(source).st_size)
            _describe(source, info, target, ids)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_content(source: int, target: int, size: int) -> Generator[None, None, None]:
    """What is in a file; where it has holes, they remain holes."""
    os.ftruncate(target, size)
    at = copied = extents = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            return  # a hole up to the end
        end = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            sent = os.sendfile(target, source, at, min(end - at, CHUNK))
            if not sent:
                return
            at, copied = at + sent, copied + sent
            if copied >= CHUNK:
                copied = 0
                yield
        extents += 1
        if not extents % trees.PIECE_ENTRIES:
            yield


def _describe(source: int, info: os.stat_result, target: int, ids: IdMap | None) -> None:
    """Give an open file or directory the owner, mode, attributes and times of another."""
    _own(target, info.st_uid, info.st_gid, ids)
    os.fchmod(target, stat.S_IMODE(info.st_mode))  # after chown, which takes the set-id bits away
    for attribute in os.listxattr(source):
        if not attribute.startswith(_OVERLAYS_OWN):
            os.setxattr(target, attribute, os.getxattr(source, attribute))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _own(fd: int, uid: int, gid: int, ids: IdMap | None) -> None:
    os.fchown(fd, *_owner(uid, gid, ids))


def _owner(uid: int, gid: int, ids: IdMap | None) -> tuple[int, int]:
    return (uid, gid) if ids is None else (uid + ids.uids.host, gid + ids.gids.host)

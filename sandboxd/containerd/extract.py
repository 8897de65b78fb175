"""Writing a layer into the directory of its snapshot while the layer is read for the first time.

containerd's diff service works from a complete blob: it decompresses and hashes everything once more. Here each
entry is written when the scan that every layer goes through (`oci.layers.scan`) reaches it, with the same result as
the diff service's. Rules:

1. No link is followed. Each part of a path is opened below the one before it with O_NOFOLLOW, so that nothing
   escapes the directory whatever the scan let through.
2. Nothing is replaced: the directory was empty, and a layer with duplicate paths is left to the diff service.
3. What cannot be done exactly (devices, sparse files, a parent directory that a layer below describes, a file
   system without extended attributes) is not done at all: `unfit` says why, nothing more is written, and the
   caller throws the snapshot away and uses the diff service.
4. Attributes of the `trusted` class are dropped, as containerd does: overlayfs has its own there (opaque, redirect,
   metacopy), and with them an archive could hide or move what lies below. A time before 1970 is its
   beginning.
5. Nothing is visible before the caller has verified the layer and commits the snapshot.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation

from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import Exhausted
from sandboxd.oci.layers import Read
from sandboxd.oci.recording import OPAQUE, is_whiteout
from sandboxd.oci.tar import WHITEOUT

PIECE_BYTES = 1 << 20  # written at a time
MAX_REMEMBERED_BYTES = 64 << 20  # for the times of directories, some 300,000 of them

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_XATTR = "SCHILY.xattr."
_TRUSTED = "trusted."  # only the file system itself may set these: they are for root, and mean what it made them mean
_OPAQUE = "trusted.overlay.opaque"
_NO_NAMES = frozenset({"", ".", ".."})
_MAX_TIME = 1 << 63  # in seconds where it is read, in nanoseconds where it is set
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Unfit(Exception):
    """Only the diff service can write this entry."""


def directory_of(mounts: Sequence[Mount], *, lowest: bool) -> str:
    """The directory that holds exactly this layer's changes, "" when the snapshotter has none."""
    if len(mounts) != 1:
        return ""
    (mount,) = mounts
    if mount.type == "bind" and lowest and not mount.target and "ro" not in mount.options:
        return mount.source
    if mount.type == "overlay" and not lowest and "userxattr" not in mount.options:
        return next((o.removeprefix("upperdir=") for o in mount.options if o.startswith("upperdir=")), "")
    return ""


def directories_below(mounts: Sequence[Mount]) -> tuple[str, ...]:
    """The directories of the layers below, the uppermost first."""
    options = (option for mount in mounts for option in mount.options)
    lower = next((option.removeprefix("lowerdir=") for option in options if option.startswith("lowerdir=")), "")
    return tuple(lower.split(":")) if lower else ()


class Extraction:
    """A visitor of `oci.layers.scan` that writes; for one thread at a time. `close` it, from any thread."""

    def __init__(self, directory: str, *, lowest: bool, below: Sequence[str] | None = None) -> None:
        """`lowest`: there is no layer below to delete from or to take attributes from.

        `below` is given for several layers in one: the directories of those below them, the uppermost first.
        """
        self.unfit = ""
        self._below = below
        self._directory = directory
        self._lowest = lowest
        self._times: list[tuple[str, int]] = []  # of directories, set once nothing more is put into them
        self._remembered = 0
        self._root = self._parent = -1
        self._parent_path = ""
        try:
            self._root = os.open(directory, _DIRECTORY)
        except OSError as exc:
            self._give_up("the directory", exc)  # perhaps in a mount namespace other than ours

    def visit(self, entry: tarfile.TarInfo, path: str, target: str, read: Read) -> None:
        """Write an entry; raises Exhausted when the disk is full."""
        if self.unfit:
            return
        try:
            self._write(entry, path, target, read)
        except (_Unfit, OSError, OverflowError, ValueError) as exc:
            self._give_up(entry.name, exc)

    def finish(self) -> None:
        """Set the times of the directories, after every entry was visited."""
        if self.unfit:
            return
        try:
            for path, time in self._times:
                parent, name = self._place(path)
                os.utime(name, ns=(time, time), dir_fd=parent, follow_symlinks=False)
        except (_Unfit, OSError) as exc:
            self._give_up(path, exc)

    def close(self) -> None:
        """Close the directory."""
        for fd in {self._root, self._parent} - {-1}:
            os.close(fd)
        self._root = self._parent = -1

    def _give_up(self, what: str, exc: Exception) -> None:
        if isinstance(exc, OSError) and exc.errno in _FULL:
            raise Exhausted(f"{what}: no space left on the disk; remove images with `sandboxctl rmi`") from exc
        self.unfit = f"{what}: {exc}"

    def _write(self, entry: tarfile.TarInfo, path: str, target: str, read: Read) -> None:
        if getattr(entry, "after_global", False):
            raise _Unfit("a global header, whose name containerd treats as an entry's")
        parent, name = self._place(path)
        if is_whiteout(name):
            self._delete(entry, parent, name, path)
        elif entry.isdir():
            if name:  # the attributes of the root itself are ignored, as containerd does
                self._make_directory(entry, parent, name, path)
        elif not name:
            raise _Unfit("the root is not a directory")
        elif entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not entry.issparse():
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
            try:
                while view := read(PIECE_BYTES):
                    while view:
                        view = view[os.write(fd, view) :]
                _describe(entry, fd)
                time = _modified(entry)
                os.utime(fd, ns=(time, time))
            finally:
                os.close(fd)
        elif entry.issym():
            if any(_attributes(entry)):
                raise _Unfit("a symlink with extended attributes")
            os.symlink(entry.linkname, name, dir_fd=parent)
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
            time = _modified(entry)
            os.utime(name, ns=(time, time), dir_fd=parent, follow_symlinks=False)
        elif entry.islnk():
            self._link(entry, target, path)
        else:
            raise _Unfit(f"an entry of type {entry.type!r}")

    def _delete(self, entry: tarfile.TarInfo, parent: int, name: str, path: str) -> None:
        """A whiteout, in overlayfs' form (https://docs.kernel.org/filesystems/overlayfs.html)."""
        if self._lowest:
            raise _Unfit("a whiteout without a layer below")
        if name == OPAQUE:
            os.setxattr(parent, _OPAQUE, b"y")
        elif name.startswith(WHITEOUT * 2):
            raise _Unfit("a whiteout of a kind that only aufs has")
        else:
            if self._below is not None and not _merges(self._below, path.rpartition("/")[0]):
                # Another of the layers has that directory too, and overlayfs lists a whiteout unless two have it.
                raise _Unfit("a whiteout in a directory that no layer below has")
            hidden = name.removeprefix(WHITEOUT)
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
            os.chown(hidden, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)

    def _make_directory(self, entry: tarfile.TarInfo, parent: int, name: str, path: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            pass  # anything but a directory fails to open below
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            _describe(entry, fd)
        finally:
            os.close(fd)
        self._remembered += 150 + len(path) * (1 if path.isascii() else 4)
        if self._remembered > MAX_REMEMBERED_BYTES:
            raise _Unfit("more directories than can be remembered")
        self._times.append((path, _modified(entry)))

    def _link(self, entry: tarfile.TarInfo, target: str, path: str) -> None:
        source, source_name = self._place(target)
        if not source_name:
            raise _Unfit("a hard link to the root")
        # The attributes that both names share were set with the first one.
        info = os.stat(source_name, dir_fd=source, follow_symlinks=False)
        described = (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns)
        if described != (entry.mode & 0o7777, entry.uid, entry.gid, _modified(entry)):
            raise _Unfit("a hard link whose attributes differ from its target's")
        source = os.dup(source)  # the place of the new name may close it
        try:
            parent, name = self._place(path)
            os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _place(self, path: str) -> tuple[int, str]:
        """(directory, name) of a path. The directory stays open until the next call."""
        directory, _, name = path.rpartition("/")
        if path and not _NO_NAMES.isdisjoint(path.split("/")):
            raise _Unfit("an invalid path")
        if not directory:
            return self._root, name
        if directory != self._parent_path:
            fd = self._open(directory)
            if self._parent != -1:
                os.close(self._parent)
            self._parent, self._parent_path = fd, directory
        return self._parent, name

    def _open(self, path: str) -> int:
        fd = os.dup(self._root)
        for part in path.split("/"):
            try:
                try:
                    below = os.open(part, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    if not self._lowest:
                        raise _Unfit("a layer below describes its parent directory") from None
                    os.mkdir(part, 0o700, dir_fd=fd)
                    below = os.open(part, _DIRECTORY, dir_fd=fd)
                    os.fchmod(below, 0o755)
            finally:
                os.close(fd)
            fd = below
        return fd


def _merges(below: Sequence[str], path: str) -> bool:
    """Whether overlayfs merges a directory on top of the layers in `below` with one of them."""
    merged, so_far = list(below), ""
    for part in path.split("/") if path else ():
        so_far = f"{so_far}/{part}"
        candidates, merged = merged, []
        for directory in candidates:
            try:
                if not stat.S_ISDIR(os.lstat(f"{directory}{so_far}").st_mode):
                    break
            except FileNotFoundError:
                continue
            merged.append(directory)
            try:
                if os.getxattr(f"{directory}{so_far}", _OPAQUE, follow_symlinks=False) == b"y":
                    break
            except OSError:
                pass
    return bool(merged)


def _describe(entry: tarfile.TarInfo, fd: int) -> None:
    """Set owner, attributes and mode; in this order, because changing the owner clears capabilities and setuid."""
    os.fchown(fd, entry.uid, entry.gid)
    for key, value in _attributes(entry):
        try:
            os.setxattr(fd, key, value)
        except OSError as exc:
            # Also what is too large for the file system is a lack of space to it.
            raise _Unfit(f"the attribute {key[:40]!r}: {exc.strerror}") from exc
    os.fchmod(fd, entry.mode & 0o7777)


def _attributes(entry: tarfile.TarInfo) -> Iterator[tuple[str, bytes]]:
    """The extended attributes that an entry gets."""
    for key, value in entry.pax_headers.items():
        name = key.removeprefix(_XATTR)
        if name != key and not name.startswith(_TRUSTED):
            yield name, value.encode("utf-8", "surrogateescape")


def _modified(entry: tarfile.TarInfo) -> int:
    """The entry's modification time in unix nanoseconds; tarfile itself keeps only a float."""
    text = entry.pax_headers.get("mtime", "")
    try:
        time = Decimal(text) if text else Decimal(int(entry.mtime))
        if not abs(time) < _MAX_TIME:  # a few digits can stand for a number that fills the memory
            raise _Unfit(f"a time that is out of range, {text[:40]!r}")
        nanoseconds = int(time * 1_000_000_000)
        # What does not fit is the beginning of 1970 to containerd.
        return nanoseconds if 0 <= nanoseconds < _MAX_TIME else 0
    except InvalidOperation as exc:
        raise _Unfit(f"a time that is not a number, {text[:40]!r}") from exc

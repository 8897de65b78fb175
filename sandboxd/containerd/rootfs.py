"""Reading files out of a root file system without mounting it.

A snapshot is described by its mounts: one bind mount of a directory, or an overlay of layer directories. Users
are looked up in the image's /etc/passwd before the container exists, and mounting for that would cost more than
the rest of CreateContainer, and leave a mount behind if the daemon died meanwhile. So the overlay is read as the
kernel would: the upper layers first, whiteouts honoured, links followed inside the root
(https://docs.kernel.org/filesystems/overlayfs.html).
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import NotReady

MOST_BYTES = 8 << 20  # of a file that is read into memory
_MOST_LINKS = 40  # as the kernel's own limit


def read(mounts: Sequence[Mount], path: str) -> bytes | None:
    """The file at `path` (relative to the root), or None when there is none or it is not a regular file.

    Raises NotReady for a mount that cannot be read this way or a file that is unreasonably large.
    """
    layers = _layers(mounts)
    real = _resolve(layers, path)
    file = _find(layers, real) if real else None
    if file is None or not stat.S_ISREG(file.lstat().st_mode):
        return None
    if file.stat().st_size > MOST_BYTES:
        raise NotReady(f"{path} in the image is larger than {MOST_BYTES} bytes")
    return file.read_bytes()


def tree(mounts: Sequence[Mount], path: str) -> Iterator[tuple[str, Path]]:
    """The directory at `path` and all below it as (path relative to it, where it lies), parents first.

    Nothing when there is no directory. Links are entries, and not followed. Raises NotReady for a mount that cannot
    be read this way.
    """
    layers = _layers(mounts)
    real = _resolve(layers, path)
    todo = [] if real is None else [""]
    while todo:
        relative = todo.pop()
        inside = posixpath.join(real or "", relative)
        found = _find(layers, inside) if inside else layers[0]
        if found is None or not (relative or found.is_dir()):
            continue
        yield relative, found
        if stat.S_ISDIR(found.lstat().st_mode):
            todo += [posixpath.join(relative, name) for name in sorted(_names(layers, inside), reverse=True)]


def _resolve(layers: Sequence[Path], path: str) -> str | None:
    """The path of what `path` leads to once all links are followed, "" for the root; None when there is nothing."""
    links = 0
    todo = [part for part in path.split("/") if part]
    done: list[str] = []
    while todo:
        part = todo.pop(0)
        if part == "..":
            done = done[:-1]
            continue
        found = _find(layers, posixpath.join(*done, part))
        if found is None:
            return None
        if not found.is_symlink():
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            return None
        target = os.readlink(found)
        if target.startswith("/"):
            done = []
        todo = [p for p in target.split("/") if p not in ("", ".")] + todo
    return "/".join(done)


def _names(layers: Sequence[Path], path: str) -> set[str]:
    """What any layer has in the directory at `path`; not all of it need be there (`_find` tells)."""
    names: set[str] = set()
    for layer in layers:
        entry = layer
        for part in ("", *path.split("/")):
            entry = entry / part
            if not stat.S_ISDIR(_mode(entry)):
                break
        else:
            names.update(os.listdir(entry))
    return names


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def _layers(mounts: Sequence[Mount]) -> list[Path]:
    """The directories that make up the root, the uppermost first."""
    if len(mounts) != 1:
        raise NotReady(f"a root file system of {len(mounts)} mounts cannot be read")
    (mount,) = mounts
    if mount.type == "bind":
        return [Path(mount.source)]
    if mount.type != "overlay":
        raise NotReady(f"a root file system of type {mount.type!r} cannot be read")
    options = dict(option.split("=", 1) for option in mount.options if "=" in option)
    upper = [options["upperdir"]] if "upperdir" in options else []
    return [Path(directory) for directory in (*upper, *options.get("lowerdir", "").split(":")) if directory]


def _find(layers: Sequence[Path], path: str) -> Path | None:
    """The uppermost layer's entry at `path`, whose parents are known to be directories; None when it has none."""
    for layer in layers:
        entry = layer
        *parents, last = path.split("/")
        for part in (*parents, last):
            entry = entry / part
            try:
                info = entry.lstat()
            except OSError as exc:
                if exc.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                    raise
                break
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                return None  # a whiteout: deleted here, whatever is below
            if entry != layer.joinpath(*parents, last) and not stat.S_ISDIR(info.st_mode):
                return None  # hidden by the directory above it, as is all below; never to be followed
        else:
            return entry
        parent = layer
        for part in path.split("/")[:-1]:
            parent = parent / part
            if _opaque(parent):
                return None
    return None


def _opaque(directory: Path) -> bool:
    """Whether the directory hides what layers below have at its place."""
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        try:
            if os.getxattr(directory, name, follow_symlinks=False) == b"y":
                return True
        except OSError:
            pass
    return False

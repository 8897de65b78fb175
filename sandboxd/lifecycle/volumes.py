"""The volumes that an image declares: a directory for each, with what the image has at its place.

They are the container's own, beside its other files, and go with it. What is written there neither fills the
container's layer nor is forbidden by a read-only root file system.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sandboxd.containerd import rootfs
from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import NotReady
from sandboxd.oci.userns import IdMap

_OVERLAYS_OWN = ("trusted.overlay.", "user.overlay.")  # attributes that are overlayfs' marks and not the file's


def create(
    directory: str, paths: Iterable[str], mounts: Sequence[Mount], ids: IdMap | None = None
) -> Mapping[str, str]:
    """Make a directory below `directory` for each of `paths`; return which is for which. Blocks.

    `mounts` is the root file system with what the image has there. With `ids` all belongs to the host's ids for
    the same users. Raises NotReady when the disk refuses; the owner of `directory` removes what is there by then.
    """
    made = {}
    try:
        for number, path in enumerate(paths):
            made[path] = f"{directory}/{number}"
            os.makedirs(made[path], mode=0o755)
            _own(made[path], 0, 0, ids)
            for relative, source in rootfs.tree(mounts, path):
                _copy(source, os.path.join(made[path], relative) if relative else made[path], ids)
    except OSError as exc:
        raise NotReady(f"the image's volumes cannot be made in {directory}: {exc}") from exc
    return made


def _copy(source: Path, target: str, ids: IdMap | None) -> None:
    """One entry with its owner, mode, times and attributes; a directory without what is in it."""
    info = source.lstat()
    if stat.S_ISDIR(info.st_mode):
        os.makedirs(target, exist_ok=True)
    elif stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(info.st_mode):
        shutil.copyfile(source, target, follow_symlinks=False)
    else:
        os.mknod(target, info.st_mode, info.st_rdev)
    _own(target, info.st_uid, info.st_gid, ids)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(target, stat.S_IMODE(info.st_mode))  # after chown, which takes the set-id bits away
    for name in os.listxattr(source, follow_symlinks=False):
        if not name.startswith(_OVERLAYS_OWN):
            value = os.getxattr(source, name, follow_symlinks=False)
            os.setxattr(target, name, value, follow_symlinks=False)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)


def _own(path: str, uid: int, gid: int, ids: IdMap | None) -> None:
    if ids is not None:
        uid, gid = uid + ids.uids.host, gid + ids.gids.host
    os.lchown(path, uid, gid)

"""The mounts that this process sees: which there are, and taking them away."""

from __future__ import annotations

import errno
from pathlib import Path

from sandboxd import mountinfo, syscalls
from sandboxd.mountinfo import Mount

_MAX_STACKED = 8  # mounts at one path; more than one means that something was mounted over ours


def listed() -> list[Mount]:
    """All mounts, in the kernel's order; also those that no path leads to (see mountinfo). Raises OSError."""
    return mountinfo.parse(Path(mountinfo.OWN).read_bytes())


def unmount(path: str) -> None:
    """Unmount whatever is mounted at `path`, one on another included. Idempotent. Raises OSError.

    What is still in use goes when it no longer is; a link at `path` is not followed.
    """
    for _ in range(_MAX_STACKED):
        try:
            syscalls.umount2(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):  # not a mount, not there
                return
            raise

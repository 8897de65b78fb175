"""The Linux system calls that Python 3.11 does not have, one wrapper each; the only user of ctypes.

Convenience is not the business of this module: each function makes one call and raises OSError with the call's
name and the path that it was about. Whoever calls `unshare` or `setns` knows that they change the calling
thread (namespaces(7)).
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNET = 0x40000000
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_SHARED = 1 << 20
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str, path: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}", path)


def unshare(flags: int) -> None:
    """unshare(2): leave namespaces shared with the other threads."""
    _check(_libc.unshare(flags), "unshare", "")


def setns(fd: int, kind: int) -> None:
    """setns(2): enter the namespace that `fd` refers to."""
    _check(_libc.setns(fd, kind), "setns", "")


def mount(source: str, target: str, flags: int, fstype: str = "", data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(result, "mount", target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), "umount2", target)

"""The Linux system calls that Python 3.11 does not have, one wrapper each; the only user of ctypes.

This module offers no convenience: each function makes one call and raises OSError with the call's name and its path.
Note that `unshare` and `setns` change the calling thread (namespaces(7)).
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000
CLONE_NEWUTS = 0x04000000
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_IDMAP = 0x100000
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_SHARED = 1 << 20
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# Since Linux 5.2, 5.6 and 5.12; these numbers are the same on every architecture.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_OPENAT2, _SYS_MOUNT_SETATTR = 428, 429, 437, 442
_RESOLVE_IN_ROOT = 0x10
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, call: str, path: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}", path)


def unshare(flags: int) -> None:
    """unshare(2): move the calling thread into new namespaces."""
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


class _MountAttr(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def open_tree(path: str, *, recursive: bool = False) -> int:
    """open_tree(2) with OPEN_TREE_CLONE: a detached copy of the mount at `path`; closing it removes it."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    fd = _libc.syscall(
        ctypes.c_long(_SYS_OPEN_TREE), ctypes.c_int(_AT_FDCWD), os.fsencode(path), ctypes.c_uint(flags)
    )
    _check(min(fd, 0), "open_tree", path)
    return int(fd)


def mount_setattr(fd: int, attributes: int, *, userns_fd: int = -1, recursive: bool = False) -> None:
    """mount_setattr(2): add MOUNT_ATTR_* to the mount that `fd` refers to."""
    attr = _MountAttr(attr_set=attributes, userns_fd=max(userns_fd, 0))
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(fd),
        b"",
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
    _check(result, "mount_setattr", "")


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(root_fd: int, path: str, flags: int) -> int:
    """openat2(2) with RESOLVE_IN_ROOT: links stay below `root_fd`, absolute ones too, and /proc's magic ones fail."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, resolve=_RESOLVE_IN_ROOT)
    fd = _libc.syscall(ctypes.c_long(_SYS_OPENAT2), root_fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        _check(fd, "openat2", path)
    return int(fd)


def move_mount(fd: int, target: str) -> None:
    """move_mount(2): attach the mount that `fd` refers to at `target`."""
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOVE_MOUNT),
        ctypes.c_int(fd),
        b"",
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )
    _check(result, "move_mount", target)

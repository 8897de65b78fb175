"""The tree of the images that `make test-tools` passes around: made, changed as a second layer does, and looked at.

It has what tools and runtimes are known to disagree on. Also a program, for directories that are seen in a bed only:

    python -I tree.py make | change | show DIRECTORY
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

MADE = 1_700_000_000  # seconds since 1970, of everything in the first layer
CHANGED = 1_700_000_777  # of everything in the second one
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+ep
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/srv:/bin/sh\n"
LONG = f"usr/share/{'d' * 120}/{'e' * 120}/{'f' * 200}"
UNICODE = "etc/ünï/日本語 файл"

# What the second layer says, for those who write it as a tar.
REPLACED = (
    "etc/attributed",
    "etc/becomes-directory",
    "etc/becomes-directory/inside",
    "etc/becomes-file",
    "etc/becomes-link",
    "etc/mode",
    "etc/owner",
    "etc/replaced",
    "etc/ünï/new",
    "opt/app",
    "opt/app/new",
)
GONE = ("etc/gone", "usr/lib/linked", "usr/share/doc")
OPAQUE = ("opt/app",)
PARENTS = ("etc", "etc/ünï", "opt", "usr", "usr/lib", "usr/share")  # as they were


def make(root: Path) -> None:
    """Fill an empty directory with the first layer."""
    root.chmod(0o755)
    for directory in ("bin", "data", "etc/ünï", "etc/becomes-file", "empty", "opt/app/old", "run", "srv/shared"):
        (root / directory).mkdir(parents=True)
    for directory in ("tmp", "usr/lib", "usr/share/doc/package", "var", os.path.dirname(LONG)):
        (root / directory).mkdir(parents=True)
    contents = {
        "bin/ping": "a program with a capability",
        "bin/sudo": "a program with another's rights",
        "etc/attributed": "a",
        "etc/becomes-directory": "a file",
        "etc/becomes-file/inside": "i",
        "etc/becomes-link": "a file",
        "etc/empty": "",
        "etc/gone": "g",
        "etc/group": "root:x:0:\napp:x:1001:\n",
        "etc/large-ids": "l",
        "etc/mode": "m",
        "etc/owner": "o",
        "etc/passwd": PASSWD,
        "etc/replaced": "first",
        "etc/with space": "s",
        "opt/app/old/file": "o",
        "srv/shared/file": "f",
        "usr/lib/library": "so",
        "usr/share/doc/package/copyright": "c",
        LONG: "a long name",
        UNICODE: "u",
    }
    for name, content in contents.items():
        (root / name).write_text(content)
    shutil.copyfile("/bin/busybox", root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    links = {"bin/sh": "busybox", "lib": "usr/lib", "var/run": "/run", "dangling": "/no/such/" + "t" * 150}
    for name, target in links.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "run/fifo")
    os.mknod(root / "srv/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    owners = {"etc/owner": (1000, 1001), "etc/large-ids": (3_000_000, 4_000_000), "srv/shared": (0, 50)}
    for name, (uid, gid) in owners.items():
        os.chown(root / name, uid, gid)
    modes = {"bin/sudo": 0o4755, "bin/ping": 0o755, "tmp": 0o1777, "srv/shared": 0o2775, "srv/null": 0o666}
    for name, mode in {**modes, "etc/mode": 0o640, "run/fifo": 0o622}.items():
        (root / name).chmod(mode)
    for name in ("bin/again", "usr/lib/linked"):
        os.link(root / "bin/sudo", root / name)
    os.setxattr(root / "bin/ping", "security.capability", CAPABILITY)
    os.setxattr(root / "etc/attributed", "user.note", b"\xff\x00 binary")
    for directory, below, files in os.walk(root):
        for name in (".", *below, *files):
            _timed(Path(directory) / name, MADE)


def change(root: Path) -> None:
    """Make of the first layer what it is together with the second."""
    for name in ("etc/becomes-file", "opt/app", "usr/share/doc"):
        shutil.rmtree(root / name)
    for name in ("etc/becomes-directory", "etc/becomes-link", "etc/gone", "etc/replaced", "usr/lib/linked"):
        (root / name).unlink()
    for name in ("etc/becomes-directory", "opt/app"):
        (root / name).mkdir()
    for name in ("etc/becomes-directory/inside", "etc/becomes-file", "etc/replaced", "etc/ünï/new", "opt/app/new"):
        (root / name).write_text("of the second layer")
    (root / "etc/becomes-link").symlink_to("passwd")
    (root / "etc/mode").chmod(0o600)
    os.chown(root / "etc/owner", 1001, 1000)
    os.setxattr(root / "etc/attributed", "user.note", b"changed")
    for name in REPLACED:
        _timed(root / name, CHANGED)
    for name in PARENTS:
        _timed(root / name, MADE)


def show(root: Path) -> dict[str, Any]:
    """Path to (mode, owner, group, seconds, device, first name of the file, attributes, content or target).

    The root itself is not shown: containerd and podman give it attributes of their own.
    """
    seen: dict[str, Any] = {}
    first: dict[int, str] = {}
    for directory, below, files in os.walk(root):
        below.sort()
        for name in (*below, *sorted(files)):
            path = os.path.join(directory, name)
            shown, info = os.path.relpath(path, root), os.lstat(path)
            plain = stat.S_ISREG(info.st_mode)
            attributes = {
                each: os.getxattr(path, each, follow_symlinks=False).hex()
                for each in os.listxattr(path, follow_symlinks=False)
                if not each.startswith("trusted.overlay.")
            }
            what = os.readlink(path) if stat.S_ISLNK(info.st_mode) else ""
            seen[shown] = [
                oct(info.st_mode),
                info.st_uid,
                info.st_gid,
                int(info.st_mtime),
                info.st_rdev if stat.S_ISCHR(info.st_mode) else 0,
                first.setdefault(info.st_ino, shown) if plain else "",
                attributes,
                hashlib.sha256(Path(path).read_bytes()).hexdigest() if plain else what,
            ]
    return seen


def _timed(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds), follow_symlinks=False)


if __name__ == "__main__":
    verb, place = sys.argv[1:]
    if verb == "show":
        json.dump(show(Path(place)), sys.stdout)
    else:
        {"make": make, "change": change}[verb](Path(place))

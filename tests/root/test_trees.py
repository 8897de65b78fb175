"""Removal where only root can put something in the way: mounts and marks, on the real kernel."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd import trees

pytestmark = pytest.mark.root

IMMUTABLE, APPEND_ONLY = 0x10, 0x20
GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602

# In a mount namespace of its own, so that no mount outlives it: a bind mount of the same file system inside the tree.
MOUNTED = """
import subprocess, sys
from pathlib import Path
from sandboxd import trees
from sandboxd.errors import CleanupIncomplete

base = Path(sys.argv[1])
inside, file = base / "top/volume/a/mounted", base / "top/volume/a/file"
subprocess.check_call(["mount", "--bind", base / "outside", inside])
subprocess.check_call(["mount", "--bind", base / "outside/precious", file])
try:
    for _ in trees.remove(str(base / "top")): pass
except CleanupIncomplete as exc:
    print(exc)
(left,) = (base / "top").iterdir()
assert sorted(path.name for path in left.iterdir()) == ["file", "mounted"], list(left.iterdir())
assert (base / "outside/precious").read_text() == "x"
subprocess.check_call(["mount", "--bind", base / "top", base / "top"])
try:
    for _ in trees.remove(str(base / "top")): pass
except CleanupIncomplete as exc:
    print(exc)
subprocess.check_call(["umount", base / "top"])
subprocess.check_call(["umount", left / "mounted"])
subprocess.check_call(["umount", left / "file"])
for _ in trees.remove(str(base / "top")): pass
assert not (base / "top").exists()
assert (base / "outside/precious").read_text() == "x"
"""


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory on a disk; pytest's own may be on a file system without marks."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        yield Path(made)


def test_what_is_mounted_inside_is_left_alone_even_when_it_is_the_same_file_system(base: Path) -> None:
    (base / "outside").mkdir()
    (base / "outside" / "precious").write_text("x")
    (base / "top" / "volume" / "a" / "mounted").mkdir(parents=True)
    (base / "top" / "volume" / "a" / "file").touch()
    (base / "top" / "volume" / "b").mkdir()
    (base / "top" / "other").touch()
    script = [sys.executable, "-c", MOUNTED, str(base)]
    ended = subprocess.run(["unshare", "--mount", *script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.splitlines()
    assert "mounted (it was /volume/a/mounted): Device or resource busy" in first
    assert "file (it was /volume/a/file): Device or resource busy" in first
    assert "something is mounted there" in second


def mark(path: Path, flag: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        flags = bytearray(8)
        fcntl.ioctl(fd, GET_FLAGS, flags)
        struct.pack_into("i", flags, 0, struct.unpack_from("i", flags)[0] | flag)
        fcntl.ioctl(fd, SET_FLAGS, flags)
    except OSError as exc:
        pytest.skip(f"the file system has no such marks: {exc}")
    finally:
        os.close(fd)


@pytest.mark.parametrize("flag", [IMMUTABLE, APPEND_ONLY])
def test_files_and_directories_that_a_privileged_container_marked_are_removed(base: Path, flag: int) -> None:
    deep = base / "top" / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    os.mkfifo(base / "top" / "a" / "b" / "fifo")
    for path in (deep / "file", deep, deep.parent, deep.parent.parent):
        mark(path, flag)
    for _ in trees.remove(str(base / "top")):
        pass
    assert not (base / "top").exists()

"""Mounts of the real kernel: where a path leads, and what unmounting takes away.

Each scenario is run by a child in a mount namespace of its own (`unshare`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxd import mountinfo, mounts

pytestmark = pytest.mark.root


def shell(script: str) -> None:
    """Run a script; its mounts are made with -n, because mount(8) would note them in the machine's /run/mount."""
    subprocess.run(["sh", "-euc", script], check=True)


def mounted_on(path: str) -> int:
    return [mount.point for mount in mounts.listed()].count(path)


def mount_id(path: str) -> int:
    """The id of the mount that `path` leads into, from the kernel."""
    fd = os.open(path, os.O_PATH)
    try:
        (number,) = re.findall(r"^mnt_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
    finally:
        os.close(fd)
    return int(number)


def the_kernel_agrees(directory: str) -> None:
    """A path leads into the mount that the kernel says, however mounts hide each other."""
    os.chdir(directory)
    shell("""
        mkdir plain run; mkdir 'with a space'
        mount -n -t tmpfs one run; mkdir run/netns run/other
        mount -n -t tmpfs hidden run/netns; mkdir run/netns/inside
        mount -n -t tmpfs two run; mkdir -p run/netns/inside run/other
        mount -n -t tmpfs three run/other; mount -n -t tmpfs four run/other
        mount -n --bind plain 'with a space'; mount -n --bind run/other plain
    """)
    listed = mounts.listed()
    below = ("", "/plain", "/run", "/run/netns", "/run/netns/inside", "/run/other", "/with a space")
    for path in ("/", "/etc", "/proc", "/proc/self", "/dev", *(directory + name for name in below)):
        path = os.path.realpath(path)
        found = mountinfo.holding(listed, path)
        assert found is not None and found.id == mount_id(path), path
        top = mountinfo.visible(listed, path)
        assert (top is not None) == (path == "/" or mount_id(path) != mount_id(os.path.dirname(path))), path


def all_that_is_stacked(directory: str) -> None:
    """Mounts on one another go together, and what they were mounted on stays."""
    Path(directory, "below").touch()
    shell(f"for i in 1 2 3; do mount -n -t tmpfs layer {directory}; done")
    assert mounted_on(directory) == 3

    mounts.unmount(directory)

    assert mounted_on(directory) == 0
    assert os.listdir(directory) == ["below"]


def what_is_in_use(directory: str) -> None:
    """A file that is open in it keeps nobody waiting."""
    shell(f"mount -n -t tmpfs busy {directory}; touch {directory}/file")
    with open(f"{directory}/file", encoding="ascii"):
        mounts.unmount(directory)
        assert mounted_on(directory) == 0


def nothing_is_mounted(directory: str) -> None:
    """A directory, a file and a path that is not there are left as they are."""
    Path(directory, "file").touch()
    for name in ("", "/file", "/missing"):
        mounts.unmount(directory + name)
    assert os.listdir(directory) == ["file"]


def a_link(directory: str) -> None:
    """What a link leads to is not ours."""
    os.mkdir(f"{directory}/theirs")
    os.symlink("theirs", f"{directory}/ours")
    shell(f"mount -n -t tmpfs theirs {directory}/theirs")

    mounts.unmount(f"{directory}/ours")

    assert mounted_on(f"{directory}/theirs") == 1


SCENARIOS: tuple[Callable[[str], None], ...] = (
    the_kernel_agrees,
    all_that_is_stacked,
    what_is_in_use,
    nothing_is_mounted,
    a_link,
)


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_mounts(name: str, tmp_path: Path) -> None:
    """Each scenario's docstring states its rule."""
    command = ("unshare", "--mount", sys.executable, "-X", "dev", "-m", "tests.root.test_mounts", name)
    done = subprocess.run(
        (*command, str(tmp_path)),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


if __name__ == "__main__":
    next(scenario for scenario in SCENARIOS if scenario.__name__ == sys.argv[1])(sys.argv[2])

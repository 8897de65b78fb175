"""What the benchmarks put under a bed is the bed's alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sandboxd import mountinfo
from tests.bench.ground import DISK, give_disk
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.root


def test_the_disk_is_seen_in_the_bed_only_and_goes_with_it() -> None:
    with Testbed() as bed:
        give_disk(bed, size=64 << 20)
        image = bed.base / "disk"
        # Whatever the machine has mounted there is in the list too, below the bed's own /var/lib.
        mounted = mountinfo.visible(mountinfo.parse(bed.mountinfo.encode()), DISK)

        assert mounted is not None and mounted.fstype == "ext4" and mounted.source.startswith("/dev/loop")
        assert not list(bed.path(DISK).glob("lost+found")), "the mount is seen outside"
        assert loop_devices(image)

    until(lambda: not loop_devices(image), what="the loop device is let go")


def loop_devices(image: Path) -> list[str]:
    """Those that show the image, though it may be deleted meanwhile."""
    shown = subprocess.run(["losetup", "--all"], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if f"({image}" in line]

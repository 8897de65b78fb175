"""The mounts that this process sees: which there are."""

from __future__ import annotations

from pathlib import Path

from sandboxd import mountinfo
from sandboxd.mountinfo import Mount


def listed() -> list[Mount]:
    """All mounts, in the kernel's order; also those that no path leads to (see mountinfo). Raises OSError."""
    return mountinfo.parse(Path(mountinfo.OWN).read_bytes())

"""A process is moved to another cgroup, with the limits that its OCI runtime gave it.

The runtime knows the cgroup that it made, and goes on to: it removes that one with the container. The other is the
caller's to remove. On cgroup v1 the list of devices goes along, and so do the shares of the processor. On v2 the list
is a program of the kernel's that cannot be copied: there only what needs none is to be moved.

A move takes the kernel some milliseconds: it waits until no process is being forked (cgroup_threadgroup_rwsem).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sandboxd.cgroups.kernel import ROOT

_COPIED = ("cpu.shares", "cpu.weight")
_INHERITED = ("cpuset.cpus", "cpuset.mems")  # empty in a new cgroup of v1, which then takes no process


def is_in(pid: int, cgroup: str, root: str = ROOT) -> bool:
    """Whether the process is in this very cgroup, in any hierarchy."""
    return any(pid in _pids(hierarchy / cgroup.lstrip("/")) for hierarchy in _hierarchies(Path(root)))


def prepare(source: str, target: str, root: str = ROOT) -> None:
    """Make the cgroup `target` wherever there is `source`, with the same limits. Idempotent. Raises OSError."""
    for hierarchy in _hierarchies(Path(root)):
        if not (hierarchy / source.lstrip("/")).is_dir():
            continue
        at = hierarchy
        for name in target.strip("/").split("/"):
            above, at = at, at / name
            with contextlib.suppress(FileExistsError):
                at.mkdir()
            _inherit(above, at)
        _copy(hierarchy / source.lstrip("/"), at)


def move(pid: int, source: str, target: str, root: str = ROOT) -> None:
    """Move the process from `source` to `target`, which `prepare` has made. Idempotent; no error if it has ended.

    Blocks for milliseconds. Raises OSError.
    """
    for hierarchy in _hierarchies(Path(root)):
        if pid in _pids(hierarchy / source.lstrip("/")):
            with contextlib.suppress(ProcessLookupError):
                (hierarchy / target.lstrip("/") / "cgroup.procs").write_text(f"{pid}\n", encoding="ascii")


def _inherit(above: Path, at: Path) -> None:
    for name in _INHERITED:
        file = at / name
        if file.exists() and not file.read_text(encoding="ascii").strip():
            file.write_text((above / name).read_text(encoding="ascii"), encoding="ascii")


def _copy(source: Path, target: Path) -> None:
    for name in _COPIED:
        if (target / name).exists():
            (target / name).write_text((source / name).read_text(encoding="ascii"), encoding="ascii")
    if (target / "devices.list").exists():
        allowed = (source / "devices.list").read_text(encoding="ascii").splitlines()
        if (target / "devices.list").read_text(encoding="ascii").splitlines() == allowed:
            return
        (target / "devices.deny").write_text("a", encoding="ascii")
        for line in allowed:
            (target / "devices.allow").write_text(line, encoding="ascii")


def _pids(cgroup: Path) -> frozenset[int]:
    try:
        return frozenset(map(int, (cgroup / "cgroup.procs").read_text(encoding="ascii").split()))
    except OSError:  # it is not there, or lists none
        return frozenset()


def _hierarchies(root: Path) -> Iterator[Path]:
    """The one of v2, or those of v1, once each."""
    if (root / "cgroup.controllers").exists():
        yield root
        return
    with contextlib.suppress(OSError):
        names = sorted(os.listdir(root))
        yield from (root / name for name in names if (root / name).is_dir() and not (root / name).is_symlink())

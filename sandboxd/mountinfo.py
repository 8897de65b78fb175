"""What a process's list of mounts says (proc_pid_mountinfo(5)), and which mount a path leads to.

The list holds every mount, also one that no path reaches any more because another was mounted above it, or above a
directory that leads to it. Whether something is mounted at a path is therefore a walk along the path, as the kernel's
own, and not a search for the path in the list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

OWN = "/proc/self/mountinfo"

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount, as the process that reads the list sees it."""

    id: int
    parent: int  # the mount that `point` is in; not in the list when the process cannot see it
    root: str  # the directory of the file system that is mounted
    point: str
    options: tuple[str, ...]  # of this mount: "rw", "nosuid"
    propagation: tuple[str, ...]  # "shared:N", "master:N", "propagate_from:N", "unbindable"
    fstype: str
    source: str
    super_options: tuple[str, ...]  # of its file system

    @property
    def shared(self) -> bool:
        """Whether it sends to and receives from a peer group (mount_namespaces(7))."""
        return self._propagates("shared:")

    @property
    def slave(self) -> bool:
        """Whether it receives from a peer group."""
        return self._propagates("master:")

    def _propagates(self, tag: str) -> bool:
        return any(field.startswith(tag) for field in self.propagation)


def parse(text: bytes) -> list[Mount]:
    """The mounts of a list, in its order; a line that does not describe one is skipped.

    Paths are decoded as UTF-8, with other bytes kept (PEP 383).
    """
    # Only "\n" ends a line: the kernel escapes it in names, but not the other characters that end lines in Python.
    lines = text.decode("utf-8", "surrogateescape").split("\n")
    return [mount for mount in map(_mount, lines) if mount is not None]


def holding(mounts: Sequence[Mount], path: str) -> Mount | None:
    """The mount that `path` leads into, None when the list has none. `path` is absolute and free of links."""
    known = {mount.id for mount in mounts}
    on: dict[tuple[int | None, str], Mount] = {}
    for mount in mounts:
        # None is a parent that is not listed: that of the root, or of everything when the root is no mount point.
        parent = mount.parent if mount.parent in known and mount.parent != mount.id else None
        on[parent, mount.point] = mount
    # The walk begins at the root of the process, below whatever has been mounted over "/" since.
    at = on.get((None, "/"))
    walked = ""
    for name in filter(None, path.split("/")):
        walked += f"/{name}"
        while above := on.get((at.id if at else None, walked)):
            at = above
    return at


def visible(mounts: Sequence[Mount], path: str) -> Mount | None:
    """The mount that is on top at `path`, None when `path` is not a mount point that can be reached."""
    found = holding(mounts, path)
    return found if found is not None and found.point == path else None


def _mount(line: str) -> Mount | None:
    left, _, right = line.partition(" - ")
    try:
        number, parent, _, root, point, options, *propagation = left.split(" ")
        # A file system writes its own options, and one that forgets to escape a space spoils only those.
        fstype, source, super_options = right.split(" ", 2)
        return Mount(
            id=int(number),
            parent=int(parent),
            root=_plain(root),
            point=_plain(point),
            options=_listed(options),
            propagation=tuple(propagation),
            fstype=_plain(fstype),
            source=_plain(source),
            super_options=_listed(super_options),
        )
    except ValueError:
        return None


def _listed(options: str) -> tuple[str, ...]:
    return tuple(_plain(option) for option in options.split(","))


def _plain(field: str) -> str:
    """The kernel escapes white space and "\\" in every field, and nothing that is not ASCII."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)

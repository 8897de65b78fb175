"""Task bundles: the directory that containerd makes for each task before its shim, and removes after it.

A containerd that is killed before the shim has written its first file there keeps the directory for ever: it has
nobody to ask how to delete the task. No task of that id can be made then ("mkdir ...: file exists"). Tried on 1.6 and
2.4, which name the directory alike: <state>/io.containerd.runtime.v2.task/<namespace>/<id>.
"""

from __future__ import annotations

import os
from collections.abc import Generator

from sandboxd import mounts, trees
from sandboxd.errors import CleanupIncomplete

_TASKS = "io.containerd.runtime.v2.task"


def directory(state: str, namespace: str) -> str:
    """Where the bundles of a namespace are, of a containerd with this state directory."""
    return f"{state}/{_TASKS}/{namespace}"


def remove_left(bundle: str) -> Generator[None, None, None]:
    """Remove the bundle of a task that containerd does not know, a piece at a time. Idempotent.

    What the shim may have mounted goes first. Raises CleanupIncomplete.
    """
    if not os.path.isdir(bundle):
        return
    try:
        for mount in reversed(mounts.listed()):
            if mount.point.startswith(f"{bundle}/"):
                mounts.unmount(mount.point)
    except OSError as exc:
        raise CleanupIncomplete(f"{bundle}, which a containerd that died has left, is in use: {exc}") from exc
    work = _work(bundle)
    yield from trees.remove(bundle)
    if work:
        yield from trees.remove(work)


def _work(bundle: str) -> str:
    """The directory that belongs to it below containerd's root, "" when the bundle leads to none."""
    try:
        path = os.readlink(f"{bundle}/work")
    except OSError:
        return ""
    tail = os.sep.join(bundle.rsplit(os.sep, 3)[1:])
    return path if path.endswith(f"/{tail}") else ""

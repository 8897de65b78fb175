"""Runc shims, and those whose start was interrupted: a killed one leaves its socket, a living one is known to nobody.

A shim's socket is named by the SHA-256 of "<containerd's socket>/<namespace>/<group>", where the group is the pod's
id (its grouping annotation), below a directory that is the same for every containerd. Checked on 1.6 and 2.4.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import structlog

from sandboxd import supervised
from sandboxd.errors import CleanupIncomplete

log = structlog.get_logger(__name__)

DIRECTORY = "/run/containerd/s"
PROGRAM = b"containerd-shim"  # in the path of each
LEAVING_SECONDS = 2.0  # for a shim to exit by itself; it does once its last task is deleted


def groups(containerd_socket: str, namespace: str) -> set[str]:
    """The groups, pods' ids, that shims of this containerd and namespace were started for. Blocks."""
    wanted = {b"-namespace": namespace.encode(), b"-address": os.fsencode(containerd_socket)}
    found = (_options(name) for name in os.listdir("/proc") if name.isdigit())
    return {os.fsdecode(each[b"-id"]) for each in found if b"-id" in each and wanted.items() <= each.items()}


def socket_path(containerd_socket: str, namespace: str, group: str, directory: str = DIRECTORY) -> str:
    """Where the shim of a pod listens."""
    name = os.path.join(containerd_socket, namespace, group)
    return f"{directory}/{hashlib.sha256(name.encode()).hexdigest()}"


def remove_dead_socket(path: str) -> bool:
    """Remove a socket on which no shim listens. Idempotent; whether one listens, and the socket stays.

    Raises CleanupIncomplete when it cannot be removed.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect(path)
            return True
    except FileNotFoundError:
        pass
    except BlockingIOError:
        return True  # its queue is full
    except ConnectionRefusedError:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise CleanupIncomplete(f"the socket {path} of a dead shim cannot be removed: {exc}") from exc
    except OSError as exc:
        raise CleanupIncomplete(f"the socket {path} of a shim cannot be examined: {exc}") from exc
    return False


def end_left(containerd_socket: str, namespace: str, group: str) -> None:
    """End the shim of a pod that has no task any more, or never had one, and remove its socket. Blocks.

    A shim exits with its last task. One that was left when its start was cut off waits for its first for ever: a
    client's cancelled call ends what containerd does, and not what it has started. Idempotent. Raises
    CleanupIncomplete.
    """
    for fd in _processes(containerd_socket, namespace, group):
        try:
            if supervised.ended(fd, LEAVING_SECONDS):
                continue
            log.warning("a shim that has no task is ended", pod=group)
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            if not supervised.ended(fd, supervised.KILLED_SECONDS):
                raise CleanupIncomplete(f"the shim of {group}, which has no task, does not end")
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)
    remove_dead_socket(socket_path(containerd_socket, namespace, group))


def _processes(containerd_socket: str, namespace: str, group: str) -> Iterator[int]:
    """A pidfd of each shim that was started for the pod; the caller closes it."""
    wanted = {b"-namespace": namespace.encode(), b"-id": group.encode(), b"-address": os.fsencode(containerd_socket)}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fd = os.pidfd_open(int(name))
        except OSError:
            continue
        if _has(name, wanted):
            yield fd
        else:
            os.close(fd)


def _has(pid: str, wanted: dict[bytes, bytes]) -> bool:
    """Whether the process is a shim with these options. One that has ended has no arguments."""
    return wanted.items() <= _options(pid).items()


def _options(pid: str) -> dict[bytes, bytes]:
    """The options of a shim, none of another process."""
    try:
        program, *options = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(itertools.pairwise(options)) if PROGRAM in program else {}

"""Removing a cgroup of ours, with everything below it and all processes that still run there.

A container that may write to its cgroups can nest thousands of them and create threaded ones. The kernel lists a
process of a pid namespace that is not below ours as 0, which kill(2) takes for our own process group.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

from sandboxd import trees
from sandboxd.cgroups.kernel import ROOT
from sandboxd.errors import CleanupIncomplete
from sandboxd.trees import Descent, Event

_MAX_LIST_BYTES = 16 << 20  # of processes


def attempt(cgroup: str, root: str = ROOT) -> Generator[None, None, str]:
    """Kill what runs in a cgroup and remove it from every hierarchy, a piece at a time. Idempotent.

    Returns why it is not gone yet, "" when it is: the kernel reports EBUSY until the last dead process has been
    reaped. Raises CleanupIncomplete when sandboxd itself is in it.
    """
    problem = ""
    for top in _directories(Path(root), cgroup):
        problem = (yield from _remove(top)) or problem
    return problem


def _remove(top: Path) -> Generator[None, None, str]:
    try:
        at = Descent(os.open(top, trees.DIRECTORY))
    except FileNotFoundError:
        return ""
    problem = ""
    try:
        _end_processes(at.fd, str(top))
        for number, (event, name) in enumerate(trees.walk(at)):
            if event is Event.ENTERED:
                _end_processes(at.fd, str(top))
            elif event is Event.LEFT:
                problem = _rmdir(name, at.fd) or problem
            if number % trees.PIECE_ENTRIES == trees.PIECE_ENTRIES - 1:
                yield
    except OSError as exc:
        problem = exc.strerror or str(exc)
    finally:
        at.close()
    return _rmdir(str(top)) or problem


def _rmdir(name: str, dir_fd: int | None = None) -> str:
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            _end_unnamed(name, dir_fd)
        return exc.strerror or str(exc)
    return ""


def _end_processes(fd: int, cgroup: str) -> None:
    """SIGKILL all processes of the cgroup that have a pid in our namespace."""
    pids = _pids(fd)
    if os.getpid() in pids:
        raise CleanupIncomplete(f"cgroup {cgroup} cannot be removed: sandboxd itself runs in it")
    for pid in pids:
        if pid > 0:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def _end_unnamed(name: str, dir_fd: int | None) -> None:
    """SIGKILL those without a pid in our namespace too, where the kernel can (Linux 5.14, v2).

    This also kills what runs in the cgroups below; those were examined before, and sandboxd is not in them.
    """
    try:
        kill = os.open(f"{name}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return  # the remaining processes keep the cgroup busy, which the caller reports
    try:
        os.write(kill, b"1")
    except OSError:
        pass
    finally:
        os.close(kill)


def _pids(fd: int) -> list[int]:
    try:
        file = trees.open_file("cgroup.procs", fd)
    except OSError:
        return []
    try:
        parts, size = [], 0
        while size < _MAX_LIST_BYTES and (part := os.read(file, 65536)):
            parts.append(part)
            size += len(part)
        return [int(pid) for pid in b"".join(parts).split() if pid.isdigit()]
    except OSError as exc:
        # A threaded cgroup lists none; its domain cgroup does (cgroups(7)). One that is gone has none.
        if exc.errno in (errno.EOPNOTSUPP, errno.ENODEV):
            return []
        raise
    finally:
        os.close(file)


def _directories(root: Path, cgroup: str) -> Iterator[Path]:
    """The cgroup's directory in the v2 hierarchy, or in each v1 hierarchy; links (cpu -> cpu,cpuacct) once."""
    v2 = (root / "cgroup.controllers").exists()
    seen: set[tuple[int, int]] = set()
    for hierarchy in [root] if v2 else sorted(path for path in root.iterdir() if path.is_dir()):
        path = hierarchy / cgroup.lstrip("/")
        try:
            at = path.stat()
        except OSError:
            continue
        if (at.st_dev, at.st_ino) not in seen:
            seen.add((at.st_dev, at.st_ino))
            yield path

"""Which addresses the IPAM plugin `host-local` has given to whom: one file an address, in a directory a network.

A file is named like its address and begins with a line that is the container's id. The files are the plugin's: they
are read to tell people who holds what, and go by its DEL. Except for those that name nobody. The plugin makes a file
and writes to it while it holds the directory's lock, and syncs neither: when it is killed between the two, or the
power fails later, the name alone is left. No DEL finds that, and the address stays taken for ever.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from sandboxd.cni.conf import NetworkConfig, delegate_type, is_file_name
from sandboxd.cni.ranges import PLUGIN
from sandboxd.errors import CleanupIncomplete

DATA_DIR = "/var/lib/cni/networks"  # where the plugin keeps them unless its configuration has `dataDir`
MAX_FILES = 1 << 16
LOCK_SECONDS = 5.0  # for the plugin to release the directory's lock, which it holds for milliseconds
_LOOK_SECONDS = 0.05
_LOCK = "lock"  # the plugin's, for flock(2)
_LAST = "last_reserved_ip."  # and the number of a range: the address that the plugin gave last
_MAX_BYTES = 512  # of a file


def directories(config: NetworkConfig) -> list[str]:
    """Where the network's addresses are recorded; none if another IPAM plugin gives them."""
    if not is_file_name(config.name):
        return []
    found = [os.path.join(_data_dir(p), config.name) for p in config.plugins if delegate_type(p) == PLUGIN]
    return list(dict.fromkeys(found))


def holders(directory: str) -> dict[str, str]:
    """Address → id of the container that has it; what cannot be read is left out."""
    return {os.path.basename(path): owner for path in _files(directory) if (owner := _owner(path))}


def addresses(directory: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses that are given out, also to nobody; the files are not read."""
    return [ipaddress.ip_address(os.path.basename(path)) for path in _files(directory)]


def unowned(directory: str) -> list[str]:
    """The files that name nobody, unless the plugin is about to write to one."""
    return [path for path in _files(directory) if _owner(path) == ""]


def kept(directory: str) -> list[tuple[str, str]]:
    """All that is kept there, as (path, content on one line): reservations, and the last address of each range."""
    return [
        (path, " ".join(content.split()))
        for path in _files(directory, (_LAST,))
        if (content := _content(path)) is not None
    ]


async def release(path: str) -> bool:
    """Remove a file that names nobody, under the plugin's lock; False if it names somebody by now, or is gone.

    Raises CleanupIncomplete when the lock is not to be had, or the file cannot be removed.
    """
    try:
        # As the plugin opens it: the lock is of the file, and stays.
        lock = os.open(os.path.join(os.path.dirname(path), _LOCK), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            async with asyncio.timeout(LOCK_SECONDS):
                while not _locked(lock):  # noqa: ASYNC110 - nothing tells when another process has released it
                    await asyncio.sleep(_LOOK_SECONDS)
            if _owner(path) != "":
                return False
            os.unlink(path)
        finally:
            os.close(lock)
    except TimeoutError as exc:
        raise CleanupIncomplete(f"{path} names nobody and stays: another process keeps the lock beside it") from exc
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise CleanupIncomplete(f"{path} names nobody and cannot be removed: {exc.strerror or exc}") from exc
    return True


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _files(directory: str, also: tuple[str, ...] = ()) -> Iterator[str]:
    """The paths that are named like addresses, and those whose names begin with one of `also`."""
    try:
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number >= MAX_FILES:
                    break
                if _is_address(entry.name) or entry.name.startswith(also):
                    yield entry.path
    except OSError:
        pass


def _data_dir(plugin: Mapping[str, Any]) -> str:
    configured = plugin["ipam"].get("dataDir")
    return configured if isinstance(configured, str) and configured.startswith("/") else DATA_DIR


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _owner(path: str) -> str | None:
    """The id in a reservation, "" if there is none, None if it cannot be read."""
    content = _content(path)
    return None if content is None else content.split("\n")[0].strip()


def _content(path: str) -> str | None:
    """The beginning of a file, None if it cannot be read."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            content = file.read(_MAX_BYTES)
    except OSError:
        return None
    # Some file systems have zeros where nothing was written before the power failed.
    return content.rstrip(b"\0").decode("utf-8", "replace")

"""Which addresses the IPAM plugin `host-local` has given to whom: one file an address, in a directory a network.

Read to tell people who holds what, and never written: the files are the plugin's. A file is named like its address
and begins with a line that is the container's id.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Mapping
from typing import Any

from sandboxd.cni.conf import NetworkConfig, delegate_type, is_file_name

DATA_DIR = "/var/lib/cni/networks"  # where the plugin keeps them unless its configuration has `dataDir`
PLUGIN = "host-local"
MAX_FILES = 1 << 16
_MAX_BYTES = 512  # of a file


def directories(config: NetworkConfig) -> list[str]:
    """Where the network's addresses are recorded; none if another IPAM plugin gives them."""
    if not is_file_name(config.name):
        return []
    found = [os.path.join(_data_dir(p), config.name) for p in config.plugins if delegate_type(p) == PLUGIN]
    return list(dict.fromkeys(found))


def holders(directory: str) -> dict[str, str]:
    """Address → id of the container that has it; what cannot be read is left out."""
    held: dict[str, str] = {}
    try:
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number >= MAX_FILES:
                    break
                if _is_address(entry.name) and (owner := _owner(entry.path)):
                    held[entry.name] = owner
    except OSError:
        pass
    return held


def _data_dir(plugin: Mapping[str, Any]) -> str:
    configured = plugin["ipam"].get("dataDir")
    return configured if isinstance(configured, str) and configured.startswith("/") else DATA_DIR


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _owner(path: str) -> str:
    """The id in a reservation, "" if there is none."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return ""
            lines = file.read(_MAX_BYTES).decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return lines[0].strip()

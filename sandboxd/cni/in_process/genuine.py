"""Whether a binary is the reference plugin of its name, and not a wrapper or another program with that name.

A Go program says what it was built from (debug/buildinfo): a line "path", a tab, the import path of its main package.
"""

from __future__ import annotations

import mmap

_PATHS = {
    "bandwidth": "github.com/containernetworking/plugins/plugins/meta/bandwidth",
    "bridge": "github.com/containernetworking/plugins/plugins/main/bridge",
    "firewall": "github.com/containernetworking/plugins/plugins/meta/firewall",
    "host-local": "github.com/containernetworking/plugins/plugins/ipam/host-local",
    "ipvlan": "github.com/containernetworking/plugins/plugins/main/ipvlan",
    "macvlan": "github.com/containernetworking/plugins/plugins/main/macvlan",
    "portmap": "github.com/containernetworking/plugins/plugins/meta/portmap",
    "ptp": "github.com/containernetworking/plugins/plugins/main/ptp",
    "tuning": "github.com/containernetworking/plugins/plugins/meta/tuning",
}


def is_reference(binary: str, type_: str) -> bool:
    """Whether the file `binary` is the reference plugin `type_`. Blocks for milliseconds; raises OSError."""
    path = _PATHS.get(type_)
    if path is None:
        return False
    with open(binary, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(f"path\t{path}\n".encode()) >= 0

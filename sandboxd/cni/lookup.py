"""Finds the plugin binaries before anything is created: all of the chain, and the IPAM delegates that exist.

Plugins look up their delegates in CNI_PATH themselves: the first directory that holds a regular file of that name
decides, executable or not. With the same rule here, the binary that we find is the one that runs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from sandboxd.cni.conf import NetworkConfig, delegate_type, is_file_name
from sandboxd.errors import InvalidRequest, NotReady

# The plugins that the CNI project maintains, and that Debian ships in one package.
REFERENCE_PLUGINS = frozenset(
    {
        *("bandwidth", "bridge", "dhcp", "dummy", "firewall", "host-device", "host-local", "ipvlan", "loopback"),
        *("macvlan", "portmap", "ptp", "sbr", "static", "tap", "tuning", "vlan", "vrf"),
    }
)
PACKAGE = "containernetworking-plugins"


def preflight(config: NetworkConfig, plugin_dirs: Sequence[str]) -> dict[str, str]:
    """The path of every binary of `config`, by plugin type: those of the chain, then the IPAM delegates that exist.

    Raises NotReady naming the plugin, its network, where that is configured and the directories searched.
    """
    binaries = {
        type_: find(type_, plugin_dirs, network=config.name, source=config.source)
        for type_ in dict.fromkeys(plugin["type"] for plugin in config.plugins)
    }
    for type_ in _delegates(config.plugins):
        with suppress(NotReady):
            binaries.setdefault(type_, find(type_, plugin_dirs, network=config.name, source=config.source))
    return binaries


def missing_delegates(
    config: NetworkConfig, plugin_dirs: Sequence[str], plugins: Sequence[Mapping[str, Any]] | None = None
) -> list[NotReady]:
    """What is wrong with each IPAM delegate of `plugins`, by default all of `config`, that cannot be executed.

    That is no reason to refuse the network: only the plugin knows whether it executes its delegate.
    """
    problems = []
    for type_ in _delegates(config.plugins if plugins is None else plugins):
        try:
            find(type_, plugin_dirs, network=config.name, source=config.source)
        except NotReady as exc:
            problems.append(exc)
    return problems


def _delegates(plugins: Sequence[Mapping[str, Any]]) -> list[str]:
    return [type_ for type_ in dict.fromkeys(map(delegate_type, plugins)) if type_]


def is_missing(type_: str, plugin_dirs: Sequence[str]) -> bool:
    """Whether no directory has a file of that name. One that cannot be executed is there."""
    return is_file_name(type_) and not any(
        directory.startswith("/") and os.path.isfile(os.path.join(directory, type_)) for directory in plugin_dirs
    )


def find(type_: str, plugin_dirs: Sequence[str], *, network: str, source: str) -> str:
    """The absolute path of one plugin's binary. Raises NotReady; InvalidRequest for a type that is not a name."""
    origin = f", from {source}" if source else ""
    described = f'CNI plugin "{type_}" (network "{network}"{origin})'
    if not is_file_name(type_):
        raise InvalidRequest(f"{described}: the name of a plugin cannot hold path separators")
    for directory in plugin_dirs:
        if not directory.startswith("/"):
            continue  # A daemon's working directory means nothing to its users.
        path = os.path.join(directory, type_)
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        if not stat.S_ISREG(mode):
            continue
        if not os.access(path, os.X_OK):
            raise NotReady(f"{described} was found at {path}, which is not executable; run: chmod +x {path}")
        return os.path.abspath(path)
    hint = (
        f"on Debian it is in the package {PACKAGE}" if type_ in REFERENCE_PLUGINS else "put its binary in one of them"
    )
    raise NotReady(f"{described} was not found; looked in {', '.join(plugin_dirs) or 'no directory'}; {hint}")

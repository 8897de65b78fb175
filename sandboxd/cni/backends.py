"""Which plugins of a network the daemon does the work of itself, and which it executes.

A plugin is done in-process when its binaries, that of its IPAM plugin included, are the reference plugins, and every
key of its configuration is one that `in_process.supported` knows. Everything else is executed: a plugin of the same
name by somebody else, a wrapper, a key that is not known.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sandboxd.cni.conf import NetworkConfig, delegate_type
from sandboxd.cni.in_process import genuine, supported
from sandboxd.cni.request import plugin_stdin
from sandboxd.errors import NotReady
from sandboxd.model import IN_PROCESS


async def chosen(config: NetworkConfig, binaries: Mapping[str, str], path: str, mode: str) -> NetworkConfig:
    """The network with its `backends`. `mode` is "auto" or "always", `binaries` the path of each plugin by type.

    Raises NotReady when all must be in-process and one cannot be, saying why.
    """
    reasons = [await _why_not(plugin, config, binaries, path) for plugin in config.plugins]
    if mode == "always" and any(reasons):
        plugin, reason = next((p["type"], r) for p, r in zip(config.plugins, reasons, strict=True) if r)
        raise NotReady(
            f'network "{config.name}" is to be made in-process, and plugin "{plugin}" cannot be: {reason}; '
            'set network.in_process, or the network in network.in_process_networks, to "auto"'
        )
    return replace(config, backends=tuple("" if reason else IN_PROCESS for reason in reasons))


async def _why_not(plugin: Mapping[str, Any], config: NetworkConfig, binaries: Mapping[str, str], path: str) -> str:
    """Why a plugin is executed; "" when it is not."""
    if plugin["type"] not in supported.PLUGINS:
        return "there is no such backend"
    if reason := supported.why_not(plugin_stdin(config, plugin, {}, None, config.cni_version), ""):
        return f"its configuration has {reason}"
    for type_ in filter(None, (plugin["type"], delegate_type(plugin))):
        try:
            if not await asyncio.to_thread(genuine.is_reference, binaries[type_], type_):
                return f"{binaries[type_]} is not the reference plugin"
        except (KeyError, OSError, ValueError):
            return f"the binary of {type_} cannot be read"
    if (plugin["type"] == "portmap" or plugin.get("ipMasq")) and not shutil.which("iptables-restore", path=path):
        return "iptables-restore is not in the PATH of plugins"
    return ""

"""Which networks are the same for every pod: their plugins take nothing from a pod's identity.

A plugin is told which pod it works for (CNI_ARGS: K8S_POD_NAME and so on), and may look more up. What is known to
ignore that are these of the reference plugins, by their sources, and only while the binary is theirs: a wrapper, or
somebody else's plugin of the same name, may do anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from sandboxd.cni.conf import NetworkConfig, delegate_type
from sandboxd.cni.in_process import genuine

# What each takes of a pod beside its namespace, its id and the name of the interface: nothing but capabilities, which
# a pod asks for, or which it does not. `static` and `dhcp` are not here: they give an address to a pod, not to any.
INDIFFERENT: Mapping[str, str] = {
    "bandwidth": "the capability bandwidth",
    "bridge": "the capabilities ips and mac",
    "firewall": "what the plugins before it answered",
    "host-local": "the capabilities ipRanges and ips",
    "ipvlan": "nothing",
    "macvlan": "the capability mac",
    "portmap": "the capability portMappings",
    "ptp": "nothing",
    "tuning": "the capability mac",
}


async def needed_by(config: NetworkConfig, binaries: Mapping[str, str]) -> str:
    """Why the network may be another one for each pod; "" when it is the same. `binaries` has each type's path."""
    for plugin in config.plugins:
        for type_ in filter(None, (plugin["type"], delegate_type(plugin))):
            if type_ not in INDIFFERENT:
                return f'plugin "{type_}" may depend on the pod\'s identity'
            try:
                if not await asyncio.to_thread(genuine.is_reference, binaries[type_], type_):
                    return f"{binaries[type_]} is not the reference plugin"
            except (KeyError, OSError, ValueError):
                return f"the binary of {type_} cannot be read"
    return ""

"""Which plugins of a network are done in-process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandboxd.cni.backends import chosen
from sandboxd.cni.conf import NetworkConfig
from sandboxd.errors import NotReady
from sandboxd.model import IN_PROCESS

BRIDGE = {"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.99.0.0/24"}}
SOURCES = {"bridge": "main/bridge", "host-local": "ipam/host-local", "portmap": "meta/portmap"}


def installed(directory: Path, *types: str) -> dict[str, str]:
    """Files that look like the reference plugins."""
    for type_ in types:
        path = f"path\tgithub.com/containernetworking/plugins/plugins/{SOURCES[type_]}\n"
        (directory / type_).write_bytes(b"\x7fELF\0" + path.encode())
    restore = directory / "iptables-restore"
    restore.write_text("#!/bin/sh\n")
    restore.chmod(0o755)
    return {type_: str(directory / type_) for type_ in types}


def network(*plugins: dict[str, Any]) -> NetworkConfig:
    return NetworkConfig(name="pods", versions=("1.0.0",), plugins=plugins)


async def backends(directory: Path, config: NetworkConfig, binaries: dict[str, str]) -> tuple[str, ...]:
    return (await chosen(config, binaries, str(directory), "auto")).backends


async def test_each_plugin_of_a_chain_is_chosen_by_itself(tmp_path: Path) -> None:
    binaries = installed(tmp_path, "bridge", "host-local", "portmap")
    chain = network(
        {**BRIDGE, "ipMasq": True},
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
        {"type": "firewall"},
        {**BRIDGE, "vlan": 5},
    )

    assert await backends(tmp_path, chain, binaries) == (IN_PROCESS, IN_PROCESS, "", "")


async def test_a_plugin_by_somebody_else_is_executed(tmp_path: Path) -> None:
    binaries = installed(tmp_path, "bridge", "host-local")
    (tmp_path / "bridge").write_text("#!/bin/sh\n")

    assert await backends(tmp_path, network(BRIDGE), binaries) == ("",)


async def test_so_is_one_with_an_ipam_plugin_by_somebody_else(tmp_path: Path) -> None:
    binaries = installed(tmp_path, "bridge", "host-local")
    (tmp_path / "host-local").write_text("#!/bin/sh\n")

    assert await backends(tmp_path, network(BRIDGE), binaries) == ("",)


async def test_rules_need_iptables(tmp_path: Path) -> None:
    binaries = installed(tmp_path, "bridge", "host-local")
    (tmp_path / "iptables-restore").unlink()

    assert await backends(tmp_path, network(BRIDGE, {**BRIDGE, "ipMasq": True}), binaries) == (IN_PROCESS, "")


async def test_a_network_that_must_be_in_process_and_cannot_is_refused(tmp_path: Path) -> None:
    binaries = installed(tmp_path, "bridge", "host-local")

    with pytest.raises(NotReady, match='"bridge" cannot be: its configuration has vlan'):
        await chosen(network({**BRIDGE, "vlan": 5}), binaries, str(tmp_path), "always")
    assert (await chosen(network(BRIDGE), binaries, str(tmp_path), "always")).backends == (IN_PROCESS,)

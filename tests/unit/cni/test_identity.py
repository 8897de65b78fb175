"""A network is the same for every pod when all its plugins are the reference plugins that ignore who a pod is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandboxd.cni.conf import NetworkConfig
from sandboxd.cni.identity import INDIFFERENT, needed_by
from sandboxd.cni.in_process import genuine

BRIDGE = {"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.99.0.0/24"}}
WHERE = {"host-local": "ipam", **dict.fromkeys(("bridge", "ipvlan", "macvlan", "ptp"), "main")}


def installed(directory: Path, *types: str) -> dict[str, str]:
    """Files that look like the reference plugins."""
    for type_ in types:
        path = f"path\tgithub.com/containernetworking/plugins/plugins/{WHERE.get(type_, 'meta')}/{type_}\n"
        (directory / type_).write_bytes(b"\x7fELF\0" + path.encode())
    return {type_: str(directory / type_) for type_ in types}


async def needed(binaries: dict[str, str], *plugins: dict[str, Any]) -> str:
    return await needed_by(NetworkConfig(name="pods", versions=("1.0.0",), plugins=plugins), binaries)


@pytest.mark.parametrize("type_", INDIFFERENT)
async def test_each_of_them_can_be_told_from_others(tmp_path: Path, type_: str) -> None:
    binaries = installed(tmp_path, type_)

    assert genuine.is_reference(binaries[type_], type_)
    assert await needed(binaries, {"type": type_}) == ""


async def test_a_whole_chain_of_them_needs_nothing(tmp_path: Path) -> None:
    binaries = installed(tmp_path, "bridge", "host-local", "portmap", "firewall")

    assert await needed(binaries, BRIDGE, {"type": "portmap"}, {"type": "firewall"}) == ""


async def test_one_that_is_not_known_may_need_anything(tmp_path: Path) -> None:
    binaries = installed(tmp_path, "bridge", "host-local")

    assert "calico" in await needed(binaries, BRIDGE, {"type": "calico"})


@pytest.mark.parametrize("ipam", ["static", "dhcp", "whereabouts"])
async def test_so_may_an_ipam_plugin_that_gives_addresses_to_pods(tmp_path: Path, ipam: str) -> None:
    binaries = installed(tmp_path, "bridge")

    found = await needed(binaries, {"type": "bridge", "ipam": {"type": ipam}})
    assert found == f'plugin "{ipam}" may depend on the pod\'s identity'


async def test_so_may_a_wrapper_of_the_same_name(tmp_path: Path) -> None:
    binaries = installed(tmp_path, "bridge", "host-local")
    (tmp_path / "bridge").write_text("#!/bin/sh\n")

    assert "not the reference plugin" in await needed(binaries, BRIDGE)


async def test_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    binaries = installed(tmp_path, "bridge", "host-local")
    (tmp_path / "host-local").unlink()

    assert "host-local" in await needed(binaries, BRIDGE)

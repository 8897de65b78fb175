"""The addresses of the network in force are counted from host-local's files, and again only when those change."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sandboxd.cni import reservations
from sandboxd.cni.conf import NetworkConfig, from_json
from sandboxd.insight.addresses import Addresses, Use

RANGE = "10.1.2.1-10.1.2.6"


def network(data: Path, subnet: str = "10.1.2.0/29") -> NetworkConfig:
    ipam = {"type": "host-local", "subnet": subnet, "dataDir": str(data)}
    plugins = [{"type": "bridge", "ipam": ipam}]
    return from_json(json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": plugins}).encode())


async def test_used_and_left_are_what_the_files_of_the_range_say(tmp_path: Path) -> None:
    addresses = Addresses(lambda: network(tmp_path))
    await addresses.look()
    assert addresses.use == [Use(network="net", range=RANGE, used=0, left=5)]

    (tmp_path / "net").mkdir()
    for name in ("10.1.2.2", "10.1.2.3", "10.9.9.9", "last_reserved_ip.0", "lock"):
        (tmp_path / "net" / name).touch()
    await addresses.look()
    assert addresses.use == [Use(network="net", range=RANGE, used=2, left=3)]


async def test_a_directory_that_has_not_changed_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "10.1.2.2").touch()
    os.utime(tmp_path / "net", (1, 1))
    config = network(tmp_path)
    addresses = Addresses(lambda: config)
    await addresses.look()
    before = addresses.use

    def read(directory: str) -> list[object]:
        raise AssertionError(directory)

    with monkeypatch.context() as patched:
        patched.setattr(reservations, "addresses", read)
        await addresses.look()
    assert addresses.use == before

    config = network(tmp_path, "10.1.2.0/28")
    await addresses.look()
    assert [each.left for each in addresses.use] == [12], "the configuration has changed"


async def test_a_directory_that_has_just_changed_is_read_again(tmp_path: Path) -> None:
    """A second change within one tick of the kernel's clock does not show in its time."""
    directory = tmp_path / "net"
    directory.mkdir()
    addresses = Addresses(lambda: network(tmp_path))
    await addresses.look()
    changed = directory.stat().st_mtime_ns
    (directory / "10.1.2.2").touch()
    os.utime(directory, ns=(changed, changed))
    await addresses.look()
    assert [each.used for each in addresses.use] == [1]


async def test_without_a_network_there_are_no_figures(tmp_path: Path) -> None:
    configs: list[NetworkConfig | None] = [network(tmp_path), None]
    addresses = Addresses(lambda: configs.pop(0))
    await addresses.look()
    assert addresses.use
    await addresses.look()
    assert not addresses.use

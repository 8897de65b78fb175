"""What host-local wrote is read, and nothing else is: not what others put there, and not without a bound."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd.cni import reservations
from sandboxd.cni.conf import NetworkConfig

CONFIG = NetworkConfig(name="pods", versions=("1.0.0",), plugins=({"type": "bridge"},), source="/d/10.conflist")


def with_ipam(*ipam: Any) -> NetworkConfig:
    return replace(CONFIG, plugins=tuple({"type": "bridge", "ipam": each} for each in ipam))


@pytest.mark.parametrize(
    ("ipam", "expected"),
    [
        ({"type": "host-local"}, ["/var/lib/cni/networks/pods"]),
        ({"type": "host-local", "dataDir": "/data"}, ["/data/pods"]),
        ({"type": "host-local", "dataDir": "relative"}, ["/var/lib/cni/networks/pods"]),
        ({"type": "host-local", "dataDir": 7}, ["/var/lib/cni/networks/pods"]),
        ({"type": "whereabouts"}, []),
        ({}, []),
    ],
)
def test_the_directory_is_the_plugins(ipam: dict[str, Any], expected: list[str]) -> None:
    assert reservations.directories(with_ipam(ipam)) == expected


def test_a_chain_without_addresses_has_none_and_one_with_the_same_twice_has_one() -> None:
    assert reservations.directories(CONFIG) == []
    assert len(reservations.directories(with_ipam({"type": "host-local"}, {"type": "host-local"}))) == 1
    assert reservations.directories(replace(with_ipam({"type": "host-local"}), name="../up")) == []


def test_each_address_has_the_id_in_its_file_in_the_new_form_and_the_old(tmp_path: Path) -> None:
    (tmp_path / "10.0.0.2").write_text("abc\r\neth0")
    (tmp_path / "10.0.0.3").write_text("def\n")
    (tmp_path / "fd00::2").write_text("abc")
    assert reservations.holders(str(tmp_path)) == {"10.0.0.2": "abc", "10.0.0.3": "def", "fd00::2": "abc"}


def test_what_is_no_reservation_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "last_reserved_ip.0").write_text("10.0.0.9")
    (tmp_path / "lock").touch()
    (tmp_path / "10.0.0.4").touch()
    (tmp_path / "10.0.0.5").mkdir()
    os.mkfifo(tmp_path / "10.0.0.6")
    (tmp_path / "10.0.0.7").symlink_to("/etc/passwd")
    assert reservations.holders(str(tmp_path)) == {}
    assert reservations.holders(str(tmp_path / "none")) == {}


def test_only_so_many_files_are_read_and_only_their_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        (tmp_path / f"10.0.0.{number}").write_text("a" * 100_000)
    monkeypatch.setattr(reservations, "MAX_FILES", 5)
    held = reservations.holders(str(tmp_path))
    assert len(held) == 5
    assert all(len(owner) < 1000 for owner in held.values())

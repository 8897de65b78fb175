"""What host-local wrote is read, and nothing else is: not what others put there, and not without a bound."""

from __future__ import annotations

import asyncio
import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd.cni import reservations
from sandboxd.cni.conf import NetworkConfig
from sandboxd.errors import CleanupIncomplete

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


# What names nobody.


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A directory of the plugin: two addresses of a pod, three of nobody, and what else it has there."""
    files = {
        "10.0.0.2": b"one\r\neth0",
        "fd00::2": b"one\r\neth0",
        "10.0.0.3": b"",
        "10.0.0.4": b"\0" * 70,
        "fd00::3": b"\r\neth0",
        "lock": b"",
        "last_reserved_ip.0": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "10.0.0.9").mkdir()
    return tmp_path


def test_addresses_without_an_id_are_nobodys_and_nothing_else_is(pool: Path) -> None:
    assert sorted(map(os.path.basename, reservations.unowned(str(pool)))) == ["10.0.0.3", "10.0.0.4", "fd00::3"]
    assert sorted(reservations.holders(str(pool))) == ["10.0.0.2", "fd00::2"]
    assert reservations.unowned(str(pool / "none")) == []


async def test_what_is_nobodys_is_released(pool: Path) -> None:
    for path in reservations.unowned(str(pool)):
        assert await reservations.release(path)
        assert not await reservations.release(path), "once"

    assert sorted(os.listdir(pool)) == ["10.0.0.2", "10.0.0.9", "fd00::2", "last_reserved_ip.0", "lock"]


async def test_what_names_somebody_by_now_stays(pool: Path) -> None:
    (path,) = (each for each in reservations.unowned(str(pool)) if each.endswith("10.0.0.3"))
    Path(path).write_text("two\r\neth0")

    assert not await reservations.release(path)

    assert reservations.holders(str(pool))["10.0.0.3"] == "two"


async def test_a_plugin_that_is_at_work_is_waited_for(pool: Path) -> None:
    """Between making a file and writing to it, it has the lock."""
    path = str(pool / "10.0.0.3")
    with (pool / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        released = asyncio.ensure_future(reservations.release(path))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not released.done()
        Path(path).write_text("two\r\neth0")

    assert not await released
    assert os.path.exists(path)


async def test_a_lock_that_is_kept_is_named(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "LOCK_SECONDS", 0.01)
    path = pool / "10.0.0.3"
    with (pool / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CleanupIncomplete, match=r"10\.0\.0\.3 names nobody and stays: another process"):
            await reservations.release(str(path))

    assert path.exists()


async def test_a_directory_that_is_gone_has_nothing_to_release(tmp_path: Path) -> None:
    assert not await reservations.release(str(tmp_path / "none" / "10.0.0.3"))


def test_all_that_is_kept_is_reservations_and_the_last_of_each_range(tmp_path: Path) -> None:
    (tmp_path / "10.0.10.2").write_bytes(b"abc\r\neth0")
    (tmp_path / "last_reserved_ip.0").write_text("10.0.10.2")
    for other in ("lock", "notes", "unreadable.link"):
        (tmp_path / other).write_text("x")
    (tmp_path / "10.0.10.3").symlink_to(tmp_path / "notes")

    assert sorted(reservations.kept(str(tmp_path))) == [
        (f"{tmp_path}/10.0.10.2", "abc eth0"),
        (f"{tmp_path}/last_reserved_ip.0", "10.0.10.2"),
    ]
    assert reservations.kept(str(tmp_path / "gone")) == []

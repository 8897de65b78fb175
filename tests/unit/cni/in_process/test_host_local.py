"""The files of addresses, and their lock."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from sandboxd.cni.in_process import ranges
from sandboxd.cni.in_process.host_local import Cancelled, Store
from sandboxd.cni.in_process.words import Failed
from sandboxd.cni.ranges import Address, Range

SETS = ranges.sets({"subnet": "10.0.0.0/29"})


def store(directory: Path, given_up: threading.Event | None = None) -> Store:
    return Store(str(directory / "net"), 0o600, given_up or threading.Event())


def reserved(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (directory / "net").iterdir() if path.name[0].isdigit()}


def given(found: list[tuple[Address, Range]]) -> list[str]:
    return [str(address) for address, _ in found]


def test_an_address_is_a_file_with_its_owner(tmp_path: Path) -> None:
    assert given(store(tmp_path).reserve(SETS, "c1", "eth0")) == ["10.0.0.2"]

    net = tmp_path / "net"
    assert (net / "10.0.0.2").read_bytes() == b"c1\r\neth0"
    assert (net / "last_reserved_ip.0").read_bytes() == b"10.0.0.2"
    assert (net / "10.0.0.2").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(net)) == ["10.0.0.2", "last_reserved_ip.0", "lock"]


def test_a_freed_address_is_not_the_next(tmp_path: Path) -> None:
    store(tmp_path).reserve(SETS, "c1", "eth0")
    store(tmp_path).release("c1", "eth0")

    assert given(store(tmp_path).reserve(SETS, "c2", "eth0")) == ["10.0.0.3"]


def test_a_full_network_is_said_in_the_plugins_words(tmp_path: Path) -> None:
    for n in range(5):
        store(tmp_path).reserve(SETS, f"c{n}", "eth0")

    with pytest.raises(Failed) as caught:
        store(tmp_path).reserve(SETS, "c9", "eth0")
    assert str(caught.value) == (
        "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.6"
    )


def test_when_one_family_is_exhausted_the_others_address_is_free_again(tmp_path: Path) -> None:
    both = ranges.sets({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/126"}]]})
    for n in range(2):
        store(tmp_path).reserve(both, f"c{n}", "eth0")

    with pytest.raises(Failed, match="for range 1: no IP addresses"):
        store(tmp_path).reserve(both, "c9", "eth0")
    assert "10.0.0.4" not in reserved(tmp_path)


def test_a_container_gets_one_address_for_an_interface(tmp_path: Path) -> None:
    store(tmp_path).reserve(SETS, "c1", "eth0")

    with pytest.raises(Failed, match=r"10\.0\.0\.2 has been allocated to c1, duplicate allocation is not allowed"):
        store(tmp_path).reserve(SETS, "c1", "eth0")


def test_only_what_the_owner_has_is_released(tmp_path: Path) -> None:
    for owner, ifname in (("c1", "eth0"), ("c1", "eth1"), ("c2", "eth0")):
        store(tmp_path).reserve(SETS, owner, ifname)

    for _ in range(2):
        store(tmp_path).release("c1", "eth0")
        assert set(reserved(tmp_path)) == {"10.0.0.3", "10.0.0.4"}


def test_what_was_given_is_released_wherever_it_is(tmp_path: Path) -> None:
    """The address that a result names may be another's by now."""
    store(tmp_path).reserve(SETS, "c1", "eth0")
    store(tmp_path).reserve(SETS, "c2", "eth0")

    store(tmp_path).release("c1", "eth0", ["10.0.0.3"])

    assert set(reserved(tmp_path)) == {"10.0.0.3"}


def test_a_reservation_of_an_old_plugin_has_no_interface(tmp_path: Path) -> None:
    store(tmp_path).reserve(SETS, "c2", "eth0")
    (tmp_path / "net" / "10.0.0.5").write_text("c1")

    store(tmp_path).release("c1", "eth0")

    assert set(reserved(tmp_path)) == {"10.0.0.2"}


def test_nothing_is_done_while_another_process_has_the_lock(tmp_path: Path) -> None:
    given_up = threading.Event()
    (tmp_path / "net").mkdir()
    with open(tmp_path / "net" / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome: list[BaseException | None] = []

        def reserve() -> None:
            try:
                store(tmp_path, given_up).reserve(SETS, "c1", "eth0")
            except BaseException as exc:
                outcome.append(exc)

        thread = threading.Thread(target=reserve)
        thread.start()
        given_up.set()
        thread.join(timeout=30)

    assert [type(each) for each in outcome] == [Cancelled]
    assert reserved(tmp_path) == {}


def test_the_lock_is_free_afterwards(tmp_path: Path) -> None:
    store(tmp_path).reserve(SETS, "c1", "eth0")

    with open(tmp_path / "net" / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_the_system_refuses_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("")

    with pytest.raises(Failed, match=r"^failed to allocate for range 0: open .*/net: "):
        store(tmp_path).reserve(SETS, "c1", "eth0")

"""Whether there is room for one more pod."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandboxd.errors import Exhausted
from sandboxd.machine import room
from sandboxd.reserve import Reserve
from tests.fakes.bundle import Bundle

PLENTY = SimpleNamespace(f_bfree=1 << 30, f_frsize=4096, f_flag=0, f_files=1 << 20, f_ffree=1 << 20)


def machine(monkeypatch: pytest.MonkeyPatch, **changed: int) -> None:
    """Every file system is like this."""
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**{**vars(PLENTY), **changed}))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"f_bfree": 10}, "is full: 40960 bytes are free"),
        ({"f_ffree": 3}, "is full: 3 inodes are free"),
        ({"f_files": 0, "f_ffree": 0}, ""),  # btrfs has no limit, and says so in this way
        ({"f_flag": os.ST_RDONLY}, "is read-only"),
    ],
)
def test_what_a_file_system_lacks_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: dict[str, int], words: str
) -> None:
    machine(monkeypatch, **changed)
    assert words in room.lack(str(tmp_path))
    assert bool(room.lack(str(tmp_path))) == bool(words)


def test_a_directory_that_is_not_there_yet_lacks_nothing(tmp_path: Path) -> None:
    assert room.lack(str(tmp_path / "none")) == ""


def test_a_full_file_system_takes_no_new_pod_and_is_named_once(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
    room.demand(fakes.node)
    machine(monkeypatch, f_bfree=0)
    with pytest.raises(Exhausted, match=r"is full: 0 bytes are free") as refused:
        room.demand(fakes.node)
    assert str(refused.value).count(str(fakes.directory)) == 1


def test_a_ledger_that_cannot_be_written_is_a_shortage(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    fakes.node.ledger.commits.trouble = "the ledger cannot be written: disk I/O error"  # as over a quota
    assert room.shortage(fakes.node) == "the ledger cannot be written: disk I/O error"


def test_room_that_was_given_up_for_removals_is_not_for_new_pods(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = room.LEAST_BYTES + 4096
    machine(monkeypatch, f_bfree=free // 4096)
    assert room.shortage(fakes.node) == ""
    node: Any = SimpleNamespace(
        config=fakes.config,
        ledger=fakes.node.ledger,
        images=fakes.node.images,
        machine=SimpleNamespace(reserve=Reserve(f"{fakes.directory}/reserve")),
    )
    assert f"{free} bytes are free" in room.shortage(node)

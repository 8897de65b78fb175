"""Room that is set aside: given up a slice at a time, filled again when there is plenty."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd import reserve as module
from sandboxd.reserve import BYTES, SLICE, Reserve


def test_it_takes_real_room_and_gives_it_up_a_slice_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "reserve"
    reserve = Reserve(str(file))
    assert reserve.missing == BYTES
    reserve.fill()
    assert file.stat().st_blocks * 512 >= BYTES
    assert reserve.missing == 0
    given = 0
    while reserve.give_up():
        given += SLICE
        assert reserve.missing == given
    assert given == BYTES
    reserve.fill()
    assert reserve.missing == 0


def test_it_is_not_filled_while_room_is_scarce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = Reserve(str(tmp_path / "reserve"))
    monkeypatch.setattr(module, "PLENTY", 1 << 62)
    reserve.fill()
    assert reserve.missing == BYTES
    assert not reserve.give_up()


def test_without_a_place_for_it_nothing_is_set_aside(tmp_path: Path) -> None:
    Reserve("").fill()
    assert not Reserve("").give_up()
    assert Reserve("").missing == 0
    gone = Reserve(str(tmp_path / "gone" / "reserve"))
    gone.fill()
    assert not gone.give_up()

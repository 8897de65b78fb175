"""What is in the way of a new snapshot is known by containerd's words, and goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.containerd.half_made import left_in, remove

WORDS = "snapshot abc: failed to rename: rename /c/snapshots/new-361944 /c/snapshots/35: file exists"


@pytest.mark.parametrize(
    ("message", "directory"),
    [
        (WORDS, "/c/snapshots/35"),
        (WORDS.replace("file exists", "no space left on device"), ""),
        (WORDS.replace(" /c/snapshots/35", " /elsewhere/35"), ""),
        (WORDS.replace("/35", "/abc"), ""),
        ("mkdir /c/snapshots/35: file exists", ""),
    ],
)
def test_only_a_directory_that_a_rename_met_is_meant(message: str, directory: str) -> None:
    assert left_in(message) == directory


def test_it_goes_and_its_neighbours_stay(tmp_path: Path) -> None:
    for number in ("34", "35"):
        (tmp_path / number / "fs").mkdir(parents=True)
        (tmp_path / number / "fs" / "file").touch()
    for _ in range(2):  # idempotent
        for _ in remove(str(tmp_path / "35")):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["34"]
    assert (tmp_path / "34" / "fs" / "file").exists()

"""Trees that are too deep for any path and any stack; pytest could not even remove them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd import trees

DEEP = 1500  # more than Python's recursion limit; with names of a few letters more than PATH_MAX too


def nest(top: Path, depth: int = DEEP, name: str = "deep", *, files: bool = False) -> None:
    """Create nested directories below `top`; with `files`, a file in each."""
    at = trees.Descent(os.open(top, trees.DIRECTORY))
    for _ in range(depth):
        if files:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at.fd))
        os.mkdir(name, dir_fd=at.fd)
        at.down(name)
    at.close()


@pytest.fixture
def deep_path(tmp_path: Path) -> Iterator[Path]:
    """A directory for deep trees."""
    made = tmp_path / "for-deep-trees"
    made.mkdir()
    yield made
    for _ in trees.remove(str(made)):
        pass

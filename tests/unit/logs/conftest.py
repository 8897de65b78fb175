"""What the tests of the logger share: its umask, and for the daemon's side a real logger process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd import private
from sandboxd.logs.process import LoggerPaths


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """The one with which the daemon starts the logger, whatever that of the tests is."""
    before = os.umask(private.UMASK)
    yield
    os.umask(before)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[LoggerPaths]:
    """Where a logger may be started; it is ended with the test."""
    made = LoggerPaths(state=str(tmp_path / "state"))
    os.mkdir(made.state)
    yield made
    made.process.end(10)

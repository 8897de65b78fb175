"""A real logger process for the tests of the daemon's side of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.logs.process import Places


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    """Where a logger may be started; it is ended with the test."""
    made = Places(state=str(tmp_path / "state"))
    os.mkdir(made.state)
    yield made
    made.process.end(10)

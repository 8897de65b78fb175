"""Fixtures for the matrices, which run each verb hundreds of times."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

MEMORY = "/dev/shm"


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory that costs no disk: in memory, where the machine has such a place."""
    place = MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix="sandboxd-matrix-", dir=place) as directory:
        yield Path(directory)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without a configuration structlog shows each variable of a traceback, which takes longer than all else."""
    with structlog.testing.capture_logs():
        yield

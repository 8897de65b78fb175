"""How property tests run, as long as they take on whatever machine it is; and a node of fakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.bundle import Bundle

# How fast examples are made and tried says how busy the machine is.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    """A node of fakes, with nothing in it."""
    with Bundle(tmp_path, monkeypatch) as made:
        yield made

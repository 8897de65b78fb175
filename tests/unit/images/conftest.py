"""A real image store over a containerd in memory."""

from __future__ import annotations

import pytest

from sandboxd.images.store import ImageStore
from tests.fakes.containerd import Containerd
from tests.fakes.points import Points


@pytest.fixture
def containerd(monkeypatch: pytest.MonkeyPatch) -> Containerd:
    made = Containerd(Points())
    made.install(monkeypatch)
    return made


@pytest.fixture
def store(containerd: Containerd) -> ImageStore:
    return containerd.store()

"""A node of fakes, and a pod on it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from sandboxd.containerd import shims
from sandboxd.machine import handlers
from tests.fakes.bundle import Bundle, pod_config
from tests.unit.pods.requests import run

RunPod = Callable[..., Awaitable[str]]
LogLines = list[MutableMapping[str, Any]]


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    # The one place of containerd's that a teardown looks into: the machine's own is none of a test's business.
    in_directory = partial(shims.socket_path, directory=str(tmp_path / "shims"))
    monkeypatch.setattr(shims, "socket_path", in_directory)
    with Bundle(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def run_pod(fakes: Bundle) -> RunPod:
    """Run a pod with this name and return its id; nothing runs in the background after it."""

    async def make(name: str = "web") -> str:
        record = await run(fakes, pod_config(name))
        fakes.points.reset()
        return record.id

    return make


@pytest.fixture
def log_lines() -> Iterator[LogLines]:
    """What is logged."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def with_abilities(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """A machine on which user namespaces work. Returns whom files are given to, which only root can do."""
    given: dict[str, tuple[int, int]] = {}

    async def features(*_: object) -> handlers.Features:
        return handlers.Features(user_namespaces=True, recursive_read_only=True)

    async def recursive_read_only(*_: object) -> bool:
        return True

    monkeypatch.setattr(handlers, "features", features)
    monkeypatch.setattr(handlers, "recursive_read_only", recursive_read_only)
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.update({str(path): (uid, gid)}))
    return given

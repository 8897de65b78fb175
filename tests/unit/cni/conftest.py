"""What the tests of executions share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxd import steps
from tests.fakes import cni_plugin


@pytest.fixture
def plugins(tmp_path: Path) -> Callable[..., str]:
    """Install scripted plugins: `plugins(bridge={"ADD": [...]}, portmap={})` gives their directory."""

    def install(**scripts: dict[str, Any]) -> str:
        for name, script in scripts.items():
            cni_plugin.install(str(tmp_path), name, script)
        return str(tmp_path)

    return install


@pytest.fixture
def records() -> Iterator[list[steps.StepRecord]]:
    """Every step that ended."""
    seen: list[steps.StepRecord] = []
    stop = steps.subscribe(seen.append)
    yield seen
    stop()

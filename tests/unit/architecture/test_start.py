"""What starting the daemon does not load: most of its time and memory are the modules that it imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unit.architecture.source import ROOT

# As `serve` does, in a process of its own: this one has loaded them all.
STARTED = "import sandboxd.__main__, sandboxd.daemon, sys; print(*sys.modules)"


@pytest.fixture(scope="module")
def loaded() -> frozenset[str]:
    finished = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, check=True, cwd=ROOT)
    return frozenset(finished.stdout.split())


@pytest.mark.parametrize(
    "library",
    [
        "aiohttp",  # a pull
        "h11",  # a streaming client, a scrape of metrics
        "opentelemetry",  # tracing, when it is on
        "pyroute2",  # a look at a pod's network
        "rich",  # sandboxctl
        "websockets",  # a streaming client
        "yaml",  # a CDI file
    ],
)
def test_a_library_is_not_loaded_before_it_is_needed(loaded: frozenset[str], library: str) -> None:
    assert not [name for name in loaded if name.partition(".")[0] == library]


@pytest.mark.parametrize(
    "module",
    [
        "sandboxd.cli",
        "sandboxd.insight.diagnose",
        "sandboxd.insight.machine_look",
        "sandboxd.insight.metrics_server",
        "sandboxd.insight.pod_look",
        "sandboxd.insight.traces",
        "sandboxd.registry.transport",
        "sandboxd.streaming.exchange",
        "sandboxd.streaming.websocket",
    ],
)
def test_what_only_some_requests_need_is_not_loaded_before_one(loaded: frozenset[str], module: str) -> None:
    assert module not in loaded
    assert "sandboxd.daemon" in loaded


def test_rich_can_be_imported_after_the_daemons_command_line() -> None:
    """It is hidden from structlog only."""
    code = "import sandboxd.__main__, structlog.dev, rich.console; assert structlog.dev.rich is None"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr

"""What of the steps is in the log, and at which level."""

from __future__ import annotations

import pytest
import structlog

from sandboxd import steps, vocabulary
from sandboxd.daemon import _log_milestone, _log_step


def level_of(name: str, *, error: str = "") -> str:
    record = steps.StepRecord(
        operation="RunPodSandbox", name=name, sandbox_id="s", container_id="", started_at=1, duration=1, error=error
    )
    with structlog.testing.capture_logs() as logs:
        _log_step(record)
    (entry,) = logs
    return str(entry["log_level"])


@pytest.mark.parametrize("name", sorted(vocabulary.NAMES))
def test_a_pods_life_is_a_few_lines_and_its_details_are_debug(name: str) -> None:
    assert level_of(name) == ("info" if name in vocabulary.MILESTONES else "debug")


@pytest.mark.parametrize("name", ["pod.run", "cni.add"])
def test_a_step_that_failed_is_a_warning(name: str) -> None:
    assert level_of(name, error="no") == "warning"


@pytest.mark.parametrize("name", sorted(vocabulary.NAMES))
@pytest.mark.parametrize("error", ["", "no"])
def test_above_debug_the_same_is_logged_but_for_the_details(name: str, error: str) -> None:
    record = steps.StepRecord(
        operation="RunPodSandbox", name=name, sandbox_id="s", container_id="", started_at=1, duration=1, error=error
    )
    with structlog.testing.capture_logs() as wanted:
        _log_step(record)
    with structlog.testing.capture_logs() as logs:
        _log_milestone(record)
    assert logs == [entry for entry in wanted if entry["log_level"] != "debug"]


def test_the_milestones_are_steps() -> None:
    assert set(vocabulary.NAMES) >= vocabulary.MILESTONES

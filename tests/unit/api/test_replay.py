"""The RPC that runs a recorded execution again finds it by its step, of a pod or of what failed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxd import steps
from sandboxd.api.replay import Replay
from sandboxd.errors import NotFound
from sandboxd.pb.host.v1 import host_pb2
from sandboxd.steps import StepRecord, Story
from tests.fakes.bundle import Bundle
from tests.unit.matrix.verbs import recorded


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with Bundle(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def step(fakes: Bundle) -> StepRecord:
    """A step of a pod that could not be made."""
    made = recorded("ADD", "bridge")
    story = Story(
        operation="RunPodSandbox",
        subject="default/burns",
        sandbox_id="a" * 64,
        container_id="",
        started_at=time.time_ns(),
        duration=1,
        error="no",
        steps=(made,),
    )
    fakes.node.ledger.keep_story(story)
    return made


async def test_a_step_of_what_failed_is_found_by_its_name_and_start(fakes: Bundle, step: StepRecord) -> None:
    request = host_pb2.ReplayRequest(reference="burns", name=step.name, started_at=step.started_at)
    answer = await Replay(fakes.node).Replay(request, None)
    assert answer.recorded.plugin.binary == answer.replayed.plugin.binary == "/plugins/bridge"
    assert answer.replayed.plugin.env["CNI_CONTAINERID"] == answer.scratch_id
    assert answer.changed and not answer.left and not answer.kept and not answer.error


async def test_a_step_of_a_pod_is_found_by_the_pods_id(fakes: Bundle) -> None:
    pod_id = await fakes.ready_pod()
    stop = steps.subscribe(fakes.node.ledger.append_step)
    with steps.operation("RunPodSandbox", sandbox_id=pod_id), steps.step("cni.add", plugin="bridge") as made:
        made.plugin = recorded("ADD", "bridge").plugin
    stop()
    (kept,) = fakes.node.ledger.timeline(pod_id)
    request = host_pb2.ReplayRequest(pod_sandbox_id=pod_id, name="cni.add", started_at=kept.started_at, keep=True)
    answer = await Replay(fakes.node).Replay(request, None)
    assert answer.kept and answer.netns_path in fakes.netns.pinned


async def test_what_is_not_recorded_is_not_found(fakes: Bundle, step: StepRecord) -> None:
    for wrong in ({"reference": "other"}, {"name": "cni.del"}, {"started_at": 2}):
        given: dict[str, Any] = {"reference": "burns", "name": step.name, "started_at": step.started_at} | wrong
        with pytest.raises(NotFound, match="no execution of a plugin is known"):
            await Replay(fakes.node).Replay(host_pb2.ReplayRequest(**given), None)

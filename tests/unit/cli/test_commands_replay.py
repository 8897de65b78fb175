"""`replay` names a recorded step to the daemon, and its exit code says whether the plugin fails."""

from __future__ import annotations

import json

import grpc
import pytest

from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon
from tests.unit.cli.test_executions import ADDS
from tests.unit.cli.test_replayed import NOW, THEN, answer, failure, result, step


@pytest.fixture
def pod(daemon: FakeDaemon) -> str:
    daemon.steps = list(ADDS)
    daemon.replayed = answer(step(THEN, result(THEN)), step(NOW, result(NOW)))
    return daemon.add_pod("web")


def test_the_step_that_is_meant_is_asked_for(daemon: FakeDaemon, pod: str, sandboxctl: Sandboxctl) -> None:
    told = sandboxctl("replay", "web", "ADD", "bridge", "--keep")
    assert told.exit_code == 0 and "It succeeds again" in told.stdout
    assert daemon.requests["Replay"] == host.ReplayRequest(
        pod_sandbox_id=pod, name="cni.add", started_at=3, keep=True
    )
    sandboxctl("replay", "web")
    assert daemon.requests["Replay"].started_at == 5, "the one that failed"


def test_a_pod_that_is_gone_is_named_as_it_was(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    failed = host.Operation(operation="RunPodSandbox", subject="default/burns", duration=1, steps=ADDS)
    daemon.operations = host.ListOperationsResponse(failed=[failed])
    daemon.replayed = answer(failure(THEN), failure(NOW))
    told = sandboxctl("replay", "burns")
    assert told.exit_code == 1 and "It fails again, in the same way." in told.stdout
    assert daemon.requests["Replay"] == host.ReplayRequest(reference="burns", name="cni.add", started_at=5)


def test_programs_get_everything(pod: str, sandboxctl: Sandboxctl) -> None:
    told = json.loads(sandboxctl("replay", "web", "2", "-o", "json").stdout)
    assert told["replayed"]["plugin"]["stdout"]["ips"][0]["address"] == "10.0.10.3/24"
    assert (told["verdict"], told["differences"]) == ("It succeeds again, with the same result.", [])


def test_executions_are_listed_and_what_is_not_one_is_not_run(
    daemon: FakeDaemon, pod: str, sandboxctl: Sandboxctl
) -> None:
    rows = sandboxctl("replay", "--list", "web").stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["NUMBER", "1", "2", "3"]
    several = sandboxctl("replay", "web", "ADD")
    assert several.exit_code == 3 and "ADD bridge" in several.stderr and "ADD portmap" in several.stderr
    assert sandboxctl("replay", "--list", "-o", "json", "web").exit_code == 2
    assert "Replay" not in daemon.calls


@pytest.mark.parametrize("outcome", [{"left": "DEL failed"}, {"replayed": None}])
def test_what_was_not_reached_or_not_undone_is_a_failure(
    daemon: FakeDaemon, pod: str, sandboxctl: Sandboxctl, outcome: dict[str, str | None]
) -> None:
    now = step(NOW, result(NOW)) if "left" in outcome else None
    daemon.replayed = answer(step(THEN, result(THEN)), now, left=outcome.get("left") or "")
    assert sandboxctl("replay", "web", "2").exit_code == 1


def test_a_refusal_has_the_daemons_words(daemon: FakeDaemon, pod: str, sandboxctl: Sandboxctl) -> None:
    daemon.fail["Replay"] = (grpc.StatusCode.INVALID_ARGUMENT, "ADD is not run in place")
    told = sandboxctl("replay", "--in-place", "web", "2")
    assert told.exit_code == 1 and "cannot replay ADD of default/web: ADD is not run in place" in told.stderr

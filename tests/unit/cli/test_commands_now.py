"""`top`, `events` and `watch` without a terminal: one look, or an object a line."""

from __future__ import annotations

import json

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon
from tests.unit.cli.test_rates import SECOND
from tests.unit.cli.test_rates import pod as sample


def test_top_takes_two_looks_and_prints_one_table(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.pod_stats = [[sample("web", SECOND, 0)], [sample("web", 2 * SECOND, SECOND)]]
    told = sandboxctl("top", "-d", "10ms")
    heading, row = told.stdout.splitlines()
    assert heading.startswith("ID") and "100.0%" in row
    daemon.pod_stats = [[sample("web", SECOND, 0)], [sample("web", 2 * SECOND, SECOND)]]
    (line,) = sandboxctl("top", "-d", "10ms", "--once", "-o", "json").stdout.splitlines()
    assert (json.loads(line)["pod"], json.loads(line)["cpu"]) == ("default/web", 1.0)


def test_watch_prints_what_is_under_way(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    running = host.Operation(operation="RunPodSandbox", subject="default/web", started_at=1)
    daemon.operations = host.ListOperationsResponse(running=[running])
    assert "RunPodSandbox" in sandboxctl("watch").stdout
    (line,) = sandboxctl("watch", "--once", "-o", "json").stdout.splitlines()
    assert json.loads(line)["running"][0]["subject"] == "default/web"


def test_events_are_those_of_the_records_and_followed_those_of_the_daemon(
    daemon: FakeDaemon, sandboxctl: Sandboxctl
) -> None:
    pod_id = daemon.add_pod("web")
    daemon.add_container(pod_id, "nginx")
    lines = sandboxctl("events").stdout.splitlines()
    assert [line.split()[2:5] for line in lines] == [
        ["created", "pod", "default/web"],
        ["created", "container", "default/web/nginx"],
    ]
    status = daemon.pods[pod_id]
    daemon.events = [
        cri.ContainerEventResponse(
            container_id=pod_id,
            container_event_type=cri.CONTAINER_STOPPED_EVENT,
            created_at=SECOND,
            pod_sandbox_status=status,
        )
    ]
    told = sandboxctl("events", "-f", "-o", "json")
    assert json.loads(told.stdout)["event"] == "stopped" and "ended the stream" in told.stderr


@pytest.mark.parametrize("command", ["top", "watch"])
def test_a_delay_is_a_duration(sandboxctl: Sandboxctl, command: str) -> None:
    assert sandboxctl(command, "-d", "soon").exit_code == 2

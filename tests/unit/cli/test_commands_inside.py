"""`exec` and `stats`, against a fake daemon."""

from __future__ import annotations

import json

import grpc
import pytest

from sandboxd.cli.names import SHORT_ID
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon


@pytest.fixture
def app(daemon: FakeDaemon) -> str:
    return daemon.add_container(daemon.add_pod("web"), "app")


def test_exec_passes_on_both_streams_as_bytes_and_the_exit_code(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, app: str
) -> None:
    result = sandboxctl("exec", "web", "--", "ls", "-l", "/")
    assert result.exit_code == 3
    assert result.stdout_bytes == b"ran ls -l /\n"
    assert result.stderr_bytes == b"\xff\n"
    request = daemon.requests["ExecSync"]
    assert (request.container_id, request.timeout) == (app, 20)


def test_exec_lets_the_daemon_end_what_takes_too_long(daemon: FakeDaemon, sandboxctl: Sandboxctl, app: str) -> None:
    daemon.fail["ExecSync"] = (grpc.StatusCode.DEADLINE_EXCEEDED, "sleep did not end within 1 s and was killed")
    result = sandboxctl("--timeout", "1s", "exec", "app", "sleep", "9")
    assert result.exit_code == 1
    assert "cannot run sleep in app: sleep did not end within 1 s and was killed" in result.stderr
    assert daemon.requests["ExecSync"].timeout == 1


def test_exec_needs_a_command_and_a_container(sandboxctl: Sandboxctl, app: str) -> None:
    assert sandboxctl("exec", "app").exit_code == 2
    assert sandboxctl("exec", "none", "--", "true").exit_code == 3


def test_stats_shows_what_runs_and_dashes_for_what_is_not_measured(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, app: str
) -> None:
    ended = daemon.add_container(daemon.add_pod("old"), "job", cri.CONTAINER_EXITED)
    heading, *rows = sandboxctl("stats").stdout.splitlines()
    assert heading.split() == ["CONTAINER", "ID", "NAME", "POD", "CPU", "MEMORY", "FREE", "OF", "LIMIT", "WRITTEN"]
    assert [row.split() for row in rows] == [[app[:SHORT_ID], "app", "web", "12.5%", "2.5MB", "-", "4.1kB"]]

    (row,) = sandboxctl("stats", "job").stdout.splitlines()[1:]
    assert row.split() == [ended[:SHORT_ID], "job", "old", "-", "-", "-", "4.1kB"]


def test_stats_for_programs_has_everything(daemon: FakeDaemon, sandboxctl: Sandboxctl, app: str) -> None:
    answer = json.loads(sandboxctl("stats", "-o", "json").stdout)
    assert [each["attributes"]["id"] for each in answer["stats"]] == [app]

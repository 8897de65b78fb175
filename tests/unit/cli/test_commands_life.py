"""`start`, `stop`, `rm` and `logs`, against a fake daemon."""

from __future__ import annotations

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon


@pytest.fixture
def web(daemon: FakeDaemon) -> str:
    return daemon.add_pod("web")


@pytest.fixture
def app(daemon: FakeDaemon, web: str) -> str:
    return daemon.add_container(web, "app")


def test_start_starts_what_was_created(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str) -> None:
    job = daemon.add_container(web, "job", cri.CONTAINER_CREATED)
    result = sandboxctl("start", "web/job")
    assert (result.exit_code, result.stdout) == (0, "web/job\n")
    assert daemon.containers[job].state == cri.CONTAINER_RUNNING


def test_stop_stops_pods_and_containers(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str, app: str) -> None:
    result = sandboxctl("stop", "app", "web", "--grace", "3")
    assert (result.exit_code, result.stdout) == (0, "app\nweb\n")
    assert daemon.requests["StopContainer"].timeout == 3
    assert daemon.containers[app].state == cri.CONTAINER_EXITED
    assert daemon.pods[web].state == cri.SANDBOX_NOTREADY


def test_stop_all_stops_the_pods_that_run(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str) -> None:
    daemon.add_pod("old", ready=False)
    assert sandboxctl("stop", "-a").stdout.split() == [web]


@pytest.mark.parametrize("reference", ["web", "web/app"])
def test_rm_refuses_what_runs(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str, app: str, reference: str) -> None:
    result = sandboxctl("rm", reference)
    assert result.exit_code == 1
    assert f"{reference} is running" in result.stderr
    assert f"sandboxctl rm -f {reference}" in result.stderr
    assert web in daemon.pods
    assert app in daemon.containers


def test_rm_force_stops_a_pod_first(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str) -> None:
    assert sandboxctl("rm", "-f", "web").stdout == "web\n"
    assert daemon.calls[-2:] == ["StopPodSandbox", "RemovePodSandbox"]
    assert not daemon.pods


def test_rm_force_kills_a_container_without_grace(daemon: FakeDaemon, sandboxctl: Sandboxctl, app: str) -> None:
    assert sandboxctl("rm", "-f", app[:10]).exit_code == 0
    assert daemon.requests["StopContainer"].timeout == 0
    assert not daemon.containers


def test_rm_removes_what_is_stopped(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str) -> None:
    daemon.add_container(web, "job", cri.CONTAINER_EXITED)
    daemon.add_pod("old", ready=False)
    assert sandboxctl("rm", "job", "old").exit_code == 0
    assert (list(daemon.pods), list(daemon.containers)) == ([web], [])
    assert "StopPodSandbox" not in daemon.calls


def test_rm_all_leaves_what_runs_and_says_so(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str, app: str) -> None:
    job = daemon.add_container(web, "job", cri.CONTAINER_EXITED)
    old = daemon.add_pod("old", ready=False)
    daemon.add_container(old, "gone", cri.CONTAINER_EXITED)
    result = sandboxctl("rm", "-a")
    assert (result.exit_code, result.stdout.split()) == (0, [old, job])
    assert "1 running pod is kept" in result.stderr
    assert (list(daemon.pods), list(daemon.containers)) == ([web], [app])


def test_rm_all_force_removes_everything(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str, app: str) -> None:
    daemon.add_pod("old", ready=False)
    result = sandboxctl("rm", "-af")
    assert (result.exit_code, result.stderr) == (0, "")
    assert not daemon.pods
    assert not daemon.containers


def test_the_rest_is_done_when_one_fails_and_the_exit_code_is_the_failures(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str
) -> None:
    result = sandboxctl("rm", "-f", "nosuch", "web")
    assert (result.exit_code, result.stdout) == (3, "web\n")
    assert "nosuch" in result.stderr
    assert not daemon.pods


@pytest.mark.parametrize("args", [("rm",), ("stop",), ("rm", "-a", "web"), ("start",)])
def test_something_has_to_be_named_or_all_said(sandboxctl: Sandboxctl, args: tuple[str, ...]) -> None:
    assert sandboxctl(*args).exit_code == 2


def test_logs_go_to_the_streams_they_came_from_with_split_lines_whole(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, app: str
) -> None:
    daemon.logs[app] = [
        host.LogLine(stream="stdout", text=b"one ", partial=True),
        host.LogLine(stream="stderr", text=b"bad"),
        host.LogLine(stream="stdout", text=b"line"),
        host.LogLine(stream="stdout", text=b"\xff"),
    ]
    result = sandboxctl("logs", "app")
    assert result.exit_code == 0
    assert result.stdout_bytes == b"one line\n\xff\n"
    assert result.stderr == "bad\n"
    request = daemon.requests["ReadLogs"]
    assert (request.container_id, request.follow, request.tail, request.since) == (app, False, -1, 0)


def test_timestamps_stand_at_the_beginning_of_lines_only(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, app: str
) -> None:
    daemon.logs[app] = [
        host.LogLine(timestamp=10**9 + 5, text=b"a", partial=True),
        host.LogLine(timestamp=2 * 10**9, text=b"b"),
    ]
    assert sandboxctl("logs", "--timestamps", "web").stdout == "1970-01-01T00:00:01.000000005Z ab\n"


def test_logs_pass_on_what_is_asked_for(daemon: FakeDaemon, sandboxctl: Sandboxctl, app: str) -> None:
    sandboxctl("logs", "-f", "--tail", "0", "--since", "1970-01-01T00:00:10Z", app)
    request = daemon.requests["ReadLogs"]
    assert (request.follow, request.tail, request.since) == (True, 0, 10 * 10**9)


def test_a_log_that_cannot_be_read_says_why(daemon: FakeDaemon, sandboxctl: Sandboxctl, app: str) -> None:
    daemon.fail["ReadLogs"] = (grpc.StatusCode.FAILED_PRECONDITION, "the container keeps no log")
    result = sandboxctl("logs", "app")
    assert result.exit_code == 1
    assert result.stderr == "sandboxctl: cannot read the log of app: the container keeps no log\n"

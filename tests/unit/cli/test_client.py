"""What a failed call or a missing daemon means to the person who asked."""

from __future__ import annotations

import socket as sockets
from pathlib import Path

import grpc
import pytest

from sandboxd.cli.client import Daemon, Failure
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.cli.fake_daemon import FakeDaemon


def ask(path: Path) -> cri.VersionResponse:
    asked = Daemon(str(path), 20.0)
    try:
        return asked.call(asked.runtime.Version, cri.VersionRequest(), "ask for the version")
    finally:
        asked.close()


@pytest.mark.parametrize(
    ("code", "exit_code", "hint"),
    [
        (grpc.StatusCode.INTERNAL, 1, ""),
        (grpc.StatusCode.INVALID_ARGUMENT, 1, ""),
        (grpc.StatusCode.ALREADY_EXISTS, 1, ""),
        (grpc.StatusCode.NOT_FOUND, 3, ""),
        (grpc.StatusCode.UNAVAILABLE, 4, "try again"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 1, "--timeout"),
        (grpc.StatusCode.PERMISSION_DENIED, 1, "root"),
    ],
)
def test_a_failure_has_the_daemons_words_an_exit_code_and_a_next_step(
    daemon: FakeDaemon, socket: Path, code: grpc.StatusCode, exit_code: int, hint: str
) -> None:
    daemon.fail["Version"] = (code, "rpc error: code = Foo desc = the words")
    with pytest.raises(Failure) as caught:
        ask(socket)
    assert caught.value.message == "cannot ask for the version: the words"
    assert (caught.value.exit_code, caught.value.code) == (exit_code, code)
    assert hint in caught.value.hint
    assert bool(hint) == bool(caught.value.hint)


def test_a_method_that_the_daemon_lacks_is_said_in_plain_words(daemon: FakeDaemon, socket: Path) -> None:
    daemon.fail["Version"] = (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    with pytest.raises(Failure, match="the daemon does not support it"):
        ask(socket)


def test_no_socket_asks_whether_the_daemon_runs(socket: Path) -> None:
    with pytest.raises(Failure, match=r"is sandboxd running\? there is no socket at") as caught:
        ask(socket)
    assert caught.value.exit_code == 4
    assert "--socket" in caught.value.hint


def test_a_socket_that_nobody_listens_on_asks_the_same(socket: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as left_behind:
        left_behind.bind(str(socket))
    with pytest.raises(Failure, match="nothing is listening") as caught:
        ask(socket)
    assert caught.value.exit_code == 4


def test_a_socket_that_is_not_for_this_user_says_so(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidden(sockets.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sandboxd.cli.client.socket.socket", Forbidden)
    with pytest.raises(Failure, match="may not use the socket") as caught:
        ask(socket)
    assert caught.value.exit_code == 4
    assert "root" in caught.value.hint


def test_a_path_that_is_too_long_for_a_socket_is_said(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot connect to") as caught:
        ask(tmp_path / ("x" * 200))
    assert caught.value.exit_code == 4


def test_many_calls_answer_in_order_with_none_for_what_is_gone(daemon: FakeDaemon, socket: Path) -> None:
    ids = [daemon.add_pod(f"p{number}") for number in range(70)]
    ids[3] = "gone"
    asked = Daemon(str(socket), 20.0)
    requests = [cri.PodSandboxStatusRequest(pod_sandbox_id=each) for each in ids]
    answers = asked.each(asked.runtime.PodSandboxStatus, requests, "look")
    assert [answer.status.id if answer else "gone" for answer in answers] == ids
    asked.close()


def test_many_calls_end_at_a_failure_that_is_not_about_being_gone(daemon: FakeDaemon, socket: Path) -> None:
    daemon.fail["PodSandboxStatus"] = (grpc.StatusCode.INTERNAL, "broken")
    asked = Daemon(str(socket), 20.0)
    answers = asked.each(asked.runtime.PodSandboxStatus, [cri.PodSandboxStatusRequest()], "look")
    with pytest.raises(Failure, match="cannot look: broken"):
        next(answers)
    asked.close()

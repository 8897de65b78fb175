"""A pull that is watched says what to do when it fails, and stops when nobody watches any more."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sandboxd.cli import pulling
from sandboxd.cli.client import Daemon, Exit, Failure
from sandboxd.cli.session import Session
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli.fake_daemon import FakeDaemon


@pytest.fixture
def session(daemon: FakeDaemon, socket: Path) -> Iterator[Session]:
    client = Daemon(str(socket), 20.0)
    yield Session(client)
    client.close()


@pytest.mark.parametrize(
    ("code", "exit_code", "hint"),
    [
        (grpc.StatusCode.NOT_FOUND, Exit.NOT_FOUND, ""),
        (grpc.StatusCode.UNAUTHENTICATED, Exit.FAILED, "--creds"),
        (grpc.StatusCode.UNAVAILABLE, Exit.FAILED, "try again"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Exit.FAILED, "kept"),
    ],
)
def test_a_failure_has_the_daemons_words_and_the_next_step(
    daemon: FakeDaemon, session: Session, code: grpc.StatusCode, exit_code: int, hint: str
) -> None:
    daemon.fail["PullImage"] = (code, "the registry's own words")
    with pytest.raises(Failure) as caught:
        pulling.pull(session, "web", None, quiet=True)
    assert caught.value.message == "cannot pull web: the registry's own words"
    assert caught.value.exit_code == exit_code
    assert hint in caught.value.hint


def test_an_interrupt_ends_the_call(
    daemon: FakeDaemon, session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.pull_stays = True
    daemon.layers.append(host.LayerProgress(digest="sha256:ab", stage="fetch", done_bytes=1, total_bytes=2))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sandboxd.cli.progress.LayerLines.update", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        pulling.pull(session, "web", None, quiet=False)
    # What the error's frames hold lives on: it is not the garbage collector that ends the call.
    assert caught.tb is not None
    assert daemon.pull_ended.wait(20)
    assert "kept for the next attempt" in capsys.readouterr().err


def test_a_daemon_that_answers_nothing_is_a_failure(
    daemon: FakeDaemon, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.pull_stays = True
    daemon.pull_ended.set()
    with pytest.raises(Failure, match="without an answer"):
        pulling.pull(session, "web", None, quiet=True)


def test_a_person_sees_bars_instead_of_lines(
    daemon: FakeDaemon, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    daemon.layers.append(host.LayerProgress(digest="sha256:" + "ab" * 32, stage="unpack", total_bytes=2_000_000))
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    pulling.pull(session, "web", None, quiet=True)
    assert "abababababab" in terminal.getvalue()

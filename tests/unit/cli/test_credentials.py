"""Credentials come together from flags and stdin, and a password shows nowhere."""

from __future__ import annotations

import pty
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from sandboxd.cli import credentials
from sandboxd.cli.parse import CredentialsFlag
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon

PULL = ("pull", "--username", "me", "--password-stdin", "web")


@pytest.mark.parametrize(
    ("stdin", "password"),
    [
        (b"hunter2", "hunter2"),
        (b"hunter2\n", "hunter2"),
        (b"hunter2\r\n", "hunter2"),
        (b"hunter2\n\n", "hunter2\n"),
        (b" hunter2 \n", " hunter2 "),
        (b"hunter2\r", "hunter2\r"),
        (b'{\n "key": 1\n}\n', '{\n "key": 1\n}'),
        ("hunter\u00fc\n".encode(), "hunter\u00fc"),
    ],
)
def test_stdin_is_the_password_less_one_line_end(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, stdin: bytes, password: str
) -> None:
    result = sandboxctl(*PULL, stdin=stdin)
    assert result.exit_code == 0, result.output
    auth = daemon.requests["PullImage"].auth
    assert (auth.username, auth.password) == ("me", password)
    assert "hunter" not in result.output


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (b"", "there is no password on stdin"),
        (b"\n", "there is no password on stdin"),
        (b"hunter2\xff", "not UTF-8"),
        (b"hunter2" * 10_000, "longer than 65536 bytes"),
    ],
    ids=["empty", "a line end", "not UTF-8", "too long"],
)
def test_what_is_no_password_is_refused_and_not_repeated(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, stdin: bytes, said: str
) -> None:
    result = sandboxctl(*PULL, stdin=stdin)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "hunter" not in result.output
    assert "PullImage" not in daemon.calls


@pytest.mark.parametrize(
    "flags",
    [
        ["--password-stdin"],
        ["--password-stdin", "--creds", "me"],
        ["--username", "me", "--creds", "me:hunter2"],
        ["--username", "me:hunter2"],
        ["--username", ""],
        ["--username", "m\udcffe"],
        ["--creds", ":hunter2"],
        ["--creds", "me:hunter2\udcff"],
    ],
    ids=" ".join,
)
def test_flags_that_do_not_go_together_are_refused_without_the_password(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, flags: list[str]
) -> None:
    result = sandboxctl("pull", *flags, "web", stdin=b"hunter2\n")
    assert result.exit_code == 2
    assert "hunter" not in result.output
    assert "PullImage" not in daemon.calls


def test_a_terminal_is_not_read_from_as_what_is_typed_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "wb"), open(theirs, encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        with pytest.raises(click.UsageError, match="it is a terminal"):
            credentials.given(None, "me", from_stdin=True)


def test_a_stdin_that_is_closed_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(click.UsageError, match="it is closed"):
        credentials.given(None, "me", from_stdin=True)


def test_a_name_alone_has_the_password_asked_for(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    result = sandboxctl("pull", "--username", "me", "web", stdin=b"hunter2\n")
    assert daemon.requests["PullImage"].auth.password == "hunter2"
    assert "Password of me" in result.stderr
    assert "hunter" not in result.output


def test_help_says_who_sees_a_password_on_the_command_line(sandboxctl: Sandboxctl) -> None:
    text = " ".join(sandboxctl("pull", "--help").stdout.split())
    assert "other users of this machine see it in the list of processes" in text


def test_credentials_do_not_show_the_password_when_they_are_printed() -> None:
    assert "hunter" not in repr(CredentialsFlag(username="me", password="hunter2"))


def test_a_password_from_stdin_is_in_no_list_of_processes(daemon: FakeDaemon, socket: Path) -> None:
    daemon.pull_stays = True
    daemon.layers.append(host.LayerProgress(digest="sha256:ab", stage="fetch", done_bytes=1, total_bytes=2))
    argv = [str(Path(sys.executable).parent / "sandboxctl"), "--socket", str(socket), *PULL]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(b"hunter2\n")
        process.stdin.close()
        line = process.stderr.readline()  # of the layer: the password is with the daemon
        assert daemon.requests["PullImage"].auth.password == "hunter2"
        for name in ("cmdline", "environ", "comm"):
            assert b"hunter2" not in Path(f"/proc/{process.pid}/{name}").read_bytes()
    finally:
        daemon.pull_ended.set()
        process.send_signal(signal.SIGKILL)
        process.stdin = None
        out, err = process.communicate(timeout=30)
    assert b"hunter2" not in line + out + err

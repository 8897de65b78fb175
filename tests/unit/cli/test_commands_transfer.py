"""`pull`, `load` and `save`, against a fake daemon."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import grpc
import pytest

from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon

LAYER = "sha256:" + "ab" * 32


def test_pull_prints_the_name_in_full_and_a_line_for_each_step(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    for stage, done in (("wait", 0), ("fetch", 1), ("fetch", 2), ("unpack", 2), ("done", 2)):
        daemon.layers.append(host.LayerProgress(digest=LAYER, stage=stage, done_bytes=done, total_bytes=2_000_000))
    result = sandboxctl("pull", "web")
    assert (result.exit_code, result.stdout) == (0, "docker.io/library/web:latest\n")
    assert [line.split() for line in result.stderr.splitlines()] == [
        ["ab" * 6, stage, "2MB"] for stage in ("fetch", "unpack", "done")
    ]
    assert not daemon.requests["PullImage"].HasField("auth")


def test_pull_for_scripts_prints_the_id_and_nothing_else(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.layers.append(host.LayerProgress(digest=LAYER, stage="fetch", done_bytes=1, total_bytes=2))
    result = sandboxctl("pull", "-q", "web")
    assert (result.stdout, result.stderr) == (next(iter(daemon.images)) + "\n", "")


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_pull_for_programs_has_id_and_size(daemon: FakeDaemon, sandboxctl: Sandboxctl, form: str) -> None:
    text = sandboxctl("pull", "-o", form, "web").stdout
    assert next(iter(daemon.images)) in text
    if form == "json":
        assert json.loads(text)["size"] == "4270000"


def test_pull_sends_the_credentials(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    sandboxctl("pull", "--creds", "me:a:b", "web")
    auth = daemon.requests["PullImage"].auth
    assert (auth.username, auth.password) == ("me", "a:b")


def test_pull_asks_for_a_password_that_was_left_out(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    result = sandboxctl("pull", "--creds", "me", "web", stdin=b"secret\n")
    assert daemon.requests["PullImage"].auth.password == "secret"
    assert result.stdout == "docker.io/library/web:latest\n"
    assert "Password of me" in result.stderr
    assert "secret" not in result.output


def test_load_sends_every_byte_and_prints_the_names(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, tmp_path: Path
) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(bytes(range(256)) * 3000)  # three chunks
    result = sandboxctl("load", str(archive))
    assert result.exit_code == 0, result.output
    assert daemon.loaded == archive.read_bytes()
    assert result.stdout.splitlines() == ["docker.io/library/web:1", "docker.io/library/web:latest", "sha256:2"]
    assert result.stderr == ""


def test_load_reads_stdin(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    assert sandboxctl("load", "-q", "-", stdin=b"tar").stdout.splitlines() == ["sha256:1", "sha256:2"]
    assert daemon.loaded == b"tar"


def test_load_for_programs_has_ids_names_and_digests(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    data = json.loads(sandboxctl("load", "-o", "json", "-", stdin=b"tar").stdout)
    assert [image["imageId"] for image in data["images"]] == ["sha256:1", "sha256:2"]


def test_what_of_an_archive_was_passed_over_is_noted_and_is_no_name(
    daemon: FakeDaemon, sandboxctl: Sandboxctl
) -> None:
    daemon.remarks = ["sha256:3: a chart\x1b[0m"]
    result = sandboxctl("load", "-q", "-", stdin=b"tar")
    assert result.stdout.splitlines() == ["sha256:1", "sha256:2"]
    assert result.stderr.startswith("note: sha256:3: a chart")
    assert "\x1b" not in result.stderr


def test_an_archive_that_the_daemon_refuses_says_why(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.fail["LoadImage"] = (grpc.StatusCode.INVALID_ARGUMENT, "blob sha256:12 has another digest")
    result = sandboxctl("load", "-", stdin=b"tar")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "blob sha256:12 has another digest" in result.stderr


def test_a_file_that_cannot_be_read_is_not_the_daemons_fault(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, tmp_path: Path
) -> None:
    missing = sandboxctl("load", str(tmp_path / "nosuch.tar"))
    assert missing.exit_code == 2
    # /proc/self/mem opens, and reading its first page fails.
    unreadable = sandboxctl("load", "/proc/self/mem")
    assert unreadable.exit_code == 1
    assert "cannot read /proc/self/mem" in unreadable.stderr


def test_save_writes_a_file_that_appears_whole(daemon: FakeDaemon, sandboxctl: Sandboxctl, tmp_path: Path) -> None:
    daemon.archive = [b"one", b"two"]
    file = tmp_path / "a.tar"
    result = sandboxctl("save", "-o", str(file), "web", "sha256:12")
    assert (result.exit_code, result.output) == (0, "")
    assert file.read_bytes() == b"onetwo"
    assert list(daemon.requests["SaveImage"].images) == ["web", "sha256:12"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask


def test_save_writes_to_stdout(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.archive = [bytes(range(256))]
    assert sandboxctl("save", "web").stdout_bytes == bytes(range(256))


def test_save_writes_into_a_pipe_that_has_a_name(daemon: FakeDaemon, sandboxctl: Sandboxctl, tmp_path: Path) -> None:
    daemon.archive = [b"one"]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert sandboxctl("save", "-o", str(pipe), "web").exit_code == 0
        assert os.read(reading, 100) == b"one"
    finally:
        os.close(reading)


def test_save_does_not_write_to_a_terminal(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandboxd.cli.commands_transfer._is_terminal", lambda: True)
    result = sandboxctl("save", "web")
    assert result.exit_code == 2
    assert "terminal" in result.stderr
    assert daemon.calls == []


@pytest.mark.parametrize("when", ["SaveImage", "SaveImage later"])
def test_a_save_that_fails_leaves_the_file_as_it_was(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, tmp_path: Path, when: str
) -> None:
    daemon.archive = [b"half"]
    daemon.fail[when] = (grpc.StatusCode.NOT_FOUND, "image 'web' is not on this machine")
    file = tmp_path / "a.tar"
    file.write_bytes(b"before")
    result = sandboxctl("save", "-o", str(file), "web")
    assert result.exit_code == 3
    assert "not on this machine" in result.stderr
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_a_place_that_cannot_be_written_is_named(daemon: FakeDaemon, sandboxctl: Sandboxctl, tmp_path: Path) -> None:
    result = sandboxctl("save", "-o", str(tmp_path / "no" / "a.tar"), "web")
    assert result.exit_code == 1
    assert "a.tar" in result.stderr
    assert "No such file or directory" in result.stderr

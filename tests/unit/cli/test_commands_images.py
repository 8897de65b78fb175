"""`images`, `rmi` and `load`, against a fake daemon."""

from __future__ import annotations

import json
from pathlib import Path

import grpc

from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon


def test_images_are_listed(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    identity = daemon.add_image("docker.io/library/web:1")
    row = sandboxctl("images").stdout.splitlines()[1].split()
    assert row == ["docker.io/library/web", "1", identity[7:19], "4.27MB"]
    assert sandboxctl("images", "-q").stdout == identity + "\n"
    assert json.loads(sandboxctl("images", "-o", "json").stdout)["images"][0]["id"] == identity


def test_rmi_removes_what_is_there_and_reports_what_is_not(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.add_image("web:1")
    result = sandboxctl("rmi", "nosuch", "web:1")
    assert (result.exit_code, result.stdout) == (3, "web:1\n")
    assert "there is no image nosuch" in result.stderr
    assert not daemon.images


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

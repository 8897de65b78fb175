"""`images`, `inspecti` and `rmi`, against a fake daemon."""

from __future__ import annotations

import json

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
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


def test_images_can_be_one_and_show_the_digests(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.add_image("docker.io/library/web:1", digests=["docker.io/library/web@sha256:ab"])
    other = daemon.add_image("docker.io/library/other:1")
    assert sandboxctl("images", "-q", "docker.io/library/other:1").stdout == other + "\n"
    header, *rows = [line.split() for line in sandboxctl("images", "--digests").stdout.splitlines()]
    assert header[:3] == ["IMAGE", "TAG", "DIGEST"]
    assert [row[2] for row in rows] == ["-", "sha256:ab"]


def test_inspecti_shows_the_status_and_what_is_verbose(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    identity = daemon.add_image("web:1")
    data = json.loads(sandboxctl("inspecti", "web:1").stdout)
    assert data["status"]["id"] == identity
    assert data["info"]["chainID"] == "sha256:c"
    assert "repoTags:\n  - web:1" in sandboxctl("inspecti", "-o", "yaml", "web:1").stdout


def test_inspecti_of_several_is_a_list(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    identities = [daemon.add_image(name) for name in ("web:1", "db:1")]
    data = json.loads(sandboxctl("inspecti", "web:1", "db:1").stdout)
    assert [each["status"]["id"] for each in data] == identities


def test_inspecti_of_what_is_not_there_prints_nothing(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.add_image("web:1")
    result = sandboxctl("inspecti", "web:1", "nosuch")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "there is no image nosuch" in result.stderr


def test_prune_removes_what_no_container_uses_and_nobody_pinned(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    used, mounted = daemon.add_image("used:1"), daemon.add_image("mounted:1")
    pinned = daemon.add_image("pause:1", pinned=True)
    daemon.add_image("unused:1", "unused:2")
    untagged = daemon.add_image()
    container = daemon.add_container(daemon.add_pod("p"), "c", cri.CONTAINER_EXITED)
    daemon.containers[container].mounts.add(container_path="/m", image=cri.ImageSpec(image="mounted:1"))
    daemon.container_configs[container].image.image = used
    daemon.containers[container].image.image = used
    result = sandboxctl("rmi", "--prune")
    assert result.exit_code == 0, result.output
    assert set(daemon.images) == {used, mounted, pinned}
    assert result.stdout.splitlines() == ["unused:1", untagged]
    assert "removed 2 of 5 images" in result.stderr
    assert "20MB" in result.stderr


def test_prune_goes_on_past_an_image_that_cannot_be_removed(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.add_image("unused:1")
    daemon.fail["RemoveImage"] = (grpc.StatusCode.INTERNAL, "containerd is in a bad mood")
    result = sandboxctl("rmi", "--prune")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "bad mood" in result.stderr
    assert "removed 0 of 1 images" in result.stderr


@pytest.mark.parametrize("args", [(), ("--prune", "web:1")])
def test_rmi_wants_either_names_or_prune(daemon: FakeDaemon, sandboxctl: Sandboxctl, args: tuple[str, ...]) -> None:
    assert sandboxctl("rmi", *args).exit_code == 2
    assert daemon.calls == []

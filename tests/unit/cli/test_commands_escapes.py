"""Names and words of pods, images, registries and plugins show in root's terminal, and do not command it."""

from __future__ import annotations

import json

import grpc
import pytest
import yaml

from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon

# Of ASCII, of Latin-1 (CSI in one character), DEL, and what turns the direction of text.
EVIL = "a\x1b]0;title\x07\x9b2J\x7f\u202eb"


@pytest.mark.parametrize(
    "argv",
    [
        ["pods"],
        ["pods", "-o", "json"],
        ["pods", "-o", "yaml"],
        ["ps", "-a"],
        ["ps", "-a", "-o", "json"],
        ["ps", "-a", "-o", "yaml"],
        ["images"],
        ["images", "-o", "json"],
        ["images", "-o", "yaml"],
        ["inspect", "POD"],
        ["inspect", "CONTAINER"],
        ["inspecti", "IMAGE"],
        ["explain", "POD"],
        ["explain", "POD", "-o", "json"],
        ["stats"],
        ["info"],
        ["version"],
        ["run", "busy", "--pod", "POD"],
        ["run", "busy", "--pod", "POD", "--port", "1:1"],
        ["run", "busy", "--pod", "POD", "-o", "json"],
        ["rmi", "--prune"],
        ["rm", "-f", "POD"],
    ],
    ids=" ".join,
)
def test_no_name_reaches_the_terminal_as_it_is(daemon: FakeDaemon, sandboxctl: Sandboxctl, argv: list[str]) -> None:
    pod = daemon.add_pod(EVIL, EVIL, label=EVIL)
    container = daemon.add_container(pod, EVIL)
    daemon.configs[pod].metadata.name = EVIL
    image = daemon.add_image("busy", f"docker.io/library/{EVIL}:latest")
    daemon.steps.append(
        host.Step(name=EVIL, operation=EVIL, error=EVIL + "\nforged", detail={EVIL: EVIL + "\nforged"}, duration=1)
    )
    ids = {"POD": pod, "CONTAINER": container, "IMAGE": image}
    result = sandboxctl(*(ids.get(each, each) for each in argv))

    shown = result.stdout + result.stderr
    assert shown
    assert [each for each in shown if not each.isprintable() and each not in "\n\t"] == []
    assert "\nforged" not in shown


@pytest.mark.parametrize("argv", [["pull", "web"], ["pods"], ["run", "web"]], ids=" ".join)
def test_no_error_reaches_the_terminal_as_it_is(daemon: FakeDaemon, sandboxctl: Sandboxctl, argv: list[str]) -> None:
    for rpc in ("PullImage", "ListPodSandbox", "ImageStatus"):
        daemon.fail[rpc] = (grpc.StatusCode.UNKNOWN, f"the registry says {EVIL}")
    result = sandboxctl(*argv)

    assert result.exit_code == 1 and "the registry says" in result.stderr
    assert [each for each in result.output if not each.isprintable() and each != "\n"] == []


def test_no_step_of_a_pull_reaches_the_terminal_as_it_is(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.layers.append(host.LayerProgress(digest=EVIL, stage=EVIL, total_bytes=1))
    result = sandboxctl("pull", f"web{EVIL}")

    assert [each for each in result.output if not each.isprintable() and each != "\n"] == []


def test_a_name_with_a_line_end_makes_no_row(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.add_pod("a\nforged")
    assert len(sandboxctl("pods").stdout.splitlines()) == 2


def test_programs_get_the_same_values_as_ever(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.add_pod(EVIL + "\nü")
    for form, load in (("json", json.loads), ("yaml", yaml.safe_load)):
        data = load(sandboxctl("pods", "-o", form).stdout)
        assert data["items"][0]["metadata"]["name"] == EVIL + "\nü"

"""sandboxctl as a whole: how it ends, and the commands about the daemon."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sandboxd.cli.commands import cli
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon


def test_version_names_client_and_daemon(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    lines = [line.split() for line in sandboxctl("version").stdout.splitlines()]
    assert [line[0] for line in lines] == ["sandboxctl", "sandboxd", "CRI"]
    assert lines[1:] == [["sandboxd", "9.8.7"], ["CRI", "v1"]]
    assert json.loads(sandboxctl("version", "-o", "json").stdout)["runtimeVersion"] == "9.8.7"


def test_info_says_what_is_not_ready_and_why(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    text = " ".join(sandboxctl("info").stdout.split())
    assert "NetworkReady no: NoConf no conf in /etc/cni/net.d" in text
    assert "CgroupDriver cgroupfs" in text
    assert "config.state /run/sandboxd" in text
    data = json.loads(sandboxctl("info", "-o", "json").stdout)
    assert data["info"]["config"]["workers"] == 2
    assert data["runtimeConfig"]["linux"]["cgroupDriver"] == "CGROUPFS"


def test_metrics_are_printed_as_they_are(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    assert sandboxctl("metrics").stdout == "# HELP x y\nx_total 1.0\n"


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -o nosort"), ("zsh", "compdef"), ("fish", "complete ")]
)
def test_completion_needs_no_daemon(sandboxctl: Sandboxctl, shell: str, mark: str) -> None:
    result = sandboxctl("completion", shell)
    assert result.exit_code == 0
    assert mark in result.stdout


def test_an_interrupt_ends_with_130(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sandboxd.cli.render.pods_table", interrupted)
    result = sandboxctl("pods")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_the_socket_may_come_from_the_environment() -> None:
    result = CliRunner().invoke(cli, ["version"], env={"SANDBOXD_SOCKET": "/nowhere/s"})
    assert result.exit_code == 4
    assert "/nowhere/s" in result.stderr


@pytest.mark.parametrize("args", [("--timeout", "soon", "pods"), ("nosuch",), ("pods", "-o", "xml")])
def test_usage_errors_end_with_2(args: tuple[str, ...]) -> None:
    assert CliRunner().invoke(cli, list(args)).exit_code == 2


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert cli.commands[command].help

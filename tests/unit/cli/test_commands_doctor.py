"""`doctor` against a fake daemon: what it prints, and what it exits with."""

from __future__ import annotations

import json

import pytest

from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon

WELL = host.DoctorCheck(name="bridge", severity="ok", says="the bridge is up", evidence="unsaid")
ILL = host.DoctorCheck(
    name="masquerade",
    severity="error",
    says="no answer comes back",
    evidence="no rule",
    remedy="make them",
    commands=["iptables -t nat one", "iptables -t nat two"],
)


def check(severity: str) -> host.DoctorCheck:
    return host.DoctorCheck(name="x", severity=severity, says="y")


def test_what_is_well_is_a_line_and_what_is_not_has_evidence_remedy_and_commands(
    daemon: FakeDaemon, sandboxctl: Sandboxctl
) -> None:
    pod_id = daemon.add_pod("web")
    daemon.checks = [WELL, ILL]
    done = sandboxctl("doctor", "web")
    assert daemon.requests["Doctor"].pod_sandbox_id == pod_id
    assert done.exit_code == 1
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == [
        "ok bridge the bridge is up",
        "error masquerade no answer comes back",
        "evidence: no rule",
        "remedy: make them",
        "iptables -t nat one",
        "iptables -t nat two",
    ]


@pytest.mark.parametrize(
    ("severities", "code"),
    [
        (("ok", "info"), 0),
        ((), 0),
        (("ok", "warning"), 1),
        (("unknown", "error"), 1),
        (("ok", "unknown"), 2),
    ],
)
def test_the_exit_status_says_whether_all_is_well(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, severities: tuple[str, ...], code: int
) -> None:
    daemon.checks = [check(severity) for severity in severities]
    for arguments in ((), ("-o", "json")):
        assert sandboxctl("doctor", *arguments).exit_code == code
    assert daemon.requests["Doctor"].pod_sandbox_id == ""


def test_programs_get_all_of_it(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.checks = [ILL]
    (parsed,) = json.loads(sandboxctl("doctor", "-o", "json").stdout)["checks"]
    assert parsed["commands"] == list(ILL.commands)
    assert (parsed["severity"], parsed["evidence"]) == ("error", "no rule")


def test_a_pod_that_does_not_exist_is_not_found(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    assert sandboxctl("doctor", "nobody").exit_code == 3
    assert "Doctor" not in daemon.calls


def test_control_characters_of_others_are_not_printed(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.checks = [host.DoctorCheck(name="x", severity="error", says="a\x1b[2Jb", evidence="c\nd")]
    assert "\x1b" not in (done := sandboxctl("doctor").stdout)
    assert len(done.splitlines()) == 2

"""`audit` against a fake daemon: what it prints, and what it exits with."""

from __future__ import annotations

import json

import pytest

from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon

POD = "ab" * 32


def finding(**changes: object) -> host.AuditFinding:
    made = host.AuditFinding(
        kind="address",
        name="/var/lib/cni/networks/pods/10.88.0.2",
        owner_id=POD,
        pod="shop/web",
        why="no record is of its pod",
        remedy="delete it",
    )
    made.MergeFrom(host.AuditFinding(**changes))  # type: ignore[arg-type]
    return made


def test_nothing_found_is_said_and_is_a_success(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    done = sandboxctl("audit")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "nothing is found" in done.stderr
    assert not daemon.requests["Audit"].repair


def test_each_finding_is_a_line_with_its_owner_and_what_would_be_done(
    daemon: FakeDaemon, sandboxctl: Sandboxctl
) -> None:
    daemon.findings = [finding(), finding(kind="task", missing=True), finding(pod="", owner_id="")]
    daemon.findings[2].pod = daemon.findings[2].owner_id = ""
    done = sandboxctl("audit")
    assert done.exit_code == 1
    heading, *rows = [" ".join(row.split()) for row in done.stdout.splitlines()]
    assert heading == "KIND NAME OWNER POD SINCE WHY REPAIR"
    name = "/var/lib/cni/networks/pods/10.88.0.2"
    assert rows[0] == f"address {name} {POD[:12]} shop/web - no record is of its pod delete it"
    assert rows[1].startswith(f"task (missing) {name}")
    assert rows[2] == f"address {name} - - - no record is of its pod delete it"
    assert "--repair" in done.stderr


@pytest.mark.parametrize(
    ("changes", "code", "outcome"),
    [
        ({"repaired": True}, 0, "repaired"),
        ({"unclear": True}, 0, "left alone"),
        ({"error": "in use"}, 1, "not repaired: in use"),
    ],
)
def test_a_repair_says_what_came_of_each_and_fails_when_something_of_ours_is_left(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, changes: dict[str, object], code: int, outcome: str
) -> None:
    daemon.findings = [finding(**changes)]
    done = sandboxctl("audit", "--repair")
    assert daemon.requests["Audit"].repair
    assert done.exit_code == code
    assert done.stdout.splitlines()[1].endswith(outcome)


def test_programs_get_all_of_it(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.findings = [finding(unclear=True)]
    done = sandboxctl("audit", "-o", "json")
    assert done.exit_code == 0
    (parsed,) = json.loads(done.stdout)["findings"]
    assert (parsed["ownerId"], parsed["unclear"], parsed["kind"]) == (POD, True, "address")
    daemon.findings = []
    assert json.loads(sandboxctl("audit", "-o", "json").stdout) == {"findings": []}

"""`explain` of what failed and of what is under way, against a fake daemon."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon

FAILED = host.Operation(
    operation="RunPodSandbox", subject="default/db", pod_sandbox_id="b" * 64, started_at=time.time_ns() - 60 * 10**9,
    duration=10**9, error="no address left", times=2,
)  # fmt: skip
RUNNING = host.Operation(
    operation="RunPodSandbox", subject="default/slow", pod_sandbox_id="c" * 64, started_at=time.time_ns() - 10**9,
    open=[host.Step(name="pod.run"), host.Step(name="cni.add", started_at=time.time_ns() - 10**9)],
)  # fmt: skip


def told(daemon: FakeDaemon) -> None:
    daemon.operations = host.ListOperationsResponse(running=[RUNNING], failed=[FAILED])


def test_a_pod_that_does_not_exist_is_asked_of_the_daemon_by_its_name(
    daemon: FakeDaemon, sandboxctl: Sandboxctl
) -> None:
    told(daemon)
    story = sandboxctl("explain", "db").stdout
    assert story.startswith("db  does not exist\n") and "no address left" in story
    (only,) = json.loads(sandboxctl("explain", "db", "-o", "json").stdout)["operations"]
    assert only["subject"] == "default/db"


def test_what_failed_and_what_is_under_way_is_listed(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    told(daemon)
    _, slow, db = sandboxctl("explain", "--failed").stdout.splitlines()
    assert "default/slow" in slow and "under way" in slow
    assert "default/db" in db and "no address left" in db
    assert len(json.loads(sandboxctl("explain", "--failed", "-o", "json").stdout)["failed"]) == 1


def test_pods_shows_them_only_when_asked(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    told(daemon)
    web = daemon.add_pod("web")
    assert "db" not in sandboxctl("pods").stdout
    listed = sandboxctl("pods", "-a").stdout
    assert "Creating (cni.add for" in listed and "Failed: no address left" in listed and web[:12] in listed


def test_one_thing_is_asked_at_a_time(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    assert sandboxctl("explain").exit_code == 2
    assert sandboxctl("explain", "web", "--failed").exit_code == 2


def test_the_commands_are_printed_with_the_pod_before_or_after_the_option(
    daemon: FakeDaemon, sandboxctl: Sandboxctl
) -> None:
    daemon.add_pod("web")
    plugin = host.PluginExecution(command="ADD", binary="/cni/bridge", env={"CNI_COMMAND": "ADD"}, stdin=b"{}")
    daemon.steps = [host.Step(operation="RunPodSandbox", name="cni.add", plugin=plugin)]
    up = sandboxctl("explain", "--commands", "web").stdout
    assert "\nCNI_COMMAND=ADD \\\n/cni/bridge <<'EOF'\n{}\nEOF\n" in up
    assert sandboxctl("explain", "web", "--commands=up").stdout == up
    down = sandboxctl("explain", "web", "--commands=down").stdout
    assert "\nCNI_COMMAND=DEL \\\n" in "\n" + down and "ADD" not in down


def test_commands_are_not_json_and_a_pod_without_any_says_so(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.add_pod("web")
    assert sandboxctl("explain", "--commands", "web", "-o", "json").exit_code == 2
    none = sandboxctl("explain", "--commands", "web")
    assert none.exit_code == 1 and "no execution of a CNI plugin's ADD is recorded" in none.stderr


def test_a_page_is_written_for_its_owner_only_or_to_stdout(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, tmp_path: Path
) -> None:
    daemon.add_pod("web")
    path = tmp_path / "web.html"
    path.touch(0o644)
    done = sandboxctl("explain", "web", "--html", str(path))
    assert (done.exit_code, done.stdout) == (0, "")
    assert "default/web" in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sandboxctl("explain", "web", "--html", "-").stdout.startswith("<!DOCTYPE html>\n")


def test_a_page_is_also_of_what_failed_and_of_one_thing(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, tmp_path: Path
) -> None:
    told(daemon)
    assert "no address left" in sandboxctl("explain", "db", "--html", "-").stdout
    for other in ("--commands", "--commands=down", "-ojson"):
        assert sandboxctl("explain", "db", "--html", "-", other).exit_code == 2
    assert sandboxctl("explain", "--failed", "--html", "-").exit_code == 2
    cannot = sandboxctl("explain", "db", "--html", str(tmp_path / "no" / "such"))
    assert cannot.exit_code == 1 and "No such file or directory" in cannot.stderr


def test_changes_are_told_from_the_record_and_without_one_from_what_there_is(
    daemon: FakeDaemon, sandboxctl: Sandboxctl
) -> None:
    daemon.add_pod("web")
    daemon.things = [host.NetworkThing(place="pod", kind="link", name="eth0", belongs_to="pod")]
    now = sandboxctl("explain", "--changes", "web").stdout
    assert "What there was before is not known" in now and "link eth0" in now
    assert json.loads(sandboxctl("explain", "web", "--changes", "-o", "json").stdout)["now"]["things"]

    change = host.NetworkChange(place="host", kind="link", name="sbx0", change="added", belongs_to="network")
    detail = {"after": "bridge", "verb": "ADD"}
    daemon.steps = [host.Step(operation="RunPodSandbox", name="cni.look", changes=[change], detail=detail)]
    daemon.calls.clear()
    told = sandboxctl("explain", "--changes", "web").stdout
    assert "    ADD bridge\n" in told and "+ link sbx0" in told and "PodNetwork" not in daemon.calls


def test_changes_go_with_a_pod_and_no_other_view(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.add_pod("web")
    for argv in (("--failed",), ("web", "-v"), ("web", "--commands")):
        assert sandboxctl("explain", "--changes", *argv).exit_code == 2


def test_changes_of_what_failed_without_a_record_are_not_known(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    told(daemon)
    assert "not known" in sandboxctl("explain", "--changes", "db").stdout
    assert "PodNetwork" not in daemon.calls

"""`pods`, `ps`, `inspect` and `explain`, against a fake daemon."""

from __future__ import annotations

import json

import pytest
import yaml

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon


@pytest.fixture
def web(daemon: FakeDaemon) -> str:
    return daemon.add_pod("web", app="shop")


@pytest.fixture
def db(daemon: FakeDaemon) -> str:
    return daemon.add_pod("db", "prod", ready=False)


def test_pods_are_listed_newest_first_with_their_ips(sandboxctl: Sandboxctl, web: str, db: str) -> None:
    lines = [line.split() for line in sandboxctl("pods").stdout.splitlines()]
    assert [line[:5] for line in lines[1:]] == [
        [db[:12], "db", "prod", "NotReady", "10.0.10.3"],
        [web[:12], "web", "default", "Ready", "10.0.10.2"],
    ]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ((), {"web", "db"}),
        (("--label", "app=shop"), {"web"}),
        (("--label", "app=shop", "--label", "x=y"), set()),
        (("--state", "notready"), {"db"}),
        (("--name", "w*", "--name", "x"), {"web"}),
        (("--namespace", "prod"), {"db"}),
    ],
)
def test_pods_are_filtered(
    sandboxctl: Sandboxctl, web: str, db: str, filters: tuple[str, ...], expected: set[str]
) -> None:
    by_id = {web: "web", db: "db"}
    assert {by_id[line] for line in sandboxctl("pods", "-q", *filters).stdout.splitlines()} == expected


def test_pods_for_programs_have_the_network(sandboxctl: Sandboxctl, web: str) -> None:
    as_json = json.loads(sandboxctl("pods", "-o", "json").stdout)
    as_yaml = yaml.safe_load(sandboxctl("pods", "-o", "yaml").stdout)
    assert as_json == as_yaml
    assert [(each["id"], each["network"]["ip"]) for each in as_json["items"]] == [(web, "10.0.10.2")]


def test_no_pods_are_a_heading_for_people_and_nothing_for_scripts(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    assert sandboxctl("pods").stdout.split() == [
        "POD",
        "ID",
        "NAME",
        "NAMESPACE",
        "STATE",
        "IP",
        "CREATED",
        "RUNTIME",
    ]
    assert sandboxctl("pods", "-q").stdout == ""


def test_a_pod_that_goes_while_it_is_looked_at_is_no_error(
    daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str
) -> None:
    pod = daemon.pods[web]
    pod.id = "f" * 64  # listed by an id that has no status any more
    result = sandboxctl("pods")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split()[:5] == ["f" * 12, "web", "default", "Ready", "-"]


def test_ps_lists_what_runs_and_all_on_request(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str) -> None:
    running = daemon.add_container(web, "app")
    ended = daemon.add_container(web, "job", cri.CONTAINER_EXITED)
    daemon.containers[ended].exit_code = 3
    assert sandboxctl("ps", "-q").stdout.split() == [running]
    rows = [line.split("   ") for line in sandboxctl("ps", "-a").stdout.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()][:6] for row in rows[1:]]
    assert cells == [
        [ended[:12], "job", "web", "busybox", "Exited (3)", "10.0.10.2"],
        [running[:12], "app", "web", "busybox", "Running", "10.0.10.2"],
    ]


def test_ps_filters_by_pod_state_and_name(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str, db: str) -> None:
    app, job = daemon.add_container(web, "app"), daemon.add_container(db, "job", cri.CONTAINER_EXITED)
    assert sandboxctl("ps", "-aq", "--pod", "db").stdout.split() == [job]
    assert sandboxctl("ps", "-q", "--state", "exited").stdout.split() == [job]
    assert sandboxctl("ps", "-aq", "--name", "a*").stdout.split() == [app]
    assert sandboxctl("ps", "-aq", "--label", "x=y").stdout == ""


def test_ps_for_programs_has_the_pods_network(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str) -> None:
    app = daemon.add_container(web, "app")
    (item,) = json.loads(sandboxctl("ps", "-o", "json").stdout)["containers"]
    assert (item["id"], item["network"]["ip"], item["state"]) == (app, "10.0.10.2", "CONTAINER_RUNNING")


def test_inspect_gives_status_and_parsed_info(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str) -> None:
    app = daemon.add_container(web, "web")
    pod = json.loads(sandboxctl("inspect", "web").stdout)
    assert (pod["status"]["id"], pod["info"]["config"]["logDirectory"]) == (web, "/logs/web")
    container = yaml.safe_load(sandboxctl("inspect", "web/web", "-o", "yaml").stdout)
    assert (container["status"]["id"], container["info"]["pid"]) == (app, 43)


def test_a_name_of_nothing_is_not_found_and_of_several_is_listed(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    first, second = daemon.add_pod("web"), daemon.add_pod("web", "prod")
    missing, several = sandboxctl("inspect", "nosuch"), sandboxctl("inspect", "web")
    assert (missing.exit_code, several.exit_code) == (3, 1)
    assert "there is no pod or container 'nosuch'" in missing.stderr
    assert f"{first[:12]}  pod default/web" in several.stderr
    assert f"{second[:12]}  pod prod/web" in several.stderr
    assert json.loads(sandboxctl("inspect", second[:10]).stdout)["status"]["id"] == second


def test_explain_tells_the_story_to_people_and_programs(daemon: FakeDaemon, sandboxctl: Sandboxctl, web: str) -> None:
    plugin = host.PluginExecution(command="ADD", binary="/opt/cni/bin/bridge", stdin=b'{"name": "n"}')
    daemon.steps = [host.Step(operation="RunPodSandbox", name="cni.add", plugin=plugin)]
    story = sandboxctl("explain", "web").stdout
    assert story.startswith(f"Pod default/web  {web[:12]}\n")
    assert "ADD bridge → no address, no interface" in story and "/opt/cni/bin" not in story
    assert "ADD /opt/cni/bin/bridge  exit status 0" in sandboxctl("explain", "-v", "web").stdout
    (step,) = json.loads(sandboxctl("explain", "web", "-o", "json").stdout)["steps"]
    assert step["plugin"]["stdin"] == {"name": "n"}

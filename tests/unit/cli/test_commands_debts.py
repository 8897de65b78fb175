"""`debts`, and what other commands say of them, against a fake daemon."""

from __future__ import annotations

import json

import grpc
import pytest

from sandboxd.cli.names import SHORT_ID
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.unit.cli.conftest import Sandboxctl
from tests.unit.cli.fake_daemon import FakeDaemon

NOW = 10**18
GONE, STOPPED = "ab" * 32, "ac" * 32
REFUSED = "CNI plugin portmap failed on DEL: no such chain"


@pytest.fixture
def owing(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    """Of two pods: one removed, that owes two plugins' DELs, and one stopped, of which all plugins' are owed."""
    monkeypatch.setattr("sandboxd.cli.commands_debts.now", lambda: NOW)
    past = NOW - 90 * 10**9
    daemon.debts = [
        host.Debt(
            pod_sandbox_id=GONE,
            pod="shop/web",
            network="pods",
            ifname="eth0",
            ips=["10.88.0.2"],
            plugins=[
                host.OwedPlugin(plugin="bridge", error="no luck", attempts=3),
                host.OwedPlugin(plugin="portmap", error=REFUSED, attempts=2),
            ],
            error=f"no luck; {REFUSED}",
            attempts=3,
            failed_at=past,
            next_at=NOW + 99_500_000_000,
        ),
        host.Debt(
            pod_sandbox_id=STOPPED,
            pod="shop/db",
            pod_exists=True,
            network="pods",
            error="the record is damaged",
            attempts=1,
            failed_at=past,
        ),
    ]
    return daemon


def test_each_plugin_that_owes_is_a_line_with_its_pod_its_error_and_its_next_try(
    owing: FakeDaemon, sandboxctl: Sandboxctl
) -> None:
    heading, *rows = sandboxctl("debts").stdout.splitlines()
    assert heading.split("  ")[0] == "POD ID"
    assert [" ".join(row.split()) for row in rows] == [
        f"{GONE[:SHORT_ID]} shop/web (removed) pods bridge 10.88.0.2 1m ago 3 in 100s no luck",
        f"{GONE[:SHORT_ID]} shop/web (removed) pods portmap 10.88.0.2 1m ago 2 in 100s {REFUSED}",
        f"{STOPPED[:SHORT_ID]} shop/db pods (all) - 1m ago 1 now the record is damaged",
    ]


@pytest.mark.parametrize(("seconds", "words"), [(-5, "due"), (1, "in 1s"), (119, "in 119s"), (200, "in 3m")])
def test_the_next_try_is_told_in_words(owing: FakeDaemon, sandboxctl: Sandboxctl, seconds: int, words: str) -> None:
    owing.debts = [host.Debt(pod_sandbox_id=GONE, next_at=NOW + seconds * 10**9, error="-", network="n")]
    (row,) = sandboxctl("debts").stdout.splitlines()[1:]
    assert f"   {words}   " in row


def test_programs_get_everything(owing: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    answer = json.loads(sandboxctl("debts", "-o", "json").stdout)
    assert [debt["podSandboxId"] for debt in answer["debts"]] == [GONE, STOPPED]
    assert answer["debts"][0]["plugins"][1] == {"plugin": "portmap", "error": REFUSED, "attempts": 2}


@pytest.mark.parametrize("reference", [GONE, GONE[:8], "shop/web", "web"])
@pytest.mark.parametrize(("command", "call"), [("retry", "RetryDebt"), ("forgive", "ForgiveDebt")])
def test_a_pod_is_named_in_any_way_also_one_that_is_removed(
    owing: FakeDaemon, sandboxctl: Sandboxctl, command: str, call: str, reference: str
) -> None:
    result = sandboxctl("debts", command, reference)
    assert result.exit_code == 0
    assert owing.requests[call].pod_sandbox_id == GONE
    assert result.stdout.split()[0] == GONE


def test_what_was_forgiven_is_printed_with_the_addresses_that_may_be_held(
    owing: FakeDaemon, sandboxctl: Sandboxctl
) -> None:
    assert sandboxctl("debts", "forgive", "--all").stdout.splitlines() == [
        f"{GONE}  may still hold 10.88.0.2",
        STOPPED,
    ]
    assert owing.debts == []


def test_one_that_cannot_be_paid_does_not_keep_the_others_from_it(owing: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    owing.fail["RetryDebt"] = (grpc.StatusCode.FAILED_PRECONDITION, REFUSED)
    result = sandboxctl("debts", "retry", "-a")
    assert result.exit_code == 1
    assert result.stderr.count(REFUSED) == 2
    assert owing.calls.count("RetryDebt") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("retry",), 2, "name a pod, or use --all"),
        (("forgive", "web", "--all"), 2, "name pods or use --all, not both"),
        (("retry", "none"), 3, "there is no debt of pod 'none'"),
        (("forgive", "a"), 1, "'a' is more than one pod"),
    ],
)
def test_what_is_meant_must_be_clear(
    owing: FakeDaemon, sandboxctl: Sandboxctl, arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = sandboxctl("debts", *arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert not {"RetryDebt", "ForgiveDebt"} & set(owing.calls)


# What other commands say of debts


def test_pods_marks_those_that_owe_and_says_how_many_do(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    stopped = daemon.add_pod("db", ready=False)
    daemon.add_pod("web")
    assert "owes" not in sandboxctl("pods").stdout
    daemon.debts = [host.Debt(pod_sandbox_id=stopped, pod_exists=True), host.Debt(pod_sandbox_id=GONE)]

    result = sandboxctl("pods")

    (row,) = [line for line in result.stdout.splitlines() if "owes" in line]
    assert "db" in row and "NotReady (owes DEL)" in row
    assert "2 pods owe their networks DELs; `sandboxctl debts` shows what and why" in result.stderr


def test_pods_of_an_older_daemon_are_listed(daemon: FakeDaemon, sandboxctl: Sandboxctl) -> None:
    daemon.add_pod("web")
    daemon.fail["ListDebts"] = (grpc.StatusCode.UNIMPLEMENTED, "unknown method")
    assert sandboxctl("pods").exit_code == 0
    daemon.fail["ListDebts"] = (grpc.StatusCode.UNAVAILABLE, "starting")
    assert sandboxctl("pods").exit_code == 4


@pytest.mark.parametrize(("debts", "words"), [([], "0"), ([{}, {}], "2: `sandboxctl debts` shows them")])
def test_info_tells_their_number(daemon: FakeDaemon, sandboxctl: Sandboxctl, debts: list[object], words: str) -> None:
    daemon.info["network"] = json.dumps({"name": "pods", "debts": debts})
    lines = [line.split(maxsplit=1) for line in sandboxctl("info").stdout.splitlines()]
    assert ["NetworkDebts", words] in lines
    assert ["network.name", "pods"] in lines and not [line for line in lines if line[0] == "network.debts"]
    assert json.loads(sandboxctl("info", "-o", "json").stdout)["info"]["network"]["debts"] == debts

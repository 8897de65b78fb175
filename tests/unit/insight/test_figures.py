"""What a daemon has, read on each scrape, on fakes; a real one is in tests/e2e/test_observing.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from sandboxd import steps
from sandboxd.announce import Announcer
from sandboxd.cni.conf import NetworkConfig
from sandboxd.images.fetch import Counters
from sandboxd.insight.addresses import Addresses, Use
from sandboxd.insight.figures import Figures, Sources
from sandboxd.insight.metrics import Metrics
from sandboxd.logs.client import Counted
from sandboxd.model import Attachment, ImageRecord
from tests import observing
from tests.fakes.bundle import Bundle


@dataclass
class Daemon:
    """Figures that the test makes up around a node of fakes, and what they say."""

    bundle: Bundle
    counters: Counters = field(default_factory=Counters)
    pulling: tuple[str, ...] = ()
    logs: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(counted=Counted(), connected=True))
    rpcs: dict[str, int] = field(default_factory=dict)
    plugins: dict[str, tuple[int, int]] = field(default_factory=dict)
    owed: list[Attachment] = field(default_factory=list)
    found: int = 0
    trouble: str = ""

    def __post_init__(self) -> None:
        def no_network() -> NetworkConfig | None:
            return None

        self.addresses = Addresses(no_network)
        self.announcer = Announcer(self.bundle.node.ledger)
        sources = Sources(
            node=self.bundle.node,
            pulls=SimpleNamespace(counters=self.counters, in_flight=lambda: self.pulling),
            images=lambda: [cast(ImageRecord, None)] * 3,
            addresses=self.addresses,
            announcer=self.announcer,
            logs=self.logs,
            rpcs=self.rpcs,
            plugins=lambda: self.plugins,
            debts=lambda: self.owed,
            findings=lambda: self.found,
            trouble=lambda: self.trouble,
        )
        self._metrics = Metrics("1", Figures(sources))

    def text(self) -> str:
        return self._metrics.exposition().decode()

    def value(self, name: str, **labels: str) -> float:
        return observing.values(self.text())[f"sandboxd_{name}", frozenset(labels.items())]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    with Bundle(tmp_path, monkeypatch) as bundle:
        yield Daemon(bundle)


def test_the_documentation_has_every_metric_with_its_type(daemon: Daemon) -> None:
    """With its labels, too: tests/e2e/test_observing.py."""
    promised = {name: metric.kind for name, metric in observing.documented().items()}
    assert {name: metric.kind for name, metric in observing.exposed(daemon.text()).items()} == promised


def test_what_pulls_count_is_exported_all_of_it(daemon: Daemon) -> None:
    value, counters = daemon.value, daemon.counters
    assert value("image_pulls_started_total") == 0
    for number, each in enumerate(fields(Counters), start=1):
        setattr(counters, each.name, number)
    daemon.pulling = ("a", "b")
    assert {
        value("image_pulls_started_total"): counters.started,
        value("image_pulls_total", outcome="succeeded"): counters.succeeded,
        value("image_pulls_total", outcome="failed"): counters.failed,
        value("image_pulls_total", outcome="cancelled"): counters.cancelled,
        value("image_fetched_bytes_total"): counters.bytes_fetched,
        value("image_blobs_total", how="fetched"): counters.blobs_fetched,
        value("image_blobs_total", how="reused"): counters.blobs_reused,
        value("image_blobs_resumed_total"): counters.blobs_resumed,
        value("image_retries_total"): counters.retries,
    } == {number: number for number in range(1, 1 + len(fields(Counters)))}
    assert value("image_pulls_in_flight") == 2
    assert value("images") == 3


def test_debts_are_counted_with_their_age(daemon: Daemon) -> None:
    assert daemon.value("network_debts") == daemon.value("network_debt_oldest_seconds") == 0
    past = time.time_ns() - 3600 * 10**9
    daemon.owed = [cast(Attachment, SimpleNamespace(failed_at=at)) for at in (0, past, past + 10**9)]
    assert daemon.value("network_debts") == 3
    assert daemon.value("network_debt_oldest_seconds") >= 3600


def test_pods_and_containers_are_counted_by_state_those_that_are_none_too(daemon: Daemon) -> None:
    daemon.bundle.with_records()
    assert daemon.value("pods", state="ready") == 1
    assert daemon.value("pods", state="prepared") == 0
    assert daemon.value("pods", state="notready") == daemon.value("pods", state="creating") == 0
    assert daemon.value("containers", state="created") == 1
    assert daemon.value("containers", state="running") == 0


def test_work_under_way_is_shown_with_its_age_and_what_it_waits_for(daemon: Daemon) -> None:
    assert daemon.value("steps_in_flight", step="pod.wait") == 0
    with steps.operation("RunPodSandbox"), steps.step("pod.wait"):
        assert daemon.value("operations_in_flight", operation="RunPodSandbox") == 1
        assert daemon.value("operation_oldest_seconds", operation="RunPodSandbox") >= 0
        assert daemon.value("steps_in_flight", step="pod.wait") == 1
    assert "RunPodSandbox" not in daemon.text()


async def test_turns_are_shown_taken_waited_for_and_how_many_there_are(daemon: Daemon) -> None:
    load = daemon.bundle.node.machine.load
    async with load.pods.turn(), load.execs.places.turn("one"), load.execs.places.turn("other"):
        assert daemon.value("turns_taken", queue="pods") == 1
        assert daemon.value("turns_taken", queue="exec_places") == 2
        assert daemon.value("turns_waiting", queue="pods") == 0
        assert daemon.value("turns_limit", queue="pods") == load.pods.each


def test_the_rest_is_what_its_source_says(daemon: Daemon) -> None:
    daemon.rpcs["a/B"] = 2
    daemon.plugins["ADD"] = 3, 4
    daemon.addresses.use = [Use(network="net", range="10.0.0.1-10.0.0.9", used=5, left=6)]
    daemon.logs.counted = Counted(read=7, lost=8)
    daemon.found = 9
    value = daemon.value
    assert value("rpcs_in_flight", method="a/B") == 2
    assert value("plugins_in_flight", command="ADD") == 3
    assert value("plugins_waiting", command="ADD") == 4
    assert value("network_addresses_used", network="net", range="10.0.0.1-10.0.0.9") == 5
    assert value("network_addresses_left", network="net", range="10.0.0.1-10.0.0.9") == 6
    assert value("log_read_bytes_total") == 7
    assert value("log_lost_bytes_total") == 8
    assert value("audit_findings") == 9
    with daemon.announcer.subscribe():
        assert value("event_subscribers") == 1


def test_health_is_one_or_zero(daemon: Daemon) -> None:
    assert daemon.value("ready") == daemon.value("containerd_up") == daemon.value("logger_up") == 1
    assert daemon.value("ledger_writable") == 1
    daemon.trouble = "starting"
    daemon.logs.connected = False
    daemon.bundle.node.ledger.commits.trouble = "full"
    assert daemon.value("ready") == daemon.value("logger_up") == daemon.value("ledger_writable") == 0

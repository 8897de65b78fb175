"""The daemon's figures, as Prometheus' own parser reads them."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sandboxd.images.fetch import Counters
from sandboxd.images.pull import Pulls
from sandboxd.insight.metrics import Metrics
from sandboxd.model import Attachment
from sandboxd.steps import StepRecord


class Figures:
    """Metrics of pulls that the test makes up, and what they say."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.flying: tuple[str, ...] = ()
        pulls = SimpleNamespace(counters=self.counters, in_flight=lambda: self.flying)
        self.owed: list[Attachment] = []
        self.metrics = Metrics(cast(Pulls, pulls), "1.2.3", lambda: self.owed)

    def value(self, name: str, **labels: str) -> float:
        return self.samples()[name, frozenset(labels.items())]

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        text = self.metrics.exposition().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture
def figures() -> Figures:
    return Figures()


def step(name: str, seconds: float, error: str = "", **detail: str) -> StepRecord:
    return StepRecord(
        operation="RunPodSandbox",
        name=name,
        sandbox_id="p",
        container_id="",
        started_at=1,
        duration=int(seconds * 1e9),
        error=error,
        detail=detail,
    )


def test_what_pulls_count_is_read_when_it_is_asked_for(figures: Figures) -> None:
    assert figures.value("sandboxd_image_pulls_started_total") == 0
    for number, each in enumerate(fields(Counters), start=1):
        setattr(figures.counters, each.name, number)
    figures.flying = ("a", "b")

    counters, value = figures.counters, figures.value
    assert {
        value("sandboxd_image_pulls_started_total"): counters.started,
        value("sandboxd_image_pulls_total", outcome="succeeded"): counters.succeeded,
        value("sandboxd_image_pulls_total", outcome="failed"): counters.failed,
        value("sandboxd_image_pulls_total", outcome="cancelled"): counters.cancelled,
        value("sandboxd_image_fetched_bytes_total"): counters.bytes_fetched,
        value("sandboxd_image_blobs_total", how="fetched"): counters.blobs_fetched,
        value("sandboxd_image_blobs_total", how="reused"): counters.blobs_reused,
        value("sandboxd_image_blobs_resumed_total"): counters.blobs_resumed,
        value("sandboxd_image_retries_total"): counters.retries,
    } == {number: number for number in range(1, 1 + len(fields(Counters)))}, "each counter is exported"
    assert value("sandboxd_image_pulls_in_flight") == 2


def test_steps_are_timed_by_name_and_outcome(figures: Figures) -> None:
    for record in (step("cni.add", 0.003), step("cni.add", 2.0), step("cni.add", 0.1, "no address")):
        figures.metrics.step(record)

    value = figures.value
    assert value("sandboxd_step_seconds_count", step="cni.add", outcome="ok") == 2
    assert value("sandboxd_step_seconds_count", step="cni.add", outcome="error") == 1
    assert value("sandboxd_step_seconds_sum", step="cni.add", outcome="ok") == pytest.approx(2.003)
    assert value("sandboxd_step_seconds_bucket", step="cni.add", outcome="ok", le="0.005") == 1


def test_rpcs_are_counted_by_method_and_code(figures: Figures) -> None:
    for code in ("OK", "OK", "NOT_FOUND"):
        figures.metrics.rpc("runtime.v1.RuntimeService/Version", code)

    assert figures.value("sandboxd_rpcs_total", method="runtime.v1.RuntimeService/Version", code="OK") == 2
    assert figures.value("sandboxd_rpcs_total", method="runtime.v1.RuntimeService/Version", code="NOT_FOUND") == 1


def test_who_answers_and_what_it_costs_is_there_and_nothing_else(figures: Figures) -> None:
    figures.metrics.step(step("cni.add", 1.0))
    names = {name for name, _ in figures.samples()}

    assert figures.value("sandboxd_build_info", version="1.2.3") == 1
    assert figures.value("process_resident_memory_bytes") > 1 << 20
    assert all(name.startswith(("sandboxd_", "process_")) for name in names)
    assert not [name for name in names if name.endswith("_created")]


def test_each_daemon_has_figures_of_its_own() -> None:
    one, other = Figures(), Figures()
    one.metrics.rpc("m", "OK")

    assert "sandboxd_rpcs_total" not in {name for name, _ in other.samples()}


def test_debts_are_counted_with_their_age_and_each_further_attempt_with_its_outcome(figures: Figures) -> None:
    assert figures.value("sandboxd_network_debts") == figures.value("sandboxd_network_debt_oldest_seconds") == 0
    past = time.time_ns() - 3600 * 10**9
    figures.owed = [cast(Attachment, SimpleNamespace(failed_at=at)) for at in (0, past, past + 10**9)]
    assert figures.value("sandboxd_network_debts") == 3
    assert figures.value("sandboxd_network_debt_oldest_seconds") >= 3600

    for attempt, error in (("1", "no"), ("2", "no"), ("3", "no"), ("4", "")):
        figures.metrics.step(replace(step("pod.network.detach", 0.1, error), detail={"attempt": attempt}))
    assert figures.value("sandboxd_network_debt_retries_total", outcome="failed") == 2
    assert figures.value("sandboxd_network_debt_retries_total", outcome="paid") == 1


def test_failures_of_networks_are_counted_by_what_they_mean(figures: Figures) -> None:
    full = {"plugin": "bridge", "kind": "addresses_exhausted"}
    for record in (
        step("cni.add", 1, "no IP addresses available", **full),
        step("cni.add", 1, "no IP addresses available", **full),
        step("cni.prepare", 1, "no network", plugin="", kind="no_network"),
        step("cni.add", 1, plugin="bridge"),
        step("pod.network.attach", 1, "no IP addresses available", **full),
        step("cni.version", 1, "cannot be executed", plugin="bridge"),
    ):
        figures.metrics.step(record)

    name = "sandboxd_network_failures_total"
    counted = {labels: value for (each, labels), value in figures.samples().items() if each == name}
    assert counted == {
        frozenset({**full, "command": "ADD"}.items()): 2,
        frozenset({"plugin": "", "command": "PREPARE", "kind": "no_network"}.items()): 1,
    }

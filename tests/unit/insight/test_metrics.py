"""What happened, counted, as Prometheus' own parser reads them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandboxd.insight.metrics import Metrics
from sandboxd.steps import OperationRecord, PluginExecution, RpcRecord, StepRecord
from tests.observing import values

VERSION = "runtime.v1.RuntimeService/Version"
PLUGIN = PluginExecution(
    command="ADD", binary="/x", env={}, stdin=b"", stdout=b"", stderr=b"", exit_code=0, duration=2_500_000_000
)


class Counted:
    """Metrics, and what they say."""

    def __init__(self) -> None:
        self.metrics = Metrics("1.2.3")

    def value(self, name: str, **labels: str) -> float:
        return self.samples()[name, frozenset(labels.items())]

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return values(self.metrics.exposition().decode())


@pytest.fixture
def counts() -> Counted:
    return Counted()


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


def test_steps_are_timed_by_name_and_outcome(counts: Counted) -> None:
    for record in (step("cni.add", 0.003), step("cni.add", 2.0), step("cni.add", 0.1, "no address")):
        counts.metrics.step(record)

    value = counts.value
    assert value("sandboxd_step_seconds_count", step="cni.add", outcome="ok") == 2
    assert value("sandboxd_step_seconds_count", step="cni.add", outcome="error") == 1
    assert value("sandboxd_step_seconds_sum", step="cni.add", outcome="ok") == pytest.approx(2.003)
    assert value("sandboxd_step_seconds_bucket", step="cni.add", outcome="ok", le="0.005") == 1


def rpc(code: str = "OK") -> RpcRecord:
    return RpcRecord(method=VERSION, code=code, started_at=1, duration=3 * 10**6)


def test_rpcs_are_counted_and_timed_by_method_and_code(counts: Counted) -> None:
    for code in ("OK", "OK", "NOT_FOUND"):
        counts.metrics.rpc(rpc(code))

    assert counts.value("sandboxd_rpcs_total", method=VERSION, code="OK") == 2
    assert counts.value("sandboxd_rpcs_total", method=VERSION, code="NOT_FOUND") == 1
    assert counts.value("sandboxd_rpc_seconds_sum", method=VERSION, code="OK") == 0.006
    assert counts.value("sandboxd_rpc_seconds_bucket", method=VERSION, code="OK", le="0.005") == 2


def test_who_answers_and_what_it_costs_is_there_and_nothing_else(counts: Counted) -> None:
    counts.metrics.step(step("cni.add", 1.0))
    names = {name for name, _ in counts.samples()}

    assert counts.value("sandboxd_build_info", version="1.2.3") == 1
    assert counts.value("process_resident_memory_bytes") > 1 << 20
    assert all(name.startswith(("sandboxd_", "process_")) for name in names)
    assert not [name for name in names if name.endswith("_created")]


def test_each_daemon_has_counts_of_its_own() -> None:
    one, other = Counted(), Counted()
    one.metrics.rpc(rpc())

    assert "sandboxd_rpcs_total" not in {name for name, _ in other.samples()}


def test_each_further_attempt_at_a_del_is_counted_with_its_outcome(counts: Counted) -> None:
    for attempt, error in (("1", "no"), ("2", "no"), ("3", "no"), ("4", "")):
        counts.metrics.step(replace(step("pod.network.detach", 0.1, error), detail={"attempt": attempt}))
    assert counts.value("sandboxd_network_debt_retries_total", outcome="failed") == 2
    assert counts.value("sandboxd_network_debt_retries_total", outcome="paid") == 1


@pytest.mark.parametrize(
    ("done", "outcome"),
    [
        (PLUGIN, "ok"),
        (replace(PLUGIN, exit_code=1), "error"),
        (replace(PLUGIN, exit_code=-9, timed_out=True), "timeout"),
    ],
)
def test_plugins_are_timed_by_themselves(counts: Counted, done: PluginExecution, outcome: str) -> None:
    counts.metrics.step(replace(step("cni.add", 9.0, plugin="bridge"), plugin=done))
    labels = {"plugin": "bridge", "command": "ADD", "outcome": outcome}
    assert counts.value("sandboxd_plugin_seconds_count", **labels) == 1
    assert counts.value("sandboxd_plugin_seconds_sum", **labels) == 2.5, "without the wait for a slot"


def test_operations_are_timed_by_outcome(counts: Counted) -> None:
    for error in ("", "", "no"):
        counts.metrics.operation(
            OperationRecord(
                operation="RunPodSandbox",
                subject="default/web",
                sandbox_id="p",
                container_id="",
                started_at=1,
                duration=10**9,
                error=error,
            )
        )
    assert counts.value("sandboxd_operation_seconds_sum", operation="RunPodSandbox", outcome="ok") == 2
    assert counts.value("sandboxd_operation_seconds_count", operation="RunPodSandbox", outcome="error") == 1


def test_failures_of_networks_are_counted_by_what_they_mean(counts: Counted) -> None:
    full = {"plugin": "bridge", "kind": "addresses_exhausted"}
    for record in (
        step("cni.add", 1, "no IP addresses available", **full),
        step("cni.add", 1, "no IP addresses available", **full),
        step("cni.prepare", 1, "no network", plugin="", kind="no_network"),
        step("cni.add", 1, plugin="bridge"),
        step("pod.network.attach", 1, "no IP addresses available", **full),
        step("cni.version", 1, "cannot be executed", plugin="bridge"),
    ):
        counts.metrics.step(record)

    name = "sandboxd_network_failures_total"
    counted = {labels: value for (each, labels), value in counts.samples().items() if each == name}
    assert counted == {
        frozenset({**full, "command": "ADD"}.items()): 2,
        frozenset({"plugin": "", "command": "PREPARE", "kind": "no_network"}.items()): 1,
    }

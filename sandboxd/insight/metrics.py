"""What the daemon counts and times, for Prometheus: RPCs, operations, steps, plugins. docs/metrics.md lists it all.

What is there at a moment (pods, work under way, addresses) is read on each scrape (`figures`); here is what happened.
All of it comes from the records of `steps`: nothing is timed for metrics alone.

The registry is our own, because prometheus_client's global one is shared with every other importer. Label values
come from the code (steps, methods, codes, kinds), those of plugins from the network's configuration, and never from
requests, so that their number is bounded.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from sandboxd.steps import OperationRecord, PluginExecution, RpcRecord, StepRecord, Story

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. Reads take less than a millisecond and most steps a few; kubelet waits for two minutes, or four, and the
# layers of a large image may take longer.
BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """All metrics of one daemon."""

    def __init__(self, version: str, *figures: Collector) -> None:
        """`figures` are read on each scrape."""
        # A creation time for each series would double the answer, and process_start_time_seconds is enough.
        disable_created_metrics()  # type: ignore[no-untyped-call, unused-ignore]
        self._registry = CollectorRegistry()
        self._rpcs = self._counter("rpcs", "RPCs that were answered.", "method", "code")
        self._rpc_seconds = self._histogram(
            "rpc_seconds", "How long RPCs took; one that streams, how long it was open.", "method", "code"
        )
        # To look one up takes long.
        self._rpc_series: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._step_series: dict[tuple[str, str], Histogram] = {}
        self._operations = self._histogram(
            "operation_seconds", "How long operations took, repairs included.", "operation", "outcome"
        )
        self._failed = self._counter("operations_failed", "Requests that failed after they were begun.", "operation")
        self._steps = self._histogram("step_seconds", "Duration of the steps of operations.", "step", "outcome")
        self._plugins = self._histogram(
            "plugin_seconds", "How long executions of CNI plugins took.", "plugin", "command", "outcome"
        )
        self._network = self._counter(
            "network_failures",
            "Failures of CNI plugins, and of what precedes them (PREPARE), by what their words mean.",
            "plugin",
            "command",
            "kind",
        )
        self._retries = self._counter("network_debt_retries", "Further attempts at DELs that had failed.", "outcome")
        for outcome in ("paid", "failed"):
            self._retries.labels(outcome=outcome)
        Info("sandboxd_build", "Version of sandboxd.", registry=self._registry).info({"version": version})
        ProcessCollector(registry=self._registry)
        for each in figures:
            self._registry.register(each)

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"sandboxd_{name}", words, labels, registry=self._registry)

    def _histogram(self, name: str, words: str, *labels: str) -> Histogram:
        return Histogram(f"sandboxd_{name}", words, labels, buckets=BUCKETS, registry=self._registry)

    def rpc(self, record: RpcRecord) -> None:
        """Count and time an RPC that has ended."""
        labels = record.method, record.code
        series = self._rpc_series.get(labels)
        if series is None:
            series = self._rpc_series[labels] = self._rpcs.labels(*labels), self._rpc_seconds.labels(*labels)
        counted, seconds = series
        counted.inc()
        seconds.observe(record.duration / 1e9)

    def operation(self, record: OperationRecord) -> None:
        """Time an operation that has ended; for `steps.subscribe_operations`."""
        labels = {"operation": record.operation, "outcome": _outcome(record.error)}
        self._operations.labels(**labels).observe(record.duration / 1e9)

    def story(self, story: Story) -> None:
        """Count an operation that has failed; for `steps.subscribe_failures`."""
        self._failed.labels(operation=story.operation).inc()

    def step(self, record: StepRecord) -> None:
        """Time a step that has ended; for `steps.subscribe`."""
        of = record.name, _outcome(record.error)
        series = self._step_series.get(of)
        if series is None:
            series = self._step_series[of] = self._steps.labels(*of)
        series.observe(record.duration / 1e9)
        if (done := record.plugin) is not None:
            labels = {"plugin": _plugin(record), "command": done.command, "outcome": _outcome_of(done)}
            self._plugins.labels(**labels).observe(done.duration / 1e9)
        replayed = record.operation == "Replay"  # of a failure that was counted when it happened
        if record.error and not replayed and record.name.startswith("cni.") and (kind := record.detail.get("kind")):
            command = record.name.removeprefix("cni.").upper()
            self._network.labels(plugin=_plugin(record), command=command, kind=kind).inc()
        if record.name == "pod.network.detach" and record.detail.get("attempt") != "1":
            self._retries.labels(outcome="failed" if record.error else "paid").inc()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format, of type CONTENT_TYPE."""
        return generate_latest(self._registry)


def _outcome(error: str) -> str:
    return "error" if error else "ok"


def _outcome_of(done: PluginExecution) -> str:
    if done.timed_out:
        return "timeout"
    return "error" if done.exit_code else "ok"


def _plugin(record: StepRecord) -> str:
    return record.detail.get("plugin", "")

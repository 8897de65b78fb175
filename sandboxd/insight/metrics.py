"""The daemon's own metrics for Prometheus: pulls, steps, RPCs, and the process.

    sandboxd_image_…                          the counters of pulls, read on each scrape
    sandboxd_step_seconds{step,outcome}       every step of every operation; outcome is "ok" or "error"
    sandboxd_rpcs_total{method,code}          every answered RPC
    sandboxd_operations_failed_total{operation}  requests that failed after they were begun
    sandboxd_operations_in_flight{operation}  requests, and the daemon's own repairs, under way
    sandboxd_network_failures_total{plugin,command,kind}  of CNI plugins, and of what precedes them; docs/failures.md
    sandboxd_network_debts                    networks of stopped and removed pods for which a DEL failed
    sandboxd_network_debt_oldest_seconds      how long ago the oldest of them failed first, 0 without one
    sandboxd_network_debt_retries{outcome}    further attempts; outcome is "paid" or "failed"
    sandboxd_audit_findings                   things that no record knows, or that are missing, by the last audit
    sandboxd_build_info, process_…            the version, and what the process uses

The registry is our own, because prometheus_client's global one is shared with every other importer. Label values
come from the code (steps, methods, codes, kinds), those of plugins from the network's configuration, and never from
requests, so that their number is bounded.
"""

from __future__ import annotations

import time
from collections import Counter as Counted
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from sandboxd import steps
from sandboxd.images.pull import Pulls
from sandboxd.model import Attachment
from sandboxd.steps import StepRecord, Story

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. Most steps take milliseconds; unpacking and fetching a large image takes minutes.
BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0)


class Metrics:
    """All metrics of one daemon."""

    def __init__(
        self,
        pulls: Pulls,
        version: str,
        debts: Callable[[], Sequence[Attachment]] = tuple,
        findings: Callable[[], int] = int,
    ) -> None:
        """`debts` gives the attachments that are owed, `findings` how many things the last audit has found."""
        # A creation time for each series would double the answer, and process_start_time_seconds is enough.
        disable_created_metrics()  # type: ignore[no-untyped-call, unused-ignore]
        self._registry = CollectorRegistry()
        self._steps = Histogram(
            "sandboxd_step_seconds",
            "Duration of the steps of operations.",
            ("step", "outcome"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._rpcs = Counter("sandboxd_rpcs", "RPCs that were answered.", ("method", "code"), registry=self._registry)
        self._failed = Counter(
            "sandboxd_operations_failed",
            "Requests that failed after they were begun.",
            ("operation",),
            registry=self._registry,
        )
        self._network = Counter(
            "sandboxd_network_failures",
            "Failures of CNI plugins, and of what precedes them (PREPARE), by what their words mean.",
            ("plugin", "command", "kind"),
            registry=self._registry,
        )
        self._retries = Counter(
            "sandboxd_network_debt_retries",
            "Further attempts at DELs that had failed.",
            ("outcome",),
            registry=self._registry,
        )
        for outcome in ("paid", "failed"):
            self._retries.labels(outcome=outcome)
        Info("sandboxd_build", "Version of sandboxd.", registry=self._registry).info({"version": version})
        ProcessCollector(registry=self._registry)
        self._registry.register(_PullFigures(pulls))
        self._registry.register(_DebtFigures(debts))
        self._registry.register(_InFlight())
        Gauge(
            "sandboxd_audit_findings",
            "Things that no record knows, or that records know and are gone, by the last audit.",
            registry=self._registry,
        ).set_function(findings)

    def step(self, record: StepRecord) -> None:
        """Count a step that has ended; for `steps.subscribe`."""
        outcome = "error" if record.error else "ok"
        self._steps.labels(step=record.name, outcome=outcome).observe(record.duration / 1e9)
        if record.error and record.name.startswith("cni.") and (kind := record.detail.get("kind")):
            self._network.labels(
                plugin=record.detail.get("plugin", ""), command=record.name.removeprefix("cni.").upper(), kind=kind
            ).inc()
        if record.name == "pod.network.detach" and record.detail.get("attempt") != "1":
            self._retries.labels(outcome="failed" if record.error else "paid").inc()

    def story(self, story: Story) -> None:
        """Count an operation that has failed; for `steps.subscribe_failures`."""
        self._failed.labels(operation=story.operation).inc()

    def rpc(self, method: str, code: str) -> None:
        """Count an RPC that has ended with `code`, the name of a gRPC status."""
        self._rpcs.labels(method=method, code=code).inc()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format, of type CONTENT_TYPE."""
        return generate_latest(self._registry)


class _PullFigures(Collector):
    """The counters of pulls as metrics. `Pulls` maintains them; they are only read here."""

    def __init__(self, pulls: Pulls) -> None:
        self._pulls = pulls

    def collect(self) -> Iterator[Metric]:
        counters = self._pulls.counters
        ended = CounterMetricFamily("sandboxd_image_pulls", "Pulls that have ended.", labels=("outcome",))
        for outcome in ("succeeded", "failed", "cancelled"):
            ended.add_metric((outcome,), getattr(counters, outcome))
        yield ended
        blobs = CounterMetricFamily(
            "sandboxd_image_blobs", "Layers and configs that pulls needed, fetched or here already.", labels=("how",)
        )
        blobs.add_metric(("fetched",), counters.blobs_fetched)
        blobs.add_metric(("reused",), counters.blobs_reused)
        yield blobs
        for name, words, value in (
            ("pulls_started", "Pulls that were started.", counters.started),
            ("fetched_bytes", "Bytes of layers and configs that came from registries.", counters.bytes_fetched),
            ("blobs_resumed", "Fetched layers that resumed an earlier attempt.", counters.blobs_resumed),
            ("retries", "Requests to registries that were retried.", counters.retries),
        ):
            yield CounterMetricFamily(f"sandboxd_image_{name}", words, value=value)
        yield GaugeMetricFamily(
            "sandboxd_image_pulls_in_flight", "Pulls that are in progress.", value=len(self._pulls.in_flight())
        )


class _InFlight(Collector):
    """The operations under way, read on each scrape."""

    def collect(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily("sandboxd_operations_in_flight", "Operations under way.", labels=("operation",))
        for operation, count in Counted(each.operation for each in steps.running()).items():
            gauge.add_metric((operation,), count)
        yield gauge


class _DebtFigures(Collector):
    """Networks that pods owe a DEL, read on each scrape."""

    def __init__(self, debts: Callable[[], Sequence[Attachment]]) -> None:
        self._debts = debts

    def collect(self) -> Iterator[Metric]:
        owed = self._debts()
        yield GaugeMetricFamily("sandboxd_network_debts", "Networks of pods for which a DEL failed.", value=len(owed))
        first = min((debt.failed_at for debt in owed if debt.failed_at), default=0)
        age = max(0.0, (time.time_ns() - first) / 1e9) if first else 0.0
        yield GaugeMetricFamily(
            "sandboxd_network_debt_oldest_seconds", "How long ago the oldest of them failed first.", value=age
        )

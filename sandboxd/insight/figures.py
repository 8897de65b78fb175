"""What the daemon has at the moment of a scrape: pods, work under way and waiting, debts, addresses, images.

Everything is known already, so that a scrape waits for nobody: neither for a write, nor for a plugin, nor for
containerd. docs/metrics.md lists it.
"""

from __future__ import annotations

import time
from collections import Counter as Counted
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sandboxd import steps
from sandboxd.announce import Announcer
from sandboxd.images.fetch import Counters
from sandboxd.insight.addresses import Addresses
from sandboxd.logs.client import Counted as LogBytes
from sandboxd.model import Attachment, ContainerState, ImageRecord, SandboxState
from sandboxd.node import Node
from sandboxd.pods import eligible
from sandboxd.vocabulary import NAMES

_WAITS = tuple(name for name in NAMES if name.endswith(".wait"))


class Pulling(Protocol):
    """`sandboxd.images.pull.Pulls` is the real one."""

    @property
    def counters(self) -> Counters: ...
    def in_flight(self) -> Sequence[object]: ...


class Logging(Protocol):
    """`sandboxd.logs.client.Logs` is the real one."""

    counted: LogBytes

    @property
    def connected(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the figures come from."""

    node: Node
    pulls: Pulling
    images: Callable[[], Sequence[ImageRecord]]
    addresses: Addresses
    announcer: Announcer
    logs: Logging
    rpcs: Mapping[str, int]  # under way, by method
    plugins: Callable[[], Mapping[str, tuple[int, int]]]  # command → executions that run, that wait
    debts: Callable[[], Sequence[Attachment]]
    findings: Callable[[], int]  # of the last audit
    trouble: Callable[[], str]  # why no requests are taken


class Figures(Collector):
    """One daemon's."""

    def __init__(self, sources: Sources) -> None:
        self._from = sources

    def collect(self) -> Iterator[Metric]:
        """prometheus_client.registry.Collector"""
        yield from self._health()
        yield from self._records()
        yield from self._pool()
        yield from self._under_way()
        yield from self._turns()
        yield from self._network()
        yield from self._images()
        yield from self._pulls()
        yield from self._logs()

    def _health(self) -> Iterator[Metric]:
        node = self._from.node
        yield _gauge("ready", "Whether requests are taken.", not self._from.trouble())
        yield _gauge("containerd_up", "Whether containerd answers.", not node.runtime.trouble())
        yield _gauge("logger_up", "Whether the logger runs.", self._from.logs.connected)
        configured = node.network.conf.current().config is not None
        yield _gauge("network_configured", "Whether a network configuration is in force.", configured)
        commits = node.ledger.commits
        yield _gauge("ledger_writable", "Whether the ledger's last transaction was written.", not commits.trouble)
        yield _gauge(
            "reserve_missing_bytes",
            "What the room set aside on the disk lacks: it was used because the disk is full.",
            node.machine.reserve.missing,
        )
        yield _gauge(
            "audit_findings",
            "Things that no record knows, or that records know and are gone, by the last audit.",
            self._from.findings(),
        )

    def _records(self) -> Iterator[Metric]:
        ledger = self._from.node.ledger
        pods = Counted(pod.state.value for pod in ledger.sandboxes.values())
        yield _gauges("pods", "Pods, by state.", "state", {each.value: pods[each.value] for each in SandboxState})
        containers = Counted(each.state.value for each in ledger.containers.values())
        counted = {each.value: containers[each.value] for each in ContainerState}
        yield _gauges("containers", "Containers, by state.", "state", counted)
        yield _gauge("failures_kept", "Failed operations that can be explained.", ledger.stories_kept)

    def _pool(self) -> Iterator[Metric]:
        node = self._from.node
        yield _gauge("pool_size", "How many pods are to be prepared ahead (pool.size).", node.config.pool.size)
        stock = node.machine.stock
        hits = "Requests for a pod that were given a prepared one."
        yield CounterMetricFamily("sandboxd_pool_hits", hits, value=stock.hits)
        misses = "Requests for a pod that were not, while there is a pool."
        by_reason = {reason: stock.misses[reason] for reason in eligible.REASONS}
        yield _counters("pool_misses", misses, "reason", by_reason)
        yield _gauge(
            "pool_failing", "Whether pods cannot be prepared.", bool(node.config.pool.size and stock.trouble)
        )

    def _under_way(self) -> Iterator[Metric]:
        running = steps.running()
        now = time.time_ns()
        operations = Counted(each.operation for each in running)
        yield _gauges("operations_in_flight", "Operations under way.", "operation", operations)
        oldest: dict[str, float] = {}
        for each in running:
            oldest.setdefault(each.operation, max(0.0, (now - each.started_at) / 1e9))
        yield _gauges(
            "operation_oldest_seconds", "How long the oldest operation under way has taken.", "operation", oldest
        )
        open_ = Counted(dict.fromkeys(_WAITS, 0))
        open_.update(step.name for each in running for step in each.open)
        yield _gauges("steps_in_flight", "Steps under way, waits among them.", "step", open_)
        yield _gauges("rpcs_in_flight", "RPCs under way, streams among them.", "method", self._from.rpcs)
        jobs = len(self._from.node.jobs.in_flight())
        yield _gauge("jobs_in_flight", "Jobs under way: requests, and what goes on in the background.", jobs)
        plugins = self._from.plugins()
        run, wait = ({command: each[part] for command, each in plugins.items()} for part in (0, 1))
        yield _gauges("plugins_in_flight", "CNI plugins that run.", "command", run)
        yield _gauges("plugins_waiting", "Executions of CNI plugins that wait for a slot.", "command", wait)
        announcer = self._from.announcer
        yield _gauge("event_subscribers", "Clients that listen to the events.", announcer.listeners)
        dropped = "Clients that read the events too slowly and were disconnected."
        yield CounterMetricFamily("sandboxd_event_subscribers_dropped", dropped, value=announcer.dropped)

    def _turns(self) -> Iterator[Metric]:
        load = self._from.node.machine.load
        queues = {
            "pods": load.pods,
            "containers": load.containers,
            "teardowns": load.teardowns,
            "exec_sessions": load.execs.sessions,
            "exec_places": load.execs.places,
            "exec_starts": load.execs.starts,
        }
        limits = {name: turns.each for name, turns in queues.items()}
        yield _gauges("turns_limit", "How much is let go on at once; for exec_… in one pod.", "queue", limits)
        taken = {name: turns.taken_in_all for name, turns in queues.items()}
        yield _gauges("turns_taken", "How much has a turn.", "queue", taken)
        waiting = {name: turns.waiting_in_all for name, turns in queues.items()}
        yield _gauges("turns_waiting", "How much waits for a turn.", "queue", waiting)

    def _network(self) -> Iterator[Metric]:
        used = GaugeMetricFamily(
            "sandboxd_network_addresses_used",
            "Addresses of the network in force that are given out.",
            labels=("network", "range"),
        )
        left = GaugeMetricFamily(
            "sandboxd_network_addresses_left",
            "Addresses of the network in force that are left.",
            labels=("network", "range"),
        )
        for each in self._from.addresses.use:
            used.add_metric((each.network, each.range), each.used)
            left.add_metric((each.network, each.range), each.left)
        yield from (used, left)
        owed = self._from.debts()
        yield _gauge("network_debts", "Networks of pods for which a DEL failed.", len(owed))
        first = min((debt.failed_at for debt in owed if debt.failed_at), default=0)
        age = max(0.0, (time.time_ns() - first) / 1e9) if first else 0.0
        yield _gauge("network_debt_oldest_seconds", "How long ago the oldest of them failed first.", age)

    def _images(self) -> Iterator[Metric]:
        yield _gauge("images", "Images.", len(self._from.images()))
        taken = self._from.node.images.fs_info().bytes
        yield _gauge("image_filesystem_bytes", "What unpacked images take, as last measured.", taken)

    def _pulls(self) -> Iterator[Metric]:
        counters = self._from.pulls.counters
        outcomes = ("succeeded", "failed", "cancelled")
        ended = {outcome: getattr(counters, outcome) for outcome in outcomes}
        yield _counters("image_pulls", "Pulls that have ended.", "outcome", ended)
        blobs = {"fetched": counters.blobs_fetched, "reused": counters.blobs_reused}
        yield _counters("image_blobs", "Layers and configs that pulls needed, fetched or here already.", "how", blobs)
        for name, words, value in (
            ("pulls_started", "Pulls that were started.", counters.started),
            ("fetched_bytes", "Bytes of layers and configs that came from registries.", counters.bytes_fetched),
            ("blobs_resumed", "Fetched layers that resumed an earlier attempt.", counters.blobs_resumed),
            ("retries", "Requests to registries that were retried.", counters.retries),
        ):
            yield CounterMetricFamily(f"sandboxd_image_{name}", words, value=value)
        yield _gauge("image_pulls_in_flight", "Pulls that are in progress.", len(self._from.pulls.in_flight()))

    def _logs(self) -> Iterator[Metric]:
        counted = self._from.logs.counted
        read = "Bytes of containers' output that the logger has read since it was started."
        yield CounterMetricFamily("sandboxd_log_read_bytes", read, value=counted.read)
        lost = "Bytes of log entries that it could not write."
        yield CounterMetricFamily("sandboxd_log_lost_bytes", lost, value=counted.lost)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"sandboxd_{name}", words, value=float(value))


def _gauges(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"sandboxd_{name}", words, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _counters(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"sandboxd_{name}", words, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family

"""From measurements to records of use."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd.cgroups.kernel import Cgroups
from sandboxd.errors import NotReady
from sandboxd.model import ContainerRecord, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.places import Places
from sandboxd.usage.cadvisor import list_pod_metrics
from sandboxd.usage.records import Interface
from sandboxd.usage.stats import Rates, Stats, network
from sandboxd.usage.written import Layers
from tests.fakes.bundle import Bundle

S = 1_000_000_000


def test_the_first_rate_is_the_average_since_the_start() -> None:
    assert Rates().rate("c", at=10 * S, value=2 * S, since=6 * S) == S // 2


def test_a_rate_is_told_over_the_time_since_the_last_question() -> None:
    rates = Rates()
    rates.rate("c", 10 * S, 2 * S, since=0)
    assert rates.rate("c", 12 * S, 3 * S, since=0) == S // 2
    assert rates.rate("c", 13 * S, 3 * S, since=0) == 0


def test_clients_that_ask_at_nearly_the_same_moment_are_told_nearly_the_same() -> None:
    """And not what happened in the instant between the two."""
    rates = Rates()
    rates.rate("c", 10 * S, 2 * S, since=0)
    assert rates.rate("c", 12 * S, 4 * S, since=0) == S
    assert rates.rate("c", 12 * S + 1000, 4 * S, since=0) == pytest.approx(S, rel=0.01)


def test_containers_do_not_share_their_counters() -> None:
    rates = Rates()
    rates.rate("a", 10 * S, 5 * S, since=0)
    assert rates.rate("b", 10 * S, 1 * S, since=0) == S // 10


@pytest.mark.parametrize(("at", "value"), [(12 * S, -1), (5 * S, 3 * S)], ids=["counter", "clock"])
def test_what_runs_backwards_has_no_rate_and_starts_over(at: int, value: int) -> None:
    rates = Rates()
    rates.rate("c", 10 * S, 2 * S, since=6 * S)
    assert rates.rate("c", at, value, since=6 * S) is None
    assert rates.rate("c", 26 * S, 10 * S, since=6 * S) == S // 2


def test_a_forgotten_counter_starts_over() -> None:
    rates = Rates()
    rates.rate("c", 10 * S, 2 * S, since=0)
    rates.forget("c")
    rates.forget("unknown")
    assert rates.rate("c", 20 * S, 10 * S, since=0) == S // 2


def interface(name: str) -> Interface:
    zero = dict.fromkeys(
        ("rx_packets", "rx_errors", "rx_dropped", "tx_bytes", "tx_packets", "tx_errors", "tx_dropped"), 0
    )
    return Interface(name=name, rx_bytes=5, **zero)


def test_the_interface_that_cni_made_first_is_the_default_one() -> None:
    found = network([interface("net1"), interface("eth0")])
    assert found.default == interface("eth0")
    assert found.others == (interface("net1"),)
    assert network([interface("net1")]).default is None


async def test_the_kernels_files_are_never_read_on_the_event_loop(
    fakes: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel file can take its time; whoever asks for pods or events meanwhile is not to notice."""
    cgroups = tmp_path / "cgroups"
    group = cgroups / "sandboxd" / "s" / "c"
    group.mkdir(parents=True)
    (cgroups / "cgroup.controllers").touch()
    for directory in (group, group.parent):
        (directory / "memory.current").write_text("5\n")
    places = Places(root="/r", state="/s", netns="/n", cgroup_driver="cgroupfs", cgroup_parent="/sandboxd")
    node = replace(fakes.node, machine=replace(fakes.node.machine, cgroups=Cgroups(str(cgroups))), places=places)
    ledger = node.ledger
    ledger.add_sandbox(
        SandboxRecord(
            id="s", config=cri.PodSandboxConfig(), runtime_handler="", netns_path="", created_at=1, started_at=2
        )
    )
    ledger.add_container(
        ContainerRecord(
            id="c", sandbox_id="s", config=cri.ContainerConfig(), sandbox_name="", image_ref="", image_id="",
            log_path="", created_at=1, started_at=2,
        )
    )  # fmt: skip
    stats = Stats(node, Layers(node))
    readers: set[int] = set()
    real = os.open

    def noting(*arguments: Any, **options: Any) -> int:
        readers.add(threading.get_ident())
        return real(*arguments, **options)

    monkeypatch.setattr(os, "open", noting)
    (container,) = await stats.containers(ledger.containers.values())
    (pod,) = await stats.pods(ledger.sandboxes.values())
    (metrics,) = await list_pod_metrics(node, stats)
    for usage in (container, pod):
        assert usage.sample is not None and usage.sample.memory is not None and usage.sample.memory.usage == 5
    assert metrics.containers
    assert readers and threading.get_ident() not in readers


async def test_a_pod_that_does_not_run_uses_nothing_and_is_left_out_of_a_list(fakes: Bundle) -> None:
    stopped = SandboxRecord(
        id="s",
        config=cri.PodSandboxConfig(),
        runtime_handler="",
        netns_path="",
        created_at=1,
        started_at=2,
        stopped_at=3,
    )
    stats = Stats(fakes.node, Layers(fakes.node))

    with pytest.raises(NotReady, match="is notready: it uses nothing"):
        await stats.pod(stopped)
    assert await stats.pods([stopped]) == []

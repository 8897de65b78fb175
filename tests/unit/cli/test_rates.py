"""Rates are what two samples say, and what was not measured is not made up."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from sandboxd.cli import rates
from sandboxd.pb.cri.v1 import api_pb2 as cri

SECOND = 10**9


def pod(name: str, at: int, cpu: int, *, received: int = 0, containers: tuple[str, ...] = ()) -> cri.PodSandboxStats:
    """A pod that has used `cpu` nanoseconds, of which each container all."""
    made = cri.PodSandboxStats(
        attributes=cri.PodSandboxAttributes(id=name, metadata=cri.PodSandboxMetadata(name=name, namespace="default"))
    )
    linux = made.linux
    measured: list[Any] = [linux, *(linux.containers.add() for _ in containers)]
    for each in measured:
        each.cpu.timestamp = at
        each.cpu.usage_core_nano_seconds.value = cpu
        each.memory.working_set_bytes.value = 2_500_000
    for item, label in zip(linux.containers, containers, strict=True):
        item.attributes.id = item.attributes.metadata.name = label
    linux.process.process_count.value = 3
    linux.network.timestamp = at
    linux.network.default_interface.rx_bytes.value = received
    linux.network.default_interface.tx_bytes.value = 2 * received
    return made


def test_a_rate_is_the_difference_over_the_time_between() -> None:
    before = [pod("web", SECOND, 0, received=1000, containers=("nginx",))]
    after = [pod("web", 3 * SECOND, SECOND, received=5000, containers=("nginx",))]
    whole, part = rates.rows(before, after)
    assert (whole.pod, whole.cpu, whole.memory, whole.processes) == ("default/web", 0.5, 2_500_000, 3)
    assert (whole.received, whole.sent) == (2000.0, 4000.0)
    assert (part.container, part.cpu, part.received, part.processes) == ("nginx", 0.5, None, None)


def test_without_two_samples_there_is_no_rate_but_the_daemons_own() -> None:
    new = pod("web", SECOND, 7)
    new.linux.cpu.usage_nano_cores.value = SECOND // 4
    (row,) = rates.rows([], [new])
    assert (row.cpu, row.received, row.sent) == (0.25, None, None)
    (same,) = rates.rows([pod("web", SECOND, 7)], [pod("web", SECOND, 7)])
    assert (same.cpu, same.received) == (None, None), "one sample twice"


def test_counters_that_went_back_are_no_negative_rate() -> None:
    (row,) = rates.rows([pod("web", SECOND, 50, received=9)], [pod("web", 2 * SECOND, 7, received=3)])
    assert (row.cpu, row.received) == (0.0, 0.0)


def test_the_busiest_come_first_and_what_does_not_run_is_left_out() -> None:
    ended = pod("gone", SECOND, 0)
    ended.linux.ClearField("memory")
    before = [pod(name, SECOND, 0) for name in ("idle", "busy")]
    after = [ended, pod("idle", 2 * SECOND, 1), pod("busy", 2 * SECOND, SECOND)]
    assert [row.id for row in rates.rows(before, after)] == ["busy", "idle"]


def test_the_table_has_a_line_for_each_and_programs_get_numbers() -> None:
    before = [pod("web", SECOND, 0, containers=("nginx",))]
    rows = rates.rows(before, [pod("web", 2 * SECOND, SECOND // 2, received=3000, containers=("nginx",))])
    out = io.StringIO()
    Console(file=out, width=200).print(rates.table(rows))
    _, first, second = out.getvalue().splitlines()
    assert first.split() == ["web", "default/web", "(1)", "50.0%", "2.5MB", "3", "3kB/s", "6kB/s"]
    assert second.split() == ["nginx", "-", "nginx", "50.0%", "2.5MB", "-", "-", "-"]
    told = rates.as_dict(rows[0], 7)
    assert (told["time"], told["cpu"], told["receivedBytesPerSecond"]) == (7, 0.5, 3000.0)

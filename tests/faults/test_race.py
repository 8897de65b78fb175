"""Requests on the same pod and on different ones, side by side: some order of them explains every answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.audit import assert_no_leaks, observe
from tests.faults.cells import Cells
from tests.faults.interleaved import Interleaved
from tests.faults.side_by_side import SideBySide
from tests.pods import remove_pod, run_pod
from tests.pulling import QUICK, Site
from tests.registry_server import start_proxy, start_registry
from tests.testbed import Testbed

pytestmark = pytest.mark.faults


def tried(examples: int, steps: int, *, everything: bool, shrink: bool = False) -> settings:
    """So many examples, the same ones each time unless everything is to be tried."""
    return settings(
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=not everything,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=everything,
    )


@pytest.mark.timeout(3600)
def test_whatever_the_order_of_their_calls_is_answers_follow_from_some_order_of_the_requests(
    cells: Cells, everything: bool
) -> None:
    examples, steps = (5000, 60) if everything else (120, 40)
    with cells.cell("race", at="two pods on fakes", what=f"{examples} orders of {steps} requests and calls"):
        run_state_machine_as_test(Interleaved, settings=tried(examples, steps, everything=everything, shrink=True))


@pytest.fixture
def raced() -> Iterator[Site]:
    """A bed with a registry."""
    with Testbed() as bed:
        bed.default_network()
        bed.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        registry = start_registry(bed, 5000)
        proxy = start_proxy(bed, 5001, registry.host)
        bed.start_daemon(images=QUICK)
        bed.load_image("busybox")
        yield Site(bed=bed, registry=registry, proxy=proxy)


@pytest.mark.timeout(7200)
def test_a_daemon_answers_requests_side_by_side_as_some_order_of_them_would_be(
    raced: Site, cells: Cells, everything: bool
) -> None:
    examples, steps = (100, 40) if everything else (20, 30)
    pulled = raced.busybox("race/busybox")
    machine = type("SideBySide", (SideBySide,), {"bed": raced.bed, "pulled": pulled, "image_id": raced.pull(pulled)})
    remove_pod(raced.bed, run_pod(raced.bed))
    before = observe(raced.bed)
    with cells.cell("race", at="two pods in a bed", what=f"{examples} times {steps} requests side by side"):
        run_state_machine_as_test(machine, settings=tried(examples, steps, everything=everything))
        assert_no_leaks(raced.bed, before)

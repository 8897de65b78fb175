"""Steps by operation, in order, each within what it was a part of."""

from __future__ import annotations

import pytest

from sandboxd.cli import nesting
from sandboxd.pb.host.v1 import host_pb2 as host

MS = 10**6
Spec = tuple[str, int, int]  # name, start, duration


def steps(*given: Spec, operation: str = "Op") -> list[host.Step]:
    return [
        host.Step(operation=operation, name=name, started_at=at * MS, duration=took * MS) for name, at, took in given
    ]


def drawn(nodes: list[nesting.Node]) -> list[str]:
    return [f"{'  ' * depth}{'∥ ' if node.beside else ''}{node.step.name}" for node, depth in nesting.walk(nodes)]


# As they are recorded: in the order of their ends.
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            [("pod.netns.create", 1, 1), ("pod.pause.start", 9, 1), ("pod.run", 0, 11)],
            ["pod.run", "  pod.netns.create", "  pod.pause.start"],
            id="a whole has its parts",
        ),
        pytest.param(
            [("pod.pause.rootfs", 4, 2), ("cni.add", 3, 10), ("pod.network.attach", 2, 30), ("pod.run", 0, 50)],
            ["pod.run", "  pod.network.attach", "    cni.add", "  ∥ pod.pause.rootfs"],
            id="two branches are side by side, though one covers the other",
        ),
        pytest.param(
            [("pod.netns.create", 0, 1), ("pod.run", 0, 1)],
            ["pod.run", "  pod.netns.create"],
            id="of two that cover each other the whole is outside",
        ),
        pytest.param(
            [("cni.version", 0, 1), ("cni.version", 2, 1), ("pod.run", 4, 9)],
            ["cni.version", "cni.version", "pod.run"],
            id="what came before is not within",
        ),
    ],
)
def test_steps_are_nested_by_their_intervals_and_names(given: list[Spec], expected: list[str]) -> None:
    assert drawn(nesting.tree(steps(*given))) == expected


def test_a_part_may_seem_to_end_after_the_whole_by_the_difference_of_two_clocks() -> None:
    whole = host.Step(name="pod.run", started_at=0, duration=10 * MS)
    part = host.Step(name="pod.pause.start", started_at=5 * MS, duration=5 * MS + 1000)
    assert drawn(nesting.tree([part, whole])) == ["pod.run", "  pod.pause.start"]


def test_operations_follow_each_other_and_a_request_made_again_is_one_of_its_own() -> None:
    recorded = [
        *steps(("container.start", 20, 5), operation="StartContainer"),
        *steps(("container.create", 0, 5), ("container.create", 10, 5), operation="CreateContainer"),
        *steps(("container.stop", 31, 1), ("container.stop", 33, 1), ("pod.stop", 30, 9), operation="StopPodSandbox"),
    ]
    assert [(name, drawn(nodes)) for name, nodes in nesting.operations(recorded)] == [
        ("CreateContainer", ["container.create"]),
        ("CreateContainer", ["container.create"]),
        ("StartContainer", ["container.start"]),
        ("StopPodSandbox", ["pod.stop", "  container.stop", "  container.stop"]),
    ]


def test_each_attempt_at_a_debt_is_told_apart() -> None:
    recorded = steps(
        ("cni.del", 1, 1), ("pod.network.detach", 0, 3), ("pod.network.detach", 900, 3), operation="recover"
    )
    assert [drawn(nodes) for _, nodes in nesting.operations(recorded)] == [
        ["pod.network.detach", "  cni.del"],
        ["pod.network.detach"],
    ]

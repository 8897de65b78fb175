"""Steps, as they are told: by operation, in the order of their starts, each within what it was a part of. Pure.

Steps are recorded when they end, without what they were within; their intervals tell that, together with what a
step of that name can have inside. Two that go on at the same time are beside each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sandboxd.cli.sentences import may_hold, opens
from sandboxd.pb.host.v1 import host_pb2 as host

# Starts are read from another clock than durations are, so the end of a part may seem to be after that of the whole.
_CLOCKS = 1_000_000  # nanoseconds


@dataclass(slots=True, eq=False)
class Node:
    """A step and its parts."""

    step: host.Step
    parts: list[Node] = field(default_factory=list)
    beside: bool = False  # one before it, a part of the same, had not ended when it began


def operations(steps: Iterable[host.Step]) -> Iterator[tuple[str, list[Node]]]:
    """The operations in the order in which they began, each with its outermost steps."""
    name: str | None = None
    group: list[host.Step] = []
    for step in _in_order(steps):
        if group and (step.operation != name or _begins_another(step, group)):
            yield name or "", tree(group)
            group = []
        name = step.operation
        group.append(step)
    if group:
        yield name or "", tree(group)


def tree(steps: Iterable[host.Step]) -> list[Node]:
    """The outermost of one operation's steps, in the order of their starts."""
    outermost: list[Node] = []
    seen: list[Node] = []
    for step in _in_order(steps):
        node = Node(step)
        holders = [each for each in seen if _holds(each, node)]
        parts = holders[-1].parts if holders else outermost
        node.beside = any(_end(each.step) > step.started_at + _CLOCKS for each in parts)
        parts.append(node)
        seen.append(node)
    return outermost


def walk(nodes: Sequence[Node], depth: int = 0) -> Iterator[tuple[Node, int]]:
    """Every node with its depth, each before its parts."""
    for node in nodes:
        yield node, depth
        yield from walk(node.parts, depth + 1)


def _in_order(steps: Iterable[host.Step]) -> list[host.Step]:
    """By start; of those that seem to start together the whole first, which was recorded after its parts."""
    numbered = sorted(enumerate(steps), key=lambda each: (each[1].started_at, -each[1].duration, -each[0]))
    return [step for _, step in numbered]


def _begins_another(step: host.Step, group: Sequence[host.Step]) -> bool:
    """Whether the step is the second of its kind and no part of another: the same was asked again, or of another."""
    if not opens(step.name) or any(may_hold(each.name, step.name) and _covers(each, step) for each in group):
        return False
    return any(each.name == step.name and _end(each) <= step.started_at for each in group)


def _holds(outer: Node, inner: Node) -> bool:
    same = not outer.step.container_id or outer.step.container_id == inner.step.container_id
    return same and may_hold(outer.step.name, inner.step.name) and _covers(outer.step, inner.step)


def _covers(outer: host.Step, inner: host.Step) -> bool:
    return outer.started_at <= inner.started_at and _end(inner) <= _end(outer) + _CLOCKS


def _end(step: host.Step) -> int:
    return step.started_at + step.duration

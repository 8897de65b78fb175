"""From changes of the ledger to announcements, and what becomes of those who do not listen."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandboxd.announce import Announcement, Announcer, Change, Subscription, changes
from sandboxd.errors import Exhausted
from sandboxd.ledger import Ledger
from sandboxd.model import ContainerRecord, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri


def sandbox(**times: Any) -> SandboxRecord:
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="pod"))
    return SandboxRecord(id="s", config=config, runtime_handler="", netns_path="", **{"created_at": 1, **times})


def container(id_: str = "c", **times: Any) -> ContainerRecord:
    return ContainerRecord(
        id=id_,
        sandbox_id="s",
        config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name=id_)),
        sandbox_name="pod",
        image_ref="",
        image_id="",
        log_path="",
        **times,
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, sandbox(), []),
        (sandbox(), sandbox(started_at=2), [(Change.CREATED, 1), (Change.STARTED, 2)]),
        (sandbox(started_at=2), sandbox(started_at=2, ips=("10.0.0.1",)), []),
        (sandbox(started_at=2), sandbox(started_at=2, exited_at=3), [(Change.STOPPED, 3)]),
        (sandbox(started_at=2, exited_at=3), sandbox(started_at=2, exited_at=3, stopped_at=4), []),
        (sandbox(), sandbox(exited_at=3), []),
        (None, container(), []),
        (container(), container(created_at=1), [(Change.CREATED, 1)]),
        (container(created_at=1), container(created_at=1, started_at=2), [(Change.STARTED, 2)]),
        (
            container(created_at=1, started_at=2),
            container(created_at=1, started_at=2, finished_at=3),
            [(Change.STOPPED, 3)],
        ),
        (container(created_at=1), container(created_at=1, finished_at=3, reason="StartError"), [(Change.STOPPED, 3)]),
        (container(created_at=1), container(created_at=1, reason="OOMKilled"), []),
    ],
)
def test_what_a_change_of_a_record_means(before: Any, after: Any, expected: list[tuple[Change, int]]) -> None:
    assert changes(before, after) == expected


def test_only_what_clients_were_told_of_can_be_deleted() -> None:
    assert changes(container(), None) == []
    assert changes(sandbox(exited_at=3), None) == [], "a run that failed"
    assert [change for change, _ in changes(container(created_at=1), None)] == [Change.DELETED]
    assert [change for change, _ in changes(sandbox(started_at=2, exited_at=3), None)] == [Change.DELETED]


def test_an_announcement_carries_the_pod_as_it_was_then() -> None:
    ledger = Ledger(":memory:")
    announcer = Announcer(ledger)
    with announcer.subscribe() as subscription:
        ledger.add_sandbox(sandbox())
        ledger.update_sandbox("s", started_at=2)
        ledger.add_container(container("c"))
        ledger.add_container(container("unborn"))
        ledger.update_container("c", created_at=3)
        ledger.remove_container("unborn")
        ledger.remove_container("c")
        ledger.remove_sandbox("s")
    seen = asyncio.run(_take(subscription, 5))
    assert [(each.change, each.id) for each in seen] == [
        (Change.CREATED, "s"),
        (Change.STARTED, "s"),
        (Change.CREATED, "c"),
        (Change.DELETED, "c"),
        (Change.DELETED, "s"),
    ]
    assert [[c.id for c in each.containers] for each in seen] == [[], [], ["c"], [], []]
    assert all(each.sandbox is not None and each.sandbox.started_at == 2 for each in seen)
    ledger.close()


async def _take(subscription: Subscription, count: int) -> list[Announcement]:
    found = []
    async for each in subscription:
        found.append(each)
        if len(found) == count:
            break
    return found


def test_a_listener_that_left_costs_nothing_and_hears_nothing() -> None:
    ledger = Ledger(":memory:")
    announcer = Announcer(ledger, room=1)
    with announcer.subscribe() as gone:
        assert announcer.listeners == 1
    assert announcer.listeners == announcer.dropped == 0
    ledger.add_sandbox(sandbox(started_at=2))
    ledger.update_sandbox("s", exited_at=3)
    assert gone.missed == 0
    ledger.close()


def test_a_slow_listener_gets_what_it_has_and_then_learns_that_it_missed_something() -> None:
    """The quick one beside it misses nothing."""
    ledger = Ledger(":memory:")
    announcer = Announcer(ledger, room=3)

    async def body() -> tuple[list[str], list[str]]:
        read: list[str] = []
        slow: list[str] = []
        with announcer.subscribe() as quick, announcer.subscribe() as lagging:
            ledger.add_sandbox(sandbox())
            for number in range(5):
                ledger.add_container(container(f"c{number}", created_at=1))
                read += [each.id for each in await _take(quick, 1)]
            with pytest.raises(Exhausted, match="2 and more are missed"):
                async for each in lagging:
                    slow.append(each.id)  # noqa: PERF401 - the error must not lose what came before it
        return read, slow

    read, slow = asyncio.run(body())
    assert read == ["c0", "c1", "c2", "c3", "c4"]
    assert slow == ["c0", "c1", "c2"]
    assert announcer.dropped == 1
    ledger.close()


def test_after_a_miss_nothing_more_is_queued_even_when_there_is_room_again() -> None:
    """Otherwise the gap would be in the middle, where nobody sees it."""
    event = Announcement(change=Change.CREATED, id="c", at=1, sandbox=None, containers=())

    async def body() -> None:
        subscription = Subscription(1)
        subscription.offer(event)
        subscription.offer(event)
        await _take(subscription, 1)
        subscription.offer(event)
        with pytest.raises(Exhausted):
            await _take(subscription, 1)

    asyncio.run(body())

"""What every mutating request can rely on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
import structlog

from sandboxd import steps
from sandboxd.containers.create import create_container
from sandboxd.errors import CleanupIncomplete, NotFound, NotReady, Unavailable
from sandboxd.model import ContainerState
from sandboxd.node import Node
from sandboxd.operations import (
    Held,
    cleaning,
    hold,
    known_container,
    known_sandbox,
    perform,
    perform_unlocked,
    running_container,
    unstopped_sandbox,
)
from sandboxd.pods.run import run_sandbox
from sandboxd.pods.teardown import remove_sandbox, stop_sandbox
from sandboxd.turns import Turns
from tests.fakes.bundle import CONTAINER, POD, Bundle, container_config, pod_config
from tests.fakes.points import Point


@pytest.fixture
def node(fakes: Bundle) -> Node:
    return fakes.with_records()


@pytest.fixture
def recorded() -> Iterator[list[steps.StepRecord]]:
    records: list[steps.StepRecord] = []
    stop = steps.subscribe(records.append)
    yield records
    stop()


async def test_the_same_request_joins_the_one_in_flight(node: Node) -> None:
    calls: list[str] = []
    release = asyncio.Event()

    async def work(held: Held) -> str:
        calls.append(held.sandbox_id)
        await release.wait()
        return f"answer {len(calls)}"

    first = asyncio.gather(*(perform(node, "Verb", POD, work) for _ in range(3)))
    await asyncio.sleep(0)
    release.set()

    assert await first == ["answer 1"] * 3
    assert await perform(node, "Verb", POD, work) == "answer 2"


@pytest.mark.parametrize("key", [(("a",), ("b",)), ((), (CONTAINER,))])
async def test_requests_with_other_keys_are_not_joined(
    node: Node, key: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    calls: list[int] = []

    async def work(held: Held) -> None:
        calls.append(1)

    await asyncio.gather(*(perform(node, "Verb", POD, work, key=each) for each in key))

    assert len(calls) == 2


async def test_a_request_goes_on_without_its_client(node: Node) -> None:
    entered, release, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(held: Held) -> None:
        entered.set()
        await release.wait()
        ended.set()

    client = asyncio.ensure_future(perform(node, "Verb", POD, work))
    await entered.wait()
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client
    release.set()

    await asyncio.wait_for(ended.wait(), 10)


async def test_one_request_at_a_time_changes_a_pod(node: Node) -> None:
    inside: list[str] = []
    most: list[int] = []

    async def work(held: Held) -> None:
        inside.append("x")
        most.append(len(inside))
        for _ in range(5):
            await asyncio.sleep(0)
        inside.pop()

    await asyncio.gather(*(perform(node, f"Verb{i}", POD, work) for i in range(4)))

    assert most == [1, 1, 1, 1]


async def test_requests_of_different_pods_do_not_wait_for_each_other(node: Node) -> None:
    met = asyncio.Barrier(2)

    async def work(held: Held) -> None:
        await met.wait()

    await asyncio.wait_for(asyncio.gather(perform(node, "Verb", "a", work), perform(node, "Verb", "b", work)), 10)


async def test_a_record_is_looked_up_when_the_lock_is_there(node: Node) -> None:
    """What went while the request waited is not found."""
    async with hold(node, POD):

        async def work(held: Held) -> None:
            held.container(CONTAINER)

        waiting = asyncio.ensure_future(perform(node, "Verb", POD, work))
        await asyncio.sleep(0)
        node.ledger.remove_container(CONTAINER)

    with pytest.raises(NotFound, match=f"container {CONTAINER} does not exist"):
        await waiting


async def test_what_was_held_is_refused_once_the_lock_is_released(node: Node) -> None:
    async with hold(node, POD) as held:
        assert held.sandbox().id == POD

    with pytest.raises(RuntimeError, match="no longer held"):
        held.sandbox()


async def test_without_the_lock_is_without_the_lock_but_joined(node: Node) -> None:
    container = node.ledger.containers[CONTAINER]
    calls: list[int] = []

    async def work() -> int:
        calls.append(1)
        await asyncio.sleep(0)
        return len(calls)

    async with hold(node, POD):
        both = [perform_unlocked(node, "StopContainer", container, work, key=(CONTAINER, 1)) for _ in range(2)]
        assert await asyncio.wait_for(asyncio.gather(*both), 10) == [1, 1]


async def test_every_step_inside_belongs_to_the_verb(node: Node, recorded: list[steps.StepRecord]) -> None:
    async def work(held: Held) -> None:
        async with held.effect("container.start", container="c") as step:
            step.note(pid=7)

    await perform(node, "StartContainer", POD, work, container_id=CONTAINER)

    (record,) = recorded
    assert (record.operation, record.name, record.sandbox_id, record.container_id) == (
        "StartContainer",
        "container.start",
        POD,
        CONTAINER,
    )
    assert record.detail == {"container": "c", "pid": "7"}


@pytest.mark.parametrize("error", [NotReady("no"), RuntimeError("a fault of ours"), asyncio.CancelledError()])
async def test_an_effect_that_fails_is_undone_and_its_error_goes_on(node: Node, error: BaseException) -> None:
    undone: list[BaseException] = []

    async def undo(cause: BaseException) -> None:
        undone.append(cause)

    async with hold(node, POD) as held:
        with pytest.raises(type(error)):
            async with held.effect("pod.run", undo=undo):
                raise error

    assert undone == [error]


async def test_what_cannot_be_undone_is_noted_on_the_error(node: Node) -> None:
    async def undo(cause: BaseException) -> None:
        raise CleanupIncomplete("the mount stays")

    async with hold(node, POD) as held:
        with pytest.raises(NotReady) as caught:
            async with held.effect("pod.run", undo=undo):
                raise NotReady("no")

    assert caught.value.__notes__ == ["cleaning up: the mount stays"]


async def test_an_effect_that_succeeds_is_not_undone(node: Node) -> None:
    async def undo(cause: BaseException) -> None:
        pytest.fail("undone")

    async with hold(node, POD) as held, held.effect("pod.run", undo=undo):
        pass


def test_an_unexpected_error_while_cleaning_leaves_the_pod_deletable() -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(CleanupIncomplete, match="pod x"), cleaning("pod x"):
        raise KeyError("ours")
    assert [entry["log_level"] for entry in logs] == ["error"]


def test_an_expected_error_while_cleaning_stays_what_it_is() -> None:
    with pytest.raises(NotReady), cleaning("pod x"):
        raise NotReady("no")


def test_looking_up_says_what_is_missing_and_what_it_is_instead(node: Node) -> None:
    with pytest.raises(NotFound, match="pod nosuch does not exist"):
        known_sandbox(node, "nosuch")
    with pytest.raises(NotFound, match="container nosuch does not exist"):
        known_container(node, "nosuch")
    assert node.ledger.containers[CONTAINER].state is ContainerState.CREATED
    with pytest.raises(NotReady, match=f"container {CONTAINER} is created, not running"):
        running_container(node, CONTAINER)
    node.ledger.update_sandbox(POD, stopped_at=9)
    with pytest.raises(NotReady, match="no longer running"):
        unstopped_sandbox(node, POD)


def test_a_container_that_is_still_being_created_does_not_exist_for_clients(node: Node) -> None:
    node.ledger.update_container(CONTAINER, created_at=0)

    with pytest.raises(NotFound):
        known_container(node, CONTAINER)


# Turns


class Busy:
    """Takes all turns until told otherwise."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._end = asyncio.Event()
        self._tasks = [asyncio.ensure_future(self._have()) for _ in range(turns.each)]

    async def _have(self) -> None:
        async with self._turns.turn():
            await self._end.wait()

    async def waited_for(self, count: int) -> None:
        """Return once so many wait."""
        async with asyncio.timeout(30):
            while self._turns.waiting() < count:  # noqa: ASYNC110 - it has no event for this
                await asyncio.sleep(0)

    async def end(self) -> None:
        self._end.set()
        await asyncio.gather(*self._tasks)


@pytest.fixture
def pods(node: Node) -> Turns:
    """The turns of pods, none of them lent for a time."""
    node.machine.load.pods = Turns(2)
    return node.machine.load.pods


async def test_of_a_burst_so_many_are_made_at_once_and_in_the_order_in_which_they_were_asked_for(
    node: Node, pods: Turns
) -> None:
    begun: list[str] = []
    inside = most = 0

    async def work(held: Held) -> None:
        nonlocal inside, most
        begun.append(held.sandbox_id)
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1

    ids = [f"pod-{i:02}" for i in range(20)]
    await asyncio.gather(*(perform(node, "Run", each, work, turns=pods) for each in ids))

    assert (begun, most) == (ids, 2)


async def test_what_waits_for_its_turn_is_joined_and_says_afterwards_that_it_waited(
    fakes: Bundle, node: Node, pods: Turns, recorded: list[steps.StepRecord]
) -> None:
    busy = Busy(pods)
    await asyncio.sleep(0)
    asked = [asyncio.ensure_future(run_sandbox(node, fakes.pause_image, pod_config("late"), "")) for _ in range(2)]
    await busy.waited_for(1)
    assert not recorded
    await busy.end()

    (made,) = set(await asyncio.gather(*asked))
    assert [record.detail["ahead"] for record in recorded if record.name == "pod.wait"] == ["0"]
    (ran,) = (record for record in recorded if record.name == "pod.run")
    assert ran.sandbox_id == made
    assert ran.detail["waited"].endswith(" s")
    await fakes.settled()


async def test_stopping_a_pod_waits_for_nobody_who_makes_something(fakes: Bundle, node: Node) -> None:
    """Not even in the same pod, before its turn has come."""
    made = await fakes.ready_pod()
    node.machine.load.pods, node.machine.load.containers = Turns(1), Turns(1)
    busy = [Busy(node.machine.load.pods), Busy(node.machine.load.containers)]
    await asyncio.sleep(0)
    waits = asyncio.ensure_future(create_container(node, made, container_config()))
    await busy[1].waited_for(1)

    await asyncio.wait_for(stop_sandbox(node, made), 30)

    assert node.ledger.sandboxes[made].stopped_at
    for each in busy:
        await each.end()
    with pytest.raises(NotReady):
        await waits
    await fakes.settled()


@pytest.mark.parametrize("verb", [stop_sandbox, remove_sandbox])
async def test_of_a_burst_of_teardowns_so_many_are_under_way_at_once(
    fakes: Bundle, node: Node, verb: Callable[[Node, str], Awaitable[None]]
) -> None:
    made = await fakes.ready_pod()
    node.machine.load.teardowns = Turns(2)
    busy = Busy(node.machine.load.teardowns)
    await asyncio.sleep(0)
    asked = asyncio.ensure_future(verb(node, made))
    await busy.waited_for(1)
    assert not node.ledger.sandboxes[made].stopped_at

    await busy.end()
    await asked
    assert made not in node.ledger.sandboxes or node.ledger.sandboxes[made].stopped_at
    await fakes.settled()


async def test_what_is_removed_that_is_not_there_waits_for_no_turn(node: Node) -> None:
    node.machine.load.teardowns = Turns(1)
    busy = Busy(node.machine.load.teardowns)
    await asyncio.sleep(0)
    await asyncio.wait_for(remove_sandbox(node, "f" * 64), 30)
    await busy.end()


async def test_teardowns_that_hang_keep_no_other_pod_from_being_torn_down(fakes: Bundle, node: Node) -> None:
    stuck, other = await fakes.ready_pod(pod_config("stuck")), await fakes.ready_pod(pod_config("other"))
    fakes.points.reset()
    node.machine.load.teardowns = Turns(1, 0.01)
    fakes.points.hang(Point("cni.delete", 0))
    hangs = asyncio.ensure_future(stop_sandbox(node, stuck))
    await fakes.points.hangs.wait()

    await asyncio.wait_for(stop_sandbox(node, other), 30)

    assert not hangs.done()
    fakes.points.release()
    await hangs
    await fakes.settled()


async def test_a_pod_that_is_busy_takes_one_turn_whatever_is_asked_of_it(node: Node, pods: Turns) -> None:
    """The others are for other pods."""

    async def work(held: Held) -> str:
        return held.sandbox_id

    async with hold(node, POD):
        waiting = [asyncio.ensure_future(perform(node, f"Verb{i}", POD, work, turns=pods)) for i in range(5)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(perform(node, "Verb", "other", work, turns=pods), 30) == "other"
    assert await asyncio.gather(*waiting) == [POD] * 5


async def test_at_a_shutdown_what_waits_for_its_turn_is_sent_away(node: Node, pods: Turns) -> None:
    async def work(held: Held) -> None:
        pytest.fail("begun")

    busy = Busy(pods)
    await asyncio.sleep(0)
    waits = asyncio.ensure_future(perform(node, "Verb", POD, work, turns=pods))
    await busy.waited_for(1)
    node.machine.load.dismiss(Unavailable("sandboxd is shutting down"))
    with pytest.raises(Unavailable, match="shutting down"):
        await waits
    await busy.end()

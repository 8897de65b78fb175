"""A repair fails alone, whatever the error; neither the start nor the comparisons end with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from sandboxd.containerd.tasks import Exit
from sandboxd.containers import checkpoint
from sandboxd.containers.create import create_container
from sandboxd.errors import AlreadyExists, NotReady, Unavailable, Unclassified
from sandboxd.model import Attachment, AttachmentState, ContainerState, SandboxState, sandbox_name
from sandboxd.node import Node
from sandboxd.pods import recover
from sandboxd.pods.reconcile import Action, Repair
from sandboxd.pods.teardown import stop_sandbox
from sandboxd.retries import Retries
from tests.fakes.bundle import CONTAINER, POD, Bundle, container_config, pod_config
from tests.fakes.points import Point
from tests.unit.pods.requests import turns

ERRORS = [
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    ValueError("x"),
    KeyError("x"),
    OSError(5, "Input/output error"),
    TimeoutError(),
    NotReady("not now"),
]
BY_TYPE = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without a configuration structlog shows each variable of a traceback, which takes longer than all else."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def node(fakes: Bundle) -> Node:
    return fakes.with_records()


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the repairs that were begun; there are three, and the one named "bad" is not what this is about."""
    found: list[str] = []
    repairs = [Repair(action=Action.SETTLE_SANDBOX, id=name) for name in ("first", "bad", "last")]
    monkeypatch.setattr(recover, "reconcile", lambda *_, **__: repairs)
    return found


def failing(monkeypatch: pytest.MonkeyPatch, applied: list[str], error: Exception) -> None:
    async def apply(node: Node, repair: Repair) -> None:
        applied.append(repair.id)
        if repair.id == "bad":
            raise error

    monkeypatch.setattr(recover, "_apply", apply)


@BY_TYPE
@pytest.mark.parametrize("how", [recover.recover, recover.compare])
async def test_after_a_repair_that_fails_the_next_is_made(
    node: Node, applied: list[str], monkeypatch: pytest.MonkeyPatch, how: Any, error: Exception
) -> None:
    failing(monkeypatch, applied, error)
    await how(node)
    assert applied == ["first", "bad", "last"]


@BY_TYPE
async def test_leftovers_that_cannot_be_ended_do_not_end_the_round(
    fakes: Bundle, node: Node, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    node.ledger.update_container(CONTAINER, started_at=4)
    Path(node.places.execs(CONTAINER), "left").mkdir(parents=True)
    asked = []

    async def end_leftovers(node: Node, container_id: str) -> None:
        asked.append(container_id)
        raise error

    monkeypatch.setattr(recover, "end_leftovers", end_leftovers)
    monkeypatch.setattr(recover, "reconcile", lambda *_, **__: [])
    await recover.recover(node)
    await fakes.repaired()
    await recover.compare(node)
    assert asked == [CONTAINER], "it failed a moment ago"

    node.jobs.retries.hurry()
    await recover.compare(node)
    await fakes.repaired()
    assert asked == [CONTAINER] * 2


@BY_TYPE
async def test_a_checkpoint_that_cannot_be_undone_does_not_end_the_round(
    fakes: Bundle, node: Node, applied: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Path(node.places.checkpoints, CONTAINER).mkdir(parents=True)

    async def undo(node: Node, container_id: str) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "undo", undo)
    failing(monkeypatch, applied, ValueError())
    await recover.recover(node)
    await fakes.repaired()
    assert applied == ["first", "bad", "last"]
    assert node.jobs.retries.failing(("UNDO_CHECKPOINT", CONTAINER))


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), TypeError("a fault of ours")])
async def test_the_daemon_starts_and_goes_on_comparing_when_the_comparison_itself_is_broken(
    node: Node, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def reconcile(*_: Any, **__: Any) -> list[Repair]:
        raise error

    monkeypatch.setattr(recover, "reconcile", reconcile)
    await recover.recover(node)
    await recover.compare(node)


async def test_without_containerd_a_start_is_told_so_and_a_comparison_waits_for_the_next(
    fakes: Bundle, node: Node, applied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, applied, ValueError())
    fakes.points.fail_always("runtime.list", Unavailable("containerd does not answer"))
    with pytest.raises(Unavailable):
        await recover.recover(node)
    await recover.compare(node)
    assert applied == []


async def test_a_comparison_notices_that_the_ledger_was_lost_and_goes_on_when_that_cannot_be_mended(
    fakes: Bundle, node: Node, applied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def check(ledger: object) -> None:
        asked.append(ledger)
        raise Unavailable("the disk is full")

    monkeypatch.setattr(type(node.ledger), "check", check)
    failing(monkeypatch, applied, ValueError())
    await recover.compare(node)
    assert (asked, applied) == ([node.ledger], ["first", "bad", "last"])


# What is slow, or stuck


async def test_a_failure_is_logged_once_and_tried_again_later(
    fakes: Bundle, node: Node, applied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, applied, NotReady("not now"))
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            await recover.compare(node)
            node.jobs.retries.hurry()
    assert applied.count("bad") == 3
    assert [line["log_level"] for line in lines if line["event"].startswith("a repair failed")] == [
        "error",
        "debug",
        "debug",
    ]
    await recover.compare(node)
    await recover.compare(node)
    assert applied.count("bad") == 4, "the pauses grow"


async def test_a_repair_that_is_stuck_is_not_waited_for_and_not_begun_again(
    fakes: Bundle, node: Node, applied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = asyncio.Event()

    async def apply(node: Node, repair: Repair) -> None:
        applied.append(repair.id)
        if repair.id == "bad":
            await stuck.wait()

    monkeypatch.setattr(recover, "_apply", apply)
    monkeypatch.setattr(recover, "PROMPT_SECONDS", 0.01)
    await recover.recover(node)
    await recover.compare(node)
    assert applied == ["first", "bad", "last", "first", "last"]

    stuck.set()
    await fakes.repaired()


def owing(fakes: Bundle, number: int, **changes: Any) -> Attachment:
    """The debt of a pod that has been removed."""
    (pattern,) = fakes.node.ledger.attachments_of(POD)
    id_ = f"{number:064x}"
    owed = replace(pattern, sandbox_id=id_, state=AttachmentState.OWED, attempts=1, **changes)
    return fakes.node.ledger.put_attachment(owed)


async def test_neither_a_start_nor_a_pod_nor_another_debt_waits_for_a_debt_that_hangs(
    fakes: Bundle, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "PROMPT_SECONDS", None)  # what a start does wait for, it waits for
    debts = [owing(fakes, number) for number in range(3)]
    fakes.points.hang(Point("cni.delete", 1))
    async with asyncio.timeout(30):
        await recover.recover(node)
    await fakes.points.hangs.wait()
    await turns()

    assert fakes.points.count("cni.delete") == 3
    assert [each.sandbox_id for each in node.ledger.attachments] == [POD, debts[1].sandbox_id]
    assert (await fakes.ready_pod(pod_config("another"))) in node.ledger.sandboxes
    await recover.compare(node)
    assert fakes.points.count("cni.delete") == 3, "it is under way"

    fakes.points.release()
    await fakes.repaired()
    assert [each.sandbox_id for each in node.ledger.attachments if each.state is AttachmentState.OWED] == []


async def test_the_debt_of_a_stopped_pod_is_paid_and_the_pod_stays(fakes: Bundle, node: Node) -> None:
    fakes.points.fail_always("cni.delete", NotReady("not now"))
    await stop_sandbox(node, POD)
    fakes.points.reset()

    await recover.compare(node)
    await fakes.repaired()

    assert not node.ledger.attachments and fakes.points.count("netns.remove") == 1
    assert node.ledger.sandboxes[POD].stopped_at


async def test_a_debt_is_tried_with_pauses_that_no_clock_stalls_and_at_once_after_a_restart(
    fakes: Bundle, node: Node
) -> None:
    debt = owing(fakes, 1, tried_at=2**62)  # the clock was ahead
    fakes.points.fail_always("cni.delete", NotReady("not now"))
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            await recover.compare(node)
            await fakes.repaired()
    assert fakes.points.count("cni.delete") == 1
    assert not [line for line in lines if line["log_level"] == "error"]

    fakes.points.reset()
    node.jobs.retries = Retries()  # of the next daemon
    await recover.recover(node)
    await fakes.repaired()
    assert not node.ledger.attachments_of(debt.sandbox_id)


async def test_a_del_that_a_restart_cut_off_is_tried_again_for_a_stopped_pod(fakes: Bundle, node: Node) -> None:
    fakes.points.hang(Point("cni.delete", 0))
    stopping = asyncio.ensure_future(stop_sandbox(node, POD))
    await fakes.points.hangs.wait()
    (attachment,) = node.ledger.attachments
    assert attachment.state is AttachmentState.DELETING
    assert not [work for work in node.jobs.in_flight() if "repair" in str(work)]
    await recover.compare(node)
    assert not [work for work in node.jobs.in_flight() if "repair" in str(work)], "the pod is busy"
    fakes.points.release()
    await stopping

    node.ledger.put_attachment(attachment)  # as if the daemon had died there
    await recover.recover(node)
    await fakes.repaired()
    assert not node.ledger.attachments


# Pods that never came to be


async def interrupted(fakes: Bundle) -> str:
    """A pod whose creation a daemon's death cut off."""
    node = fakes.with_records(started=False)
    node.ledger.remove_container(CONTAINER)
    assert node.ledger.sandboxes[POD].state is SandboxState.CREATING
    return POD


async def test_an_interrupted_pod_is_removed_behind_the_start_and_its_name_waits_for_that(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await interrupted(fakes)
    node = fakes.node
    monkeypatch.setattr(recover, "PROMPT_SECONDS", None)  # what a start does wait for, it waits for
    fakes.points.hang(Point("cni.delete", 0))
    async with asyncio.timeout(30):
        await recover.recover(node)
    await fakes.points.hangs.wait()
    assert POD in node.jobs.held()

    asked = asyncio.ensure_future(fakes.ready_pod(pod_config()))
    await turns()
    assert not asked.done()
    fakes.points.release()

    assert await asked != POD
    assert [record.name for record in node.ledger.sandboxes.values()] == [sandbox_name(pod_config().metadata)]
    assert fakes.points.count("cni.delete") == 1


async def test_a_name_that_an_interrupted_pod_holds_is_freed_by_who_wants_it(fakes: Bundle) -> None:
    await interrupted(fakes)
    assert await fakes.ready_pod(pod_config()) != POD
    assert POD not in fakes.node.ledger.sandboxes


async def test_a_name_that_cannot_be_freed_is_taken_and_the_reason_is_said(fakes: Bundle) -> None:
    await interrupted(fakes)
    fakes.points.fail_always("runtime.kill", NotReady("the process does not end"))
    with pytest.raises(AlreadyExists, match="the process does not end"):
        await fakes.ready_pod(pod_config())
    fakes.points.reset()

    await recover.compare(fakes.node)
    await fakes.repaired()

    assert not fakes.node.ledger.sandboxes, "it is nobody's, and not kept for a restart"


async def test_a_name_that_only_an_outage_keeps_from_being_freed_is_not_said_to_be_taken(fakes: Bundle) -> None:
    await interrupted(fakes)
    fakes.points.fail_always("runtime.kill", Unavailable("containerd does not answer"))
    with pytest.raises(Unavailable, match="containerd does not answer"):
        await fakes.ready_pod(pod_config())
    fakes.points.reset()
    assert await fakes.ready_pod(pod_config()) != POD


async def test_a_start_that_was_cut_off_is_decided_under_the_lock_as_things_are_then(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may have started the container between the comparison and the repair."""
    node = fakes.with_records()
    node.ledger.update_container(CONTAINER, started_at=4)
    for action in (Action.UNDO_START, Action.CONFIRM_RUNNING, Action.REMOVE_CONTAINER):
        await recover._apply(node, Repair(action=action, id=CONTAINER))
        await recover._apply(node, Repair(action=action, id="gone"))
    assert not fakes.points.count("runtime.kill") and not fakes.points.count("runtime.delete_container")
    assert CONTAINER in node.ledger.containers


async def test_what_an_ended_container_still_holds_is_freed_and_what_is_recorded_stays(
    fakes: Bundle, node: Node
) -> None:
    """The daemon died, or containerd was away, when its end was recorded and its task was not deleted yet."""
    node.ledger.update_container(CONTAINER, started_at=4, finished_at=5, exit_code=3, reason="Error")
    fakes.runtime.put(CONTAINER, Exit(code=3, at=5))
    fakes.runtime.put(POD)

    await recover.recover(node)
    await fakes.repaired()

    assert CONTAINER not in fakes.runtime.tasks and POD in fakes.runtime.tasks
    ended = node.ledger.containers[CONTAINER]
    assert (ended.exit_code, ended.finished_at, ended.reason) == (3, 5, "Error")


async def test_what_the_ended_pause_container_of_a_pod_still_holds_is_freed(fakes: Bundle, node: Node) -> None:
    node.ledger.update_sandbox(POD, exited_at=5)
    fakes.runtime.put(POD, Exit(code=3, at=5))

    await recover.compare(node)
    await fakes.repaired()

    assert not fakes.runtime.tasks
    assert node.ledger.sandboxes[POD].exited_at == 5


async def test_a_container_that_was_freed_by_then_is_no_error(fakes: Bundle, node: Node) -> None:
    node.ledger.update_container(CONTAINER, started_at=4, finished_at=5)
    for action, of in ((Action.FREE_TASK, CONTAINER), (Action.FREE_TASK, "gone"), (Action.FREE_PAUSE, POD)):
        await recover._apply(node, Repair(action=action, id=of))


async def test_a_start_is_undone_in_one_call_so_that_it_never_looks_as_if_it_had_run(
    fakes: Bundle,
) -> None:
    container_id = await unstarted(fakes)

    await recover.compare(fakes.node)
    await fakes.repaired()

    assert container_id not in fakes.runtime.tasks
    assert not fakes.points.count("runtime.kill")
    assert fakes.node.ledger.containers[container_id].state is ContainerState.CREATED


async def test_a_start_is_undone_with_a_shim_that_deletes_only_what_has_ended(
    fakes: Bundle,
) -> None:
    container_id = await unstarted(fakes)
    fakes.points.fail(Point("runtime.delete", 0), Unclassified("cannot delete a created process"))

    await recover.compare(fakes.node)
    await fakes.repaired()

    assert container_id not in fakes.runtime.tasks
    assert fakes.node.ledger.containers[container_id].state is ContainerState.CREATED


async def unstarted(fakes: Bundle) -> str:
    """A container whose start was cut off before its task was started."""
    container_id = await create_container(fakes.node, await fakes.ready_pod(pod_config()), container_config())
    await fakes.runtime.create(container_id, ())
    fakes.points.reset()
    return container_id

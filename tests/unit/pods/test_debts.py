"""A debt is listed with its pod, tried again when asked, and forgiven with a word about what may be left."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.errors import CleanupIncomplete, NotFound, PluginFailed
from sandboxd.model import AttachmentState
from sandboxd.operations import hold
from sandboxd.pods import debts, recover
from sandboxd.pods.teardown import remove_sandbox, stop_sandbox
from sandboxd.retries import FIRST_SECONDS
from tests.fakes.bundle import Bundle
from tests.fakes.points import Point
from tests.unit.pods.conftest import LogLines, RunPod

REFUSED = PluginFailed(plugin="bridge", command="DEL", code=7, msg="this key is unknown now")


@pytest.fixture
async def removed(fakes: Bundle, run_pod: RunPod, log_lines: LogLines) -> str:
    """The id of a pod that is removed and owes a DEL, which still fails."""
    sandbox_id = await run_pod()
    fakes.points.fail_always("cni.delete", REFUSED)
    await remove_sandbox(fakes.node, sandbox_id)
    return sandbox_id


async def test_a_debt_says_whose_it_is_even_when_the_pod_is_gone(fakes: Bundle, removed: str) -> None:
    (debt,) = debts.listed(fakes.node)

    owed = debt.attachment
    assert (owed.sandbox_id, owed.pod, owed.network, owed.attempts) == (removed, "default/web", "pods", 1)
    assert [(each.plugin, each.error, each.attempts) for each in owed.owed] == [("bridge", str(REFUSED), 1)]
    assert owed.failed_at <= debt.next_at <= time.time_ns(), "it is due: nothing has been tried again"


async def test_the_next_attempt_is_announced_and_while_one_is_made_there_is_none(fakes: Bundle, removed: str) -> None:
    await recover.compare(fakes.node)
    await fakes.repaired()
    (debt,) = debts.listed(fakes.node)
    assert 0 < debt.next_at - time.time_ns() <= FIRST_SECONDS * 1e9

    fakes.points.reset()
    fakes.points.hang(Point("cni.delete", 0))
    retrying = asyncio.ensure_future(debts.retry(fakes.node, removed))
    await fakes.points.hangs.wait()
    (debt,) = debts.listed(fakes.node)
    assert debt.next_at == 0
    fakes.points.release()
    await retrying


async def test_debts_are_listed_oldest_first_and_what_a_pod_uses_is_none(
    fakes: Bundle, run_pod: RunPod, removed: str
) -> None:
    (first,) = fakes.node.ledger.attachments
    older = replace(first, sandbox_id="a" * 64, failed_at=1)
    fakes.node.ledger.put_attachment(older)
    await run_pod("used")

    assert [debt.attachment.sandbox_id for debt in debts.listed(fakes.node)] == ["a" * 64, removed]


async def test_asked_it_is_tried_again_at_once_however_long_the_pause(fakes: Bundle, removed: str) -> None:
    for _ in range(3):
        fakes.node.jobs.retries.failed(debts.repair(removed).key, "no")
    with pytest.raises(CleanupIncomplete, match="this key is unknown now"):
        await debts.retry(fakes.node, removed)
    fakes.points.reset()

    await debts.retry(fakes.node, removed)

    assert not debts.listed(fakes.node) and not fakes.left()
    assert not fakes.node.jobs.retries.failing(debts.repair(removed).key)


async def test_a_retry_that_fails_lengthens_the_pause(fakes: Bundle, removed: str) -> None:
    with pytest.raises(CleanupIncomplete):
        await debts.retry(fakes.node, removed)
    assert fakes.node.jobs.retries.wait(debts.repair(removed).key) > 0


async def test_what_is_forgiven_is_gone_with_its_namespace_and_a_warning_says_what_may_be_left(
    fakes: Bundle, removed: str, log_lines: LogLines
) -> None:
    (owed,) = fakes.node.ledger.attachments
    log_lines.clear()

    assert await debts.forgive(fakes.node, removed) == [owed]

    assert not fakes.node.ledger.attachments and not fakes.netns.left()
    (line,) = log_lines
    assert (line["log_level"], line["pod"], line["plugins"]) == ("warning", "default/web", "bridge")
    assert "may be left" in line["event"]
    assert fakes.points.count("cni.delete") == 1, "the plugin was not asked again"


async def test_what_a_stopped_pod_owes_can_be_forgiven_and_the_pod_removed(fakes: Bundle, run_pod: RunPod) -> None:
    sandbox_id = await run_pod()
    strict = replace(
        fakes.node, config=replace(fakes.config, network=replace(fakes.config.network, teardown="strict"))
    )
    fakes.points.fail_always("cni.delete", REFUSED)
    with pytest.raises(CleanupIncomplete):
        await stop_sandbox(strict, sandbox_id)

    await debts.forgive(strict, sandbox_id)
    await remove_sandbox(strict, sandbox_id)

    assert not fakes.records()


async def test_a_namespace_that_cannot_be_removed_keeps_its_debt(fakes: Bundle, removed: str) -> None:
    fakes.points.fail(Point("netns.remove", 0), CleanupIncomplete("it is busy"))
    with pytest.raises(CleanupIncomplete, match="it is busy"):
        await debts.forgive(fakes.node, removed)
    assert [debt.attachment.sandbox_id for debt in debts.listed(fakes.node)] == [removed]


async def test_who_owes_nothing_is_not_found(fakes: Bundle, run_pod: RunPod) -> None:
    running = await run_pod()
    for sandbox_id in (running, "f" * 64):
        for ask in (debts.retry, debts.forgive):
            with pytest.raises(NotFound, match="owes no network anything"):
                await ask(fakes.node, sandbox_id)
    assert fakes.cni.attached and fakes.netns.left()


async def test_forgiving_waits_for_the_attempt_in_flight_and_paid_there_is_nothing_to_forgive(
    fakes: Bundle, removed: str
) -> None:
    fakes.points.reset()
    async with hold(fakes.node, removed):
        forgiving = asyncio.ensure_future(debts.forgive(fakes.node, removed))
        await asyncio.sleep(0)
        (owed,) = fakes.node.ledger.attachments
        fakes.node.ledger.remove_attachment(owed)
    with pytest.raises(NotFound):
        await forgiving
    assert owed.state is AttachmentState.OWED


@pytest.mark.parametrize(
    "ask",
    [debts.forgive, debts.retry, stop_sandbox, remove_sandbox],
    ids=["forgive", "retry", "stop", "remove"],
)
async def test_no_request_waits_for_an_attempt_of_the_daemons_that_hangs(
    fakes: Bundle, run_pod: RunPod, log_lines: LogLines, ask: Any
) -> None:
    stopped = await run_pod()
    fakes.points.fail_always("cni.delete", REFUSED)
    await stop_sandbox(fakes.node, stopped)
    fakes.points.reset()
    fakes.points.hang(Point("cni.delete", 0))
    await recover.compare(fakes.node)
    await fakes.points.hangs.wait()

    await ask(fakes.node, stopped)

    assert not fakes.node.ledger.attachments
    assert not fakes.netns.left()


async def test_what_a_replay_keeps_is_listed_and_has_not_failed(fakes: Bundle, removed: str) -> None:
    (owed,) = fakes.node.ledger.attachments
    fakes.node.ledger.put_attachment(replace(owed, sandbox_id="a" * 64, kept=True))

    assert {debt.attachment.sandbox_id for debt in debts.listed(fakes.node)} == {"a" * 64, removed}
    assert [each.sandbox_id for each in debts.failed(fakes.node)] == [removed]

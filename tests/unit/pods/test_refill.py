"""The pool is kept full of what is in force, one pod at a time, and what fails is not tried again at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.config import Handler
from sandboxd.errors import NotReady, PluginFailed, Unavailable
from sandboxd.model import SandboxState
from sandboxd.pods import pool, refill
from tests.fakes.bundle import Bundle
from tests.fakes.images import record as image
from tests.fakes.points import Point
from tests.processes import until
from tests.unit.pods.conftest import LogLines
from tests.unit.pods.pooled import filled, with_pool
from tests.unit.pods.requests import nothing_left, run

REFUSED = PluginFailed(plugin="bridge", command="ADD", code=11, msg="no luck")


def conf(fakes: Bundle) -> Path:
    return Path(fakes.config.network.conf_dir, "10-pods.conflist")


async def turned(fakes: Bundle) -> list[str]:
    """Who is prepared after as many turns as there is something to do."""
    while await refill.turn(fakes.node, fakes.pause_image):
        pass
    await fakes.settled()
    return [each.id for each in pool.prepared(fakes.node)]


async def test_it_is_filled_up_to_its_size(fakes: Bundle) -> None:
    ready = await filled(fakes, 3)

    assert len(ready) == 3
    assert {each.state for each in ready} == {SandboxState.PREPARED}
    assert {each.prepared_of for each in ready} == {ready[0].prepared_of}
    assert all(each.pid and each.ips and not each.started_at for each in ready)


async def test_there_is_a_record_before_there_is_anything_else(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_pool(fakes, 1)
    fakes.points.hang(Point("netns.create", 0))
    filling = asyncio.ensure_future(refill.turn(fakes.node, fakes.pause_image))
    await fakes.points.hangs.wait()

    (record,) = fakes.node.ledger.sandboxes.values()
    assert (record.state, record.is_shown) == (SandboxState.CREATING, False)
    assert not fakes.left()
    fakes.points.release()
    await filling


async def test_what_was_handed_out_is_replaced(fakes: Bundle) -> None:
    (first,) = await filled(fakes)
    await run(fakes)

    (second,) = await turned(fakes)

    assert second != first.id


@pytest.mark.parametrize("point", ["netns.create", "cni.add", "runtime.create", "runtime.start"])
async def test_what_fails_leaves_nothing_and_is_tried_again_later(
    fakes: Bundle, log_lines: LogLines, point: str
) -> None:
    await filled(fakes, 0)
    with_pool(fakes, 1)
    fakes.points.reset()
    fakes.points.fail(Point(point, 0), REFUSED if point == "cni.add" else NotReady("no luck"))

    assert await turned(fakes) == []
    assert nothing_left(fakes)
    assert "no luck" in fakes.node.machine.stock.trouble
    assert await turned(fakes) == [], "not at once"
    assert fakes.points.count(point) == 1

    fakes.node.jobs.retries.hurry()
    assert len(await turned(fakes)) == 1
    assert fakes.node.machine.stock.trouble == ""


async def test_a_failure_that_goes_on_is_told_once(fakes: Bundle, log_lines: LogLines) -> None:
    await filled(fakes, 0)
    with_pool(fakes, 1)
    fakes.points.fail_always("runtime.create", NotReady("no luck"))
    for _ in range(3):
        await turned(fakes)
        fakes.node.jobs.retries.hurry()

    told = [line["log_level"] for line in log_lines if "could not be prepared" in line["event"]]
    assert told == ["warning", "debug", "debug"]


async def test_another_network_takes_the_place_of_what_was_prepared(fakes: Bundle) -> None:
    before = {each.id for each in await filled(fakes, 2)}
    conf(fakes).write_text(conf(fakes).read_text().replace('"bridge"', '"bridge", "mtu": 1400'))

    after = await turned(fakes)

    assert len(after) == 2
    assert not before & set(after)
    assert set(fakes.runtime.containers) == set(after)


async def test_without_a_network_nothing_is_prepared(fakes: Bundle) -> None:
    await filled(fakes, 2)
    conf(fakes).unlink()

    assert await turned(fakes) == []
    assert nothing_left(fakes)
    assert "no usable network" in fakes.node.machine.stock.trouble


async def test_a_network_that_depends_on_the_pod_takes_away_what_was_prepared(fakes: Bundle) -> None:
    await filled(fakes, 2)
    fakes.cni.identity = "wrapper is not the reference plugin"

    assert await turned(fakes) == []
    assert nothing_left(fakes)


async def test_another_pause_image_does_so_too(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = await filled(fakes)
    other = image("pause2", {"Entrypoint": ["/pause"]}, digit="e")
    fakes.images.add(other)

    async def pause_image() -> object:
        return other

    monkeypatch.setattr(fakes, "pause_image", pause_image)
    (after,) = await turned(fakes)

    assert after != before.id


async def test_what_was_wrong_is_over_once_the_pool_is_full_of_what_is_in_force(fakes: Bundle) -> None:
    (before,) = await filled(fakes)
    fakes.points.fail(Point("images.pause", fakes.points.count("images.pause")), Unavailable("it is being fetched"))
    await turned(fakes)
    assert "fetched" in fakes.node.machine.stock.trouble

    fakes.node.jobs.retries.hurry()
    assert await turned(fakes) == [before.id]
    assert fakes.node.machine.stock.trouble == ""


async def test_while_the_pause_image_is_fetched_nothing_changes(fakes: Bundle) -> None:
    (before,) = await filled(fakes)
    fakes.points.fail_always("images.pause", Unavailable("it is being fetched"))

    assert await turned(fakes) == [before.id]


async def test_a_smaller_pool_and_none_at_all_give_up_what_is_too_much(fakes: Bundle) -> None:
    await filled(fakes, 3)
    with_pool(fakes, 1)
    assert refill.is_needed(fakes.node)
    assert len(await turned(fakes)) == 1

    with_pool(fakes, 0)
    assert refill.is_needed(fakes.node)
    assert await turned(fakes) == []
    assert nothing_left(fakes)
    assert not refill.is_needed(fakes.node)


async def test_a_network_that_depends_on_the_pod_has_no_pool(fakes: Bundle, log_lines: LogLines) -> None:
    await filled(fakes, 0)
    with_pool(fakes, 1)
    fakes.cni.identity = "wrapper is not the reference plugin"

    assert await turned(fakes) == await turned(fakes) == []
    assert [line["reason"] for line in log_lines if line["event"] == "no pods are prepared"] == [fakes.cni.identity]


async def test_nor_has_a_runtime_that_is_a_machine_of_its_own(fakes: Bundle) -> None:
    runtime = replace(fakes.config.runtime, handlers={"runc": Handler(type="io.containerd.kata.v2")})
    fakes.node = replace(fakes.node, config=replace(fakes.node.config, runtime=runtime))

    assert await filled(fakes) == []
    assert "shim" in fakes.node.machine.stock.trouble


async def test_while_containerd_is_away_nothing_is_done(fakes: Bundle) -> None:
    await filled(fakes, 1)
    with_pool(fakes, 0)
    fakes.runtime.away = "containerd does not answer"

    assert not await refill.turn(fakes.node, fakes.pause_image)
    assert len(pool.prepared(fakes.node)) == 1


async def test_a_pod_is_prepared_when_nothing_else_is_made(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refill, "GLANCE_SECONDS", 0.0)
    async with fakes.node.machine.load.containers.turn():
        waiting = asyncio.ensure_future(refill.quiet(fakes.node))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


async def test_or_after_a_while_although_there_is(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refill, "GLANCE_SECONDS", 0.0)
    monkeypatch.setattr(refill, "PATIENCE_SECONDS", 0.0)
    async with fakes.node.machine.load.pods.turn():
        await refill.quiet(fakes.node)


async def test_the_loop_looks_again_when_a_pod_was_handed_out(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refill, "GLANCE_SECONDS", 0.0)
    with_pool(fakes, 1)
    loop = asyncio.ensure_future(refill.keep(fakes.node, fakes.pause_image))
    await asyncio.to_thread(until, lambda: pool.prepared(fakes.node), what="a pod is prepared")
    first = pool.prepared(fakes.node)[0].id
    assert (await run(fakes)).id == first
    await asyncio.to_thread(until, lambda: pool.prepared(fakes.node), what="a pod is prepared")
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)

    assert pool.prepared(fakes.node)[0].id != first

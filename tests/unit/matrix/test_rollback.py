"""Every call of every mutating verb fails once: nothing is left, or a record says why and removing clears all of it.

The calls are found by a run in which none fails. Each then fails before its effect, with the errors that the real
thing raises and with one that nobody expects; and after its effect, as when only the answer is lost.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandboxd.errors import SandboxdError, TimedOut, Unavailable
from sandboxd.pods import recover
from tests.fakes.points import MakeError, Point
from tests.unit.matrix.verbs import VERBS, Verb, World, world

UNDOING = ("RunPodSandbox", "CreateContainer", "CreateContainer with mounts", "StartContainer")
AFTERWARDS = ("runtime.get",)  # when the verb has succeeded: its failure undoes nothing
by_verb = pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)


class Unexpected(RuntimeError):
    """An error that nobody has thought of."""


def ways(point: Point) -> Iterator[tuple[MakeError, bool]]:
    """(error, whether the effect comes first) for each way in which a call can fail."""
    for make in (*point.raises, Unexpected):
        yield make, False
    if not point.name.startswith("thread."):  # whose answer cannot be lost
        lost: list[MakeError] = [make for make in (Unavailable, TimedOut) if make in point.raises]
        yield (lost or [Unexpected])[0], True


async def points_of(verb: Verb, directory: Path) -> list[Point]:
    """The calls of a run that succeeds."""
    async with world(verb, directory) as here:
        await verb.call(here)
        await here.fakes.settled()
        verb.done(here)
        points = list(here.fakes.points.passed)
        here.fakes.points.reset()
        await here.clear()
        assert here.there() == []
    return points


async def attempt(verb: Verb, here: World) -> None:
    """Ask for the verb: whether it fails or succeeds, what it leaves is as it promises."""
    try:
        await verb.call(here)
    except (SandboxdError, Unexpected, OSError):
        failed = True
    else:
        failed = False
    await here.fakes.settled()
    assert not here.fakes.points.unreached, "the call that was to fail was not made"
    if verb.compared:
        await recover.compare(here.fakes.node)
        await here.fakes.repaired()
    (verb.undone if failed else verb.done)(here)


async def try_way(verb: Verb, directory: Path, point: Point, make: MakeError, after: bool) -> None:
    async with world(verb, directory) as here:
        here.fakes.points.fail(point, make("fails once"), after=after)
        await attempt(verb, here)
        here.fakes.points.reset()
        await here.clear()
        assert here.there() == []


@by_verb
async def test_a_call_that_fails_leaves_nothing_behind(
    verb: Verb, in_memory: Path, record_property: Callable[[str, object], None]
) -> None:
    points = await points_of(verb, in_memory)
    assert sum(point.waits for point in points) >= verb.least, [str(point) for point in points]
    problems, count = [], 0
    for point in points:
        for make, after in ways(point):
            count += 1
            try:
                await try_way(verb, in_memory, point, make, after)
            except Exception:
                how = f"{point} fails {'after' if after else 'before'} its effect with {type(make('')).__name__}"
                problems.append(f"--- {how}\n{traceback.format_exc(limit=-4)}")
    record_property("covered", f"{verb.name}: {len(points)} calls fail in {count} ways")
    assert not problems, f"{len(problems)} of {count}:\n" + "\n".join(problems)


async def undoing(verb: Verb, directory: Path, point: Point) -> list[Point]:
    """The calls that undo what had been done when `point` failed."""
    async with world(verb, directory) as here:
        here.fakes.points.fail(point, Unexpected("fails once"))
        with pytest.raises((SandboxdError, Unexpected)):
            await verb.call(here)
        await here.fakes.settled()
        passed = here.fakes.points.passed
        return passed[passed.index(point) + 1 :]


async def try_two(verb: Verb, directory: Path, point: Point, second: Point) -> None:
    async with world(verb, directory) as here:
        for failing in (point, second):
            here.fakes.points.fail(failing, Unexpected("fails once"))
        with pytest.raises((SandboxdError, Unexpected)):
            await verb.call(here)
        await here.fakes.settled()
        assert not here.fakes.points.unreached
        assert not here.without_owner()
        assert all(record.failure for record in here.fakes.node.ledger.sandboxes.values() if not record.started_at)
        await here.clear()
        assert here.there() == []


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.name in UNDOING], ids=lambda verb: verb.name)
async def test_when_undoing_fails_too_a_record_is_kept_and_removing_clears_all(
    verb: Verb, in_memory: Path, record_property: Callable[[str, object], None]
) -> None:
    problems, count = [], 0
    for point in await points_of(verb, in_memory):
        if point.name in AFTERWARDS:
            continue
        for second in await undoing(verb, in_memory, point):
            count += 1
            try:
                await try_two(verb, in_memory, point, second)
            except Exception:
                problems.append(f"--- {point} fails, then {second}\n{traceback.format_exc(limit=-4)}")
    record_property("covered", f"{verb.name}: undoing fails in {count} ways")
    assert count >= 10
    assert not problems, f"{len(problems)} of {count}:\n" + "\n".join(problems)

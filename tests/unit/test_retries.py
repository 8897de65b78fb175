"""What failed waits longer each time, on a clock that nobody sets; what is stuck in one lane delays no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from sandboxd.retries import AT_ONCE, FIRST_SECONDS, MOST_SECONDS, Retries
from tests.unit.pods.requests import turns


class Clock:
    """A clock that stands still until it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def retries(clock: Clock) -> Retries:
    return Retries(clock)


def test_what_has_not_failed_is_due(retries: Retries) -> None:
    assert retries.due("a") and not retries.failing("a") and retries.wait("a") == 0


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(1, FIRST_SECONDS), (2, 2 * FIRST_SECONDS), (6, 32 * FIRST_SECONDS), (7, MOST_SECONDS), (5000, MOST_SECONDS)],
)
def test_the_pause_before_the_next_attempt_doubles_up_to_a_limit(
    retries: Retries, clock: Clock, failures: int, seconds: float
) -> None:
    for _ in range(failures):
        retries.failed("a", "no")

    assert (retries.wait("a"), retries.due("a"), retries.due("b")) == (seconds, False, True)
    clock.now += seconds
    assert retries.due("a") and retries.failing("a")


def test_after_a_success_it_begins_anew(retries: Retries) -> None:
    retries.failed("a", "no")
    retries.failed("a", "no")
    retries.succeeded("a")
    assert retries.due("a") and not retries.failing("a")

    retries.failed("a", "no")
    assert retries.wait("a") == FIRST_SECONDS


def test_only_a_failure_with_other_words_is_news(retries: Retries) -> None:
    assert [retries.failed("a", words) for words in ("no", "no", "never", "no")] == [True, False, True, True]


def test_hurried_all_are_due_and_the_next_pause_is_as_long_as_it_would_have_been(retries: Retries) -> None:
    retries.failed("a", "no")
    retries.hurry()
    assert retries.due("a") and retries.failing("a")

    retries.failed("a", "no")
    assert retries.wait("a") == 2 * FIRST_SECONDS


def in_lane(retries: Retries, name: str, begun: list[str], end: asyncio.Event) -> Callable[[], asyncio.Task[None]]:
    async def work() -> None:
        async with retries.lane(name):
            begun.append(name)
            await end.wait()

    return lambda: asyncio.ensure_future(work())


async def test_a_lane_that_is_full_delays_no_other(retries: Retries) -> None:
    begun: list[str] = []
    end = asyncio.Event()
    tasks = [in_lane(retries, "stuck", begun, end)() for _ in range(AT_ONCE + 1)]
    tasks.append(in_lane(retries, "free", begun, end)())
    await turns()
    assert begun == [*["stuck"] * AT_ONCE, "free"]

    end.set()
    await asyncio.gather(*tasks)
    assert begun.count("stuck") == AT_ONCE + 1
    assert not retries._lanes, "lanes are kept only while they are used"

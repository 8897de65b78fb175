"""A transfer is tried again with backoff, as often as it makes sense and no longer."""

from __future__ import annotations

import pytest

from sandboxd.errors import Exhausted, Unavailable
from sandboxd.registry.patience import Broken, Limits, Patience, Stalled, retry_after

LIMITS = Limits(progress_seconds=60, stall_seconds=20, attempts=4, first_delay=1, max_delay=3, progress_bytes=100)


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def patience(clock: Clock, limits: Limits = LIMITS) -> Patience:
    return Patience(limits, sleep=clock.sleep, clock=clock, jitter=lambda: 1.0)


async def test_delays_double_up_to_the_most_and_attempts_end() -> None:
    clock = Clock()
    trying = patience(clock)
    for _ in range(3):
        await trying.again(Broken("it broke"))

    with pytest.raises(Broken) as caught:
        await trying.again(Broken("it broke"))

    assert clock.slept == [1, 2, 3]
    assert caught.value.__notes__ == ["gave up after 4 attempts"]


async def test_enough_progress_starts_the_count_anew() -> None:
    clock = Clock()
    trying = patience(clock)
    for _ in range(20):
        await trying.again(Broken("it broke"))
        trying.progressed(60)
        trying.progressed(60)

    assert clock.slept == [1] * 20


async def test_a_trickle_is_no_progress() -> None:
    clock = Clock()
    trying = patience(clock)
    with pytest.raises(Broken):
        for _ in range(5):
            trying.progressed(1)
            await trying.again(Broken("it broke"))


async def test_silence_ends_it_however_many_attempts_are_left() -> None:
    clock = Clock()
    trying = patience(clock)
    clock.now = 59.5

    assert trying.seconds == pytest.approx(0.5)
    with pytest.raises(Stalled):
        await trying.again(Stalled("silence"))


async def test_no_attempt_is_begun_that_could_only_fail_for_lack_of_time() -> None:
    """The error would be the time, and not what the server did."""
    for waited, goes_on in ((57.9, True), (58.1, False)):
        clock = Clock()
        trying = patience(clock)
        clock.now = waited
        if goes_on:
            await trying.again(Broken("it broke"))
            assert trying.seconds == pytest.approx(60 - waited - 1)
        else:
            with pytest.raises(Broken):
                await trying.again(Broken("it broke"))


async def test_what_a_server_asks_for_is_waited_for_and_counts_as_an_answer() -> None:
    clock = Clock()
    trying = patience(clock)
    clock.now = 50

    await trying.again(Unavailable("busy"), 30)

    assert 30 <= clock.slept[0] <= 31
    assert trying.seconds == 20


async def test_a_server_that_asks_for_too_much_is_an_error() -> None:
    with pytest.raises(Exhausted, match="3600"):
        await patience(Clock()).again(Unavailable("busy"), 3600)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1e9", None),
        ("9" * 400, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after(value, 10.0) == seconds

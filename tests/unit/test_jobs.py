"""Jobs end whatever becomes of those who asked; loops live; locks are fair and forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Generator

import pytest
import structlog

from sandboxd import jobs as module
from sandboxd.jobs import Jobs, in_pieces

_sleep = asyncio.sleep


async def settle() -> None:
    """Let every task run until it has nothing left to do but wait."""
    for _ in range(20):
        await _sleep(0)


class Work:
    """A job that waits until it is told how to end, and counts its runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> str:
        self.runs += 1
        return await self.outcome


async def test_a_job_gives_its_result_and_is_forgotten() -> None:
    jobs, work = Jobs(), Work()
    asked = asyncio.create_task(jobs.run_to_end("a", work))
    await settle()
    assert jobs.in_flight() == ("a",)

    work.outcome.set_result("done")

    assert await asked == "done"
    assert jobs.in_flight() == ()


async def test_a_key_that_holds_a_request_is_named_without_it() -> None:
    """Keys are in the log, in what asyncio says of tasks, and in the last line before the daemon ends."""
    jobs, work = Jobs(), Work()
    config = b"\n\x06PASSWD\x12\x0ehunter2-secret"
    for key in (("CreateContainer", "5ca1ab1e", config), ("x", config.decode() * 100), ("y", frozenset({config}))):
        jobs.start(key, work)
    with structlog.testing.capture_logs() as logged:
        await settle()
        names = [task.get_name() for task in asyncio.all_tasks()]
        shown = [module.described(key) for key in await jobs.drain(0)]
        work.outcome.set_exception(ValueError("no"))
        await settle()

    assert [name.split(" ")[0] for name in shown] == ["CreateContainer", "x", "y"]
    assert shown[0].startswith("CreateContainer 5ca1ab1e sha256:")
    assert len(logged) == 3
    assert "hunter2" not in str([names, shown, [entry["job"] for entry in logged]])


def test_different_requests_have_different_names() -> None:
    one, other = (module.described(("Create", "a", data)) for data in (b"1", b"2"))

    assert one != other


async def test_cancelling_the_caller_does_not_stop_the_job() -> None:
    jobs, work = Jobs(), Work()
    asked = asyncio.create_task(jobs.run_to_end("a", work))
    await settle()

    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked

    assert jobs.in_flight() == ("a",)
    again = asyncio.create_task(jobs.run_to_end("a", work))
    await settle()
    work.outcome.set_result("done")
    assert (await again, work.runs) == ("done", 1)


async def test_the_same_key_joins_the_job_in_flight_and_shares_its_result() -> None:
    jobs, work, other = Jobs(), Work(), Work()
    asked = [asyncio.create_task(jobs.run_to_end("a", work)) for _ in range(3)]
    elsewhere = asyncio.create_task(jobs.run_to_end("b", other))
    await settle()
    assert (work.runs, other.runs) == (1, 1)

    asked[0].cancel()
    work.outcome.set_result("done")
    other.outcome.set_result("else")

    assert await asyncio.gather(*asked[1:]) == ["done", "done"]
    assert await elsewhere == "else"


async def test_everybody_who_joined_gets_the_error() -> None:
    jobs, work = Jobs(), Work()
    asked = [asyncio.create_task(jobs.run_to_end("a", work)) for _ in range(2)]
    await settle()

    work.outcome.set_exception(ValueError("no"))

    assert [str(error) for error in await asyncio.gather(*asked, return_exceptions=True)] == ["no", "no"]


async def test_after_its_end_the_same_key_is_a_new_job() -> None:
    jobs = Jobs()
    results = []
    for text in ("first", "second"):
        work = Work()
        work.outcome.set_result(text)
        results.append(await jobs.run_to_end("a", work))

    assert results == ["first", "second"]


async def test_a_failure_that_nobody_waits_for_is_logged_and_not_raised() -> None:
    jobs, work = Jobs(), Work()
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    with structlog.testing.capture_logs() as logged:
        jobs.start(("stop", "a"), work)
        await settle()
        work.outcome.set_exception(ValueError("no"))
        await settle()

    assert [(entry["event"], entry["job"], entry["error"]) for entry in logged] == [("job failed", "stop a", "no")]
    assert complaints == []


async def test_a_failure_whose_caller_has_left_is_no_complaint_of_asyncio() -> None:
    jobs, work = Jobs(), Work()
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    asked = asyncio.create_task(jobs.run_to_end("a", work))
    await settle()
    asked.cancel()
    await settle()

    work.outcome.set_exception(ValueError("no"))
    await settle()
    del work, asked

    assert (complaints, jobs.in_flight()) == ([], ())


async def test_start_joins_a_job_that_runs() -> None:
    jobs, work = Jobs(), Work()
    jobs.start("a", work)
    jobs.start("a", work)
    await settle()

    assert work.runs == 1
    work.outcome.set_result("")
    await settle()


class Visitor:
    """Takes the lock and holds it until told to leave."""

    def __init__(self, jobs: Jobs, key: str) -> None:
        self._jobs, self._key = jobs, key
        self.inside = asyncio.Event()
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit())

    async def _visit(self) -> None:
        async with self._jobs.exclusive(self._key):
            self.inside.set()
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task
        await settle()


async def test_exclusive_is_first_come_first_served_for_each_key() -> None:
    jobs = Jobs()
    visitors = [Visitor(jobs, "a") for _ in range(3)]
    elsewhere = Visitor(jobs, "b")
    await settle()
    assert elsewhere.inside.is_set()
    assert jobs.held() == {"a", "b"}

    seen = []
    for visitor in visitors:
        seen.append([other.inside.is_set() for other in visitors])
        await visitor.leave()
    await elsewhere.leave()

    assert seen == [[True, False, False], [True, True, False], [True, True, True]]
    assert jobs.held() == frozenset()


async def test_a_cancelled_wait_and_a_failure_inside_leave_the_lock_usable() -> None:
    jobs = Jobs()
    holder, waiting, next_one = (Visitor(jobs, "a") for _ in range(3))
    await settle()
    waiting.task.cancel()
    holder.task.cancel()
    await settle()

    assert next_one.inside.is_set()
    await next_one.leave()
    with pytest.raises(ValueError, match="no"):
        async with jobs.exclusive("a"):
            raise ValueError("no")
    assert jobs.held() == frozenset()


class Sleeps:
    """Stands for asyncio.sleep in a watched loop: remembers each wait, and ends it when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits: list[float] = []
        self._turns = asyncio.Semaphore(0)
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await self._turns.acquire()

    async def pass_by(self, times: int) -> None:
        for _ in range(times):
            self._turns.release()
            await settle()


async def test_a_loop_that_fails_or_ends_is_logged_and_restarted_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs, sleeps, runs = Jobs(), Sleeps(monkeypatch), 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs % 2:
            raise ValueError("broken")

    with structlog.testing.capture_logs() as logged:
        jobs.watch("events", loop)
        await settle()
        await sleeps.pass_by(9)
    await jobs.drain(0)

    assert runs == 10
    assert sleeps.waits[:3] == [module.RESTART_SECONDS, module.RESTART_SECONDS * 2, module.RESTART_SECONDS * 4]
    assert sleeps.waits[-1] == module.MAX_RESTART_SECONDS
    assert [entry["event"] for entry in logged[:2]] == [
        "loop failed, restarting it",
        "loop ended, restarting it",
    ]
    assert {entry["loop"] for entry in logged} == {"events"}


async def test_a_loop_that_lived_long_enough_starts_over_with_a_short_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs, sleeps = Jobs(), Sleeps(monkeypatch)
    monkeypatch.setattr(module, "STEADY_SECONDS", -1.0)

    async def loop() -> None:
        raise ValueError("broken")

    with structlog.testing.capture_logs():
        jobs.watch("events", loop)
        await settle()
        await sleeps.pass_by(3)
    await jobs.drain(0)

    assert sleeps.waits == [module.RESTART_SECONDS] * 4


async def test_a_loop_that_comes_up_each_time_is_restarted_soon_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, sleeps, runs = Jobs(), Sleeps(monkeypatch), 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs > 3:
            jobs.came_up("events")

    with structlog.testing.capture_logs():
        jobs.watch("events", loop)
        await settle()
        await sleeps.pass_by(8)
    await jobs.drain(0)

    first = module.RESTART_SECONDS
    assert sleeps.waits == [first, first * 2, first * 4, *[first] * 6]


@pytest.mark.parametrize(("ends", "seconds"), [(0, 0.2), (1, 0.4), (4, 3.2), (7, 25.6), (8, 30.0), (10**9, 30.0)])
def test_the_pauses_of_a_loop_that_does_not_come_up_grow_to_a_limit(ends: int, seconds: float) -> None:
    assert module.restart_seconds(ends) == pytest.approx(seconds)


async def test_a_loop_whose_call_was_cancelled_by_others_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, sleeps, runs = Jobs(), Sleeps(monkeypatch), 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        raise asyncio.CancelledError

    with structlog.testing.capture_logs():
        jobs.watch("events", loop)
        await settle()
        await sleeps.pass_by(1)
    await jobs.drain(0)

    assert runs == 2


async def test_drain_ends_the_loops_and_waits_for_the_jobs() -> None:
    jobs, work = Jobs(), Work()
    ended = asyncio.Event()

    async def loop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    jobs.watch("events", loop)
    jobs.start("a", work)
    await settle()
    draining = asyncio.create_task(jobs.drain(3600))
    await settle()
    assert ended.is_set()
    assert not draining.done()

    work.outcome.set_result("")

    assert await draining == ()


async def test_drain_ends_what_runs_in_the_background_but_not_what_that_has_asked_for() -> None:
    jobs, work, asked = Jobs(), Work(), Work()
    jobs.background("a", work)
    jobs.background("a", work)
    jobs.background("b", lambda: jobs.run_to_end("c", asked))
    await settle()
    assert (work.runs, jobs.in_flight()) == (1, ("a", "b", "c"))

    draining = asyncio.create_task(jobs.drain(3600))
    await settle()
    assert jobs.in_flight() == ("c",)
    asked.outcome.set_result("")
    assert await draining == ()


async def test_background_work_can_be_interrupted_and_jobs_cannot() -> None:
    jobs, work, job = Jobs(), Work(), Work()
    jobs.background("a", work)
    jobs.start("b", job)
    await settle()
    for key in ("a", "b", "none"):
        jobs.interrupt(key)
    await settle()
    assert jobs.in_flight() == ("b",)
    job.outcome.set_result("")
    await jobs.drain(3600)


async def test_the_background_work_that_fails_is_logged() -> None:
    jobs, work = Jobs(), Work()
    jobs.background("a", work)
    await settle()

    with structlog.testing.capture_logs() as logged:
        work.outcome.set_exception(ValueError("no"))
        await settle()

    assert [entry["job"] for entry in logged] == ["a"]


async def test_drain_waits_for_what_a_job_starts_too() -> None:
    jobs, first, second = Jobs(), Work(), Work()

    async def chain() -> None:
        await first()
        jobs.start("b", second)

    jobs.start("a", chain)
    await settle()
    draining = asyncio.create_task(jobs.drain(3600))
    await settle()
    first.outcome.set_result("")
    await settle()
    assert not draining.done()

    second.outcome.set_result("")

    assert await draining == ()


async def test_drain_reports_what_did_not_end_and_leaves_it_running() -> None:
    jobs, work = Jobs(), Work()
    task = jobs.spawn("a", work)
    await settle()

    assert await jobs.drain(0.01) == ("a",)

    assert not task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert jobs.in_flight() == ()


def pieces(done: list[int], count: int) -> Generator[None, None, str]:
    try:
        for number in range(count):
            done.append(number)
            yield
        return "all"
    finally:
        done.append(-1)


async def test_work_in_pieces_gives_its_result() -> None:
    done: list[int] = []
    assert await in_pieces(pieces(done, 3)) == "all"
    assert done == [0, 1, 2, -1]


async def test_an_error_in_a_piece_is_the_callers() -> None:
    def failing() -> Generator[None, None, None]:
        yield
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await in_pieces(failing())


async def test_short_work_has_its_turn_among_more_long_works_than_there_are_threads() -> None:
    endless = [asyncio.create_task(in_pieces(pieces([], 10**9))) for _ in range(8)]
    assert await in_pieces(pieces([], 20)) == "all"
    for task in endless:
        task.cancel()
    assert {type(end) for end in await asyncio.gather(*endless, return_exceptions=True)} == {asyncio.CancelledError}


async def test_the_loop_goes_on_during_a_piece() -> None:
    began, go_on = threading.Event(), threading.Event()

    def blocking() -> Generator[None, None, None]:
        began.set()
        go_on.wait()
        yield

    working = asyncio.create_task(in_pieces(blocking()))
    while not began.is_set():
        await settle()
    go_on.set()
    await working


async def test_cancelled_work_ends_with_its_piece_and_closes_what_it_holds() -> None:
    began, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def blocking() -> Generator[None, None, None]:
        try:
            began.set()
            go_on.wait()
            yield
            raise AssertionError("another piece was begun")
        finally:
            closed.set()

    working = asyncio.create_task(in_pieces(blocking()))
    while not began.is_set():
        await settle()
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working
    go_on.set()
    assert await asyncio.to_thread(closed.wait, 60)

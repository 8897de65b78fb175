"""The one instrument: one record for each step that ends, and never a change to what it observes."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd import spans, steps, vocabulary
from sandboxd.jobs import Jobs
from sandboxd.steps import Act, PluginExecution, StepRecord

EXECUTION = PluginExecution(
    command="ADD", binary="/x", env={}, stdin=b"{}", stdout=b"", stderr=b"", exit_code=0, duration=1
)


@pytest.fixture
def seen() -> Iterator[list[StepRecord]]:
    """Every record made during the test."""
    records: list[StepRecord] = []
    stop = steps.subscribe(records.append)
    yield records
    stop()


def test_a_step_is_recorded_when_it_ends_with_what_was_learnt_on_the_way(seen: list[StepRecord]) -> None:
    with (
        steps.operation("RunPodSandbox", sandbox_id="s", container_id="c"),
        steps.step("pod.netns.create", path="/n", left_out=None) as step,
    ):
        step.note(inode=7, also_left_out=None)
        step.plugin = EXECUTION
        assert seen == []

    (record,) = seen
    assert (record.operation, record.name, record.sandbox_id, record.container_id) == (
        "RunPodSandbox",
        "pod.netns.create",
        "s",
        "c",
    )
    assert record.detail == {"path": "/n", "inode": "7"}
    assert record.plugin is EXECUTION
    assert record.error == ""
    assert record.duration >= 0
    assert record.started_at > 0


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("too small"), "too small"),
        (ValueError(), "ValueError"),
        (asyncio.CancelledError(), "CancelledError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_a_failed_step_is_recorded_with_its_error_which_passes_unchanged(
    seen: list[StepRecord], error: BaseException, text: str
) -> None:
    with pytest.raises(type(error)) as caught, steps.step("x") as step:
        step.note(known="before")
        raise error

    assert caught.value is error
    assert [(record.error, record.detail) for record in seen] == [(text, {"known": "before"})]


def test_a_step_outside_any_operation_belongs_to_nothing(seen: list[StepRecord]) -> None:
    with steps.step("x"):
        pass

    assert [(r.operation, r.sandbox_id, r.container_id) for r in seen] == [("", "", "")]


def test_a_nested_operation_keeps_the_outer_name_and_may_narrow_the_ids(seen: list[StepRecord]) -> None:
    with steps.operation("RunPodSandbox", sandbox_id="s"):
        with steps.operation("teardown", container_id="c"), steps.step("inner"):
            pass
        with steps.operation("teardown", sandbox_id="other"), steps.step("other"):
            pass
        with steps.step("outer"):
            pass
    with steps.step("after"):
        pass

    assert [(r.name, r.operation, r.sandbox_id, r.container_id) for r in seen] == [
        ("inner", "RunPodSandbox", "s", "c"),
        ("other", "RunPodSandbox", "other", ""),
        ("outer", "RunPodSandbox", "s", ""),
        ("after", "", "", ""),
    ]


def test_an_operation_that_fails_is_over(seen: list[StepRecord]) -> None:
    with pytest.raises(ValueError, match="x"), steps.operation("RunPodSandbox"):
        raise ValueError("x")
    with steps.step("after"):
        pass

    assert seen[0].operation == ""


def test_nested_steps_are_recorded_in_the_order_in_which_they_end(seen: list[StepRecord]) -> None:
    with steps.step("outer"), steps.step("inner"):
        pass

    assert [record.name for record in seen] == ["inner", "outer"]
    assert seen[1].duration >= seen[0].duration


def test_a_broken_subscriber_changes_neither_the_step_nor_what_others_see(seen: list[StepRecord]) -> None:
    def broken(record: StepRecord) -> None:
        raise RuntimeError("disk full")

    stop = steps.subscribe(broken)
    later: list[StepRecord] = []
    stop_later = steps.subscribe(later.append)
    try:
        with steps.step("x"):
            pass
        with pytest.raises(ValueError, match="own"), steps.step("y"):
            raise ValueError("own")
    finally:
        stop()
        stop_later()

    assert [record.name for record in seen] == ["x", "y"]
    assert later == seen


def test_whoever_stopped_listening_hears_nothing() -> None:
    heard: list[StepRecord] = []
    steps.subscribe(heard.append)()

    with steps.step("x"):
        pass

    assert heard == []


def test_what_is_noted_after_the_end_does_not_change_the_record(seen: list[StepRecord]) -> None:
    with steps.step("x") as step:
        pass
    step.note(late="news")

    assert seen[0].detail == {}


async def test_the_operation_follows_awaits_tasks_and_jobs(seen: list[StepRecord]) -> None:
    jobs = Jobs()

    async def work(name: str) -> None:
        await asyncio.sleep(0)
        with steps.step(name):
            await asyncio.sleep(0)

    async def request(sandbox_id: str) -> None:
        with steps.operation("RunPodSandbox", sandbox_id=sandbox_id):
            await work("awaited")
            await jobs.run_to_end(sandbox_id, lambda: work("job"))

    await asyncio.gather(request("a"), request("b"))

    assert sorted((r.sandbox_id, r.name) for r in seen) == [
        ("a", "awaited"),
        ("a", "job"),
        ("b", "awaited"),
        ("b", "job"),
    ]


async def test_an_operation_inside_a_job_does_not_leak_into_the_caller(seen: list[StepRecord]) -> None:
    async def work() -> None:
        with steps.operation("StopPodSandbox", sandbox_id="s"), steps.step("inside"):
            await asyncio.sleep(0)

    await Jobs().run_to_end("s", work)
    with steps.step("outside"):
        pass

    assert [(r.name, r.operation) for r in seen] == [("inside", "StopPodSandbox"), ("outside", "")]


async def test_an_act_belongs_to_the_innermost_step_also_of_a_task_or_a_thread(seen: list[StepRecord]) -> None:
    async def beside() -> None:
        steps.act("Tasks.Create", "beside")
        with steps.step("inner of beside"):
            await asyncio.sleep(0)
            await asyncio.to_thread(steps.act, "file", "/in/a/thread", size=3)

    steps.act("Leases.Create", "outside of any step")
    with steps.operation("RunPodSandbox"):
        with steps.step("outer"):
            await asyncio.gather(beside(), beside())
            with steps.step("inner"):
                steps.act("Snapshots.Prepare", "s", started_at=7, duration=2, outcome="ALREADY_EXISTS")
            steps.act("Tasks.Start", "after")
        steps.act("Leases.Create", "after all")

    acts = {record.name: record.acts for record in seen}
    assert [act.about for act in acts["outer"]] == ["beside", "beside", "after"]
    assert acts["inner"] == (Act("Snapshots.Prepare", "s", 7, 2, "ALREADY_EXISTS"),)
    (written,) = acts["inner of beside"]
    assert (written.about, written.size, written.outcome) == ("/in/a/thread", 3, "")
    assert written.started_at > 0


def test_the_acts_of_a_step_are_seen_while_it_goes_on() -> None:
    with steps.operation("RunPodSandbox"), steps.step("x"):
        steps.act("Tasks.Create", "c")
        (now,) = steps.running()
    assert [act.about for act in now.open[0].acts] == ["c"]


def test_an_operation_keeps_so_many_acts_and_counts_the_others(seen: list[StepRecord]) -> None:
    with steps.operation("PullImage"):
        with steps.step("x"):
            for number in range(steps.ACTS_KEPT - 1):
                steps.act("Content.Write", str(number))
        with steps.step("y"):
            for number in range(4):
                steps.act("Content.Write", str(number))

    assert [len(record.acts) for record in seen] == [steps.ACTS_KEPT - 1, 1]
    assert [record.detail for record in seen] == [{}, {"acts_left_out": "3"}]


PACKAGE = Path(__file__).resolve().parents[2] / "sandboxd"


def names_in(source: str) -> Iterator[str]:
    """The name of each step that a module makes; a step whose name is not a literal is named "?"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            of = getattr(getattr(node.func, "value", None), "id", "")
            if (called == "step" and of == "steps") or called == "effect":
                first = node.args[0] if node.args else None
                yield first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else "?"


def test_the_table_of_steps_has_exactly_those_that_are_made() -> None:
    made = {
        name
        for path in PACKAGE.rglob("*.py")
        if path.parts[-2] != "pb"
        for name in names_in(path.read_text())
        if name != "?" or path.name != "operations.py"  # which passes on what a verb names
    }

    assert made == set(vocabulary.NAMES)


def test_a_step_that_is_not_in_the_table_is_seen() -> None:
    planted = 'with steps.step("pod.shm"): pass\nheld.effect("x", undo=u)\nsteps.step(name)'

    assert set(names_in(planted)) == {"pod.shm", "x", "?"}


def test_a_step_is_named_by_what_it_is_done_to() -> None:
    assert {name.partition(".")[0] for name in vocabulary.NAMES} == {"pod", "container", "image", "cni"}


def test_an_operation_that_ends_is_told_of_however_it_ends() -> None:
    records: list[steps.OperationRecord] = []
    stop = steps.subscribe_operations(records.append)
    try:
        with steps.operation("RunPodSandbox", sandbox_id="s", subject="default/web"), steps.operation("recover"):
            pass
        for error in (ValueError("no"), asyncio.CancelledError()):
            with pytest.raises(type(error)), steps.operation("StopPodSandbox", sandbox_id="s"):
                raise error
    finally:
        stop()

    assert [(each.operation, each.subject, each.error) for each in records] == [
        ("RunPodSandbox", "default/web", ""),
        ("StopPodSandbox", "", "no"),
        ("StopPodSandbox", "", "CancelledError"),
    ], "one within another is a part of it"
    assert all(each.duration >= 0 and each.started_at > 0 for each in records)


def test_a_subscriber_is_called_within_the_span_of_what_has_ended() -> None:
    ended: dict[str, spans.Span | None] = {}
    stops = (
        steps.subscribe(lambda record: ended.update({record.name: spans.current()})),
        steps.subscribe_operations(lambda record: ended.update({record.operation: spans.current()})),
    )
    spans.turn_on(1.0)
    try:
        with (
            pytest.raises(ValueError),
            steps.operation("RunPodSandbox"),
            steps.step("pod.run"),
            steps.step("pod.netns.create"),
        ):
            raise ValueError
        assert spans.current() is None
    finally:
        spans.turn_off()
        for stop in stops:
            stop()

    operation, run, create = (ended[name] for name in ("RunPodSandbox", "pod.run", "pod.netns.create"))
    assert operation is not None and run is not None and create is not None
    assert (operation.parent_id, run.parent_id, create.parent_id) == ("", operation.span_id, run.span_id)


def test_a_subscriber_to_operations_or_rpcs_that_fails_changes_nothing() -> None:
    def fail(record: object) -> None:
        raise RuntimeError

    answered: list[steps.RpcRecord] = []
    stops = (steps.subscribe_operations(fail), steps.subscribe_rpcs(fail), steps.subscribe_rpcs(answered.append))
    try:
        with steps.operation("RunPodSandbox"):
            pass
        record = steps.RpcRecord(method="a/B", code="OK", started_at=1, duration=1)
        steps.answered(record)
    finally:
        for stop in stops:
            stop()
    assert answered == [record]

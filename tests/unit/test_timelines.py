"""What failed is kept: counted when it repeats, bounded, and over a restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.commits import Commits
from sandboxd.database import Connection, connect
from sandboxd.steps import Act, NetworkChange, PluginExecution, StepRecord, Story
from sandboxd.timelines import Limits, Timelines

PLUGIN = PluginExecution(
    command="ADD", binary="/x", env={"A": "b"}, stdin=b"{}", stdout=b"\xff", stderr=b"", exit_code=-9, duration=1
)
STEP = StepRecord(
    operation="RunPodSandbox", name="cni.add", sandbox_id="a", container_id="", started_at=1, duration=2, error="no",
    detail={"plugin": "bridge"}, plugin=PLUGIN, acts=(Act("Tasks.Create", "a", 3, 4, "UNAVAILABLE"),),
    changes=(
        NetworkChange(place="host", kind="link", name="x", before=None, after={"mtu": "1"}, belongs_to="pod"),
        NetworkChange(place="host", kind="link", name="y", before={"mtu": "1"}, after=None, belongs_to=""),
    ),
)  # fmt: skip


def story(subject: str = "default/web", error: str = "no address left", sandbox_id: str = "a" * 64) -> Story:
    return Story(
        operation="RunPodSandbox",
        subject=subject,
        sandbox_id=sandbox_id,
        container_id="",
        started_at=time.time_ns(),
        duration=5,
        error=error,
        steps=(STEP,),
    )


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Connection]:
    with closing(connect(str(tmp_path / "ledger.db"))) as db:
        yield db


def test_a_story_is_kept_whole_and_over_a_restart(file: Connection) -> None:
    kept = story()
    Timelines(Commits(file), Limits()).keep(kept)
    assert Timelines(Commits(file), Limits()).stories() == [kept]


def test_a_step_is_kept_whole_and_one_of_an_earlier_version_has_no_acts(file: Connection) -> None:
    timelines = Timelines(Commits(file), Limits())
    timelines.append(STEP)
    assert timelines.of("a") == [STEP]
    file.execute("UPDATE steps SET body = json_remove(body, '$.acts')")
    assert timelines.of("a") == [replace(STEP, acts=())]


def test_the_same_again_is_counted_and_the_last_is_kept(file: Connection) -> None:
    """A client that tries again gets a new id each time, which its error may name."""
    timelines = Timelines(Commits(file), Limits())
    for id_ in ("a" * 64, "b" * 64, "c" * 64):
        timelines.keep(story(error=f"pod {id_}: no address left", sandbox_id=id_))
        timelines.keep(story(subject="default/other"))
    other, last = timelines.stories()
    assert (last.times, last.sandbox_id, other.times) == (3, "c" * 64, 3)
    timelines.keep(story(error="something else"))
    assert [each.times for each in timelines.stories()] == [1, 3, 3]


@pytest.mark.parametrize("limits", [Limits(number=3), Limits(bytes=len("x" * 40_000 * 3) + 3000)])
def test_the_oldest_goes_first(file: Connection, limits: Limits) -> None:
    timelines = Timelines(Commits(file), limits)
    for number in range(9):
        timelines.keep(story(error=f"{number}" + "x" * 40_000))
    assert [each.error[0] for each in timelines.stories()] == ["8", "7", "6"]
    assert timelines.kept == Timelines(Commits(file), limits).kept == 3


def test_what_is_too_old_is_not_shown_and_goes(file: Connection) -> None:
    timelines = Timelines(Commits(file), Limits(seconds=3600))
    timelines.keep(replace(story("old"), started_at=time.time_ns() - 3601 * 10**9))
    assert timelines.stories() == []
    timelines.keep(story("new"))
    assert file.execute("SELECT subject FROM stories").fetchall() == [("new",)]


def test_a_damaged_story_is_left_out(file: Connection) -> None:
    timelines = Timelines(Commits(file), Limits())
    timelines.keep(story("damaged"))
    file.execute("UPDATE stories SET body = substr(body, 1, 40)")
    timelines.keep(story("damaged"))  # the same again, which cannot be seen
    file.execute("UPDATE stories SET body = '[]' WHERE seq = 1")
    timelines.keep(story("whole"))
    assert [each.subject for each in timelines.stories()] == ["whole", "damaged"]


async def test_steps_are_written_together_and_read_at_once(file: Connection) -> None:
    timelines = Timelines(Commits(file), Limits())
    writes = file.total_changes
    for number in range(5):
        timelines.append(replace(STEP, started_at=number))
    assert [each.started_at for each in timelines.of("a")] == [0, 1, 2, 3, 4]
    assert file.total_changes == writes

    timelines.write()
    assert [each.started_at for each in timelines.of("a")] == [0, 1, 2, 3, 4]
    timelines.append(replace(STEP, started_at=5))
    assert [each.started_at for each in timelines.of("a")] == [0, 1, 2, 3, 4, 5]
    assert [each.started_at for each in Timelines(Commits(file), Limits()).of("a")] == [0, 1, 2, 3, 4]


async def test_steps_that_wait_go_with_their_pod(file: Connection) -> None:
    timelines, commits = Timelines(Commits(file), Limits()), Commits(file)
    timelines.append(STEP)
    commits.now(timelines.forget("a"))
    timelines.write()
    assert timelines.of("a") == []


async def test_steps_are_written_soon(file: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxd.timelines.WRITE_SECONDS", 0)
    timelines, other = Timelines(Commits(file), Limits()), Timelines(Commits(file), Limits())
    timelines.append(STEP)
    assert other.of("a") == []
    await asyncio.sleep(0.001)  # one turn of the loop, in which timers that are due run
    assert other.of("a") == [STEP]


def test_a_step_of_an_earlier_version_recorded_no_changes(file: Connection) -> None:
    timelines = Timelines(Commits(file), Limits())
    timelines.append(replace(STEP, changes=()))
    with file:
        file.execute("UPDATE steps SET body = json_remove(body, '$.changes')")
    assert timelines.of("a") == [replace(STEP, changes=())]

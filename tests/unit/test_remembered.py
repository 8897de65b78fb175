"""Remembered answers: asked once, shared by those who wait, asked again when they may have changed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Hashable
from pathlib import Path

import pytest

from sandboxd.errors import NotReady, PluginFailed
from sandboxd.remembered import Remembered, version


class Program:
    """Answers with how often it was asked; with an error when it has one, and not before `may_answer`."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def ask(self) -> int:
        self.asked += 1
        asked = self.asked
        await self.may_answer.wait()
        if self.error:
            raise self.error
        return asked


async def waiting(count: int, remembered: Remembered, program: Program) -> list[asyncio.Task[int]]:
    """Callers, of which one asks and all others wait for it."""
    program.may_answer.clear()
    tasks = [asyncio.create_task(remembered.answer("key", program.ask)) for _ in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert program.asked == 1
    return tasks


async def test_a_question_is_asked_once() -> None:
    remembered, program = Remembered(), Program()

    assert [await remembered.answer("key", program.ask) for _ in range(3)] == [1, 1, 1]


async def test_an_answer_that_is_false_is_an_answer() -> None:
    remembered, asked = Remembered(), []

    async def ask() -> None:
        asked.append(True)

    await remembered.answer("key", ask)
    await remembered.answer("key", ask)
    assert asked == [True]


async def test_each_key_has_its_own_answer() -> None:
    remembered, program = Remembered(), Program()

    assert [await remembered.answer(key, program.ask) for key in ("a", ("a", "b"), "a")] == [1, 2, 1]


async def test_another_version_is_asked_again_and_replaces_the_answer() -> None:
    remembered, program = Remembered(), Program()
    versions: tuple[Hashable, ...] = (None, 1, 1, 2, 1)

    assert [await remembered.answer("key", program.ask, version=one) for one in versions] == [1, 2, 2, 3, 4]


async def test_those_who_come_meanwhile_share_the_answer() -> None:
    remembered, program = Remembered(), Program()
    tasks = await waiting(5, remembered, program)
    program.may_answer.set()

    assert await asyncio.gather(*tasks) == [1] * 5


async def test_keys_do_not_wait_for_each_other() -> None:
    remembered, slow, quick = Remembered(), Program(), Program()
    tasks = await waiting(1, remembered, slow)

    assert await remembered.answer("other", quick.ask) == 1
    slow.may_answer.set()
    await asyncio.gather(*tasks)


async def test_those_who_come_meanwhile_share_the_error() -> None:
    """Or each would wait in turn for a program that does not answer."""
    remembered, program = Remembered(), Program()
    tasks = await waiting(3, remembered, program)
    program.error = NotReady("no")
    program.may_answer.set()

    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in errors] == ["no"] * 3
    assert program.asked == 1


async def test_an_error_is_not_kept() -> None:
    remembered, program = Remembered(), Program()
    program.error = NotReady("no")
    with pytest.raises(NotReady):
        await remembered.answer("key", program.ask)
    program.error = None

    assert await remembered.answer("key", program.ask) == 2


async def test_an_error_is_kept_for_as_long_as_the_caller_wants() -> None:
    now = 0.0
    remembered, program = Remembered(lambda: now), Program()
    program.error = NotReady("no")
    for _ in range(3):
        with pytest.raises(NotReady):
            await remembered.answer("key", program.ask, error_seconds=60)
    assert program.asked == 1

    now = 60.0
    program.error = None
    assert await remembered.answer("key", program.ask, error_seconds=60) == 2


async def test_what_one_caller_notes_on_the_error_is_not_shown_to_another() -> None:
    remembered, program = Remembered(), Program()
    tasks = await waiting(2, remembered, program)
    program.error = PluginFailed(plugin="bridge", command="VERSION", code=4, msg="no", details="none")
    program.error.add_note("from the start")
    program.may_answer.set()

    first, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, PluginFailed) and isinstance(second, PluginFailed)
    first.add_note("mine")
    assert (second.plugin, second.code, str(second)) == (first.plugin, first.code, str(first))
    assert (first.__notes__, second.__notes__) == (["from the start", "mine"], ["from the start"])


async def test_a_system_error_stays_what_it_is() -> None:
    remembered, program = Remembered(), Program()
    tasks = await waiting(2, remembered, program)
    program.error = FileNotFoundError(2, "No such file", "/x")
    program.may_answer.set()

    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [(type(error), str(error)) for error in errors] == [
        (FileNotFoundError, "[Errno 2] No such file: '/x'")
    ] * 2


async def test_one_that_is_cancelled_leaves_the_question_to_the_next() -> None:
    remembered, program = Remembered(), Program()
    tasks = await waiting(3, remembered, program)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    program.may_answer.set()

    assert await asyncio.gather(*tasks[1:]) == [2, 2]


def test_the_version_of_a_file_is_another_when_it_is_replaced_or_written(tmp_path: Path) -> None:
    path = str(tmp_path / "program")
    Path(path).write_text("one")
    os.utime(path, ns=(1, 1))
    first = version(path)
    assert version(path) == first

    os.utime(path, ns=(1, 2))
    assert version(path) != first
    Path(path).write_text("three")
    os.utime(path, ns=(1, 1))
    assert version(path) != first
    Path(f"{path}.new").write_text("one")
    os.utime(f"{path}.new", ns=(1, 1))
    os.rename(f"{path}.new", path)
    assert version(path) != first


def test_a_file_that_is_missing_has_no_version(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        version(str(tmp_path / "none"))

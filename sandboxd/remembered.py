"""Answers that are slow to get and hold until something changes: what a program can do, what a kernel allows.

Rules:
1. One question at a time for each key. A caller that comes while it is being asked waits for the same answer, or the
   same error.
2. An answer is kept until it is asked for with another version: of a program, `version` of its file.
3. An error is not an answer. It is kept for as long as the caller wants, by default not at all.
4. A caller that is cancelled while it asks leaves the question to the next one that waits.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

T = TypeVar("T")


def version(path: str) -> Hashable:
    """Equal for as long as the file at `path` is the same and has the same contents. Raises OSError."""
    stat = os.stat(path)
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


@dataclass(slots=True)
class _Question:
    """What is known of one key in one version."""

    version: Hashable
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    answer: tuple[Any] | None = None
    error: Exception | None = None
    errors: int = 0
    silent_until: float = 0.0


class Remembered:
    """The answers of one daemon, or of one of its resources; each key always has the same type of answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._questions: dict[Hashable, _Question] = {}

    async def answer(
        self,
        key: Hashable,
        ask: Callable[[], Awaitable[T]],
        *,
        version: Hashable = None,
        error_seconds: float = 0.0,
    ) -> T:
        """The remembered answer to `key`, or what `ask` returns now.

        Raises what `ask` raises; for `error_seconds` after that it is raised again without asking.
        """
        question = self._questions.get(key)
        if question is None or question.version != version:
            question = self._questions[key] = _Question(version)
        if question.answer is None:
            errors = question.errors
            async with question.turn:
                if question.answer is None:
                    if question.error and (question.errors > errors or self._clock() < question.silent_until):
                        raise _copied(question.error) from question.error
                    await self._ask(question, ask, error_seconds)
        assert question.answer is not None
        return cast("T", question.answer[0])

    async def _ask(self, question: _Question, ask: Callable[[], Awaitable[Any]], error_seconds: float) -> None:
        try:
            question.answer = (await ask(),)
        except Exception as exc:
            question.error = _copied(exc)
            question.errors += 1
            question.silent_until = self._clock() + error_seconds
            raise


def _copied(error: Exception) -> Exception:
    """A copy of the error for one caller, which may add notes of its own to it."""
    arguments = cast("tuple[Any, ...]", error.__reduce__()[1])  # an OSError's `args` lack the file name
    copy = type(error).__new__(type(error), *arguments)
    copy.__dict__.update(error.__dict__)
    if hasattr(error, "__notes__"):
        copy.__notes__ = list(error.__notes__)
    copy.__cause__ = error.__cause__
    return copy

"""What happened, kept: the steps of each pod, and the operations that failed.

Both are tables of the ledger's database. A pod's steps go with its record. A failed operation stays longer than what
it was about, for whoever asks why: bounded in number, in age and in bytes.

Steps are written some at a time, so that no request waits for that; reads see them at once. A daemon that is killed
loses the last `WRITE_SECONDS` of them: they tell what was done, and nothing depends on them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import structlog

from sandboxd.commits import Commits, Statement
from sandboxd.database import Connection
from sandboxd.errors import Unavailable
from sandboxd.record_format import encoded, known
from sandboxd.steps import STEPS_KEPT, Act, NetworkChange, PluginExecution, StepRecord, Story

log = structlog.get_logger(__name__)

WRITE_SECONDS = 0.25  # after the first that waits
_TRIM_EVERY = 64  # steps added to a pod; until then it keeps up to so many more
_TRIM = (
    "DELETE FROM steps WHERE sandbox_id = ?1 AND seq <="
    " (SELECT seq FROM steps WHERE sandbox_id = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)"
)
_LAST = "SELECT seq, body FROM stories WHERE operation = ? AND subject = ? ORDER BY seq DESC LIMIT 1"
_STEP, _PLUGIN, _ACT = (tuple(f.name for f in fields(of)) for of in (StepRecord, PluginExecution, Act))
_OUTPUT = ("stdin", "stdout", "stderr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of what failed is kept; the oldest goes first."""

    number: int = 200
    seconds: float = 7 * 86400.0
    bytes: int = 16 << 20


class Timelines:
    """The steps of pods, and the stories of failed operations."""

    def __init__(self, commits: Commits, limits: Limits) -> None:
        self._commits = commits
        self._limits = limits
        self._appended: Counter[str] = Counter()
        self._waiting: dict[str, list[StepRecord]] = {}  # to be written, by pod
        self._timer: asyncio.TimerHandle | None = None
        self.kept = self._number()  # stories

    def copy(self, into: Connection) -> None:
        """Copy what can be read into another database, in the caller's transaction."""
        for table, columns in (("steps", 3), ("stories", 5)):
            rows = f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})"
            try:
                into.executemany(rows, self._commits.db.execute(f"SELECT * FROM {table}"))
            except sqlite3.DatabaseError as exc:
                log.warning("timelines are lost with the ledger", table=table, error=str(exc))

    # Pods

    def append(self, record: StepRecord) -> None:
        """Add a step to its pod's. It is written soon, or at once where no event loop runs."""
        self._waiting.setdefault(record.sandbox_id, []).append(record)
        if self._timer is not None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.write()
        else:
            self._timer = loop.call_later(WRITE_SECONDS, self.write)

    def write(self) -> None:
        """Write the steps that wait. What cannot be written is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        statements: list[Statement] = []
        for sandbox_id, records in self._waiting.items():
            values = ((sandbox_id, _step_json(record)) for record in records)
            statements += (("INSERT INTO steps (sandbox_id, body) VALUES (?, ?)", each) for each in values)
            before = self._appended[sandbox_id]
            self._appended[sandbox_id] = now = before + len(records)
            if before // _TRIM_EVERY != now // _TRIM_EVERY or not before:
                statements.append((_TRIM, (sandbox_id, STEPS_KEPT)))
        self._waiting.clear()
        if statements:
            with suppress(Unavailable):
                self._commits.now(*statements)

    def of(self, sandbox_id: str) -> list[StepRecord]:
        """A pod's steps in the order in which they ended; a damaged one is left out."""
        steps = []
        for _, body in self._read("SELECT seq, body FROM steps WHERE sandbox_id = ? ORDER BY seq", sandbox_id):
            try:
                steps.append(_step_from(json.loads(body)))
            except Exception as exc:
                log.warning("a step of the timeline cannot be read", sandbox=sandbox_id, error=str(exc))
        return steps + self._waiting.get(sandbox_id, [])

    def forget(self, sandbox_id: str) -> Statement:
        """What deletes a pod's steps."""
        self._appended.pop(sandbox_id, None)
        self._waiting.pop(sandbox_id, None)
        return "DELETE FROM steps WHERE sandbox_id = ?", (sandbox_id,)

    # What failed

    def keep(self, story: Story) -> None:
        """Keep a failed operation; one that repeats the last of its kind is counted, and replaces it.

        One that cannot be written is lost.
        """
        kind = story.operation, story.subject
        statements: list[Statement] = []
        for seq, body in self._read(_LAST, *kind):
            if (before := _story_or_none(body)) and _without_ids(before) == _without_ids(story):
                story = replace(story, times=before.times + 1)
                statements.append(("DELETE FROM stories WHERE seq = ?", (seq,)))
        text = _story_json(story)
        add = "INSERT INTO stories (operation, subject, ended_at, body) VALUES (?, ?, ?, ?)"
        statements.append((add, (*kind, story.started_at + story.duration, text)))
        with suppress(Unavailable):
            self._commits.now(*statements, *self._trim(len(text)))
        self.kept = self._number()

    def stories(self) -> list[Story]:
        """The failed operations that are kept, newest first; a damaged one is left out."""
        rows = self._read("SELECT seq, body FROM stories WHERE ended_at > ? ORDER BY seq DESC", self._oldest())
        return [story for _, body in rows if (story := _story_or_none(body)) is not None]

    def _number(self) -> int:
        return sum(count for count, _ in self._read("SELECT count(*), '' FROM stories"))

    def _trim(self, added: int) -> list[Statement]:
        """What makes room for one more, of so many characters."""
        statements: list[Statement] = [("DELETE FROM stories WHERE ended_at <= ?", (self._oldest(),))]
        taken = added
        for number, (seq, size) in enumerate(
            self._read("SELECT seq, length(body) FROM stories ORDER BY seq DESC"), 1
        ):
            taken += int(size)
            if number >= self._limits.number or taken > self._limits.bytes:
                statements.append(("DELETE FROM stories WHERE seq <= ?", (seq,)))
                break
        return statements

    def _oldest(self) -> int:
        return time.time_ns() - int(self._limits.seconds * 1e9)

    def _read(self, query: str, *values: object) -> list[tuple[int, str]]:
        """The rows that a query gives; none from a file that is damaged."""
        db = self._commits.db
        try:
            return db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as exc:
            db.damaged = db.damaged or not isinstance(exc, sqlite3.OperationalError)
            log.warning("what happened cannot be read", error=str(exc))
            return []


def _without_ids(story: Story) -> str:
    """The error, by which a client's next attempt at the same is recognised: the ids are new each time."""
    words = story.error
    for id_ in (story.sandbox_id, story.container_id):
        if id_:
            words = words.replace(id_, "")
    return words


def _step_values(record: StepRecord) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(record, name) for name in _STEP}
    if record.plugin is not None:
        plugin = {name: getattr(record.plugin, name) for name in _PLUGIN}
        for key in _OUTPUT:
            plugin[key] = encoded(plugin[key])
        values["plugin"] = plugin
    values["acts"] = [[getattr(act, name) for name in _ACT] for act in record.acts]
    values["changes"] = [asdict(each) for each in record.changes]
    return values


def _step_json(record: StepRecord) -> str:
    return json.dumps(_step_values(record))


def _step_from(values: dict[str, Any]) -> StepRecord:
    if values["plugin"] is not None:
        for key in _OUTPUT:
            values["plugin"][key] = base64.b64decode(values["plugin"][key])
        values["plugin"] = PluginExecution(**known(PluginExecution, values["plugin"]))
    # An earlier version's steps have none.
    values["acts"] = tuple(Act(*each) for each in values.get("acts", ()))
    changes = values.get("changes", ())  # an earlier version recorded none
    values["changes"] = tuple(NetworkChange(**known(NetworkChange, each)) for each in changes)
    return StepRecord(**known(StepRecord, values))


def _story_json(story: Story) -> str:
    values: dict[str, Any] = {f.name: getattr(story, f.name) for f in fields(story)}
    values["steps"] = [_step_values(step) for step in story.steps]
    return json.dumps(values)


def _story_or_none(body: str) -> Story | None:
    try:
        values = json.loads(body)
        values["steps"] = tuple(_step_from(step) for step in values["steps"])
        return Story(**known(Story, values))
    except Exception as exc:
        log.warning("a failed operation that was kept cannot be read", error=str(exc))
        return None

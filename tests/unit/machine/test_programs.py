"""Programs that are asked something answer, or are ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxd.machine import programs


async def test_the_answer_has_the_status_and_both_outputs() -> None:
    status, output, errors = await programs.ask(("sh", "-c", "pwd; echo no >&2; exit 3"), 20)
    assert (status, output, errors) == (3, b"/\n", b"no\n")


async def test_what_cannot_be_executed_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await programs.ask((str(tmp_path / "none"),), 20)
    (tmp_path / "text").write_text("no program")
    with pytest.raises(PermissionError):
        await programs.ask((str(tmp_path / "text"),), 20)


async def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(TimeoutError):
        await programs.ask(("sh", "-c", f"echo $$ > {note}; exec sleep 600"), 0.5)
    if note.exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int(note.read_text()), 0)


async def test_of_an_endless_answer_the_beginning_is_kept() -> None:
    _, output, _ = await programs.ask(("head", "-c", str(3 << 20), "/dev/zero"), 20)
    assert len(output) == 1 << 20

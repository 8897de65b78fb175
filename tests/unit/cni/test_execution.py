"""One execution of a plugin, whatever it does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sandboxd.cni import execution
from sandboxd.cni.result import OUTPUT_LIMIT
from sandboxd.errors import NotReady


async def test_a_child_left_behind_with_the_output_does_not_hold_up_the_plugin(
    plugins: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "LINGER_SECONDS", 0.05)
    directory = plugins(bridge={"DEL": [{"grandchild": "child", "stdout": "done"}]})

    try:
        done = await execution.run(f"{directory}/bridge", {"CNI_COMMAND": "DEL", "PATH": os.defpath}, b"{}", 60)
        assert (done.exit_code, done.stdout) == (0, b"done")
    finally:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((tmp_path / "child").read_text()), 9)


async def test_a_binary_that_is_still_being_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses to execute a file that is open for writing (ETXTBSY); installers write in place."""
    binary = tmp_path / "true"
    binary.write_bytes(Path("/bin/true").read_bytes())
    binary.chmod(0o755)
    writer = os.open(binary, os.O_WRONLY)
    pauses = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            os.close(writer)

    monkeypatch.setattr(asyncio, "sleep", pause)

    done = await execution.run(str(binary), {"CNI_COMMAND": "ADD"}, b"", 30)

    assert (done.exit_code, len(pauses)) == (0, 2)


async def test_a_file_that_is_no_program_is_told_by_name(tmp_path: Path) -> None:
    binary = tmp_path / "bridge"
    binary.write_text("#!/nowhere/sh\n")
    binary.chmod(0o755)

    with pytest.raises(NotReady, match=f"{binary} cannot be executed: the interpreter or loader"):
        await execution.run(str(binary), {}, b"", 30)


async def test_a_plugin_that_never_reads_stdin_is_no_problem(tmp_path: Path) -> None:
    binary = tmp_path / "deaf"
    binary.write_text("#!/bin/sh\nexit 0\n")
    binary.chmod(0o755)

    assert (await execution.run(str(binary), {}, b"x" * (1 << 20), 30)).exit_code == 0


async def test_output_beyond_the_limit_is_read_and_dropped(plugins: Callable[..., str]) -> None:
    directory = plugins(bridge={"DEL": [{"stdout": "x" * (3 << 20), "stderr": "y" * (3 << 20)}]})

    done = await execution.run(f"{directory}/bridge", {"CNI_COMMAND": "DEL", "PATH": os.defpath}, b"{}", 30)

    assert (done.exit_code, len(done.stdout), len(done.stderr)) == (0, OUTPUT_LIMIT, OUTPUT_LIMIT)


@pytest.mark.parametrize(("script", "code", "by"), [("exit 3", 3, ""), ("kill -SEGV $$", -11, "other")])
async def test_who_ended_a_plugin_is_recorded(tmp_path: Path, script: str, code: int, by: str) -> None:
    binary = tmp_path / "plugin"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    done = await execution.run(str(binary), {"PATH": os.defpath}, b"", 60)
    assert (done.exit_code, done.ended_by) == (code, by)

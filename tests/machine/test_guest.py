"""When `make test-machine` is skipped, and when it fails: nothing that a guest does is a reason to skip it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine import guest, run

KERNEL = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"


def consoles(monkeypatch: pytest.MonkeyPatch, *of_boots: list[str | Exception]) -> None:
    """What the consoles of the next boots say; an exception is raised there."""
    left = list(of_boots)

    def boot(directory: Path, *arguments: str, seconds: float) -> Iterator[str]:
        for line in left.pop(0):
            if isinstance(line, Exception):
                raise line
            if line.startswith("status "):
                (directory / "results" / "status").write_text(line.split()[1])
            yield line

    def prepare(directory: Path, command: str) -> str:
        (directory / "results").mkdir()
        return "ubd0=disk"

    monkeypatch.setattr(guest, "build", lambda: 0.0)
    monkeypatch.setattr(guest, "boot", boot)
    monkeypatch.setattr(guest, "prepare", prepare)


@pytest.fixture(autouse=True)
def out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guest, "OUT", tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("signal.signal", lambda *_: None)


def test_a_kernel_that_misses_its_disk_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    consoles(monkeypatch, [guest.BEGINS, KERNEL])
    guest.probe()


def test_a_kernel_that_ends_before_is_a_reason_to_skip_and_its_words_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    consoles(monkeypatch, [guest.BEGINS, "ptrace: Operation not permitted"])
    assert run.main([]) == 0
    said = capsys.readouterr().out
    assert "SKIPPED" in said and "ptrace: Operation not permitted" in said


def test_what_fails_before_the_kernel_begins_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    consoles(monkeypatch, ["mount: no such directory"])
    assert run.main([]) == 1
    assert "FAILED: what the guest needs could not be mounted" in capsys.readouterr().out


GOOD: list[str | Exception] = ["login:", "status 0"]


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        (GOOD, GOOD, ""),
        (["status 1"], GOOD, "boot 1: status 1"),
        (GOOD, ["status 1"], "boot 2: status 1"),
        (GOOD, ["Kernel panic"], "boot 2: status none"),
        ([guest.GuestFailed("the guest still ran")], GOOD, "the guest still ran"),
    ],
    ids=["good", "tests fail", "tests fail after the reboot", "panic", "hangs"],
)
def test_a_guest_that_started_comes_to_a_good_end_twice_or_it_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first: list[str | Exception],
    second: list[str | Exception],
    problem: str,
) -> None:
    consoles(monkeypatch, [guest.BEGINS, KERNEL], first, second)
    assert run.main([]) == int(bool(problem))
    last = capsys.readouterr().out.splitlines()[-1]
    assert (f"FAILED: {problem}" in last) if problem else ("passed" in last)

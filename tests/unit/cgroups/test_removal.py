"""Cgroups are removed with all below them; nothing but what they list is ever killed. The tree here is a fake one."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxd.cgroups import removal
from sandboxd.cgroups.kernel import Cgroups
from sandboxd.errors import CleanupIncomplete
from tests.deep import DEEP, deep_path, nest

__all__ = ["deep_path"]  # a fixture


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pids that got a SIGKILL."""
    found: list[int] = []

    def kill(pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        found.append(pid)
        if pid == 404:
            raise ProcessLookupError(errno.ESRCH, "No such process")

    monkeypatch.setattr(os, "kill", kill)
    return found


@pytest.fixture
def as_the_kernel_does(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A cgroup's own files do not keep it from being removed; its cgroups do, and processes without a number until
    they are killed by the cgroup. Collects what was removed.
    """
    removed: list[str] = []
    real = os.rmdir

    def rmdir(name: str, *, dir_fd: int | None = None) -> None:
        path = Path(name if dir_fd is None else f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{name}")
        kill, procs = path / "cgroup.kill", path / "cgroup.procs"
        holds_some = any(each.is_dir() for each in path.iterdir())
        if holds_some or ("0" in procs.read_text().split() and not (kill.exists() and kill.read_text() == "1")):
            raise OSError(errno.EBUSY, "Device or resource busy")
        kill.unlink(missing_ok=True)
        procs.unlink()
        real(path)
        removed.append(path.name)

    monkeypatch.setattr(os, "rmdir", rmdir)
    return removed


def cgroup(root: Path, path: str, procs: str = "", *, kill: bool = False) -> Path:
    made = root / path
    made.mkdir(parents=True)
    (made / "cgroup.procs").write_text(procs, encoding="utf-8")
    if kill:
        (made / "cgroup.kill").write_text("")
    return made


def remove(root: Path, path: str = "/parent/pod") -> str:
    work = removal.attempt(path, str(root))
    while True:
        try:
            next(work)
        except StopIteration as end:
            return str(end.value)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").touch()
    return tmp_path


def test_all_below_goes_with_what_runs_there(v2: Path, killed: list[int], as_the_kernel_does: list[str]) -> None:
    cgroup(v2, "parent/pod", "7\n")
    cgroup(v2, "parent/pod/c/nested", "8\n404\n9\n")
    (v2 / "parent/pod/c/cgroup.procs").write_text("")
    cgroup(v2, "parent/other", "10\n")
    assert remove(v2) == ""
    assert sorted(killed) == [7, 8, 9, 404]
    assert not (v2 / "parent/pod").exists()
    assert (v2 / "parent/other/cgroup.procs").read_text() == "10\n"
    assert remove(v2) == "", "gone is done"


@pytest.mark.parametrize("below", [False, True])
def test_a_process_that_has_no_number_here_is_never_killed_as_pid_0(
    v2: Path, killed: list[int], as_the_kernel_does: list[str], below: bool
) -> None:
    """kill(0) would be sandboxd and all of its group. The kernel is asked to end them instead, where it can."""
    cgroup(v2, "parent/pod", "" if below else "0\n7\n0\n", kill=not below)
    cgroup(v2, "parent/pod/none", "0\n7\n0\n" if below else "", kill=below)
    assert remove(v2) == "Device or resource busy"
    assert remove(v2) == ""
    assert set(killed) == {7}
    assert not (v2 / "parent/pod").exists()


def test_where_the_kernel_cannot_end_them_they_stay_and_that_is_told(
    v2: Path, killed: list[int], as_the_kernel_does: list[str]
) -> None:
    cgroup(v2, "parent/pod", "0\n")
    assert remove(v2) == remove(v2) == "Device or resource busy"
    assert killed == []


@pytest.mark.parametrize("text", ["-1\n", "+5\n", "1_0\n", "x\n", "\u0661\n"])
def test_what_is_no_pid_is_not_killed(v2: Path, killed: list[int], as_the_kernel_does: list[str], text: str) -> None:
    cgroup(v2, "parent/pod", text)
    assert remove(v2) == ""
    assert killed == []


def test_sandboxd_does_not_kill_itself(v2: Path, killed: list[int]) -> None:
    cgroup(v2, "parent/pod", f"{os.getpid()}\n7\n", kill=True)
    with pytest.raises(CleanupIncomplete, match="sandboxd itself runs in it"):
        remove(v2)
    assert killed == []
    assert (v2 / "parent/pod/cgroup.kill").read_text() == ""


def test_cgroups_nested_deeper_than_any_path_and_any_stack_are_removed_and_counted(deep_path: Path) -> None:
    (deep_path / "cgroup.controllers").touch()
    (deep_path / "parent" / "pod").mkdir(parents=True)
    nest(deep_path / "parent" / "pod")
    assert Cgroups(str(deep_path)).processes("/parent/pod") == []
    pieces = list(removal.attempt("/parent/pod", str(deep_path)))
    assert not (deep_path / "parent" / "pod").exists()
    assert len(pieces) == 2 * DEEP // 1000


def failing(code: int) -> Callable[[int, int], bytes]:
    def read(fd: int, size: int) -> bytes:
        raise OSError(code, os.strerror(code))

    return read


def test_a_threaded_cgroup_that_lists_no_processes_is_removed(
    v2: Path, killed: list[int], as_the_kernel_does: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup(v2, "parent/pod", "7\n")
    monkeypatch.setattr(os, "read", failing(errno.EOPNOTSUPP))
    assert remove(v2) == ""


def test_each_hierarchy_of_v1_is_cleaned_once(
    tmp_path: Path, killed: list[int], as_the_kernel_does: list[str]
) -> None:
    cgroup(tmp_path, "cpu,cpuacct/parent/pod", "7\n")
    cgroup(tmp_path, "memory/parent/pod", "7\n")
    cgroup(tmp_path, "pids/parent", "1\n")
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    assert remove(tmp_path) == ""
    assert killed == [7, 7]
    assert as_the_kernel_does == ["pod", "pod"]

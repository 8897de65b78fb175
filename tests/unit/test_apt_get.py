"""deploy/apt-get.sh waits for whoever holds a lock of apt's or dpkg's.

The genuine apt-get, with its lists, its archives and dpkg's database in directories of the test's own; the test is
who holds the locks.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "apt-get.sh"
# What takes which lock; installing nothing from nowhere takes all that installing takes.
LOCKS = {"lists/lock": "update", "archives/lock": "install", "dpkg/lock-frontend": "install", "dpkg/lock": "install"}


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Directories for apt-get to work in, described in `places / "conf"`."""
    for name in ("lists/partial", "archives/partial", "dpkg", "state", "cache"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "dpkg" / "status").touch()
    settings = {
        "Dir::State": "state",
        "Dir::State::Lists": "lists",
        "Dir::State::status": "dpkg/status",
        "Dir::Cache": "cache",
        "Dir::Cache::Archives": "archives",
    }
    lines = [f'{key} "{tmp_path / value}";' for key, value in settings.items()]
    lines += ['Dir::Etc::SourceList "/dev/null";', 'Dir::Etc::SourceParts "/dev/null";', 'APT::Sandbox::User "root";']
    (tmp_path / "conf").write_text("\n".join(lines) + "\n")
    return tmp_path


@contextmanager
def apt_get(places: Path, *words: str, seconds: int = 600) -> Iterator[subprocess.Popen[str]]:
    """The script at work, ended with the block."""
    process = subprocess.Popen(
        ["sh", str(SCRIPT), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Words in another language are what it must not be confused by.
        env={**os.environ, "APT_CONFIG": str(places / "conf"), "APT_LOCK_SECONDS": str(seconds), "LC_ALL": "C.utf8"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def hold(path: Path) -> IO[str]:
    """Take the lock; it is held until the file is closed."""
    file = path.open("w")
    fcntl.lockf(file, fcntl.LOCK_EX)
    return file


@pytest.mark.parametrize(("lock", "verb"), LOCKS.items())
def test_a_held_lock_is_waited_for(places: Path, lock: str, verb: str) -> None:
    with hold(places / lock) as holder, apt_get(places, verb, "-y") as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith("apt-get: waiting for up to 600 s. E: Could not get lock")
        assert f"{places / lock}. It is held by process {os.getpid()}" in said
        assert process.poll() is None
        holder.close()
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert "Reading package lists" in stdout


def test_waiting_has_an_end_and_the_holder_is_named(places: Path) -> None:
    with hold(places / "lists/lock"), apt_get(places, "update", seconds=0) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (100, "")
    assert f"It is held by process {os.getpid()}" in stdout


def test_another_failure_is_reported_at_once(places: Path) -> None:
    with apt_get(places, "install", "-y", "no-such-package") as process:
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (100, "")
    assert "Unable to locate package no-such-package" in stdout

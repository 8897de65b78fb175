"""The daemon, and what is on disk at each of its commits: what a power cut at that moment would leave.

    python recorded.py VAR-LIB CUTS serve --config …

While CUTS/now exists, VAR-LIB is copied to CUTS/NNN after each commit of the ledger, with containerd standing still,
so that its files are of one moment, too. What was committed is named in CUTS/NNN.what. Steps of a timeline, which
recovery does not look at, are left out.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sandboxd import commits, ledger
from sandboxd.__main__ import main

CONTAINERD = "/run/sandboxd/containerd/containerd.pid"
LEFT_OUT = ("append_step", "keep_story")


def recorded(disk: Path, cuts: Path) -> None:
    """Copy `disk` after each commit from now on."""
    original = commits.Commits._write

    def write(self: commits.Commits, statements: Sequence[commits.Statement]) -> None:
        original(self, statements)
        what = _caller()
        if what not in LEFT_OUT and (cuts / "now").exists():
            _cut(disk, cuts, what)

    setattr(commits.Commits, "_write", write)  # noqa: B010 - a wrapper, which the type must not know


def _caller() -> str:
    """Which of the ledger's methods commits."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename != ledger.__file__:
        assert frame.f_back is not None
        frame = frame.f_back
    while frame.f_back is not None and frame.f_back.f_code.co_filename == ledger.__file__:
        frame = frame.f_back
    return frame.f_code.co_name


def _cut(disk: Path, cuts: Path, what: str) -> None:
    number = len(list(cuts.glob("*.what")))
    containerd = int(Path(CONTAINERD).read_text().split()[0])
    os.kill(containerd, signal.SIGSTOP)
    try:
        # Not in this process: closing the ledger's file a second time would give up SQLite's locks on it.
        subprocess.run(["cp", "-a", "--reflink=auto", str(disk), str(cuts / f"{number:03}")], check=False)
    finally:
        os.kill(containerd, signal.SIGCONT)
    (cuts / f"{number:03}.what").write_text(what, encoding="utf-8")


if __name__ == "__main__":
    place, into = sys.argv.pop(1), sys.argv.pop(1)
    recorded(Path(place), Path(into))
    main()

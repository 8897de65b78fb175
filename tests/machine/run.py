"""Runs what only a machine with systemd, cgroup v2 and AppArmor can show in a guest that is one: `make test-machine`.

The guest (guest.py) is booted twice on one disk: tests.machine.here runs in it as on any such machine, then leaves
pods behind for the second boot. Its console is shown as it comes and kept in build/machine/console.log, with the
results beside it. Where user-mode Linux cannot run, that is said, and the exit status is 0; a guest that started and
does not come to a good end is a failure.

    python -m tests.machine.run [pytest's arguments besides]
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from sandboxd import trees
from tests.machine import guest
from tests.testbed import ROOT

BOOT_SECONDS = (660.0, 120.0)


def main(arguments: list[str]) -> int:
    """Build, boot twice, report; the exit status."""
    if os.geteuid() != 0:
        print(
            "test-machine: boots a guest with mounts of its own and needs root: sudo make test-machine",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is below is cleaned up then too
    begun = time.monotonic()
    try:
        seconds = guest.build()
        said(
            begun,
            f"the guest's disk was {'made' if seconds > 5 else 'there'}" + f" ({seconds:.0f} s)" * (seconds > 5),
        )
        guest.probe()
        words = boots(begun, arguments)
    except guest.CannotRun as exc:
        line = "!" * 100
        print(f"\n{line}\ntest-machine: SKIPPED, nothing was tested: user-mode Linux cannot run here: {exc}\n{line}")
        return 0
    except guest.GuestFailed as exc:
        print(f"test-machine: {exc}\ntest-machine: the guest's console is in {guest.OUT / 'console.log'}", flush=True)
        words = str(exc).splitlines()[0]
    print(
        f"test-machine: {f'FAILED: {words}' if words else 'passed'} in {time.monotonic() - begun:.0f} s", flush=True
    )
    return int(bool(words))


def boots(begun: float, arguments: list[str]) -> str:
    """Both boots; "" when all is well, or what is not."""
    run = Path(tempfile.mkdtemp(prefix="sbx-machine-", dir="/var/tmp"))
    here = f"{ROOT}/.venv/bin/python -m tests.machine.here --results /mnt/results"
    if Path(sys.prefix) != ROOT / ".venv":
        raise guest.CannotRun(f"the checkout's own environment is taken into the guest, and this is {sys.prefix}")
    command = f"exec {here} --reboot $(cat /mnt/results/boot 2>/dev/null || echo before) -- {shlex.join(arguments)}\n"
    console = guest.OUT / "console.log"
    problems = []
    try:
        disk = guest.prepare(run, command)
        status = run / "results" / "status"
        with console.open("w", encoding="utf-8") as log:
            for number, limit in enumerate(BOOT_SECONDS, 1):
                said(begun, f"boot {number}")
                for line in guest.boot(run, guest.MEMORY, disk, *guest.KERNEL, seconds=limit):
                    print(line, file=log, flush=True)
                    print(f"  | {line}", flush=True)
                words = status.read_text().strip() if status.exists() else "none: it ended before its tests did"
                status.unlink(missing_ok=True)
                said(begun, f"boot {number} ended: status {words}")
                if words != "0":
                    problems.append(f"boot {number}: status {words}")
                if arguments:
                    break
    finally:
        shutil.rmtree(guest.OUT / "results", ignore_errors=True)
        shutil.copytree(run / "results", guest.OUT / "results")
        for _ in trees.remove(str(run)):
            pass
    return ", ".join(problems)


def said(begun: float, words: str) -> None:
    print(f"test-machine: {time.monotonic() - begun:4.0f} s  {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What only a machine with systemd, cgroup v2 and AppArmor can show, on this one: `make test-here`.

As root on a machine for that purpose: the daemon is installed at its usual places, as the unit of deploy/systemd, and
taken away again. `make test-machine` runs the same in a guest. Three parts: tests of tests/e2e in beds, with the
cgroupfs driver; the same on the machine itself, where systemd starts the daemon, with the systemd driver; and what is
in tests/machine. On a machine that is booted for it, pods are then left behind for `--reboot after`.

    python -m tests.machine.here [--results DIRECTORY] [--reboot before|after] [-- pytest's arguments instead]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.testbed import ROOT, WITHOUT_NAT

# What depends on cgroups; all of it is run by `make test` too, on whatever that machine has.
E2E = ["tests/e2e/test_resources.py", "tests/e2e/test_stats.py"]
# The containerds differ elsewhere.
ONE_CONTAINERD = ["-k", "not current"]
# systemd removes a scope as soon as it is empty, and with it the counter of what ran out of memory, which containerd
# 1.6 reads after it was told: which of them is quicker decides what the reason is.
WITH_SYSTEMD = ["-k", "not current and not out_of_memory and not for_an_oom"]
NAT = "add table ip t; add chain ip t c { type nat hook postrouting priority 100; }; add rule ip t c masquerade"


def main() -> int:
    """The exit status: that of the first part that failed."""
    parser = argparse.ArgumentParser(description="Test on this machine: it has systemd, cgroup v2, AppArmor.")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "machine" / "here")
    parser.add_argument("--reboot", choices=("before", "after"))
    parser.add_argument("arguments", nargs="*", help="for pytest")
    options = parser.parse_args()
    if lacks := missing(again=options.reboot == "after"):
        print(f"test-here: this machine is not one to test on: {lacks}", file=sys.stderr)
        return 2
    options.results.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {
        "of the machine": ["--this-machine", "tests/machine"],
        "on the machine, systemd": ["--this-machine", *E2E, *WITH_SYSTEMD],
        "in beds, cgroupfs": [*E2E, *ONE_CONTAINERD],
    }
    if options.arguments:
        parts = {"as asked": options.arguments}
    elif options.reboot == "after":
        parts = {"after the reboot": ["--this-machine", "tests/machine/after_reboot.py"]}
    elif options.reboot == "before":
        parts["before the reboot"] = ["--this-machine", "tests/machine/before_reboot.py"]
        (options.results / "boot").write_text("after\n", encoding="utf-8")
    failed = 0
    for part, arguments in parts.items():
        failed = pytest(part, arguments, options.results) or failed
    return failed


def missing(*, again: bool) -> str:
    """What this machine lacks, or has too much of, to be tested on; "" for nothing."""
    if os.geteuid() != 0:
        return "the tests need root"
    if not Path("/run/systemd/system").is_dir():
        return "systemd does not run it"
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return "it does not run cgroup v2 alone"
    places = ("/var/lib/sandboxd", "/run/sandboxd", "/etc/sandboxd", "/etc/systemd/system/sandboxd.service")
    if not again and (there := [place for place in places if os.path.exists(place)]):
        return f"sandboxd is installed: {', '.join(there)}"
    return ""


def pytest(part: str, arguments: list[str], results: Path) -> int:
    """Run a part; the exit status."""
    begun = time.monotonic()
    print(f"test-here: {part}", flush=True)
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-o",
        "console_output_style=times",
    ]
    argv += ["-v", "--durations=10", f"--junitxml={results}/{part.replace(' ', '-').replace(',', '')}.xml"]
    # The checkout may be read-only.
    own = {"HYPOTHESIS_STORAGE_DIRECTORY": str(results / "hypothesis"), WITHOUT_NAT: "" if has_nat() else "1"}
    env = {**os.environ, **own}
    status = subprocess.run([*argv, *arguments], cwd=ROOT, env=env, check=False).returncode
    print(f"test-here: {part}: exit status {status} in {time.monotonic() - begun:.0f} s", flush=True)
    return status


def has_nat() -> bool:
    """Whether the kernel can masquerade, as asked in a network namespace that is gone afterwards."""
    argv = ["unshare", "--net", "nft", NAT]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())

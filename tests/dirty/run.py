"""Runs a selection of the tests on a machine that is not fresh: `make test-dirty`.

The machine is made in namespaces of its own (machine.sh), with what the people and the programs of a real one leave
there (dirt.py), another containerd and a daemon of ours at their usual places, each with a container that runs. The
tests run in it as somebody who logged in there would run them: with a umask, a locale, a time zone, a home and a
directory for temporary files that are not the usual ones. They must pass, and all that was there before them must be
there unharmed after them, and nothing besides.

    python -m tests.dirty.run [pytest's arguments instead of the selection]
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from sandboxd import trees
from tests.processes import until
from tests.testbed import ROOT

CGROUPS = Path("/sys/fs/cgroup")


def main(arguments: list[str]) -> int:
    """Make the machine, run the tests in it, take it away; the exit status of the tests."""
    if os.geteuid() != 0:
        print("test-dirty: makes namespaces and mounts and needs root: sudo make test-dirty", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is below is cleaned up then too
    name = f"sandboxd-dirty-{secrets.token_hex(4)}"
    base = Path(tempfile.mkdtemp(prefix="sbx-dirty-", dir="/var/tmp"))
    base.chmod(0o755)
    own = sorted({str(Path(path).resolve()) for path in (ROOT, sys.prefix, sys.base_prefix)})
    kept = [path for path in own if path.startswith(("/run/", "/tmp/", "/var/tmp/", "/var/lib/", "/etc/"))]
    # setpriv ties unshare to this process, --kill-child ties the machine to unshare; catatonit reaps.
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork"]
    argv += ["--kill-child", "--mount-proc", "--propagation", "private", "catatonit", "--"]
    argv += ["sh", "-eu", str(Path(__file__).with_name("machine.sh")), str(base), *kept, "--"]
    argv += [sys.executable, "-m", "tests.dirty.inside", name, *arguments]
    try:
        # When this is interrupted, subprocess.run kills unshare, and with it goes the machine.
        status = subprocess.run(argv, cwd=ROOT, check=False).returncode
    finally:
        until(lambda: _no_cgroups(name), within=30, what=f"the cgroups of {name} are empty")
        for _ in trees.remove(str(base)):
            pass
    return status


def _no_cgroups(name: str) -> bool:
    """Remove the machine's cgroups, which the kernel does not do; whether none is left."""
    parents = [path for path in (CGROUPS / name, *CGROUPS.glob(f"*/{name}")) if path.is_dir()]
    for parent in parents:
        for directory, _, _ in os.walk(parent, topdown=False):
            try:
                os.rmdir(directory)
            except OSError:
                return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

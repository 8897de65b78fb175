"""A guest: Debian with systemd, cgroup v2 and AppArmor in user-mode Linux, made from Debian packages alone.

The kernel is a program here: it needs neither a processor's help nor a module. build.sh makes what a guest is made
of, once. Each guest has a disk that begins as that one, a copy of the checkout and its Python at their paths here,
and a directory that it shares with us, for its results. It has no network, one processor and no NAT.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.testbed import ROOT

HERE = Path(__file__).parent
OUT = ROOT / "build" / "machine"
MEMORY = "mem=3072M"
CONSOLE = ("con0=fd:0,fd:1", "con=null", "ssl=null", "quiet", "systemd.show_status=0")
KERNEL = (*CONSOLE, "seccomp=auto", "apparmor=1", "security=apparmor", "root=/dev/ubda", "rw")
NO_KERNEL = 3  # build.sh's exit status
PROBE_SECONDS = 60.0
# Of the checkout, its environment and its Python: what no test in a guest reads, or would be read for minutes.
LEFT_OUT = (
    *(
        ".git",
        ".*_cache",
        ".hypothesis",
        "include",
        "share",
        "*.a",
        "mypy",
        "mypyc",
        "*__mypyc*.so",
        "PIL",
        "pillow.libs",
    ),
    *("pip", "setuptools", "grimp", "ruff", "idlelib", "lib2to3", "tkinter", "ensurepip", "config-3*"),
    *(f"{ROOT}/build/{name}"[1:] for name in ("machine", "bench", "faults", "conformance")),
    *(f"{Path(sys.base_prefix).resolve()}/lib/python3*/{name}"[1:] for name in ("site-packages", "test")),
)
BEGINS = "guest: the kernel begins"  # boot.sh says so: what comes then is the kernel's
# What the kernel says at the end of a start without a disk: it has come that far on this processor.
STARTED = "Unable to mount root fs"


class CannotRun(Exception):
    """User-mode Linux cannot run on this machine; the text is for people."""


class GuestFailed(Exception):
    """A guest could not be made, or did not come to its end; the text is for people."""


def build() -> float:
    """What a guest is made of, where it is not there yet; the seconds that it took.

    Raises CannotRun where Debian has no such kernel, GuestFailed with the words of what failed.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    log = OUT / "build.log"
    with log.open("w", encoding="utf-8") as file:
        status = subprocess.run(["sh", "-eu", str(HERE / "build.sh"), str(OUT)], stderr=file, check=False).returncode
    words = log.read_text("utf-8", "replace").splitlines()
    if status == NO_KERNEL:
        raise CannotRun(words[-1] if words else "build.sh does not say why")
    if status:
        raise GuestFailed("\n".join(["the guest's disk could not be made:", *words[-20:]]))
    return time.monotonic() - begun


def probe() -> None:
    """Start the kernel without a disk. Raises CannotRun when it does not get as far as missing one."""
    said: list[str] = []
    for line in boot(OUT, "mem=128M", *CONSOLE[:3], "panic=-1", seconds=PROBE_SECONDS):
        said.append(line)
        if STARTED in line:
            return
    if BEGINS not in said:
        raise GuestFailed("\n".join(["what the guest needs could not be mounted:", *said]))
    raise CannotRun("\n".join(["its kernel does not start here; it said:", *said[-15:]]))


def boot(run: Path, *arguments: str, seconds: float) -> Iterator[str]:
    """Boot the kernel with `run` as its /mnt; yields the lines of its console until it ends.

    It is ended when the caller loses interest, and with this process. Raises GuestFailed after `seconds`.
    """
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    argv += ["--mount-proc", "--propagation", "private"]
    argv += ["sh", "-eu", str(HERE / "boot.sh"), str(OUT / "host"), str(run)]
    argv += [str(OUT / "guest.img"), *arguments]
    machine = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert machine.stdout is not None
    deadline = time.monotonic() + seconds
    rest = b""
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([machine.stdout], [], [], left)[0]:
                raise GuestFailed(f"the guest still ran after {seconds:g} s, and was ended")
            read = os.read(machine.stdout.fileno(), 1 << 16)
            if not read:
                break
            *lines, rest = (rest + read).split(b"\n")
            yield from (line.decode("utf-8", "replace").rstrip("\r") for line in lines)
        if rest:
            yield rest.decode("utf-8", "replace")
    finally:
        machine.kill()
        machine.wait()
        machine.stdout.close()


def prepare(run: Path, command: str) -> str:
    """Fill `run`, the directory that a guest shares with us, with the checkout and the script that it runs there.

    Returns the disk as an argument of `boot`. What the guest changes on it is kept in `run`; it can be booted again.
    """
    (run / "results").mkdir()
    (run / "command").write_text(command, encoding="utf-8")
    (run / "root").write_text(f"{ROOT}\n", encoding="utf-8")
    shutil.copy(HERE / "guest.sh", run / "guest.sh")
    compiled = [sys.executable, "-m", "compileall", "-q", "-j", "2", str(ROOT / "sandboxd"), str(ROOT / "tests")]
    subprocess.run(compiled, check=True, env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"})
    paths = [str(path.relative_to("/")) for path in checkout()]
    left_out = [f"--exclude={pattern}" for pattern in LEFT_OUT]
    subprocess.run(["tar", "-C", "/", *left_out, "-cf", run / "checkout.tar", *paths], check=True)
    return f"ubd0=/mnt/disk.cow,/srv{OUT / 'guest.img'}"


def checkout() -> list[Path]:
    """What a guest has at the same path as we: the checkout, and its Python where that is not Debian's."""
    python = Path(sys.base_prefix).resolve()
    own = python.is_relative_to("/usr/local") or not python.is_relative_to("/usr")
    return [ROOT, python] if own else [ROOT]

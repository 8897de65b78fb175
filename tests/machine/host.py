"""This machine in place of a bed: the daemon is deploy/systemd's unit, at its usual places, with systemd's driver.

Tests use it as they use a bed. What a bed's end takes away by ending its processes is taken away here by name, and
what must be gone by then, pods removed, is looked for.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import grpc

from sandboxd import trees
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.processes import LIMIT, Inside, until
from tests.testbed import ROOT, BedFailed, Testbed, toml

UNIT = "sandboxd.service"
INSTALLED = Path("/etc/systemd/system") / UNIT
PROGRAM = Path("/usr/local/bin/sandboxd")
CONFIG = Path("/etc/sandboxd/config.toml")
CNI = Path("/etc/cni/net.d/10-sandboxd.conflist")
CGROUPS = Path("/sys/fs/cgroup")
OURS = ("/var/lib/sandboxd", "/run/sandboxd", "/etc/sandboxd", "/var/lib/pod-logs")


class Here(Inside):
    """A program on the machine: signals go to it, for nothing stands in between."""

    def send_signal(self, sig: int) -> None:
        subprocess.Popen.send_signal(self, sig)


class Machine(Testbed):
    """This machine; see the head of this file. A context manager, or call `close`."""

    __test__ = False

    def __init__(self, *, keep: bool = False) -> None:
        """`keep`: what an earlier boot left is used, and stays."""
        self.env = {k: v for k, v in os.environ.items() if k not in ("NOTIFY_SOCKET", "PYTHONASYNCIODEBUG")}
        self.name = f"sandboxdtest{secrets.token_hex(4)}"
        self.cgroup_parent = f"{self.name}.slice"
        self.config = {}
        self.keep = keep
        self._processes = []
        self._channel = None
        self._closed = False
        self.since = f"@{time.time():.6f}"
        PROGRAM.unlink(missing_ok=True)
        PROGRAM.symlink_to(Path(sys.executable).with_name("sandboxd"))
        shutil.copy(ROOT / "deploy" / "systemd" / UNIT, INSTALLED)
        systemctl("daemon-reload")

    # The host.

    def path(self, inside: str) -> Path:
        return Path(inside)

    @property
    def proc(self) -> Path:
        return Path("/proc")

    @property
    def _proc(self) -> Path:
        return Path("/proc/self")

    @property
    def mountinfo(self) -> str:
        return Path("/proc/self/mountinfo").read_text(encoding="utf-8")

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[str] = subprocess.DEVNULL,
        stdout: int | IO[str] = subprocess.PIPE,
        stderr: int | IO[str] = subprocess.PIPE,
    ) -> Inside:
        process = Here(
            argv, stdin=stdin, stdout=stdout, stderr=stderr, text=True, env=self.env, cwd="/", start_new_session=True
        )
        self._processes.append(process)
        return process

    def cgroup_of(self, pod_id: str, container_id: str) -> str:
        return f"{self.name}.slice/sandboxd-{container_id}.scope"

    def parent_below(self, name: str) -> str:
        return f"{self.name}-{name}.slice"

    # The daemon.

    @property
    def daemon_running(self) -> bool:
        return systemctl("is-active", UNIT, check=False) in ("active", "activating")

    @property
    def daemon_pid(self) -> int:
        return int(shown("MainPID"))

    def log_tail(self, lines: int = 60) -> str:
        return journal(self.since, "--lines", str(lines))

    def _launch(self, *, ready: bool, within: float) -> None:
        self.config["daemon"] = {**self.config.get("daemon", {}), "log_format": "auto"}
        self.config["runtime"] = {"cgroup_driver": "systemd", **self.config.get("runtime", {})}
        self.write(str(CONFIG), toml(self.config))
        systemctl("reset-failed", UNIT, check=False)
        systemctl("start", *([] if ready else ["--no-block"]), UNIT, within=within)

    def wait_ready(self, *, within: float = LIMIT) -> None:
        until(self.serves, within=within, what="the unit serves")

    def serves(self) -> bool:
        """Whether the daemon answers."""
        try:
            self.runtime.Version(cri.VersionRequest(), timeout=5)
        except grpc.RpcError:
            return False
        return True

    def _end_daemon(self, number: signal.Signals, within: float) -> int:
        """End it, and stop the unit: systemd must not start it again behind the test's back."""
        if number is signal.SIGKILL:
            systemctl("kill", "--kill-who=main", "--signal=KILL", UNIT)
        systemctl("stop", UNIT, within=within)
        return -number if number is signal.SIGKILL else int(shown("ExecMainStatus"))

    # The end.

    def close(self) -> None:
        """Remove all pods, stop the unit and what it started; raises BedFailed when something of a pod is left."""
        if self._closed:
            return
        self._closed = True
        problems = []
        try:
            if not self.keep:
                if not self.daemon_running:
                    self.relaunch_daemon()
                for pod in self.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
                    self.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=120)
                until(lambda: not left(), within=20, what="nothing of a pod is left")
        except (TimeoutError, BedFailed, grpc.RpcError) as exc:
            problems.append(f"{exc}: {left()}")
        if self._channel is not None:
            self._channel.close()
        for process in self._processes:
            process.kill()
            process.communicate(timeout=LIMIT)
        if not self.keep:
            uninstall()
        if problems:
            raise BedFailed("the machine was not left as it was: " + "; ".join(problems))


def left() -> list[str]:
    """What is there of pods: units of systemd that is one of theirs, and network namespaces."""
    units = systemctl("list-units", "--all", "--plain", "--no-legend", "sandboxd-*", "sandboxdtest*").splitlines()
    names = Path("/run/netns")
    found = [unit for unit in units if unit.split()[0].endswith(".scope")]
    return found + [str(path) for path in (names.iterdir() if names.is_dir() else ()) if "sandboxd-" in path.name]


def uninstall() -> None:
    """Stop the unit, end what it leaves running on purpose, and remove everything of it."""
    systemctl("stop", UNIT, check=False)
    kill = CGROUPS / "system.slice" / UNIT / "cgroup.kill"
    if kill.exists():
        kill.write_text("1")
        until(lambda: not kill.exists() or not (kill.parent / "cgroup.procs").read_text(), what="the unit's end")
    for mount in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        where = mount.split()[1]
        if where.startswith(OURS):
            subprocess.run(["umount", "--lazy", where], check=True)
    for place in OURS:
        for _ in trees.remove(place):
            pass
    for file in (INSTALLED, PROGRAM, CNI):
        file.unlink(missing_ok=True)
    systemctl("daemon-reload")


def systemctl(*words: str, check: bool = True, within: float = LIMIT) -> str:
    """What systemctl prints; with `check`, a failure raises BedFailed with its words and the unit's."""
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False, timeout=within)
    if check and done.returncode:
        raise BedFailed(f"systemctl {' '.join(words)}: {done.stderr.strip()}\n{journal('-2min', '--lines', '30')}")
    return done.stdout.strip()


def shown(name: str) -> str:
    """A property of the unit."""
    return systemctl("show", "--value", f"--property={name}", UNIT)


def journal(since: str, *words: str) -> str:
    """What the journal has of the unit."""
    argv = ["journalctl", "--no-pager", f"--unit={UNIT}", f"--since={since}", "--output=cat", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=LIMIT).stdout

"""A host of its own for a test: containerd, sandboxd, CNI plugins and pods, and nothing of the real machine.

A bed is a process that holds new network, mount and pid namespaces. Inside, /run, /var/lib, /var/log, /etc/cni and
/opt/cni are empty directories of the bed's own, /etc is a throw-away overlay, /proc and /sys show the bed,
/sys/fs/cgroup and /dev are the machine's. Everything else (/usr, /tmp, the checkout) is the machine's file system.

Rules:

1. Nothing outlives the bed. Its first process is killed when the test process dies, and the kernel kills the rest
   of a pid namespace with its first process; mounts and links die with their namespaces.
2. The private directories are bind mounts of subdirectories of `bed.base`, so the test process reads files and
   connects to sockets from outside. The base is short, because a unix socket's path holds 107 bytes (unix(7)).
3. cgroups are not namespaced, so every bed has a parent cgroup of its own, which `close` removes.
4. `up0` is an uplink to nowhere: what is routed outwards arrives at `up1` with the address that masquerading gave
   it, and goes no further.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import grpc

from sandboxd import trees
from sandboxd.errors import CleanupIncomplete
from sandboxd.pb.cri.v1.api_pb2 import VersionRequest
from sandboxd.pb.cri.v1.api_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from sandboxd.pb.host.v1.host_pb2 import LoadedImage, LoadImageRequest
from sandboxd.pb.host.v1.host_pb2_grpc import HostStub
from tests.processes import LIMIT, Inside, children_of, processes_in, until

ROOT = Path(__file__).resolve().parents[1]
UPLINK_ADDRESS = "198.51.100.1"  # of up0, TEST-NET-2 (RFC 5737); the gateway behind it is .2
CONFIG_FILE = "/etc/cni/sandboxd.toml"
WITHOUT_NAT = (
    "TESTBED_WITHOUT_NAT"  # in the environment, not empty: the kernel has no NAT, so the network does without
)

_PRIVATE = {"/run": "run", "/var/lib": "var-lib", "/var/log": "var-log", "/etc/cni": "etc-cni", "/opt/cni": "opt-cni"}
# asyncio's debug mode is the Makefile's for unit tests; a daemon gets it from the test that needs it, in `env`.
_NOT_INHERITED = ("NOTIFY_SOCKET", "PYTHONASYNCIODEBUG", "TMPDIR")
_TOOLS = ("unshare", "nsenter", "setpriv", "catatonit", "ip", "mount")
_CGROUPS = Path("/sys/fs/cgroup")
_SOCKET = "/run/sandboxd/sandboxd.sock"

_FETCH = """
import http.client, json, sys, time
ip, port, path, timeout, within = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), float(sys.argv[5])
deadline = time.monotonic() + within
while True:
    try:
        connection = http.client.HTTPConnection(ip, port, timeout=timeout)
        connection.request("GET", path)
        answer = connection.getresponse()
        print(json.dumps([answer.status, answer.read(1 << 20).decode("utf-8", "replace")]))
        break
    except ConnectionRefusedError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.02)
"""


class BedFailed(Exception):
    """The bed, or the daemon in it, could not be brought up or taken down; the text is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultNetwork:
    """What deploy/cni's network promises, read from the file."""

    name: str
    bridge: str
    subnet: str
    gateway: str
    file: str  # inside path of the conflist
    conflist: Mapping[str, Any]


class Testbed:
    """One bed; see the head of this file. A context manager, or call `close`.

    `containerd_bin` is a directory with another containerd, its shim and ctr; it goes first in the bed's PATH.
    Raises BedFailed when the machine cannot give a bed: not root, or a program is missing.
    """

    __test__ = False  # the name starts with Test, but pytest has nothing to collect here

    def __init__(self, *, containerd_bin: Path | None = None) -> None:
        if os.geteuid() != 0:
            raise BedFailed("the testbed makes namespaces and mounts and needs root: run the tests as root")
        path = [*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        self.env = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        self.env["PATH"] = ":".join([*([str(containerd_bin)] if containerd_bin else []), *path])
        missing = [tool for tool in _TOOLS if shutil.which(tool, path=self.env["PATH"]) is None]
        if missing:
            raise BedFailed(f"the testbed needs {', '.join(missing)} in PATH: install what is missing (make setup)")
        self.name = f"sandboxd-test-{secrets.token_hex(4)}"
        self.cgroup_parent = f"/{self.name}"
        self.config: dict[str, dict[str, Any]] = {}
        self.daemon_argv = [sys.executable, "-m", "sandboxd"]  # what start_daemon runs, with "serve" and so on
        self._processes: list[Inside] = []
        self._daemon: Inside | None = None
        self._channel: grpc.Channel | None = None
        self._closed = False
        self.base = Path(tempfile.mkdtemp(prefix="sbx-", dir="/tmp"))
        try:
            self._holder = self._hold()
        except BaseException:
            shutil.rmtree(self.base)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # The host.

    def path(self, inside: str) -> Path:
        """Where the test process finds what is called `inside` in the bed."""
        for private, directory in _PRIVATE.items():
            if inside == private or inside.startswith(private + "/"):
                return self.base / directory / inside[len(private) + 1 :]
        return self._proc / "root" / inside.lstrip("/")

    @property
    def proc(self) -> Path:
        """The bed's own /proc, as a path outside: its pids are those of the bed."""
        return self._proc / "root" / "proc"

    @property
    def mountinfo(self) -> str:
        """The bed's mounts (proc_pid_mountinfo(5))."""
        return (self._proc / "mountinfo").read_text(encoding="utf-8")

    @property
    def inherited_mountinfo(self) -> str:
        """The machine's mounts that were there when the bed was made, in the same form."""
        return (self.base / "inherited").read_text(encoding="utf-8")

    @property
    def pid_namespace(self) -> str:
        """The identity of the bed's pid namespace, as in the links below /proc/PID/ns."""
        return os.readlink(self._proc / "ns" / "pid_for_children")

    @property
    def netns(self) -> str:
        """The bed's network namespace, as a path outside."""
        return str(self._proc / "ns" / "net")

    def pod_netns(self, pod_id: str) -> str:
        """A pod's network namespace, as a path outside: it is a mount, and those are seen through the bed only."""
        return str(self._proc / "root" / "run" / "netns" / f"sandboxd-{pod_id}")

    def cgroup_of(self, pod_id: str, container_id: str) -> str:
        """The cgroup of a container, below each hierarchy, without a leading slash."""
        return f"{self.name}/{pod_id}/{container_id}"

    def parent_below(self, name: str) -> str:
        """A cgroup parent for pods, below the bed's own, as a client would name it."""
        return f"{self.cgroup_parent}/{name}"

    def write(self, inside: str, text: str, *, mode: int = 0o644) -> Path:
        """Write a file in the bed, with its directories; returns its path outside."""
        outside = self.path(inside)
        outside.parent.mkdir(parents=True, exist_ok=True)
        outside.write_text(text, encoding="utf-8")
        outside.chmod(mode)
        return outside

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[str] = subprocess.DEVNULL,
        stdout: int | IO[str] = subprocess.PIPE,
        stderr: int | IO[str] = subprocess.PIPE,
    ) -> Inside:
        """Start a program in the bed, in the root directory; `close` kills it at the latest."""
        # unshare itself is in the new network and mount namespaces, but not in the pid namespace that it made.
        ns = self._proc / "ns"
        enter = ["nsenter", f"--net={ns}/net", f"--mount={ns}/mnt", f"--pid={ns}/pid_for_children", "--"]
        process = Inside(
            [*enter, *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env=self.env,
            cwd="/",
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def run(
        self, argv: Sequence[str], *, check: bool = True, timeout: float = LIMIT, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the bed to its end. With `check`, a failure raises BedFailed with its words."""
        process = self.popen(argv, stdin=subprocess.PIPE)
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired as exc:
            process.kill()
            process.communicate(timeout=LIMIT)
            raise BedFailed(f"{' '.join(argv)}: still running after {timeout:g} s") from exc
        if check and process.returncode:
            words = (stderr or stdout).strip()
            raise BedFailed(f"{' '.join(argv)}: exit status {process.returncode}: {words}")
        return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)

    def http_get(
        self, ip: str, port: int = 80, path: str = "/", *, timeout: float = LIMIT, within: float = LIMIT
    ) -> tuple[int, str]:
        """GET from inside the bed: status and body (at most 1 MiB).

        A refused connection is tried again for `within` seconds, because a started container is not yet a
        listening server. Raises BedFailed.
        """
        argv = [sys.executable, "-I", "-c", _FETCH, ip, str(port), path, str(timeout), str(within)]
        status, body = json.loads(self.run(argv, timeout=timeout + within + 10).stdout)
        return int(status), str(body)

    def default_network(self) -> DefaultNetwork:
        """Install deploy/cni's conflist as the bed's only network and tell what is in it.

        On a kernel without NAT (WITHOUT_NAT) it neither masquerades nor maps ports.
        """
        source = ROOT / "deploy" / "cni" / "10-sandboxd.conflist"
        text = source.read_text(encoding="utf-8")
        inside = f"/etc/cni/net.d/{source.name}"
        conflist: dict[str, Any] = json.loads(text)
        if os.environ.get(WITHOUT_NAT):
            conflist["plugins"] = [{**p, "ipMasq": False} for p in conflist["plugins"] if p["type"] == "bridge"]
            text = json.dumps(conflist)
        self.write(inside, text)
        plugin = next(p for p in conflist["plugins"] if p["type"] == "bridge")
        first = plugin["ipam"]["ranges"][0][0] if "ranges" in plugin["ipam"] else plugin["ipam"]
        subnet = str(first["subnet"])
        gateway = first.get("gateway", subnet.split("/")[0].rsplit(".", 1)[0] + ".1")
        return DefaultNetwork(
            name=conflist["name"],
            bridge=plugin.get("bridge", "cni0"),
            subnet=subnet,
            gateway=gateway,
            file=inside,
            conflist=conflist,
        )

    # The daemon.

    @property
    def socket(self) -> Path:
        """The daemon's socket, outside."""
        return self.path(str(self.config.get("api", {}).get("socket") or _SOCKET))

    @property
    def log_file(self) -> Path:
        """Everything that the daemons of this bed wrote to stdout and stderr."""
        return self.base / "daemon.log"

    def log_tail(self, lines: int = 60) -> str:
        """The end of the daemon's log, "" when there is none."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log_file.read_text("utf-8", "replace").splitlines()[-lines:])
        return ""

    @property
    def daemon_running(self) -> bool:
        """Whether the daemon that was started last still runs."""
        return self._daemon is not None and self._daemon.poll() is None

    @property
    def daemon_pid(self) -> int:
        """The pid, outside, of the daemon that runs."""
        if self._daemon is None or not self.daemon_running:
            raise BedFailed("no daemon runs in this bed")
        (pid,) = children_of(self._daemon.pid)
        return pid

    def start_daemon(self, *, ready: bool = True, within: float = LIMIT, **sections: Mapping[str, Any]) -> None:
        """Write the configuration and start sandboxd; wait until it serves unless `ready` is false.

        `sections` are tables of config.py, merged over what the bed needs: `runtime={"cgroup_driver": …}`.
        Raises BedFailed with the log's tail when the daemon ends or does not serve in time.
        """
        if self.daemon_running:
            raise BedFailed("a daemon runs already in this bed: stop it first")
        self.config = {
            "daemon": {"log_level": "debug", "log_format": "console"},
            "runtime": {"cgroup_parent": self.cgroup_parent},
        }
        for section, values in sections.items():
            self.config[section] = {**self.config.get(section, {}), **values}
        self._launch(ready=ready, within=within)

    def stop_daemon(self, *, within: float = LIMIT) -> int:
        """SIGTERM, as systemd does; returns the exit status. Raises BedFailed if it does not end in time."""
        return self._end_daemon(signal.SIGTERM, within)

    def kill_daemon(self, *, within: float = LIMIT) -> int:
        """SIGKILL: the daemon dies where it stands; returns the (negative) status."""
        return self._end_daemon(signal.SIGKILL, within)

    def restart_daemon(self, *, kill: bool = False, within: float = LIMIT) -> None:
        """Stop or kill the daemon and start it with the same configuration."""
        if kill:
            self.kill_daemon()
        else:
            self.stop_daemon()
        self.relaunch_daemon(within=within)

    def relaunch_daemon(self, *, within: float = LIMIT) -> None:
        """Start the daemon again after it was stopped or killed, with the same configuration."""
        self._launch(ready=True, within=within)

    @property
    def channel(self) -> grpc.Channel:
        """A channel to the daemon. It survives restarts of the daemon and reconnects fast."""
        if self._channel is None:
            options = [
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 20_000),  # how long an attempt may take, in spite of the name
                ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_receive_message_length", 64 << 20),
            ]
            self._channel = grpc.insecure_channel(f"unix:{self.socket}", options=options)
        return self._channel

    @property
    def runtime(self) -> RuntimeServiceStub:
        """CRI RuntimeService."""
        return RuntimeServiceStub(self.channel)

    @property
    def images(self) -> ImageServiceStub:
        """CRI ImageService."""
        return ImageServiceStub(self.channel)

    @property
    def host(self) -> HostStub:
        """sandboxd's own API."""
        return HostStub(self.channel)

    def load_image(self, name: str, *, timeout: float = 120.0) -> None:
        """Load build/images/NAME.tar through the host API."""
        self.load_archive(self.build_image(name), timeout=timeout)

    def build_image(self, name: str) -> Path:
        """build/images/NAME.tar; deploy/images/build.py makes it where it is missing."""
        archive = ROOT / "build" / "images" / f"{name}.tar"
        if not archive.is_file():
            self._machine([sys.executable, str(ROOT / "deploy" / "images" / "build.py"), name], 120)
        return archive

    def load_archive(self, archive: Path, *, timeout: float = 120.0) -> list[LoadedImage]:
        """Load an image archive; what was loaded."""

        def chunks() -> Iterator[LoadImageRequest]:
            with archive.open("rb") as file:
                while chunk := file.read(1 << 18):
                    yield LoadImageRequest(chunk=chunk)

        events = self.host.LoadImage(chunks(), timeout=timeout)
        return [event.loaded for event in events if event.HasField("loaded")]

    # The end.

    def close(self) -> None:
        """End everything in the bed and remove its traces; raises BedFailed when something is left."""
        if self._closed:
            return
        self._closed = True
        if self._channel is not None:
            self._channel.close()
        problems = []
        namespace = self.pid_namespace if self._holder.poll() is None else ""
        # The first process of a pid namespace is gone only when all others are (pid_namespaces(7)).
        self._holder.kill()
        try:
            self._holder.wait(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            problems.append(f"{self.name} still has processes: pids {processes_in(namespace)}")
        for process in self._processes:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=LIMIT)  # it has ended with the namespace: this closes its pipes
        try:
            until(self._remove_cgroups, what=f"the cgroups of {self.name} are empty")
        except TimeoutError as exc:
            problems.append(f"{exc}: {[str(d) for d in self.cgroup_dirs()]}")
        try:
            for _ in trees.remove(str(self.base)):
                pass
        except CleanupIncomplete as exc:
            problems.append(str(exc))
        if problems:
            raise BedFailed("the bed left something behind: " + "; ".join(problems))

    def cgroup_dirs(self) -> list[Path]:
        """The cgroups below this bed's parent, in every hierarchy, children before their parents."""
        found: list[Path] = []
        for parent in (_CGROUPS / self.name, *_CGROUPS.glob(f"*/{self.name}")):
            found += [Path(directory) for directory, _, _ in os.walk(parent, topdown=False)]
        return found

    # Below: how it is done.

    @property
    def _proc(self) -> Path:
        return Path("/proc") / str(self._holder.pid)

    def _hold(self) -> Inside:
        for directory in ("stage", *_PRIVATE.values()):
            (self.base / directory).mkdir()
            (self.base / directory).chmod(0o755)  # as everybody's /run and /var/lib are, whatever the umask
        own = {str(Path(p).resolve()) for p in (ROOT, sys.prefix, sys.base_prefix)}
        kept = [p for p in sorted(own) if p.startswith(("/run/", "/var/lib/", "/var/log/", "/etc/", "/opt/"))]
        # setpriv ties unshare to this process, --kill-child ties the bed to unshare.
        argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork"]
        argv += ["--kill-child", "--mount-proc", "--propagation", "private"]
        argv += ["sh", "-eu", str(Path(__file__).with_suffix(".sh")), str(self.base), UPLINK_ADDRESS, *kept]
        with (self.base / "holder.log").open("w") as log:
            holder = Inside(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.env,
                cwd="/",
                start_new_session=True,
            )
        assert holder.stdout is not None
        with holder.stdout:
            readable, _, _ = select.select([holder.stdout], [], [], LIMIT)
            if not readable or holder.stdout.readline() != "ready\n":
                holder.kill()
                holder.wait(timeout=LIMIT)
                words = (self.base / "holder.log").read_text("utf-8", "replace").strip()
                raise BedFailed(
                    f"the testbed's namespaces could not be set up: {words or f'no answer in {LIMIT:g} s'}"
                )
        return holder

    def _machine(self, argv: Sequence[str], timeout: float) -> None:
        """Run one of the project's own programs outside the bed."""
        finished = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, env=self.env)
        if finished.returncode:
            raise BedFailed(f"{' '.join(argv)}: {finished.stderr.strip() or finished.stdout.strip()}")

    def _launch(self, *, ready: bool, within: float) -> None:
        self.write(CONFIG_FILE, toml(self.config))
        argv = [*self.daemon_argv, "serve", "--config", CONFIG_FILE]
        with self.log_file.open("a", encoding="utf-8") as log:
            self._daemon = self.popen(argv, stdout=log, stderr=log)
        if ready:
            self.wait_ready(within=within)

    def wait_ready(self, *, within: float = LIMIT) -> None:
        """Wait until Version answers something else than UNAVAILABLE. Raises BedFailed with the log's tail."""
        assert self._daemon is not None, "start_daemon comes first"
        deadline = time.monotonic() + within
        words = "its socket does not exist"
        while time.monotonic() < deadline:
            try:
                status = self._daemon.wait(timeout=0.02)
            except subprocess.TimeoutExpired:
                pass
            else:
                raise BedFailed(f"sandboxd ended with status {status} before it served:\n{self.log_tail()}")
            if not self.socket.exists():
                continue
            try:
                self.runtime.Version(VersionRequest(), timeout=2)
                return
            except grpc.RpcError as exc:
                assert isinstance(exc, grpc.Call)
                if exc.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                words = str(exc.details())
        raise BedFailed(f"sandboxd does not serve after {within:g} s ({words}):\n{self.log_tail()}")

    def _end_daemon(self, number: signal.Signals, within: float) -> int:
        if self._daemon is None:
            raise BedFailed("no daemon was started in this bed")
        self._daemon.send_signal(number)
        try:
            return self._daemon.wait(timeout=within)
        except subprocess.TimeoutExpired as exc:
            raise BedFailed(f"sandboxd still runs {within:g} s after {number.name}:\n{self.log_tail()}") from exc

    def _remove_cgroups(self) -> bool:
        for directory in self.cgroup_dirs():
            with contextlib.suppress(OSError):
                directory.rmdir()
        return not self.cgroup_dirs()


def toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of texts, numbers, booleans, lists and sub-tables as TOML; JSON's scalars are TOML's."""
    lines: list[str] = []

    def table(name: str, values: Mapping[str, Any]) -> None:
        lines.append(f"[{name}]")
        lines.extend(f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, Mapping))
        for key, value in values.items():
            if isinstance(value, Mapping):
                table(f"{name}.{json.dumps(key)}", value)

    for name, values in tables.items():
        table(name, values)
    return "\n".join(lines) + "\n"

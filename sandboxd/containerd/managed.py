"""A private containerd: configured, started and watched by us, and outliving us.

It is a child in its own session, so that neither a signal to the daemon's group nor the daemon's end reaches it:
pods keep running across a restart of sandboxd, and the next daemon finds the socket answering and uses it. What
it needs on disk derives from sandboxd's own directories.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from sandboxd import private
from sandboxd.containerd import bundles
from sandboxd.containerd.client import Containerd, Version
from sandboxd.errors import NotReady, TimedOut, Unavailable
from sandboxd.supervised import Supervised

log = structlog.get_logger(__name__)

STARTS = 5  # in a row, of one that ends before it answers: killed, which is over soon, or broken

# What a pod daemon does not need. The CRI plugin would compete for the same pods, `opt` creates /opt/containerd,
# and the snapshotters probe the disk for file systems that we do not use. Names of 1.x and 2.x side by side:
# containerd ignores ids that it does not know.
_DISABLED = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
    "io.containerd.cri.v1.images",
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedPaths:
    """Where the private containerd keeps its things."""

    root: str  # content and snapshots, persistent
    state: str  # sockets and bundles, volatile
    socket: str

    @property
    def config_file(self) -> str:
        return f"{self.state}/config.toml"

    @property
    def pid_file(self) -> str:
        return f"{self.state}/containerd.pid"

    @property
    def log_file(self) -> str:
        return f"{self.state}/containerd.log"

    @property
    def own_state(self) -> str:
        """The directory that containerd itself calls its state."""
        return f"{self.state}/state"

    @property
    def process(self) -> Supervised:
        return Supervised(pid_file=self.pid_file, argument=self.config_file)


def configuration(places: ManagedPaths) -> str:
    """The configuration file; version 2 is read by containerd 1.3 to 2.x."""
    disabled = ", ".join(_quoted(name) for name in _DISABLED)
    return (
        "# Written by sandboxd at each start; changes here are lost.\n"
        "version = 2\n"
        f"root = {_quoted(places.root)}\n"
        f"state = {_quoted(places.own_state)}\n"
        f"disabled_plugins = [{disabled}]\n"
        "[grpc]\n"
        f"address = {_quoted(places.socket)}\n"
        "[ttrpc]\n"
        f"address = {_quoted(f'{places.socket}.ttrpc')}\n"
    )


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's, which differs only in that it takes DEL as it is (toml.io, "String")."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


async def ensure_running(
    client: Containerd, binary: str, places: ManagedPaths, timeout: float, env: Mapping[str, str]
) -> Version:
    """Use the containerd that answers on the socket, or start one; return its version.

    Raises NotReady when the binary is missing, Unavailable (with the end of its log) when it does not come up.
    """
    try:
        return await client.version(timeout=2.0)
    except Unavailable:
        pass
    except TimedOut:
        # It is there and slow: ours is waited for, and there is no room for a second one.
        if not places.process.pid():
            raise
    for _ in range(STARTS):
        if pid := places.process.pid():
            log.info("the private containerd is starting or stuck, waiting for it", pid=pid)
        else:
            _start(binary, places, client.namespace, env)
        try:
            version = await _served(client, places, timeout)
        except Unavailable as exc:
            raise Unavailable(f"{exc}; {_tail(places)}") from exc
        if version is not None:
            return version
        log.warning("the private containerd ended before it answered", log_file=places.log_file)
    raise Unavailable(f"the private containerd ended {STARTS} times before it answered; {_tail(places)}")


def _start(binary: str, places: ManagedPaths, namespace: str, env: Mapping[str, str]) -> None:
    path = shutil.which(binary)
    if path is None:
        raise NotReady(
            f"{binary} was not found; install containerd (on Debian: apt-get install containerd)"
            " or set containerd.binary"
        )
    # With a namespace's directory in its state, containerd removes what its root has of tasks that ended with the
    # machine; after a boot there is none, and each would stay until the next start (tried on 1.6 and 2.4).
    of_tasks = bundles.directory(places.own_state, namespace)
    for directory in (places.root, places.state, places.own_state, str(Path(of_tasks).parent), of_tasks):
        private.directory(directory, private.PASSABLE)
    private.write(places.config_file, configuration(places))
    pid = places.process.start([path, "--config", places.config_file], log_file=places.log_file, env=env)
    log.info("private containerd started", pid=pid, binary=path, socket=places.socket)


async def _served(client: Containerd, places: ManagedPaths, timeout: float) -> Version | None:
    """Wait for an answer; None as soon as the process has ended, whoever's child it is."""
    fd = places.process.pidfd()
    if fd < 0:
        return None
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(fd)
        scope.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as scope:
            loop.add_reader(fd, ended)
            return await client.wait_until_serving(timeout)
    except TimeoutError:
        return None
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _tail(places: ManagedPaths) -> str:
    try:
        tail = Path(places.log_file).read_text(encoding="utf-8", errors="replace")[-2000:]
    except OSError as exc:
        tail = str(exc)
    return f"the end of {places.log_file}:\n{tail}"

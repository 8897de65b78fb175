"""The resources that operations need, and their bundle.

Protocols stand where a fake must be able to take a resource's place; what has no failure of its own (the ledger,
the jobs, the configuration) is named by its class.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from sandboxd.cgroups.kernel import Cgroups
from sandboxd.cni.conf import Choice, NetworkConfig
from sandboxd.cni.invoker import Around, unobserved
from sandboxd.cni.recorded import Call
from sandboxd.config import Config
from sandboxd.containerd.records import Stored
from sandboxd.containerd.snapshots import Mount, Usage
from sandboxd.containerd.tasks import Exit, RuntimeOptions, Task
from sandboxd.errors import SandboxdError
from sandboxd.jobs import Jobs
from sandboxd.ledger import Ledger
from sandboxd.links import Link
from sandboxd.model import Attachment, FsInfo, ImageRecord, Owed
from sandboxd.oci.linux import HostFacts
from sandboxd.places import Places
from sandboxd.remembered import Remembered
from sandboxd.reserve import Reserve
from sandboxd.turns import Budget, Turns

BUILD_SECONDS = 5.0  # for which a turn to make something is lent: what takes longer waits, for a plugin say
TEARDOWN_SECONDS = 1.0  # the same for one to end something, most of which is over sooner
# Of what ExecSync's have written and their clients have not yet; several times that is held while it is sent.
OUTPUT_BYTES = 48 << 20  # of all together
LARGEST_OUTPUT_BYTES = 16 << 20  # of one


class Netns(Protocol):
    """Pinned namespaces; `sandboxd.netns` is the real one."""

    async def create(self, path: str) -> int: ...
    async def create_user_namespace(self, path: str, *, uid_map: str, gid_map: str, netns_path: str = "") -> None: ...
    async def create_others(self, pins: Mapping[str, str], hostname: str = "") -> None: ...
    async def set_sysctls(self, paths: Sequence[str], values: Mapping[str, str]) -> None: ...
    async def restore(self, path: str, wanted: int, pids: Sequence[int], kind: str = "net") -> bool: ...
    async def set_hostname(self, pid: int, name: str, netns_inode: int) -> None: ...
    async def remove(self, path: str) -> None: ...
    async def interfaces(self, path: str) -> list[Link]: ...
    def exists(self, path: str) -> bool: ...
    def inode(self, path: str) -> int: ...


class Cni(Protocol):
    """The plugins; `sandboxd.cni.invoker.Invoker` is the real one."""

    async def prepare(self, config: NetworkConfig, plugin_dirs: Sequence[str]) -> NetworkConfig: ...
    async def needs_identity(self, config: NetworkConfig, plugin_dirs: Sequence[str]) -> str: ...
    async def add(
        self,
        attachment: Attachment,
        handed_on: Callable[[bytes], object] | None = None,
        around: Around = unobserved,
    ) -> bytes: ...
    async def delete(
        self, attachment: Attachment, *, without: frozenset[str] = frozenset(), around: Around = unobserved
    ) -> tuple[Owed, ...]: ...
    async def repeat(self, call: Call) -> Mapping[str, Any]: ...
    async def check(self, attachment: Attachment) -> bool: ...
    async def version(self, binary: str) -> frozenset[str]: ...
    def deletes_in_process(self, attachment: Attachment) -> bool: ...


class Conf(Protocol):
    """The configuration directory of the networks; `sandboxd.cni.conf_dir.ConfDir` is the real one."""

    def current(self) -> Choice: ...


class ProcessService(Protocol):
    """Processes exec'd into containers; `sandboxd.containerd.processes.Processes` is the real one."""

    async def add(
        self,
        container_id: str,
        exec_id: str,
        process: Mapping[str, Any],
        *,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        terminal: bool = False,
    ) -> None: ...
    async def start(self, container_id: str, exec_id: str) -> int: ...
    async def pid(self, container_id: str, exec_id: str) -> int: ...
    async def pids(self, container_id: str) -> frozenset[int]: ...
    async def kill(self, container_id: str, exec_id: str, signal: int) -> None: ...
    async def wait(self, container_id: str, exec_id: str) -> Exit: ...
    async def delete(self, container_id: str, exec_id: str) -> None: ...
    async def resize(self, container_id: str, exec_id: str, *, width: int, height: int) -> None: ...
    async def close_stdin(self, container_id: str, exec_id: str) -> None: ...


class RecordService(Protocol):
    """The container records that are stored; `sandboxd.containerd.records.Records` is the real one."""

    async def list(self) -> dict[str, Stored]: ...


class Runtime(Protocol):
    """Containers, tasks and the processes in them; `sandboxd.containerd.runtime` is the real one."""

    @property
    def processes(self) -> ProcessService: ...
    @property
    def records(self) -> RecordService: ...

    def trouble(self) -> str: ...
    async def create_container(
        self,
        container_id: str,
        *,
        spec: Mapping[str, Any],
        image: str,
        snapshotter: str,
        snapshot_key: str,
        labels: Mapping[str, str],
        runtime: RuntimeOptions,
        keep: bytes = b"",
    ) -> None: ...
    async def delete_container(self, container_id: str) -> None: ...
    async def set_spec(
        self,
        container_id: str,
        spec: Mapping[str, Any],
        *,
        keep: bytes = b"",
        labels: Mapping[str, str] | None = None,
    ) -> None: ...
    async def update(self, container_id: str, resources: Mapping[str, Any]) -> None: ...
    async def spec(self, container_id: str) -> dict[str, Any]: ...
    async def create(
        self,
        container_id: str,
        rootfs: Sequence[Mount],
        *,
        stdout: str = "",
        stderr: str = "",
        stdin: str = "",
        terminal: bool = False,
    ) -> int: ...
    async def start(self, container_id: str) -> int: ...
    async def kill(self, container_id: str, signal: int) -> None: ...
    async def wait(self, container_id: str, timeout: float | None = None) -> Exit: ...
    async def pause(self, container_id: str) -> None: ...
    async def resume(self, container_id: str) -> None: ...
    async def checkpoint(
        self, container_id: str, *, image_path: str, work_path: str, terminal: bool, timeout: float
    ) -> None: ...
    async def delete(self, container_id: str) -> Exit | None: ...
    async def get(self, container_id: str) -> Task: ...
    async def list(self) -> dict[str, Task]: ...


class Images(Protocol):
    """Images and the root file systems made from them; `sandboxd.images.store` is the real one."""

    def resolve(self, reference: str) -> ImageRecord: ...
    async def prepare_rootfs(self, key: str, image: ImageRecord) -> Sequence[Mount]: ...
    async def view(self, key: str, image: ImageRecord) -> Sequence[Mount]: ...
    async def rootfs(self, key: str) -> Sequence[Mount]: ...
    async def remove_rootfs(self, key: str) -> None: ...
    async def rootfs_usage(self, key: str) -> Usage: ...
    async def rootfs_changes(self, key: str, file: BinaryIO) -> None: ...
    async def forget_changes(self, key: str) -> None: ...
    def fs_info(self) -> FsInfo: ...


class Logs(Protocol):
    """The containers' output; `sandboxd.logs.client.Logs` is the real one."""

    async def connect(self) -> None: ...
    async def keep_up(self) -> None: ...
    async def open(
        self, container_id: str, fifos: Mapping[str, str], log_path: str, *, resume: bool = False
    ) -> None: ...
    async def reopen(self, container_id: str) -> None: ...
    async def drain(self, container_id: str, timeout: float) -> None: ...
    async def close(self, container_id: str) -> None: ...
    async def retain(self, container_ids: Collection[str]) -> None: ...
    def changes(self, container_id: str) -> AsyncGenerator[None, None]: ...
    def output(self, container_id: str) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, bytes]]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What pods are connected with."""

    conf: Conf
    cni: Cni


class Execs:
    """What bounds the processes exec'd into one pod; the key is the pod's id. See `containers.admission`."""

    def __init__(self, per_pod: int) -> None:
        self.sessions = Turns(max(1, per_pod * 2 // 3))
        self.places = Turns(per_pod)
        self.starts = Turns(max(1, per_pod // 6))


class Load:
    """How much goes on at once on this node."""

    def __init__(self, config: Config) -> None:
        builds = config.runtime.builds_at_once or max(8, 4 * len(os.sched_getaffinity(0)))
        self.pods = Turns(builds, BUILD_SECONDS)  # being made
        self.containers = Turns(builds, BUILD_SECONDS)  # being created or started
        self.teardowns = Turns(builds, TEARDOWN_SECONDS)  # pods being stopped or removed, containers being removed
        self.execs = Execs(config.runtime.execs_per_pod)
        self.output = Budget(OUTPUT_BYTES, LARGEST_OUTPUT_BYTES)

    def dismiss(self, why: SandboxdError) -> None:
        """Send away all who wait for a turn; they have begun nothing."""
        execs = self.execs
        for turns in (self.pods, self.containers, self.teardowns, execs.sessions, execs.places, execs.starts):
            turns.dismiss_all(why)


class Stock:
    """What the pool of prepared pods has to tell, and what wakes who keeps it filled. See `pods.pool`."""

    def __init__(self) -> None:
        self.hits = 0  # requests that were given a prepared pod
        self.misses: Counter[str] = Counter()  # those that were not, by reason
        self.trouble = ""  # why no pod can be prepared, "" when one can
        self.placed: set[str] = set()  # pods whose pause container is known to be in the cgroup that was asked for
        self.changed = asyncio.Event()  # set when it is to be looked after at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this machine is, can, and carries at once."""

    facts: HostFacts
    boot: str = ""  # the kernel's id of this boot, "" where it is not known
    cgroups: Cgroups = field(default_factory=Cgroups)
    remembered: Remembered = field(default_factory=Remembered)  # what its programs and its kernel were asked
    load: Load
    stock: Stock = field(default_factory=Stock)
    reserve: Reserve = field(default_factory=lambda: Reserve(""))  # room on the disk, for removals


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Everything an operation needs. Built once, in `daemon.py`."""

    config: Config
    jobs: Jobs
    ledger: Ledger
    places: Places
    machine: Machine
    netns: Netns
    network: Network
    runtime: Runtime
    images: Images
    logs: Logs

"""What the daemon knows: sandboxes, containers, network attachments and images, and the states computed from them.

Records are immutable; the ledger replaces them. A state is never stored: it follows from the timestamps, so
that it cannot contradict them.

    sandbox     CREATING ──► READY ──► NOTREADY ──► (removed)
                  │  ▲ └── failed, cleanup incomplete ──► NOTREADY
                  ▼  └ handed out
                PREPARED ──► (removed)

    container   CREATING ──► CREATED ──► RUNNING ──► EXITED ──► (removed)
                    │            └── start failed ──────┘
                    └── failed ──► (removed)

    attachment  PLANNED ──► ADDING ──► ADDED ──► DELETING ──► (removed)
                                └─────────┴──────────┴── DEL failed ──► OWED ──► (removed)

CREATING and PREPARED objects are not shown to CRI clients: nobody was given their ids. NOTREADY means only that the
pause container is not running, or that the namespaces of a pod without one are gone: StopPodSandbox must still be
called to free what the sandbox holds. An OWED attachment outlives its sandbox.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.pb.cri.v1 import api_pb2 as cri

ID_LENGTH = 64
IN_PROCESS = "in-process"  # a backend of CNI plugins: the daemon does what the binary would do
_ID_PREFIX = re.compile(rf"[0-9a-f]{{1,{ID_LENGTH}}}\Z")


class SandboxState(enum.Enum):
    """The state of a sandbox."""

    CREATING = "creating"
    PREPARED = "prepared"  # made ahead: it runs, and waits for a client to ask for a pod
    READY = "ready"
    NOTREADY = "notready"


class ContainerState(enum.Enum):
    """The state of a container."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


class AttachmentState(enum.Enum):
    """The state of a sandbox's connection to one network."""

    PLANNED = "planned"  # recorded; no plugin was executed, so nothing is owed
    ADDING = "adding"  # plugins may have run: a DEL is due whatever happens
    ADDED = "added"
    DELETING = "deleting"
    OWED = "owed"  # the DEL of a plugin failed: a debt, with its netns kept


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRecord:
    """A pod sandbox. Times are unix nanoseconds, 0 for "not yet"."""

    id: str
    config: cri.PodSandboxConfig
    runtime_handler: str  # "" is the default handler
    netns_path: str  # "" for a pod in the host's network
    created_at: int
    pinned: bool = False  # it has no pause container: its namespaces are held by the mounts that pin them
    pid: int = 0  # of the pause container, 0 when it is not running
    started_at: int = 0
    exited_at: int = 0  # when the pause container ended, or a pinned pod lost its namespaces or was stopped
    stopped_at: int = 0  # StopPodSandbox freed everything but the records
    failure: str = ""  # why creating or cleaning up did not finish, or why the pod can no longer be used
    ips: tuple[str, ...] = ()
    netns_inode: int = 0  # what `netns_path` leads to; 0 when an earlier version made the pod
    userns_inode: int = 0  # the same for the pinned user namespace
    ipc_inode: int = 0  # the same for the ipc namespace of a pinned pod
    uts_inode: int = 0  # the same for its uts namespace
    warnings: tuple[str, ...] = ()  # what the pod asked for and may not get, for people
    boot: str = ""  # of the machine, in which the pod was made; "" when an earlier version made it
    prepared_of: str = ""  # of one that is made ahead and that no client has yet: a digest of what it is made of
    prepared_at: int = 0  # since when it was ready to be handed out; 0 for a pod that was made when it was asked for

    @property
    def name(self) -> str:
        """Unique among live sandboxes, and the same for a retried RunPodSandbox."""
        meta = self.config.metadata
        return sandbox_name(meta)

    @property
    def state(self) -> SandboxState:
        """READY while the pause container runs, or what pins the namespaces lasts; CREATING until it came to that or
        has failed, and while that is undone."""
        if not self.started_at and not self.failure:
            waits = self.prepared_of and self.prepared_at and not self.exited_at
            return SandboxState.PREPARED if waits else SandboxState.CREATING
        return SandboxState.NOTREADY if self.stopped_at or self.exited_at or self.failure else SandboxState.READY

    @property
    def is_shown(self) -> bool:
        """Whether CRI clients can see it."""
        return self.state is not SandboxState.CREATING and not self.prepared_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRecord:
    """A workload container. Times are unix nanoseconds, 0 for "not yet"."""

    id: str
    sandbox_id: str
    config: cri.ContainerConfig
    sandbox_name: str  # part of the container's own unique name
    image_ref: str  # for display: the repo digest if there is one, else the image id
    image_id: str  # digest of the image's config, "sha256:…"
    log_path: str  # absolute, "" when the container does not log
    stop_signal: str = ""  # the image's or the request's; "" means SIGTERM
    user: tuple[int, ...] = ()  # uid, gid, then all supplementary groups; () before they are known
    created_at: int = 0  # 0 while creating
    pid: int = 0
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""

    @property
    def name(self) -> str:
        """Unique among live containers."""
        meta = self.config.metadata
        return f"{self.sandbox_name}/{meta.name}/{meta.attempt}"

    @property
    def state(self) -> ContainerState:
        """Computed from the timestamps; a start that failed sets only `finished_at`."""
        if not self.created_at:
            return ContainerState.CREATING
        if self.finished_at:
            return ContainerState.EXITED
        return ContainerState.RUNNING if self.started_at else ContainerState.CREATED


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """A plugin of an attachment whose last DEL failed."""

    position: int  # in the chain, from 0
    plugin: str  # its type
    error: str  # why it failed
    attempts: int  # failed DELs so far
    missing: str = ""  # the type whose binary is not there: its own or its delegate's


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A sandbox's connection to one network: exactly the input of ADD, so that DEL gets the same.

    Identified by (sandbox_id, network, ifname), as the CNI spec does.
    """

    sandbox_id: str
    network: str
    ifname: str
    netns_path: str
    state: AttachmentState = AttachmentState.PLANNED
    conf_file: str  # where the configuration was read from, for people
    config: bytes  # the network configuration list as JSON, one object, version negotiated
    plugin_path: str  # CNI_PATH: directories joined by ":"
    args: str  # CNI_ARGS
    capability_args: bytes  # JSON object: capability name -> value for runtimeConfig
    result: bytes = b""  # of ADD, as JSON: the final one when ADDED, the last that a plugin was given before that
    error: str = ""  # why the last attempt failed
    attempts: int = 0  # failed DELs so far
    tried_at: int = 0  # time of the last of them, unix nanoseconds
    failed_at: int = 0  # time of the first of them, unix nanoseconds
    owed: tuple[Owed, ...] = ()  # the plugins that still owe their DEL; all of them when empty
    pod: str = ""  # "namespace/name", for people: the attachment can outlive its sandbox
    boot: str = ""  # of the machine, in which its plugins last ran; "" when an earlier version ran them
    kept: bool = False  # of a replay that was to leave it: without a pod, and not deleted before that is asked for
    backends: tuple[str, ...] = ()  # what made it, of each plugin: IN_PROCESS, or "" for a process; none: processes

    @property
    def in_process(self) -> frozenset[int]:
        """The positions in the chain of the plugins whose work the daemon did itself."""
        return frozenset(i for i, backend in enumerate(self.backends) if backend == IN_PROCESS)

    @property
    def owes(self) -> bool:
        """Whether a DEL of it has failed."""
        return self.state is AttachmentState.OWED or self.attempts > 0


AnyRecord = SandboxRecord | ContainerRecord


def of_earlier_boot(record: SandboxRecord | Attachment, boot: str) -> bool:
    """Whether it is of another boot than `boot`, which is now: no process and no namespace of it is left.

    False when either is not known.
    """
    return bool(boot and record.boot) and record.boot != boot


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """An image that can be run on this machine; every name that leads to it is in one record."""

    id: str  # digest of the config, "sha256:…"
    names: tuple[str, ...]  # references in full, tags before digests; empty for an untagged image
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int  # bytes of manifest, config and compressed layers
    username: str  # the image's user if it is a name
    uid: int | None  # the image's user if it is a number
    pinned: bool  # kubelet's image garbage collection must spare it
    chain_id: str  # the committed snapshot of all layers, "" without layers
    config: Mapping[str, Any]  # Entrypoint, Cmd, Env, User, WorkingDir, StopSignal, Volumes, Labels
    digest: str  # of the manifest for this platform; of the first if the same config is in several
    digests: tuple[str, ...] = ()  # of all of them: gzip and zstd, OCI and docker
    records: tuple[str, ...] = ()  # containerd's names for it

    @property
    def name(self) -> str:
        """What records for people call it: a tag, or its id."""
        return self.repo_tags[0] if self.repo_tags else self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class FsInfo:
    """What unpacked images take, as of `at` (unix nanoseconds)."""

    directory: str  # "" when the snapshotter does not say
    bytes: int
    inodes: int
    at: int


class Stage(enum.StrEnum):
    """What happens to an image's content on its way in; the values are part of the host API."""

    WAIT = "wait"
    EXISTS = "exists"  # it is there already
    FETCH = "fetch"
    CHECK = "check"  # examined in the content store, where it was without having been
    VERIFY = "verify"
    STORE = "store"
    UNPACK = "unpack"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one stage is: `done` of `total` bytes, of the layer `digest` or, without one, of a whole archive."""

    stage: Stage
    done: int
    total: int
    digest: str = ""


Report = Callable[[Progress], None]


def unreported(progress: Progress) -> None:
    """The `Report` of a caller who does not look."""


def sandbox_name(meta: cri.PodSandboxMetadata) -> str:
    """The unique name of a sandbox; unambiguous, as the parts of a validated request contain no slash."""
    return f"{meta.namespace}/{meta.name}/{meta.uid}/{meta.attempt}"


def subject_of(meta: cri.PodSandboxMetadata, container: str = "") -> str:
    """What people call a pod, "namespace/name", or one of its containers, "namespace/name/container"."""
    return "/".join(part for part in (meta.namespace, meta.name, container) if part)


def is_id_prefix(text: str) -> bool:
    """Whether `text` could be an id or the beginning of one (lower-case hex, at most 64 digits)."""
    return bool(_ID_PREFIX.match(text))


def find(known: Collection[str], text: str, what: str) -> str:
    """The one id that equals `text` or begins with it.

    Raises NotFound when there is none, InvalidRequest when there are several; `what` is "pod" or "container".
    """
    if text in known:
        return text
    if not is_id_prefix(text):
        raise NotFound(f"{what} {text!r} does not exist")
    matches = [id_ for id_ in known if id_.startswith(text)]
    if not matches:
        raise NotFound(f"{what} {text} does not exist")
    if len(matches) > 1:
        raise InvalidRequest(f"{what} id {text} is ambiguous: {len(matches)} ids begin with it")
    return matches[0]

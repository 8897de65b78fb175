"""The one instrument: every step of every operation passes through `step`.

    with steps.operation("RunPodSandbox", sandbox_id=id):
        with steps.step("pod.netns.create", path=path) as s:
            ...
            s.note(inode=inode)

When a step ends, one frozen `StepRecord` goes to every subscriber: the log line, the pod's timeline in the
ledger, metrics and spans are all made from it. Nothing else times or logs such work.

Everyone who may read the log can read a step's details: note names, paths and counts, never values of the request
(environment, arguments, credentials).

The operation is carried by a context variable, so it follows awaits and the jobs started within it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import structlog

from sandboxd import disclosure

log = structlog.get_logger(__name__)

# Every step there is: its name is a label of metrics and in timelines, so names are added and not changed.
# A name begins with what the step is about: pod, container, image or cni. A test compares this table with the code.
NAMES: Mapping[str, str] = {
    "pod.run": "RunPodSandbox, from the record to a running pod",
    "pod.stop": "everything that the pod holds is freed, its records stay",
    "pod.remove": "everything else goes",
    "pod.update": "new resources are noted",
    "pod.userns.create": "the user namespace, and the network namespace that it owns",
    "pod.netns.create": "the network namespace",
    "pod.netns.restore": "the pod's namespaces are pinned again, after somebody removed or hid them",
    "pod.netns.remove": "the network namespace goes",
    "pod.network.attach": "CNI ADD of all plugins, and what they answered",
    "pod.network.check": "what the pod asks of its network and may not get",
    "pod.network.detach": "CNI DEL of all plugins",
    "pod.network.wait": "for addresses that pods of an earlier boot of the machine still have",
    "pod.files.mount": "the file systems of what the containers share, and a first version of the files",
    "pod.files.write": "hosts, hostname and resolv.conf, with the pod's addresses",
    "pod.files.mend": "what somebody removed of them is written again",
    "pod.files.unmount": "the file systems go, with what is in them",
    "pod.files.remove": "directories, cgroup and whatever else is left",
    "pod.pause.rootfs": "the pause container's root file system",
    "pod.pause.record": "its runtime spec, stored in containerd",
    "pod.pause.create": "its task, not started",
    "pod.pause.start": "it runs",
    "pod.pause.stop": "it has ended, and its shim with it",
    "pod.pause.remove": "its record and its root file system go",
    "pod.containers.stop": "all other containers have ended",
    "container.create": "CreateContainer, from the record to the stored spec",
    "container.mounts": "what the spec depends on: mounts, devices, profiles, CDI",
    "container.rootfs": "root file system, user, declared volumes",
    "container.record": "the runtime spec, stored in containerd",
    "container.start": "StartContainer, from the log to the running process",
    "container.log": "the FIFOs and the log file",
    "container.task.create": "the task, not started",
    "container.task.start": "the process runs",
    "container.stop": "stop signal, grace period, SIGKILL",
    "container.remove": "everything of the container goes",
    "container.update": "new limits, in containerd and in the cgroup",
    "container.exec": "a further process",
    "container.checkpoint": "CheckpointContainer, from the pause to the archive",
    "container.pause": "all processes stand still",
    "container.dump": "CRIU writes their memory",
    "container.changes": "the files that were changed, packed",
    "container.resume": "all processes go on",
    "container.archive": "the archive is written",
    "image.resolve": "the reference, at the registry",
    "image.manifest": "the manifest for this platform, and the configuration",
    "image.content": "the layers, fetched, examined and unpacked",
    "image.read": "an archive's contents",
    "image.store": "an archive's blobs go into the content store",
    "image.unpack": "layers become a snapshot",
    "image.name": "the image gets its names",
    "image.pause": "the builtin pause image is made",
    "image.save": "images go into an archive",
    "image.remove": "an image's names go",
    "image.mount": "an image is mounted for containers of a pod",
    "cni.version": "a plugin is asked which versions it speaks",
    "cni.add": "a plugin's ADD",
    "cni.del": "a plugin's DEL",
    "cni.check": "a plugin's CHECK",
    "cni.status": "a plugin's STATUS",
    "cni.gc": "a plugin's GC",
    "cni.leftovers": "plugins that outlived an earlier daemon are ended before their pod's DEL",
}


# Those that tell the life of a pod and of an image in a few lines; the others are the details.
MILESTONES = frozenset(
    {"pod.run", "pod.stop", "pod.remove", "pod.update", "image.name", "image.remove", "image.save"}
    | {f"container.{verb}" for verb in ("create", "start", "stop", "remove", "update", "checkpoint")}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginExecution:
    """One execution of a CNI plugin binary, recorded in full, so that a person can repeat it by hand."""

    command: str  # ADD, DEL, CHECK, STATUS, VERSION, GC
    binary: str  # absolute path
    env: Mapping[str, str]  # the CNI_* variables
    stdin: bytes
    stdout: bytes
    stderr: bytes
    exit_code: int  # negative: killed by that signal
    duration: int  # nanoseconds
    timed_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A step that has ended."""

    operation: str
    name: str
    sandbox_id: str
    container_id: str
    started_at: int  # unix nanoseconds
    duration: int  # nanoseconds
    error: str  # "" when it succeeded
    detail: Mapping[str, str] = field(default_factory=dict)
    plugin: PluginExecution | None = None


class Step:
    """A step in progress; details can be noted on it until it ends."""

    __slots__ = ("detail", "plugin")

    def __init__(self, detail: dict[str, str]) -> None:
        self.detail = detail
        self.plugin: PluginExecution | None = None

    def note(self, **detail: object) -> None:
        """Add to the step's detail; a `None` is left out."""
        self.detail.update({key: str(value) for key, value in detail.items() if value is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    name: str
    sandbox_id: str
    container_id: str


_current: ContextVar[_Operation | None] = ContextVar("sandboxd_operation", default=None)
_subscribers: list[Callable[[StepRecord], None]] = []


def subscribe(receive: Callable[[StepRecord], None]) -> Callable[[], None]:
    """Pass every record to `receive` from now on; call the returned function to stop."""
    _subscribers.append(receive)
    return lambda: _subscribers.remove(receive)


@contextmanager
def operation(name: str, *, sandbox_id: str = "", container_id: str = "") -> Iterator[None]:
    """Name the operation of the steps inside. A nested operation keeps the outer one's name."""
    outer = _current.get()
    token = _current.set(
        _Operation(
            name=outer.name if outer else name,
            sandbox_id=sandbox_id or (outer.sandbox_id if outer else ""),
            container_id=container_id or (outer.container_id if outer else ""),
        )
    )
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def step(name: str, **detail: object) -> Iterator[Step]:
    """Time a step, record how it ended, and let its error pass through unchanged."""
    current = _current.get() or _Operation(name="", sandbox_id="", container_id="")
    this = Step({key: str(value) for key, value in detail.items() if value is not None})
    started_at, began = time.time_ns(), time.perf_counter_ns()
    error = ""
    try:
        yield this
    except BaseException as exc:
        error = disclosure.words(exc)
        raise
    finally:
        record = StepRecord(
            operation=current.name,
            name=name,
            sandbox_id=current.sandbox_id,
            container_id=current.container_id,
            started_at=started_at,
            duration=time.perf_counter_ns() - began,
            error=error,
            detail=dict(this.detail),
            plugin=this.plugin,
        )
        for receive in tuple(_subscribers):
            try:
                receive(record)
            except Exception as broken:
                # Observing must never change what is observed.
                log.error("step subscriber failed", step=name, error=disclosure.words(broken))

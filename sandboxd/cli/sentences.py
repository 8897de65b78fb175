"""Steps in words: one sentence for each name of the step vocabulary, and what may be within what. Pure.

The client knows the wire contract only, so the vocabulary is repeated here; a test compares it with the daemon's. A
step that a newer daemon has is told by its name.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

from sandboxd.pb.host.v1 import host_pb2 as host

SENTENCES: Mapping[str, str] = {
    "pod.run": "The pod is made, until it can take containers",
    "pod.pool.fill": "The pod is prepared ahead, until its pause container runs",
    "pod.pool.take": "A pod that was prepared becomes the one that is asked for:",
    "pod.wait": "The pod waits for its turn",
    "pod.stop": "Everything that the pod holds is freed; its records stay",
    "pod.remove": "Everything else of the pod is removed",
    "pod.adopt": "The pod, which the ledger had lost, is put back",
    "pod.update": "The pod's new resources are noted",
    "pod.userns.create": "The user namespace is created, and the network namespace that it owns",
    "pod.netns.create": "The network namespace is created, its loopback up:",
    "pod.netns.restore": "The pod's namespaces are pinned again:",
    "pod.netns.remove": "The network namespace is removed:",
    "pod.network.attach": "The pod is attached to network",
    "pod.network.check": "The network may lack what the pod asks of it",
    "pod.network.detach": "The pod is detached from network",
    "pod.network.wait": "Addresses of an earlier boot are waited for",
    "pod.files.mount": "The file systems that the containers share are mounted",
    "pod.files.write": "hosts, hostname and resolv.conf are written",
    "pod.files.mend": "Files of the pod that somebody removed are written again:",
    "pod.files.unmount": "The file systems that the containers share are unmounted",
    "pod.files.remove": "The pod's directories and its cgroup are removed",
    "pod.namespaces.create": "The ipc and uts namespaces are created, with the pod's host name",
    "pod.namespaces.remove": "The ipc and uts namespaces are removed",
    "pod.sysctls.set": "The pod's sysctls are set in its namespaces",
    "pod.pinned.record": "The pod's record is stored in containerd",
    "pod.pinned.remove": "The pod's record in containerd is removed",
    "pod.pause.rootfs": "The pause container gets a root file system, from image",
    "pod.pause.record": "The pause container's spec is stored in containerd",
    "pod.pause.create": "The pause container is created, not yet started:",
    "pod.pause.start": "The pause container is started:",
    "pod.pause.stop": "The pause container ends, and its shim",
    "pod.pause.remove": "The pause container's record and root file system are removed",
    "pod.containers.stop": "The pod's other containers end",
    "pod.containers.free": "What the ended containers still hold is freed",
    "container.create": "The container is created, up to its stored spec:",
    "container.mounts": "Mounts, devices and profiles are prepared",
    "container.rootfs": "The container gets a root file system, from image",
    "container.record": "The container's spec is stored in containerd",
    "container.start": "The container is started:",
    "container.log": "The log is opened:",
    "container.task.create": "The container's task is created, in the pod's namespaces",
    "container.task.start": "The container's process runs",
    "container.stop": "The container is stopped:",
    "container.remove": "Everything of the container is removed:",
    "container.adopt": "The container, which the ledger had lost, is put back",
    "container.update": "The container gets new limits:",
    "container.exec": "A further process is run in the container:",
    "container.exec.wait": "The further process waits for its turn",
    "container.checkpoint": "The container is checkpointed:",
    "container.pause": "All processes of the container stand still",
    "container.dump": "CRIU writes the processes' memory",
    "container.changes": "The changed files are packed",
    "container.resume": "All processes of the container go on",
    "container.archive": "The checkpoint's archive is written",
    "image.resolve": "The registry says what the reference is:",
    "image.manifest": "Manifest and configuration for this platform are fetched:",
    "image.content": "The layers are fetched, examined and unpacked:",
    "image.read": "The archive is read",
    "image.store": "The archive's parts are stored",
    "image.unpack": "The layers become a snapshot",
    "image.name": "The image gets its names",
    "image.pause": "The builtin pause image is made",
    "image.save": "An archive is written of",
    "image.remove": "The image's names are removed:",
    "image.mount": "An image is mounted for the pod's containers:",
    "cni.prepare": "What precedes the first plugin has failed:",
    "cni.version": "is asked which versions it speaks",
    "cni.add": "",
    "cni.del": "",
    "cni.check": "",
    "cni.status": "",
    "cni.gc": "",
    "cni.leftovers": "Plugins that outlived an earlier daemon are ended: process groups",
    "cni.rules": "Rules for masquerading that a DEL may have missed are looked for, of network",
    "cni.look": "The network is looked at, to record changes:",
}

# What completes a sentence: values by themselves first, then those that need their key.
_BARE = ("path", "network", "container", "image", "images", "command", "files", "groups", "archive")
_KEYED = (
    "ips", "pid", "inode", "host_uid", "grace", "code", "attempt", "ahead", "layers", "conf", "before", "after",
    "changes", "ready_for",
)  # fmt: skip
# What a person should not miss, in whatever step it is.
_REMARKS = (
    "warning", "dubious", "already_gone", "uninstalled", "killed", "unsaid", "reason", "waited", "queued",
    "not_released", "passed_over", "unseen",
)  # fmt: skip

_PLUGINS = frozenset(f"cni.{verb}" for verb in ("version", "add", "del", "check", "status", "gc"))
_LONG = re.compile(r"(?:sha256:)?([0-9a-f]{12})[0-9a-f]{52}")  # ids and digests
_NEXT_FILE = re.compile("; (?=/|and )")  # of those passed over
_UNSAID = frozenset({("attempt", "1")})  # the usual value says nothing

# The steps of a network are plugins; what else goes on at the same time is beside it, not within it.
_INSIDE: Mapping[str, tuple[str, ...]] = {
    "pod.network.attach": ("cni.",),
    "pod.network.detach": ("cni.",),
    "pod.pool.take": ("pod.files.", "pod.pause."),
    "pod.containers.stop": ("container.stop", "container.remove"),
    "container.mounts": ("image.",),
    "container.exec": ("container.exec.wait",),
    "image.content": ("image.unpack",),
}
_WHOLE = frozenset(
    {"pod.run", "pod.stop", "pod.remove", "pod.adopt", "pod.pool.fill"}
    | {f"container.{verb}" for verb in ("create", "start", "stop", "remove", "update", "checkpoint")}
)
_ATTEMPTS = frozenset({"pod.network.detach", "pod.netns.restore", "pod.files.mend", "container.exec"})


def opens(name: str) -> bool:
    """Whether a second step of the name belongs to another request, or another attempt, unless it is a part."""
    return name in _WHOLE or name in _ATTEMPTS


def may_hold(outer: str, inner: str) -> bool:
    """Whether a step of the one name can be a part of one of the other."""
    return outer in _WHOLE or inner.startswith(_INSIDE.get(outer, ("\0",)))


def sentence(step: host.Step) -> str:
    """What the step did, with its most telling particulars, on one line."""
    told = SENTENCES.get(step.name, step.name)
    if step.name in _PLUGINS:
        plugin = step.detail.get("plugin", "a plugin")
        told = f"{plugin} {told}" if told else f"{step.name.removeprefix('cni.').upper()} {plugin}"
    values = [_bare(key, step.detail) for key in _BARE if step.detail.get(key)]
    values += [_keyed(key, step.detail[key]) for key in _KEYED if _says(step, key)]
    if told.endswith(":") and not values:
        told = told[:-1]
    if step.name in _PLUGINS:
        values = []
    return " ".join((told, ", ".join(values))).rstrip()


def remarks(step: host.Step) -> list[str]:
    """What of the step's particulars a person should not miss, a line each."""
    return [
        f"{key.replace('_', ' ')}: {each}"
        for key in _REMARKS
        if step.detail.get(key)
        for each in (_NEXT_FILE.split(step.detail[key]) if key == "passed_over" else [step.detail[key]])
    ]


def _says(step: host.Step, key: str) -> bool:
    return bool(step.detail.get(key)) and (key, step.detail[key]) not in _UNSAID


def _keyed(key: str, value: str) -> str:
    if key == "conf":
        return f"from {posixpath.basename(value)}"
    if key == "ips":
        return f"with {value.replace(',', ' and ')}"
    return f"{key.replace('_', ' ')} {value}"


def _bare(key: str, detail: Mapping[str, str]) -> str:
    value = _LONG.sub(r"\1…" if key == "path" else r"\1", detail[key])
    return f"from image {value}" if key == "image" and "container" in detail else value

"""The names of steps: labels of metrics and in timelines, so they are added and not changed.

A name begins with what the step is about: pod, container, image or cni. A test compares the table with the code.
"""

from __future__ import annotations

from collections.abc import Mapping

# Every step there is.
NAMES: Mapping[str, str] = {
    "pod.run": "RunPodSandbox, from the record to a running pod",
    "pod.pool.fill": "a pod is prepared ahead, from the record to its running pause container",
    "pod.pool.take": "one that was prepared becomes the pod that is asked for",
    "pod.wait": "for a turn: so many pods, and containers, are made at once, and so many ended",
    "pod.stop": "everything that the pod holds is freed, its records stay",
    "pod.remove": "everything else goes",
    "pod.adopt": "a pod that the ledger had lost is put back",
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
    "pod.namespaces.create": "ipc and uts namespaces of a pod without a pause container, pinned",
    "pod.namespaces.remove": "they are unpinned",
    "pod.sysctls.set": "the sysctls of a pod without a pause container",
    "pod.pinned.record": "its record in containerd, from which nothing is run",
    "pod.pinned.remove": "that goes",
    "pod.pause.rootfs": "the pause container's root file system",
    "pod.pause.record": "its runtime spec, stored in containerd",
    "pod.pause.create": "its task, not started",
    "pod.pause.start": "it runs",
    "pod.pause.stop": "it has ended, and its shim with it",
    "pod.pause.remove": "its record and its root file system go",
    "pod.containers.stop": "all other containers have ended",
    "pod.containers.free": "their tasks are freed, of a pod without a pause container while its network is",
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
    "container.adopt": "a container that the ledger had lost is put back",
    "container.update": "new limits, in containerd and in the cgroup",
    "container.exec": "a further process",
    "container.exec.wait": "for a turn: a pod takes so many further processes at once",
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
    "cni.prepare": "what precedes the first plugin, a step only when it fails: a network, its plugins, free ports",
    "cni.version": "a plugin is asked which versions it speaks",
    "cni.add": "a plugin's ADD",
    "cni.del": "a plugin's DEL",
    "cni.check": "a plugin's CHECK",
    "cni.status": "a plugin's STATUS",
    "cni.gc": "a plugin's GC",
    "cni.leftovers": "plugins that outlived an earlier daemon are ended before their pod's DEL",
    "cni.rules": "rules for masquerading that a plugin's DEL may have missed are looked for and removed",
    "cni.look": "what a plugin has changed on the machine is looked for, where that is recorded",
}

# Those that tell the life of a pod and of an image in a few lines; the others are the details.
MILESTONES = frozenset(
    {"pod.run", "pod.pool.fill", "pod.stop", "pod.remove", "pod.update", "image.name", "image.remove", "image.save"}
    | {f"container.{verb}" for verb in ("create", "start", "stop", "remove", "update", "checkpoint")}
)

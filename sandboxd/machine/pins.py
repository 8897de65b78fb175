"""A pod's pinned namespaces: made, and pinned again from a process that is in them.

They are mounts at paths that a person can unmount, delete or mount something else over. What joins a namespace by its
path (a container, a CNI plugin, a port-forward) would then find nothing, or another pod's. While a process of the pod
lives, nothing is lost: the kernel keeps the namespace, and the record says which it is.
"""

from __future__ import annotations

from sandboxd import private, steps
from sandboxd.containerd.tasks import TaskState
from sandboxd.errors import NotFound
from sandboxd.model import SandboxRecord
from sandboxd.node import Node
from sandboxd.oci import pinned, userns

_ALIVE = (TaskState.CREATED, TaskState.RUNNING, TaskState.PAUSED)


async def create(node: Node, sandbox: SandboxRecord) -> dict[str, int]:
    """Make what a pinned pod has of its own besides its network; the inodes, by kind. Raises NotReady; clean then."""
    wanted = pinned.pins(sandbox, node.places)
    if wanted:
        private.make(node.places.sandbox(sandbox.id), private.CLOSED)
        await node.netns.create_others(wanted, sandbox.config.hostname)
    return {kind: node.netns.inode(path) for kind, path in wanted.items()}


async def remove(node: Node, sandbox: SandboxRecord) -> None:
    """Undo `create`; the pod's last process frees them. Idempotent. Raises CleanupIncomplete."""
    for path in pinned.pins(sandbox, node.places).values():
        await node.netns.remove(path)


def intact(node: Node, sandbox: SandboxRecord) -> bool:
    """Whether each of the pod's namespaces is where it was pinned."""
    return not _lost(node, sandbox)


def complaint(node: Node, sandbox: SandboxRecord) -> str:
    """What the pod lacks, for people."""
    kinds = {"net": "network"}
    lost = (f"no {kinds.get(kind, kind)} namespace to join: {path} is gone" for path, _, kind in _lost(node, sandbox))
    return f"it has {' and '.join(lost)}; remove the pod and run it again"


async def restore(node: Node, sandbox: SandboxRecord) -> bool:
    """Pin again what is no longer where it was; whether all are. The caller holds the pod's lock.

    When the answer is False, no process of the pod is left to take them from. Raises Unavailable when containerd does
    not say which those are, NotReady when the kernel refuses.
    """
    lost = _lost(node, sandbox)
    if not lost:
        return True
    with steps.step("pod.netns.restore", path=" ".join(path for path, _, _ in lost)) as step:
        pids = await _processes(node, sandbox)
        outcomes = [
            # Without a recorded inode only the pause container is known to be in the pod's own namespace.
            await node.netns.restore(path, inode, pids if inode else pids[:1], kind)
            for path, inode, kind in lost
        ]
        step.note(restored=all(outcomes))
        return all(outcomes)


def _lost(node: Node, sandbox: SandboxRecord) -> list[tuple[str, int, str]]:
    """Path, inode and kind of each namespace that is not where it was pinned."""
    pins = []
    if sandbox.netns_path:
        pins.append((sandbox.netns_path, sandbox.netns_inode, "net"))
    if userns.of(sandbox.config) is not None:
        pins.append((node.places.user_namespace(sandbox.id), sandbox.userns_inode, "user"))
    if sandbox.pinned:
        inodes = {"ipc": sandbox.ipc_inode, "uts": sandbox.uts_inode}
        pins += [(path, inodes[kind], kind) for kind, path in pinned.pins(sandbox, node.places).items()]
    return [pin for pin in pins if not _is_at(node, pin[0], pin[1])]


def _is_at(node: Node, path: str, inode: int) -> bool:
    found = node.netns.inode(path)
    return found == inode if inode else bool(found)


async def _processes(node: Node, sandbox: SandboxRecord) -> list[int]:
    """The first process of each of the pod's containers that lives, as containerd has it; pause first."""
    pids = []
    for task_id in (sandbox.id, *(container.id for container in node.ledger.containers_of(sandbox.id))):
        try:
            task = await node.runtime.get(task_id)
        except NotFound:
            continue
        if task.pid and task.state in _ALIVE:
            pids.append(task.pid)
    return pids

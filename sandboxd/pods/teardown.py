"""The one way back: failed runs, StopPodSandbox, RemovePodSandbox and recovery are this code.

    workload tasks, all at once → pause task → CNI DEL → netns → shared memory, mounted images → other namespaces
    (without a pause container the tasks are freed beside the DEL, once all processes have ended)
    and with `remove`: containers → pause record and rootfs → files, cgroup → the record

Each step is idempotent. The first step that fails, even unexpectedly, ends the teardown; the record is kept with the
reason, and a retry continues from there. One failure does not end it: a CNI DEL that fails is kept as a debt with its
netns (invariant 6), so a broken plugin cannot make pods undeletable. Another Stop or Remove tries it again, and so
does the comparison. With `network.teardown = "strict"` it ends the teardown like any other failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterable, Sequence

from sandboxd import disclosure, steps, trees
from sandboxd.containerd import shims
from sandboxd.containers import admission, image_mounts
from sandboxd.containers.ending import end, free, kill, settling
from sandboxd.containers.remove import remove_remains
from sandboxd.errors import CleanupIncomplete, SandboxdError, Unavailable
from sandboxd.jobs import in_pieces
from sandboxd.machine import pins, pod_files, room, userns
from sandboxd.model import SandboxRecord
from sandboxd.node import Node
from sandboxd.oci import userns as oci_userns
from sandboxd.operations import Held, cleaning, demand_containerd, perform
from sandboxd.pods import files, network
from sandboxd.pods.reconcile import Action, Repair

UNDOING = "; cleaning up: "  # in a record's failure: between why its creation failed and why that was not undone


async def stop_sandbox(node: Node, sandbox_id: str) -> None:
    """StopPodSandbox: free what the pod holds, keep its records. No error if there is no such pod."""
    node.jobs.interrupt(_paying(sandbox_id))
    await _performed(node, "StopPodSandbox", sandbox_id, remove=False)


async def remove_sandbox(node: Node, sandbox_id: str) -> None:
    """RemovePodSandbox: leave nothing. No error if there is no such pod."""
    node.jobs.interrupt(_paying(sandbox_id))
    await _performed(node, "RemovePodSandbox", sandbox_id, remove=True)


async def _performed(node: Node, verb: str, sandbox_id: str, *, remove: bool) -> None:
    turns = node.machine.load.teardowns if sandbox_id in node.ledger.sandboxes else None
    await perform(node, verb, sandbox_id, lambda held: teardown(held, remove=remove), turns=turns)


def _paying(sandbox_id: str) -> tuple[str, str, str]:
    """The comparison's attempt at a DEL that the pod owes: the same is done here, and not after one that hangs."""
    return Repair(action=Action.PAY_DEBT, id=sandbox_id).job


async def roll_back(held: Held, cause: BaseException) -> None:
    """Undo a failed run; what cannot be undone keeps the record, NOTREADY, with the reason."""
    try:
        await teardown(held, remove=True)
    except SandboxdError as left:
        failure = f"{disclosure.words(cause)}{UNDOING}{left}"
        held.node.ledger.update_sandbox(held.sandbox_id, failure=failure)
        raise


async def remove_abandoned(node: Node, sandbox_id: str) -> None:
    """Remove a pod that never came to be: its creation was cut off, or could not be undone.

    Joined by who wants its name meanwhile. No error if there is no such pod, or if it has come to be.
    """

    async def work(held: Held) -> None:
        record = node.ledger.sandboxes.get(sandbox_id)
        if record is None or record.started_at:
            return
        await network.assume(held)
        networks = [attachment.network for attachment in node.ledger.attachments_of(sandbox_id)]
        cause, undoing, _ = record.failure.partition(UNDOING)
        try:
            async with node.jobs.retries.lane(networks[0] if networks else ""):
                await teardown(held, remove=True)
        except SandboxdError as exc:
            if undoing:  # why the creation failed is still to be known
                node.ledger.update_sandbox(sandbox_id, failure=f"{cause}{UNDOING}{exc}")
            raise

    verb, *key = _abandoning(sandbox_id)
    await perform(node, verb, sandbox_id, work, key=tuple(key))


def being_abandoned(node: Node, sandbox_id: str) -> bool:
    """Whether `remove_abandoned` is at work on it."""
    return _abandoning(sandbox_id) in node.jobs.in_flight()


def _abandoning(sandbox_id: str) -> tuple[str, ...]:
    """The name of its job."""
    return "recover", "abandoned", sandbox_id


async def teardown(held: Held, *, remove: bool) -> None:
    """Stop the pod, or remove it whole.

    Raises CleanupIncomplete naming what is left; Unavailable when containerd is away, and when that is known before,
    nothing has changed.
    """
    node, sandbox_id = held.node, held.sandbox_id
    record = node.ledger.sandboxes.get(sandbox_id)
    if record is None:
        return
    if remove or not record.stopped_at:
        demand_containerd(node)
    room.make(node)
    try:
        with cleaning(f"pod {record.name} ({sandbox_id})"):
            if not record.stopped_at:
                with steps.step("pod.stop", pod=record.name):
                    await _stop(held, record)
            elif node.ledger.attachments_of(sandbox_id):
                await _release(held, record)
            if remove:
                with steps.step("pod.remove", pod=record.name):
                    await _remove(held)
    except SandboxdError as exc:
        node.ledger.update_sandbox(sandbox_id, failure=disclosure.sentence(exc))
        if isinstance(exc, CleanupIncomplete | Unavailable):
            raise
        raise CleanupIncomplete(f"pod {record.name} ({sandbox_id}): {exc}") from exc


async def _stop(held: Held, record: SandboxRecord) -> None:
    node, sandbox_id = held.node, held.sandbox_id
    admission.dismiss(node, sandbox_id)
    # While its processes live: DEL must find the pod's namespace, not another one that somebody put in its place.
    with contextlib.suppress(SandboxdError):
        await pins.restore(node, record)
    workload = [c.id for c in node.ledger.containers_of(sandbox_id)] + _strays(node, sandbox_id)
    if record.pinned:
        await _end_pinned(held, record, workload)
    else:
        if workload:
            with steps.step("pod.containers.stop", containers=len(workload)):
                await _together(_end_container(node, container_id) for container_id in workload)
        await _end_pause(held)
        await _release(held, record)
    with steps.step("pod.files.unmount"):
        pod_files.unmount(node, sandbox_id)
    await image_mounts.remove(held)
    if oci_userns.of(record.config) is not None:
        await userns.remove(node, sandbox_id)
    if record.pinned:
        with steps.step("pod.namespaces.remove"):
            await pins.remove(node, record)
    node.ledger.update_sandbox(sandbox_id, stopped_at=time.time_ns(), failure="")


async def _end_pinned(held: Held, record: SandboxRecord, workload: Sequence[str]) -> None:
    """End all processes of a pod without a pause container, then free its network while their tasks are freed."""
    node, sandbox_id = held.node, held.sandbox_id
    if workload:
        with steps.step("pod.containers.stop", containers=len(workload)):
            await _together(end(node, container_id, freeing=False) for container_id in workload)
    node.ledger.update_sandbox(sandbox_id, exited_at=held.sandbox().exited_at or time.time_ns())

    async def free_all() -> None:
        if workload:
            with steps.step("pod.containers.free", containers=len(workload)):
                await _together(free(node, container_id) for container_id in workload)

    await _together((free_all(), _release(held, record)))


async def _together(work: Iterable[Awaitable[None]]) -> None:
    """Do all of it at once and to its end; raise the first failure then."""
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def _end_pause(held: Held) -> None:
    node, sandbox_id = held.node, held.sandbox_id
    with steps.step("pod.pause.stop"):
        async with settling(node, sandbox_id):  # its exit event finds all of it done
            ended = await kill(node, sandbox_id)
            at = ended.at if ended is not None and ended.at > 0 else time.time_ns()
            node.ledger.update_sandbox(sandbox_id, pid=0, exited_at=held.sandbox().exited_at or at)
            await node.runtime.delete(sandbox_id)


def _strays(node: Node, sandbox_id: str) -> list[str]:
    """The pod's containers that only containerd knows."""
    return [container_id for container_id, owner in node.ledger.strays.items() if owner == sandbox_id]


async def _release(held: Held, record: SandboxRecord) -> None:
    """Free the network. What a plugin keeps owing is an error in strict mode only."""
    debts = await network.release(held, record.netns_path)
    if debts and held.node.config.network.teardown == "strict":
        raise CleanupIncomplete(
            f"{'; '.join(debt.error for debt in debts)}; network.teardown is strict, so the pod stays until this"
            " succeeds; `sandboxctl debts` retries or forgives it"
        )


async def _end_container(node: Node, container_id: str) -> None:
    await end(node, container_id)
    await free(node, container_id)  # a container that was never started is not settled


async def _remove(held: Held) -> None:
    node, sandbox_id = held.node, held.sandbox_id
    for container in node.ledger.containers_of(sandbox_id):
        with steps.step("container.remove", container=container.name):
            await remove_remains(held, container.id)
    for container_id in _strays(node, sandbox_id):
        with steps.step("container.remove", container=container_id):
            await remove_remains(held, container_id)
        node.ledger.strays.pop(container_id, None)
    record = held.sandbox()
    if record.pinned:
        with steps.step("pod.pinned.remove"):
            await node.runtime.delete_container(sandbox_id)
    else:
        with steps.step("pod.pause.remove"):
            await node.runtime.delete_container(sandbox_id)
            await node.images.remove_rootfs(sandbox_id)
    with steps.step("pod.files.remove"):
        # containerd leaves the shim whose start was interrupted, or its socket, for example by the daemon's death.
        shim = node.config.containerd_socket, node.config.containerd.namespace, sandbox_id
        if shims.remove_dead_socket(shims.socket_path(*shim)):
            await asyncio.to_thread(shims.end_left, *shim)
        await files.remove_cgroup(node.places.own_cgroup(sandbox_id))
        if record.prepared_at and record.config.linux.cgroup_parent:  # moved there: its runtime knows the other
            await files.remove_cgroup(node.places.cgroup(record, sandbox_id))
        await in_pieces(trees.remove(node.places.pod_files(sandbox_id)))
        await in_pieces(trees.remove(node.places.sandbox(sandbox_id)))
    node.ledger.remove_sandbox(sandbox_id)

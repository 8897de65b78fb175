"""The one way back: failed runs, StopPodSandbox, RemovePodSandbox and recovery are this code.

    workload tasks, all at once → pause task → CNI DEL → netns → shared memory, mounted images → user namespace
    and with `remove`: containers → pause record and rootfs → files, cgroup → the record

Each step treats "already gone" as done. The first step that fails ends it and keeps the record with the reason,
so that a retry goes on from there; that holds for errors that nobody expected too. One failure does not end it: a CNI
DEL that fails is kept as a debt with its netns (invariant 6), so that a broken plugin cannot make pods undeletable.

The caller holds the sandbox's lock.
"""

from __future__ import annotations

import asyncio
import time

from sandboxd import disclosure, steps
from sandboxd.containerd import shims
from sandboxd.errors import CleanupIncomplete, SandboxdError, Unavailable
from sandboxd.lifecycle import image_volumes, network, pod_files, userns
from sandboxd.lifecycle.host import Host
from sandboxd.lifecycle.processes import (
    cleaning,
    free,
    kill,
    note_kill,
    remove_container_remains,
    settle_container,
)
from sandboxd.oci import userns as oci_userns


async def stop_sandbox(host: Host, sandbox_id: str) -> None:
    """StopPodSandbox: free what the pod holds, keep its records. Unknown is done."""
    await host.jobs.run_to_end(("StopPodSandbox", sandbox_id), lambda: _locked(host, sandbox_id, remove=False))


async def remove_sandbox(host: Host, sandbox_id: str) -> None:
    """RemovePodSandbox: leave nothing. Unknown is done."""
    await host.jobs.run_to_end(("RemovePodSandbox", sandbox_id), lambda: _locked(host, sandbox_id, remove=True))


async def _locked(host: Host, sandbox_id: str, *, remove: bool) -> None:
    name = "RemovePodSandbox" if remove else "StopPodSandbox"
    with steps.operation(name, sandbox_id=sandbox_id):
        async with host.jobs.exclusive(sandbox_id):
            await teardown(host, sandbox_id, remove=remove)


async def teardown(host: Host, sandbox_id: str, *, remove: bool) -> None:
    """Stop the sandbox, or remove it whole. Raises CleanupIncomplete naming what is left."""
    record = host.ledger.sandboxes.get(sandbox_id)
    if record is None:
        return
    try:
        with cleaning(f"pod {record.name} ({sandbox_id})"):
            if not record.stopped_at:
                await _stop(host, sandbox_id)
            if remove:
                await _remove(host, sandbox_id)
    except SandboxdError as exc:
        host.ledger.update_sandbox(sandbox_id, failure=disclosure.sentence(exc))
        if isinstance(exc, CleanupIncomplete | Unavailable):
            raise
        raise CleanupIncomplete(f"pod {record.name} ({sandbox_id}): {exc}") from exc


async def _stop(host: Host, sandbox_id: str) -> None:
    workload = [c.id for c in host.ledger.containers_of(sandbox_id)]
    if workload:
        with steps.step("workload.stop", containers=len(workload)):
            ends = await asyncio.gather(
                *(_end_container(host, container_id) for container_id in workload), return_exceptions=True
            )
            for end in ends:
                if isinstance(end, BaseException):
                    raise end
    with steps.step("pause.stop"):
        await kill(host, sandbox_id)
        await free(host, sandbox_id)
    record = host.ledger.sandboxes[sandbox_id]
    host.ledger.update_sandbox(sandbox_id, pid=0, exited_at=record.exited_at or time.time_ns())
    debts = await network.detach(host, sandbox_id)
    if record.netns_path and not debts:
        with steps.step("netns.remove", path=record.netns_path):
            await host.netns.remove(record.netns_path)
    with steps.step("pod.shm"):
        pod_files.unmount(host, sandbox_id)
    await image_volumes.remove(host, sandbox_id)
    if oci_userns.of(record.config) is not None:
        await userns.remove(host, sandbox_id)
    host.ledger.update_sandbox(sandbox_id, stopped_at=time.time_ns(), failure="")


async def _end_container(host: Host, container_id: str) -> None:
    note_kill(host, container_id)
    await kill(host, container_id)
    await settle_container(host, container_id)
    await free(host, container_id)  # what was created but never ran has nothing to settle


async def _remove(host: Host, sandbox_id: str) -> None:
    for container in host.ledger.containers_of(sandbox_id):
        with steps.step("container.remove", container=container.name):
            await remove_container_remains(host, container.id)
    with steps.step("pause.remove"):
        await host.runtime.delete_container(sandbox_id)
        await host.images.remove_rootfs(sandbox_id)
    with steps.step("pod.remains"):
        # containerd forgets the socket of a shim that it cut off while it started, as when the daemon dies then.
        places = host.config.containerd_socket, host.config.containerd.namespace, sandbox_id
        shims.remove_dead_socket(shims.socket_path(*places))
        await pod_files.remove_cgroup(f"{host.config.runtime.cgroup_parent}/{sandbox_id}")
        await pod_files.remove_directory(host.config.pod_files_dir(sandbox_id))
        await pod_files.remove_directory(host.config.sandbox_dir(sandbox_id))
    host.ledger.remove_sandbox(sandbox_id)

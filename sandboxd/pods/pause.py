"""The pause container: a pod's first, which holds its namespaces and does nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sandboxd import places, steps
from sandboxd.cni.conf import NetworkConfig
from sandboxd.containerd import rootfs as image_files
from sandboxd.containerd.snapshots import Mount
from sandboxd.containers import runtime_reads
from sandboxd.errors import InvalidRequest, NotReady
from sandboxd.machine import handlers, pod_files, userns
from sandboxd.model import ImageRecord, SandboxRecord
from sandboxd.node import Node
from sandboxd.oci import sandbox, users
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import network


async def create(node: Node, record: SandboxRecord, image: ImageRecord, chosen: NetworkConfig | None) -> None:
    """Create the pause container of a pod in the network `chosen`, but do not start it.

    Raises NotReady with the runtime's words, InvalidRequest or Unsupported for what the pod cannot have.
    """
    with steps.step("pod.files.mount"):
        # The runtime binds these when it creates the container; the pod's addresses are written before it starts.
        pod_files.prepare(node, record)
    with steps.step("pod.pause.rootfs", image=image.id):
        rootfs = await node.images.prepare_rootfs(record.id, image)
        user = await asyncio.to_thread(_user, record.config, image, rootfs)
    name = image.name
    found = await handlers.sandbox_facts(node, record)
    await pod_files.label(node, record, found)
    spec = sandbox.sandbox_spec(
        record,
        places=node.places,
        image=image.config,
        image_name=name,
        user=user,
        host=found,
    )
    with steps.step("pod.pause.record"):
        await node.runtime.create_container(
            record.id,
            spec=spec,
            image=name,
            snapshotter=node.config.containerd.snapshotter,
            snapshot_key=record.id,
            labels=places.labels(record.config, record.id, kind="sandbox"),
            runtime=handlers.runtime_options(node, record),
            keep=network.kept(node, record.id, chosen),
        )
    with steps.step("pod.pause.create") as step:
        async with userns.staged(node, record, record.id, rootfs) as mapped:
            step.note(pid=await node.runtime.create(record.id, mapped))


async def start(node: Node, record: SandboxRecord) -> int:
    """Start it; return its pid. Raises NotReady with the runtime's words."""
    with steps.step("pod.pause.start") as step:
        pid = await node.runtime.start(record.id)
        step.note(pid=pid)
    return pid


def _user(config: cri.PodSandboxConfig, image: ImageRecord, rootfs: Sequence[Mount]) -> users.User:
    """Who the pause process is. Raises NotReady for an image that the OCI runtime could not read. Blocks."""
    try:
        runtime_reads.check(rootfs, {})
    except InvalidRequest as exc:
        raise NotReady(f"the pause image {image.name}: {exc}; runtime.pause_image names it") from exc
    passwd, group = (image_files.read(rootfs, path) for path in ("etc/passwd", "etc/group"))
    wanted = users.for_sandbox(config.linux.security_context, image.config.get("User", ""))
    return users.resolve(wanted, passwd, group)

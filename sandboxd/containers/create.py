"""CreateContainer: write the record, prepare the root file system, store the spec."""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from sandboxd import places, record_format, steps
from sandboxd.containerd import rootfs as image_files
from sandboxd.containerd.snapshots import Mount
from sandboxd.containers import declared_volumes, image_mounts, runtime_reads
from sandboxd.containers.remove import remove_remains
from sandboxd.errors import AlreadyExists, InvalidRequest, NotFound, NotReady
from sandboxd.jobs import in_pieces
from sandboxd.machine import facts as machine
from sandboxd.machine import handlers, room, userns
from sandboxd.model import ContainerRecord, ContainerState, ImageRecord, SandboxRecord, subject_of
from sandboxd.node import Node
from sandboxd.oci import cdi, dubious, linux, stop_signal, users, validate
from sandboxd.oci import container as oci_container
from sandboxd.oci import userns as oci_userns
from sandboxd.oci.linux import DeviceNode, HostFacts
from sandboxd.operations import Held, known_sandbox, perform
from sandboxd.pb.cri.v1 import api_pb2 as cri

log = structlog.get_logger(__name__)


async def create_container(node: Node, sandbox_id: str, config: cri.ContainerConfig) -> str:
    """Create a container in a pod and return its id; the same request again returns the same id.

    Raises NotFound for an unknown pod or image, NotReady for a pod that does not run, AlreadyExists when another
    container has the name, InvalidRequest otherwise; nothing is left behind then.
    """
    sandbox = known_sandbox(node, sandbox_id).config
    validate.container_config(config, sandbox)
    container_id = secrets.token_hex(32)
    fingerprint = hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest()
    return await perform(
        node,
        "CreateContainer",
        sandbox_id,
        lambda held: _create(held, container_id, config),
        container_id=container_id,
        key=(sandbox_id, fingerprint),
        subject=subject_of(sandbox.metadata, config.metadata.name),
        turns=node.machine.load.containers,
    )


async def _create(held: Held, container_id: str, config: cri.ContainerConfig) -> str:
    node = held.node
    sandbox = await held.ready_sandbox()
    image = node.images.resolve(config.image.image)
    config = image_mounts.resolved(node, config)
    record = ContainerRecord(
        id=container_id,
        sandbox_id=sandbox.id,
        config=config,
        sandbox_name=sandbox.name,
        image_ref=image.repo_digests[0] if image.repo_digests else image.id,
        image_id=image.id,
        log_path=_log_path(sandbox.config, config),
        stop_signal=_stop_signal(config, image),
    )
    existing = node.ledger.container_named(record.name)
    if existing is not None and existing.state is ContainerState.CREATING:
        # We hold the pod's lock, so it is not being created: an earlier attempt could not be undone then.
        await remove_remains(held, existing.id)
    elif existing is not None:
        if existing.config == config and existing.state is not ContainerState.EXITED:
            return existing.id
        raise AlreadyExists(f"container {existing.name} exists as {existing.id}; remove it first")
    room.demand(node)
    node.ledger.add_container(record)

    async def undo(_: BaseException) -> None:
        await remove_remains(held, record.id)

    name, asked = config.metadata.name, config.image.image
    async with held.effect("container.create", undo=undo, container=name, image=asked):
        user = await _build(held, sandbox, record, image)
    node.ledger.update_container(record.id, user=user, created_at=time.time_ns())
    return record.id


async def _build(held: Held, sandbox: SandboxRecord, record: ContainerRecord, image: ImageRecord) -> tuple[int, ...]:
    """Make what the container is started from; the user that it runs as, and its groups."""
    node, config = held.node, record.config
    with steps.step("container.mounts", mounts=len(config.mounts), devices=len(config.devices)):
        facts, edits, nodes = await _facts(held, sandbox, record)
        for words in dubious.container(config, sandbox.config, facts):
            log.warning("accepted, though perhaps not meant", container=record.id, what=words)
    with steps.step("container.rootfs", image=image.id):
        rootfs = await node.images.prepare_rootfs(record.id, image)
        user = await asyncio.to_thread(_user, config, image, rootfs)
        record = replace(record, user=(user.uid, user.gid, *user.additional_gids))
        declared = oci_container.image_volumes(config, image.config)
        directory = node.places.volumes(record.id)
        own = await in_pieces(declared_volumes.create(directory, declared, rootfs, oci_userns.of(sandbox.config)))
        for path in own.values():
            steps.act("directory", path)
    await asyncio.to_thread(runtime_reads.check, rootfs, runtime_reads.sources(config, facts, own))
    spec = oci_container.container_spec(
        record.id,
        config,
        sandbox=sandbox,
        places=node.places,
        image=image.config,
        image_name=config.image.user_specified_image or config.image.image,
        user=user,
        host=facts,
        target_pid=_target_pid(node, sandbox, config),
        volumes=own,
    )
    cdi.inject(spec, edits, nodes)
    await _relabel(config, own.values(), oci_container.labels(config, sandbox, facts).mount)
    if facts.mapped_mounts:
        # A dry run: a file system that cannot map ids fails the creation, not the start.
        async with userns.staged(node, sandbox, record.id, rootfs, config):
            pass
    await _store(node, sandbox, record, image, spec)
    return record.user


async def _store(
    node: Node, sandbox: SandboxRecord, record: ContainerRecord, image: ImageRecord, spec: Mapping[str, Any]
) -> None:
    """Have containerd store the spec, and keep what it takes to rebuild our record (`pods.adopt`)."""
    with steps.step("container.record"):
        await node.runtime.create_container(
            record.id,
            spec=spec,
            image=image.name,
            snapshotter=node.config.containerd.snapshotter,
            snapshot_key=record.id,
            labels=places.labels(sandbox.config, sandbox.id, kind="container", container=record.config.metadata.name),
            runtime=handlers.runtime_options(node, sandbox),
            keep=record_format.keep_container(record),
        )


async def _facts(
    held: Held, sandbox: SandboxRecord, record: ContainerRecord
) -> tuple[HostFacts, cdi.Edits, dict[str, DeviceNode]]:
    """What the container's spec depends on; its CDI edits, and the device nodes that these need."""
    node, config = held.node, record.config
    facts = await handlers.pod_facts(node, sandbox)
    facts = await asyncio.to_thread(machine.for_container, facts, config, node.config.runtime)
    edits, nodes = await asyncio.to_thread(machine.cdi_edits, config, node.config.runtime.cdi_dirs)
    facts = replace(
        facts,
        image_volumes=await image_mounts.mount(held, sandbox, record.id, config),
        mapped_mounts=userns.mapped_mounts(node, record.id, config),
    )
    return facts, edits, nodes


async def _relabel(config: cri.ContainerConfig, own: Iterable[str], label: str) -> None:
    """Set the container's SELinux label on its own directories and on the mounts that request it."""
    asked = [mount.host_path for mount in config.mounts if mount.selinux_relabel and mount.host_path]
    for path in (*asked, *own) if label else ():
        await in_pieces(machine.relabel(path, label))


def _user(config: cri.ContainerConfig, image: ImageRecord, rootfs: Sequence[Mount]) -> users.User:
    """The user that the container runs as, looked up in the image's own files."""
    passwd = image_files.read(rootfs, "etc/passwd")
    group = image_files.read(rootfs, "etc/group")
    return users.resolve(
        users.for_container(config.linux.security_context, image.config.get("User", "")), passwd, group
    )


def _target_pid(node: Node, sandbox: SandboxRecord, config: cri.ContainerConfig) -> int:
    """The init pid of the container whose pid namespace is to be joined, 0 when none is."""
    options = config.linux.security_context.namespace_options
    if options.pid != cri.TARGET:
        return 0
    target = node.ledger.containers.get(options.target_id)
    if target is None or target.sandbox_id != sandbox.id:
        raise NotFound(f"target container {options.target_id} does not exist in this pod")
    if target.state is not ContainerState.RUNNING:
        raise NotReady(f"target container {options.target_id} is {target.state.value}, not running")
    return target.pid


def _log_path(sandbox: cri.PodSandboxConfig, config: cri.ContainerConfig) -> str:
    """Where the log goes; validated, so it stays below the log directory."""
    if not sandbox.log_directory or not config.log_path:
        return ""
    return posixpath.join(sandbox.log_directory, posixpath.normpath(linux.relative(config.log_path)))


def _stop_signal(config: cri.ContainerConfig, image: ImageRecord) -> str:
    """The stop signal: the request's, or the image's, or "" for SIGTERM.

    An image may name any; an unknown one must not keep the container from running or from being stopped.
    """
    if config.stop_signal:
        if config.stop_signal not in cri.Signal.values():
            raise InvalidRequest(f"config.stop_signal: {config.stop_signal} is not one of CRI's signals")
        return cri.Signal.Name(config.stop_signal).replace("PLUS", "+").replace("MINUS", "-")
    named = str(image.config.get("StopSignal", ""))
    if named and stop_signal.number(named) is None:
        log.warning("unknown stop signal, using SIGTERM", image=image.id, signal=ascii(named[:40]))
        return stop_signal.DEFAULT
    return named

"""CreateContainer, StartContainer, RemoveContainer: a pod's workload.

Creating writes the record, prepares the root file system and stores the spec; starting opens the log, creates
the task and lets it run. Both hold the sandbox's lock, so neither can meet a teardown.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import structlog

from sandboxd import disclosure, places, steps
from sandboxd.containerd import rootfs as image_files
from sandboxd.containerd.snapshots import Mount
from sandboxd.containers import declared_volumes, image_mounts
from sandboxd.containers.ending import remove_container_remains, settle_container
from sandboxd.errors import AlreadyExists, InvalidRequest, NotFound, NotReady, SandboxdError
from sandboxd.images.store import ImageRecord
from sandboxd.jobs import in_pieces
from sandboxd.logs.client import make_fifos
from sandboxd.machine import facts as machine
from sandboxd.machine import handlers, userns
from sandboxd.model import ContainerRecord, ContainerState, SandboxRecord, SandboxState
from sandboxd.node import Node
from sandboxd.oci import cdi, stop_signal, users, validate
from sandboxd.oci import container as oci_container
from sandboxd.oci import userns as oci_userns
from sandboxd.pb.cri.v1 import api_pb2 as cri

log = structlog.get_logger(__name__)

START_ERROR = 128  # exit code of a container that could not be started, as other runtimes report it


async def create_container(node: Node, sandbox_id: str, config: cri.ContainerConfig) -> str:
    """Create a container in a pod and return its id; the same request again returns the same id.

    Raises NotFound for an unknown pod or image, NotReady for a pod that does not run, AlreadyExists when another
    container has the name, InvalidRequest otherwise; nothing is left behind then.
    """
    sandbox = node.ledger.sandboxes[sandbox_id]
    validate.container_config(config, sandbox.config)
    fingerprint = hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest()
    key = ("CreateContainer", sandbox_id, fingerprint)  # not the config itself: keys are named in the log
    return await node.jobs.run_to_end(key, lambda: _create(node, sandbox_id, config))


async def start_container(node: Node, container_id: str) -> None:
    """Start a created container; a running one is done. Raises NotReady with the runtime's words."""
    await node.jobs.run_to_end(("StartContainer", container_id), lambda: _start(node, container_id))


async def remove_container(node: Node, container_id: str) -> None:
    """Remove a container, running or not. Unknown is done."""
    await node.jobs.run_to_end(("RemoveContainer", container_id), lambda: _remove(node, container_id))


def ready_sandbox(node: Node, sandbox_id: str) -> SandboxRecord:
    """The pod, able to take containers; raises NotFound or NotReady saying what it lacks."""
    sandbox = node.ledger.sandboxes.get(sandbox_id)
    if sandbox is None:
        raise NotFound(f"pod {sandbox_id} does not exist")
    if sandbox.state is not SandboxState.READY:
        why = f" ({sandbox.failure})" if sandbox.failure else ""
        raise NotReady(f"pod {sandbox.name} ({sandbox.id}) is {sandbox.state.value}{why}")
    if sandbox.netns_path and not node.netns.exists(sandbox.netns_path):
        raise NotReady(
            f"pod {sandbox.name} ({sandbox.id}) has no network namespace to join: {sandbox.netns_path} is gone;"
            " remove the pod and run it again"
        )
    return sandbox


async def _create(node: Node, sandbox_id: str, config: cri.ContainerConfig) -> str:
    async with node.jobs.exclusive(sandbox_id):
        sandbox = ready_sandbox(node, sandbox_id)
        image = node.images.resolve(config.image.image)
        config = image_mounts.resolved(node, config)
        record = ContainerRecord(
            id=secrets.token_hex(32),
            sandbox_id=sandbox_id,
            config=config,
            sandbox_name=sandbox.name,
            image_ref=image.repo_digests[0] if image.repo_digests else image.id,
            image_id=image.id,
            log_path=_log_path(sandbox.config, config),
            stop_signal=_stop_signal(config, image),
        )
        existing = node.ledger.container_named(record.name)
        if existing is not None and existing.state is ContainerState.CREATING:
            # We hold the pod's lock, so nobody is creating it: an earlier attempt could not be undone then.
            await remove_container_remains(node, existing.id)
        elif existing is not None:
            if existing.config == config and existing.state is not ContainerState.EXITED:
                return existing.id
            raise AlreadyExists(f"container {existing.name} exists as {existing.id}; remove it first")
        node.ledger.add_container(record)
        with steps.operation("CreateContainer", sandbox_id=sandbox_id, container_id=record.id):
            try:
                with steps.step("container.create", container=config.metadata.name, image=config.image.image):
                    await _build(node, sandbox, record, image)
            except BaseException as exc:
                await _undo_create(node, record.id, exc)
                raise
        node.ledger.update_container(record.id, created_at=time.time_ns())
        return record.id


async def _undo_create(node: Node, container_id: str, cause: BaseException) -> None:
    """Undo a failed creation; what cannot be undone now keeps its record, and the next attempt or start tries."""
    try:
        await remove_container_remains(node, container_id)
    except Exception as left:
        cause.add_note(f"cleaning up: {disclosure.sentence(left)}")


async def _build(node: Node, sandbox: SandboxRecord, record: ContainerRecord, image: ImageRecord) -> None:
    config = record.config
    with steps.step("container.mounts", mounts=len(config.mounts), devices=len(config.devices)):
        facts = await handlers.pod_facts(node, sandbox)
        facts = await asyncio.to_thread(machine.for_container, facts, config, node.config.runtime)
        edits, nodes = await asyncio.to_thread(machine.cdi_edits, config, node.config.runtime.cdi_dirs)
        facts = replace(
            facts,
            image_volumes=await image_mounts.mount(node, sandbox, record.id, config),
            mapped_mounts=userns.mapped_mounts(node, record.id, config),
        )
    with steps.step("container.rootfs", image=image.id):
        rootfs = await node.images.prepare_rootfs(record.id, image)
        user = await asyncio.to_thread(_user, config, image, rootfs)
        node.ledger.update_container(record.id, user=(user.uid, user.gid, *user.additional_gids))
        declared = oci_container.image_volumes(config, image.config)
        directory = node.places.volumes(record.id)
        ids = oci_userns.of(sandbox.config)
        own_volumes = await in_pieces(declared_volumes.create(directory, declared, rootfs, ids))
    name = config.image.user_specified_image or config.image.image
    spec = oci_container.container_spec(
        record.id,
        config,
        sandbox=sandbox,
        places=node.places,
        image=image.config,
        image_name=name,
        user=user,
        host=facts,
        target_pid=_target_pid(node, sandbox, config),
        volumes=own_volumes,
    )
    cdi.inject(spec, edits, nodes)
    await _relabel(config, own_volumes.values(), oci_container.labels(config, sandbox, facts).mount)
    if facts.mapped_mounts:
        # Once on trial: a file system that cannot do it is to be known now, and not when the container is started.
        async with userns.staged(node, sandbox, record.id, rootfs, config):
            pass
    with steps.step("container.record"):
        await node.runtime.create_container(
            record.id,
            spec=spec,
            image=image.name,
            snapshotter=node.config.containerd.snapshotter,
            snapshot_key=record.id,
            labels=places.labels(sandbox.config, sandbox.id, kind="container", container=config.metadata.name),
            runtime=handlers.runtime_options(node, sandbox),
        )


async def _relabel(config: cri.ContainerConfig, own: Iterable[str], label: str) -> None:
    """Give the container's own directories, and the mounts that ask for it, its SELinux label."""
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
    return posixpath.join(sandbox.log_directory, config.log_path)


def _stop_signal(config: cri.ContainerConfig, image: ImageRecord) -> str:
    """The stop signal: the request's, else the image's, else "" for SIGTERM.

    An image may name any; one that nobody knows must not keep the container from being stopped, nor from running.
    """
    if config.stop_signal:
        if config.stop_signal not in cri.Signal.values():
            raise InvalidRequest(f"config.stop_signal: {config.stop_signal} is none of CRI's signals")
        return cri.Signal.Name(config.stop_signal).replace("PLUS", "+").replace("MINUS", "-")
    named = str(image.config.get("StopSignal", ""))
    if named and stop_signal.number(named) is None:
        log.warning("unknown stop signal, SIGTERM takes its place", image=image.id, signal=ascii(named[:40]))
        return stop_signal.DEFAULT
    return named


async def _start(node: Node, container_id: str) -> None:
    container = node.ledger.containers.get(container_id)
    if container is None:
        raise NotFound(f"container {container_id} does not exist")
    with steps.operation("StartContainer", sandbox_id=container.sandbox_id, container_id=container_id):
        async with node.jobs.exclusive(container.sandbox_id):
            container = node.ledger.containers.get(container_id)
            if container is None:
                raise NotFound(f"container {container_id} was removed meanwhile")
            if container.state is ContainerState.RUNNING:
                return
            if container.state is not ContainerState.CREATED:
                raise NotReady(f"container {container_id} is {container.state.value}, not created")
            ready_sandbox(node, container.sandbox_id)
            try:
                with steps.step("container.start", container=container.config.metadata.name) as step:
                    pid = await _run(node, container)
                    step.note(pid=pid)
            except SandboxdError as exc:
                await _start_failed(node, container_id, exc)
                raise
            node.ledger.update_container(container_id, pid=pid, started_at=time.time_ns())
    # A process that ended at once did so before it was known to run; its exit event found nothing to record.
    node.jobs.start(("started", container_id), lambda: settle_container(node, container_id))


async def _run(node: Node, container: ContainerRecord) -> int:
    config = container.config
    streams = ("stdout",) if config.tty else ("stdout", "stderr")
    with steps.step("container.log", path=container.log_path):
        directory = node.places.streams(container.id)
        fifos = make_fifos(directory, streams)
        stdin = make_fifos(directory, ("stdin",))["stdin"] if config.stdin else ""
        await node.logs.open(container.id, fifos, container.log_path)
    sandbox = node.ledger.sandboxes[container.sandbox_id]
    rootfs = await node.images.rootfs(container.id)
    command = config.command or config.args
    with steps.step("task.create"), disclosure.program_only(command):
        async with userns.staged(node, sandbox, container.id, rootfs, config) as mapped:
            await node.runtime.create(
                container.id,
                mapped,
                stdout=fifos["stdout"],
                stderr=fifos.get("stderr", ""),
                stdin=stdin,
                terminal=config.tty,
            )
    with steps.step("task.start"), disclosure.program_only(command):
        return await node.runtime.start(container.id)


async def _start_failed(node: Node, container_id: str, cause: SandboxdError) -> None:
    """A container that could not be started has ended, and says why."""
    node.ledger.update_container(
        container_id, finished_at=time.time_ns(), exit_code=START_ERROR, reason="StartError", message=str(cause)
    )
    await node.logs.close(container_id)
    try:
        await node.runtime.kill(container_id, 9)
        await node.runtime.delete(container_id)
    except SandboxdError as exc:
        cause.add_note(f"cleaning up: {exc}")  # RemoveContainer tries again


async def _remove(node: Node, container_id: str) -> None:
    container = node.ledger.containers.get(container_id)
    if container is None:
        return
    with steps.operation("RemoveContainer", sandbox_id=container.sandbox_id, container_id=container_id):
        async with node.jobs.exclusive(container.sandbox_id):
            if container_id in node.ledger.containers:
                with steps.step("container.remove", container=container.config.metadata.name):
                    await remove_container_remains(node, container_id)

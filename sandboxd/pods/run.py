"""RunPodSandbox: from a pod's configuration to a running pause container with its network.

    1 ledger      record CREATING, the name reserved                     (intent)
    2 netns       created at the path that the id gives, inside the pod's user namespace if it has one
    3 together    network attached | pause rootfs, record, task created
    4 runtime     pause started, only after both
    5 ledger      READY
    any failure   teardown(remove=True)

Step 3 is serial when a sysctl names an interface: the runtime sets it when it creates the pause container, and
by then the interface must be there.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time

import structlog

from sandboxd import disclosure, places, steps
from sandboxd.cni.conf import NetworkConfig
from sandboxd.containers.ending import settle_sandbox
from sandboxd.errors import AlreadyExists, NotFound, SandboxdError, Unavailable, Unsupported
from sandboxd.images.store import ImageRecord
from sandboxd.jobs import in_pieces
from sandboxd.machine import facts as machine
from sandboxd.machine import handlers, userns
from sandboxd.model import SandboxRecord, SandboxState, sandbox_name
from sandboxd.node import Node
from sandboxd.oci import sandbox, users, validate
from sandboxd.oci import userns as oci_userns
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import files, network
from sandboxd.pods.teardown import teardown

log = structlog.get_logger(__name__)


async def run_sandbox(node: Node, config: cri.PodSandboxConfig, handler: str) -> str:
    """Make a pod and return its id.

    The same request again joins the one in flight, or returns the pod that it made. Raises InvalidRequest,
    AlreadyExists when another pod has the name, NotReady when the machine cannot (no network, a plugin missing),
    PluginFailed and its relatives; nothing is left behind then.
    """
    validate.sandbox_config(config)
    handlers.resolve(node, handler)
    fingerprint = hashlib.sha256(config.SerializeToString(deterministic=True) + handler.encode()).hexdigest()
    return await node.jobs.run_to_end(("RunPodSandbox", fingerprint), lambda: _run(node, config, handler))


async def _run(node: Node, config: cri.PodSandboxConfig, handler: str) -> str:
    existing = node.ledger.sandbox_named(sandbox_name(config.metadata))
    if existing is not None:
        return _again(existing, config, handler)
    pause = await _pause_image(node)
    await _check_user_namespace(node, config, handler)
    on_host = config.linux.security_context.namespace_options.network == cri.NODE
    chosen = None if on_host else await network.choose(node)
    sandbox_id = secrets.token_hex(32)
    record = SandboxRecord(
        id=sandbox_id,
        config=config,
        runtime_handler=handler,
        netns_path="" if on_host else node.places.network_namespace(sandbox_id),
        created_at=time.time_ns(),
    )
    node.ledger.add_sandbox(record)
    with steps.operation("RunPodSandbox", sandbox_id=sandbox_id):
        async with node.jobs.exclusive(sandbox_id):
            try:
                with steps.step("sandbox.run", pod=record.name):
                    await _build(node, record, chosen, pause)
            except BaseException as exc:
                await _roll_back(node, record, exc)
                raise
    # A pause that ended at once did so before it was known to run; its exit event found nothing to record.
    node.jobs.start(("started", sandbox_id), lambda: settle_sandbox(node, sandbox_id))
    return sandbox_id


async def _pause_image(node: Node) -> ImageRecord:
    """The image of every pod's first container; where somebody removed it, it is brought again.

    Raises Unavailable while it is not here yet, and what bringing it raises.
    """
    if node.pause is not None and node.renew_pause is not None:
        try:
            node.images.resolve(node.pause.id)
        except NotFound:
            await node.jobs.run_to_end(("pause image",), node.renew_pause)
    if node.pause is None:
        raise Unavailable(f"the pause image {node.config.runtime.pause_image} is not here yet; it is being fetched")
    return node.pause


async def _check_user_namespace(node: Node, config: cri.PodSandboxConfig, handler: str) -> None:
    """Raise Unsupported when the pod asks for a user namespace and cannot have one."""
    if oci_userns.of(config) is None:
        return
    offered = await handlers.features(node, handlers.resolve(node, handler))
    if not offered.user_namespaces:
        raise Unsupported(
            "config.linux.security_context.namespace_options.userns_options: user namespaces do not work here:"
            f" {offered.no_user_namespaces}"
        )


def _again(existing: SandboxRecord, config: cri.PodSandboxConfig, handler: str) -> str:
    """The answer to a request for a name that is taken."""
    if existing.state is SandboxState.READY:
        if existing.config == config and existing.runtime_handler == handler:
            return existing.id
        raise AlreadyExists(f"pod {existing.name} exists with another configuration, as {existing.id}")
    why = f" ({existing.failure})" if existing.failure else ""
    raise AlreadyExists(
        f"pod {existing.name} exists as {existing.id} and is {existing.state.value}{why}; remove it first"
    )


async def _build(node: Node, record: SandboxRecord, chosen: NetworkConfig | None, pause: ImageRecord) -> None:
    ips: tuple[str, ...] = ()
    ids = oci_userns.of(record.config)
    if ids is not None:
        with steps.step("userns.create", host_uid=ids.uids.host, length=ids.uids.length):
            await userns.create(node, record, ids)
    elif record.netns_path:
        with steps.step("netns.create", path=record.netns_path) as step:
            step.note(inode=await node.netns.create(record.netns_path))
    if chosen is None:
        await _create_pause(node, record, pause)
    elif _sysctl_names_interface(record.config):
        ips = await network.attach(node, record, chosen, node.places.requested_parent(record))
        await _create_pause(node, record, pause)
    else:
        # Neither is cancelled when the other fails: containerd would go on creating the task after we had
        # looked for it, and a plugin cut off half way leaves more behind than one that ends.
        attached, created = await asyncio.gather(
            network.attach(node, record, chosen, node.places.requested_parent(record)),
            _create_pause(node, record, pause),
            return_exceptions=True,
        )
        for outcome in (attached, created):
            if isinstance(outcome, BaseException):
                raise outcome
        assert isinstance(attached, tuple)
        ips = attached
    with steps.step("pod.files"):
        files.write(node, record, ips)
    with steps.step("pause.start") as step:
        pid = await node.runtime.start(record.id)
        step.note(pid=pid)
    node.ledger.update_sandbox(record.id, pid=pid, ips=ips, started_at=time.time_ns())


async def _create_pause(node: Node, record: SandboxRecord, pause: ImageRecord) -> None:
    """Everything of the pause container but its start."""
    with steps.step("pod.shm"):
        # The runtime binds these when it creates the container; the pod's address follows before the start.
        files.prepare(node, record)
    with steps.step("pause.rootfs", image=pause.id):
        rootfs = await node.images.prepare_rootfs(record.id, pause)
    name = pause.name
    # Run as the image says; a name would have to be looked up in the image's files, which pause images lack.
    user = users.resolve(
        users.for_sandbox(record.config.linux.security_context, pause.config.get("User", "")), None, None
    )
    found = await asyncio.to_thread(
        machine.for_pod, await handlers.pod_facts(node, record), record.config, node.config.runtime
    )
    if label := sandbox.pod_labels(record, found).mount:
        for path in files.paths(node, record.id):
            await in_pieces(machine.relabel(path, label))
    spec = sandbox.sandbox_spec(
        record,
        places=node.places,
        image=pause.config,
        image_name=name,
        user=user,
        host=found,
    )
    with steps.step("pause.record"):
        await node.runtime.create_container(
            record.id,
            spec=spec,
            image=name,
            snapshotter=node.config.containerd.snapshotter,
            snapshot_key=record.id,
            labels=places.labels(record.config, record.id, kind="sandbox"),
            runtime=handlers.runtime_options(node, record),
        )
    with steps.step("pause.create") as step:
        async with userns.staged(node, record, record.id, rootfs) as mapped:
            step.note(pid=await node.runtime.create(record.id, mapped))


def _sysctl_names_interface(config: cri.PodSandboxConfig) -> bool:
    return any(f".{network.IFNAME}." in f"{name}." for name in config.linux.sysctls)


async def _roll_back(node: Node, record: SandboxRecord, cause: BaseException) -> None:
    """Undo a failed run; what cannot be undone keeps the record, NOTREADY, with the reason."""
    try:
        await teardown(node, record.id, remove=True)
    except SandboxdError as left:
        node.ledger.update_sandbox(record.id, failure=f"{disclosure.words(cause)}; cleaning up: {left}")
        cause.add_note(f"cleaning up: {left}")

"""RunPodSandbox: from a pod's configuration to a running pause container, or pinned namespaces, with its network.

    1 ledger      record CREATING, the name reserved                     (intent)
    2 netns       created at the path that the id gives, inside the pod's user namespace if it has one
    3 together    network attached | pause rootfs, record, task created
    4 runtime     pause started, only after both
    5 ledger      READY
    any failure   teardown(remove=True)

A pod that was prepared ahead (`pool`) has all of this behind it but the last step.

Step 3 is serial, network first, when a sysctl of the network is asked for or a plugin sets some: the runtime sets the
pod's when it creates the pause container. Other runtimes do that after ADD, so what a plugin has set or made (an
address, an interface) is there before. A pod without a pause container (`pinned`) has them set after step 3.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from sandboxd import steps
from sandboxd.cni.conf import NetworkConfig
from sandboxd.errors import AlreadyExists, Exhausted, SandboxdError, Unavailable, Unsupported
from sandboxd.machine import handlers, pod_files, room, userns
from sandboxd.model import ImageRecord, SandboxRecord, SandboxState, of_earlier_boot, sandbox_name, subject_of
from sandboxd.node import Node
from sandboxd.oci import userns as oci_userns
from sandboxd.oci import validate
from sandboxd.operations import Held, demand_containerd, perform
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import network, pause, pinned, pool, publish
from sandboxd.pods.teardown import being_abandoned, remove_abandoned, remove_sandbox, roll_back

log = structlog.get_logger(__name__)


async def run_sandbox(
    node: Node, pause_image: Callable[[], Awaitable[ImageRecord]], config: cri.PodSandboxConfig, handler: str
) -> str:
    """Make a pod and return its id.

    The same request again joins the one in flight, or returns the pod that it made. A pod that ended because the
    machine was restarted is removed, and made anew. Raises InvalidRequest,
    AlreadyExists when another pod has the name, NotReady when the machine cannot (no network, a plugin missing),
    PluginFailed and its relatives; nothing is left behind then.
    """
    validate.sandbox_config(config)
    handlers.resolve(node, handler)
    fingerprint = hashlib.sha256(config.SerializeToString(deterministic=True) + handler.encode()).hexdigest()
    return await perform(
        node,
        "RunPodSandbox",
        secrets.token_hex(32),
        lambda held: _run(held, pause_image, config, handler),
        key=(fingerprint,),
        subject=subject_of(config.metadata),
        turns=node.machine.load.pods,
    )


async def _run(
    held: Held, pause_image: Callable[[], Awaitable[ImageRecord]], config: cri.PodSandboxConfig, handler: str
) -> str:
    node = held.node
    name = sandbox_name(config.metadata)
    existing = node.ledger.sandbox_named(name)
    if existing is None or existing.state is not SandboxState.READY:
        demand_containerd(node)
        await _free_name(node, name, config, handler)
        existing = node.ledger.sandbox_named(name)
    if existing is not None:
        return _again(existing, config, handler)
    room.demand(node)
    image = None if pinned.is_for(node, config, handler) else await pause_image()
    await _check_user_namespace(node, config, handler)
    on_host = config.linux.security_context.namespace_options.network == cri.NODE
    chosen = None if on_host else await network.choose(node)
    taken = await pool.take(held, config, handler, chosen, image)
    while not taken:
        try:
            return await _make(held, config, handler, chosen, image)
        except Exhausted:
            # What was undone is gone; what a prepared pod has is given up for this one.
            if held.sandbox_id in node.ledger.sandboxes or not await pool.give_way(node):
                raise
        taken = await pool.take(held, config, handler, chosen, image, again=True)
    return taken


async def _make(
    held: Held, config: cri.PodSandboxConfig, handler: str, chosen: NetworkConfig | None, image: ImageRecord | None
) -> str:
    """Make the pod from the start; without an image it has no pause container."""
    node = held.node
    record = SandboxRecord(
        id=held.sandbox_id,
        config=config,
        runtime_handler=handler,
        pinned=image is None,
        netns_path=node.places.network_namespace(held.sandbox_id) if chosen else "",
        created_at=time.time_ns(),
        boot=node.machine.boot,
        warnings=publish.check(node, config, chosen) if chosen else publish.on_host(config),
    )
    # Nothing is waited for between the check and this, so two pods cannot both find a host port free.
    node.ledger.add_sandbox(record)
    detail = {"pod": record.name, "pinned": record.pinned or None, "waited": held.waited or None}
    async with held.effect("pod.run", undo=partial(roll_back, held), **detail):
        await build(held, record, chosen, image)
    return record.id


async def _free_name(node: Node, name: str, config: cri.PodSandboxConfig, handler: str) -> None:
    """Free the name of a pod whose creation was cut off, or that is the one asked for and ended with another boot."""
    left = node.ledger.sandbox_named(name)
    if left is None:
        return
    remove: Callable[[Node, str], Awaitable[None]] | None = None
    if not left.started_at:
        if left.id not in node.jobs.held() or being_abandoned(node, left.id):
            remove = remove_abandoned
    elif of_earlier_boot(left, node.machine.boot) and _is_same(left, config, handler):
        remove = remove_sandbox
    if remove is not None:
        try:
            await remove(node, left.id)
        except Unavailable:
            raise  # nothing is wrong with the name: the same request succeeds once containerd is back
        except SandboxdError as exc:
            log.warning("the name of a new pod is still taken", pod=name, sandbox=left.id, error=str(exc))


def _is_same(existing: SandboxRecord, config: cri.PodSandboxConfig, handler: str) -> bool:
    return existing.config == config and existing.runtime_handler == handler


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
    """The answer to a request whose name is already in use."""
    if existing.state is SandboxState.READY:
        if _is_same(existing, config, handler):
            return existing.id
        raise AlreadyExists(f"pod {existing.name} exists with another configuration, as {existing.id}")
    why = f" ({existing.failure})" if existing.failure else ""
    raise AlreadyExists(
        f"pod {existing.name} exists as {existing.id} and is {existing.state.value}{why}; remove it first"
    )


async def build(held: Held, record: SandboxRecord, chosen: NetworkConfig | None, image: ImageRecord | None) -> None:
    """Make all that a pod consists of, from its record to the running pause container, if there is an image for one.

    Undoes nothing.
    """
    node = held.node
    ips: tuple[str, ...] = ()
    await _create_namespaces(node, record)
    if chosen is None:
        await _create(node, record, chosen, image)
    elif image is not None and network_comes_first(record.config, chosen):
        ips = await network.attach(held, record, chosen)
        await _create(node, record, chosen, image)
    else:
        # Neither is cancelled when the other fails: containerd would go on creating the task after teardown had
        # looked for it, and a plugin that is killed leaves more behind than one that finishes.
        attached, created = await asyncio.gather(
            network.attach(held, record, chosen),
            _create(node, record, chosen, image),
            return_exceptions=True,
        )
        for outcome in (attached, created):
            if isinstance(outcome, BaseException):
                raise outcome
        assert isinstance(attached, tuple)
        ips = attached
    _warn(node, record, ips)
    with steps.step("pod.files.write") as step:
        if warning := pod_files.write(node, record, ips):
            step.note(warning=warning)
            log.warning("a pod has no name server", sandbox=record.id, reason=warning)
    if image is None:
        await pinned.set_sysctls(node, record)
    pid = await pause.start(node, record) if image else 0
    ready = "prepared_at" if record.prepared_of else "started_at"
    node.ledger.update_sandbox(record.id, pid=pid, ips=ips, **{ready: time.time_ns()})


async def _create(node: Node, record: SandboxRecord, chosen: NetworkConfig | None, image: ImageRecord | None) -> None:
    """Make what the pod has besides its network, up to the start of its pause container if it has one."""
    if image is None:
        await pinned.create(node, record, chosen)
    else:
        await pause.create(node, record, image, chosen)


def _warn(node: Node, record: SandboxRecord, ips: tuple[str, ...]) -> None:
    """Say wherever people look what the pod asked of its network and may not get."""
    warnings = record.warnings + (publish.of_no_family(record.config, ips) if ips else ())
    if not warnings:
        return
    with steps.step("pod.network.check") as step:
        step.note(warning="; ".join(warnings))
    for warning in warnings:
        log.warning("a pod may not get what it asks of its network", sandbox=record.id, reason=warning)
    node.ledger.update_sandbox(record.id, warnings=warnings)


async def _create_namespaces(node: Node, record: SandboxRecord) -> None:
    """Pin the namespaces that the pod has of its own, and record which they are."""
    ids = oci_userns.of(record.config)
    if ids is not None:
        with steps.step("pod.userns.create", host_uid=ids.uids.host, length=ids.uids.length):
            await userns.create(node, record, ids)
    elif record.netns_path:
        with steps.step("pod.netns.create", path=record.netns_path) as step:
            step.note(inode=await node.netns.create(record.netns_path))
    others = await pinned.create_namespaces(node, record) if record.pinned else {}
    if ids is None and not record.netns_path and not others:
        return
    node.ledger.update_sandbox(
        record.id,
        netns_inode=node.netns.inode(record.netns_path) if record.netns_path else 0,
        userns_inode=node.netns.inode(node.places.user_namespace(record.id)) if ids else 0,
        ipc_inode=others.get("ipc", 0),
        uts_inode=others.get("uts", 0),
    )


def network_comes_first(config: cri.PodSandboxConfig, chosen: NetworkConfig) -> bool:
    """Whether the outcome depends on whether plugins or the pod's sysctls come first.

    Sysctls of other namespaces are no business of plugins, and the two that every pod gets matter to none; but a
    plugin that sets sysctls may set just these.
    """
    asked = any(name.replace("/", ".").startswith("net.") for name in config.linux.sysctls)
    return asked or any("sysctl" in plugin for plugin in chosen.plugins)

"""Pods that are prepared ahead, and handed out in one short step.

    prepared     in the ledger from before anything of it exists, like any pod, but no client knows its id
    handed out   1 ledger      the client's name and configuration, CREATING                   (intent)
                 2 together    hostname and files | containerd's record: spec, labels, what is kept for `adopt`
                 3 ledger      READY
    any failure  teardown(remove=True), and the pod is made in the ordinary way

The id is the pod's from the beginning, so every name stays. So does what its ADD was given: a DEL must be given the
same, and the network's plugins are those that take nothing from it (`cni.identity`). Which requests can be served,
`eligible` says. `refill` keeps the pool.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import structlog

import sandboxd
from sandboxd import places, record_format, steps
from sandboxd.cni.conf import NetworkConfig, config_json
from sandboxd.errors import AlreadyExists, SandboxdError
from sandboxd.machine import handlers, pins, pod_files
from sandboxd.model import AttachmentState, ImageRecord, SandboxRecord, SandboxState, subject_of
from sandboxd.node import Node
from sandboxd.oci import sandbox as oci_sandbox
from sandboxd.operations import Held, hold
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import eligible, ending, placing, publish
from sandboxd.pods.teardown import remove_abandoned, roll_back

log = structlog.get_logger(__name__)

FILL = ("FILL_POOL", "")  # among the retries: filling the pool


def made_of(node: Node, network: NetworkConfig, image: ImageRecord) -> str:
    """A digest of everything that prepared pods are made of; one with another digest is not handed out."""
    runtime = node.config.runtime
    parts = (
        sandboxd.__version__,
        config_json(network),
        node.config.network.plugin_dirs,
        image.id,
        asdict(handlers.resolve(node, "")),
        runtime.cgroup_driver,
        runtime.cgroup_parent,
        runtime.apparmor_default,
        node.config.containerd.snapshotter,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def unfit(node: Node) -> str:
    """Why pods of the default handler cannot be prepared; "" when they can.

    What is handed out is a pause container that runs in namespaces of this kernel. A shim of virtual machines decides
    at its start what a pod is.
    """
    return "" if handlers.resolve(node, "").type == handlers.RUNC_SHIM else "the default handler's shim is not runc's"


def prepared(node: Node) -> list[SandboxRecord]:
    """Those that wait for a client, the oldest first; not those that an operation is at work on."""
    busy = node.jobs.held()
    return [
        record
        for record in node.ledger.sandboxes.values()
        if record.state is SandboxState.PREPARED and record.id not in busy
    ]


def told(node: Node) -> dict[str, Any]:
    """What there is to say of the pool, for people."""
    stock = node.machine.stock
    return {
        "size": node.config.pool.size,
        "ready": [record.id for record in node.ledger.sandboxes.values() if record.state is SandboxState.PREPARED],
        "hits": stock.hits,
        "misses": dict(stock.misses),
        "trouble": stock.trouble,
    }


def is_whole(node: Node, record: SandboxRecord) -> bool:
    """Whether nobody has taken anything from a prepared pod: its namespace, its files."""
    return pins.intact(node, record) and not pod_files.missing(node, record.id)


async def take(
    held: Held,
    config: cri.PodSandboxConfig,
    handler: str,
    network: NetworkConfig | None,
    image: ImageRecord | None,
    *,
    again: bool = False,
) -> str:
    """Hand out a prepared pod for this request; its id, "" when the pod is to be made.

    `held` is the request's own; `again` is that it is not counted. A pod without a pause container (`image` is None)
    is never one that was prepared. Raises AlreadyExists when the name has been taken meanwhile, and what a hand-out
    fails with that cannot be undone.
    """
    node, stock = held.node, held.node.machine.stock
    if not node.config.pool.size or image is None:
        return ""
    reason, taken = await _why_not(node, config, handler, network), ""
    found = _pick(node, made_of(node, network, image)) if network and not reason else None
    if found is not None and network is not None:
        # Nobody has its lock, and nothing was waited for since that was seen.
        async with hold(node, found.id, held.waited) as mine:
            with steps.operation("RunPodSandbox", sandbox_id=found.id):
                taken = await _attempted(mine, config, handler, publish.check(node, config, network))
    if found or not reason:
        stock.changed.set()
    if taken:
        stock.hits += 1
    elif not again:
        stock.misses[reason or (eligible.FAILED if found else eligible.EMPTY)] += 1
    return taken


async def give_way(node: Node) -> bool:
    """Tear down a prepared pod, so that another one gets what it holds; False when there is none.

    For some time no other is prepared.
    """
    if not node.config.pool.size:
        return False
    node.jobs.retries.failed(FILL, "pods need what prepared ones would hold")
    making = [each.id for each in node.ledger.sandboxes.values() if each.prepared_of and not each.prepared_at]
    if not prepared(node) and making:
        async with node.jobs.exclusive(making[0]):
            pass  # it may be the last one that holds something
    for record in prepared(node):
        try:
            await remove_abandoned(node, record.id)
        except SandboxdError as exc:
            log.warning("a prepared pod could not give way", sandbox=record.id, error=str(exc))
            continue
        log.info("a prepared pod gave way to one that is asked for", sandbox=record.id)
        return True
    return False


async def exited(node: Node, sandbox_id: str) -> None:
    """containerd reports that a pause container has exited: a prepared pod is removed, any other settled."""
    record = node.ledger.sandboxes.get(sandbox_id)
    if record is not None and record.prepared_of:
        async with node.jobs.exclusive(sandbox_id):
            record = node.ledger.sandboxes.get(sandbox_id)  # once it is made, or handed out
    if record is not None and record.prepared_of:
        log.warning("the pause container of a prepared pod ended", sandbox=sandbox_id)
        node.machine.stock.changed.set()
        try:
            await remove_abandoned(node, sandbox_id)
        except SandboxdError as exc:  # the comparison tries again
            log.warning("a prepared pod could not be removed", sandbox=sandbox_id, error=str(exc))
        return
    await ending.exited(node, sandbox_id)


async def _why_not(node: Node, config: cri.PodSandboxConfig, handler: str, network: NetworkConfig | None) -> str:
    """Why no prepared pod can serve the request: one of `eligible.REASONS`, or ""."""
    default = handlers.resolve(node, "")
    if handlers.resolve(node, handler) is not default or unfit(node):
        return eligible.HANDLER
    reason = eligible.why_not(
        config,
        network,
        annotations=default.annotations,
        systemd=node.config.runtime.cgroup_driver == "systemd",
        seccomp=node.machine.facts.seccomp,
    )
    if not reason and network is not None:
        needed = await node.network.cni.needs_identity(network, node.config.network.plugin_dirs)
        return eligible.IDENTITY if needed else ""
    return reason


def _pick(node: Node, digest: str) -> SandboxRecord | None:
    fit = (record for record in prepared(node) if record.prepared_of == digest and is_whole(node, record))
    return next(fit, None)


async def _attempted(held: Held, config: cri.PodSandboxConfig, handler: str, warnings: tuple[str, ...]) -> str:
    """Hand it out; "" when that failed and nothing of it is left."""
    try:
        return await _hand_out(held, config, handler, warnings)
    except AlreadyExists:
        raise
    except Exception as exc:
        if held.sandbox_id in held.node.ledger.sandboxes:
            raise
        log.warning(
            "a prepared pod could not be handed out, another is made", sandbox=held.sandbox_id, error=str(exc)
        )
        return ""


async def _hand_out(held: Held, config: cri.PodSandboxConfig, handler: str, warnings: tuple[str, ...]) -> str:
    node = held.node
    attachments = node.ledger.attachments_of(held.sandbox_id)
    record = node.ledger.hand_over(
        held.sandbox_id,
        # For people. What plugins are given stays as it was.
        [replace(each, pod=subject_of(config.metadata)) for each in attachments],
        config=config,
        runtime_handler=handler,
        prepared_of="",
        created_at=time.time_ns(),
        warnings=warnings,
    )
    waited = f"{(record.created_at - record.prepared_at) / 1e9:.1f} s"
    undo = partial(roll_back, held)
    async with held.effect("pod.run", undo=undo, pod=record.name, waited=held.waited or None):
        with steps.step("pod.pool.take", ready_for=waited):
            outcomes = await asyncio.gather(
                _name_inside(node, record),
                _name_in_containerd(node, record),
                placing.prepare(node, record),
                return_exceptions=True,
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
        node.ledger.update_sandbox(record.id, started_at=time.time_ns())
    if placing.is_due(node, record):
        node.jobs.start(("repair", *placing.key(record.id)), lambda: placing.move(node, record.id))
    return record.id


async def _name_inside(node: Node, record: SandboxRecord) -> None:
    """What the pod's processes see of its name: the hostname, and the files."""
    await node.netns.set_hostname(record.pid, pod_files.hostname(record.config), record.netns_inode)
    with steps.step("pod.files.write") as step:
        if warning := pod_files.write(node, record, record.ips):
            step.note(warning=warning)
            log.warning("a pod has no name server", sandbox=record.id, reason=warning)


async def _name_in_containerd(node: Node, record: SandboxRecord) -> None:
    """What others see of it in containerd, and what a lost ledger is rebuilt from."""
    attached = node.ledger.attachments_of(record.id)
    planned = replace(attached[0], state=AttachmentState.PLANNED, result=b"") if attached else None
    where = node.places.cgroups_path(record, record.id) if placing.is_due(node, record) else ""
    with steps.step("pod.pause.record"):
        spec = await node.runtime.spec(record.id)
        await node.runtime.set_spec(
            record.id,
            oci_sandbox.handed_out(spec, record, where),
            keep=record_format.keep_sandbox(record, planned),
            labels=places.labels(record.config, record.id, kind="sandbox"),
        )

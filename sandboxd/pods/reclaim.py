"""What is left of a pod or a container that the ledger does not know: recorded again, and torn down.

The record is lost, with the ledger or with a row of it, and the things are there. No code of its own removes them: a
record is put back that says that the pod never came to be, and the one teardown does the rest. It survives a crash,
and what fails is tried again by the comparison, as for any pod whose creation was cut off.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator
from dataclasses import dataclass, replace

import structlog

from sandboxd import mounts
from sandboxd.cni import request
from sandboxd.cni.conf import NetworkConfig
from sandboxd.containers.remove import remove_remains
from sandboxd.errors import CleanupIncomplete
from sandboxd.jobs import in_pieces
from sandboxd.model import Attachment, AttachmentState, ContainerRecord, SandboxRecord
from sandboxd.node import Node
from sandboxd.operations import hold
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import network
from sandboxd.pods.teardown import remove_abandoned

log = structlog.get_logger(__name__)

_PROTOCOLS = {"tcp": cri.TCP, "udp": cri.UDP, "sctp": cri.SCTP}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A pod that the ledger does not know, and what is known of it nevertheless."""

    id: str
    pod: str = ""  # "namespace/name", "" when nothing says it
    uid: str = ""  # the same
    containers: Collection[str] = ()  # the ids of those that are known to be in it
    connected: bool = False  # something of a network is left: the plugins' DEL is due
    mounts: Collection[str] = ()  # mount points in its directories
    ports: Collection[tuple[str, int]] = ()  # the host's that are still forwarded to it: protocol and number


async def reclaim(node: Node, lost: Lost) -> None:
    """Remove what is left of a pod, running or not. Idempotent; nothing happens to a pod that the ledger knows.

    The network's DEL is that of the configuration in force now, since that of then is lost. One that fails is a debt.
    Raises NotReady when a DEL is due and there is no configuration, CleanupIncomplete naming what is left.
    """
    config = await network.choose(node) if lost.connected else None
    if lost.id in node.ledger.sandboxes or lost.id in node.ledger.containers:
        return
    await _unmount(lost.mounts)
    log.warning("what is left of a pod without a record is removed", sandbox=lost.id, pod=lost.pod)
    _record(node, lost, config)
    await remove_abandoned(node, lost.id)


async def reclaim_container(
    node: Node, container_id: str, points: Collection[str] = (), *, sandbox_id: str = ""
) -> None:
    """The same for a container whose pod is not known, or that is known, `sandbox_id`, while the container is not.

    `points` are mount points in its directories.
    """
    async with hold(node, sandbox_id or container_id) as held:
        if container_id in node.ledger.containers or container_id in node.ledger.sandboxes:
            return
        await _unmount(points)
        log.warning("what is left of a container without a record is removed", container=container_id)
        await remove_remains(held, container_id)
        node.ledger.strays.pop(container_id, None)


def _record(node: Node, lost: Lost, config: NetworkConfig | None) -> None:
    """Intent before effect, the DEL's first: without the pod's record it is a debt, which is paid as well."""
    sandbox = _sandbox(node, lost)
    if config is not None:
        node.ledger.put_attachment(_attachment(node, sandbox, config, lost))
    for container_id in lost.containers:
        if container_id not in node.ledger.containers:
            node.ledger.add_container(_container(sandbox, container_id))
    node.ledger.add_sandbox(sandbox)


def _sandbox(node: Node, lost: Lost) -> SandboxRecord:
    namespace, _, name = lost.pod.rpartition("/")
    # The id as the uid: the name is then nobody else's, whoever runs under the pod's own by now.
    metadata = cri.PodSandboxMetadata(name=name or lost.id[:12], namespace=namespace or "lost", uid=lost.id)
    return SandboxRecord(
        id=lost.id,
        config=cri.PodSandboxConfig(
            metadata=metadata,
            # For the DEL: portmap leaves the rules of a pod that is said to have no ports.
            port_mappings=[
                cri.PortMapping(protocol=_PROTOCOLS[protocol], host_port=port, container_port=port)
                for protocol, port in lost.ports
            ],
        ),
        runtime_handler="",
        netns_path=node.places.network_namespace(lost.id) if lost.connected else "",
        created_at=time.time_ns(),
        boot=node.machine.boot,
    )


def _attachment(node: Node, sandbox: SandboxRecord, config: NetworkConfig, lost: Lost) -> Attachment:
    as_it_was = cri.PodSandboxConfig()
    as_it_was.CopyFrom(sandbox.config)
    as_it_was.metadata.uid = lost.uid or lost.id
    planned = request.plan(
        config,
        as_it_was,
        sandbox.id,
        sandbox.netns_path,
        node.config.network.plugin_dirs,
        ifname=network.IFNAME,
        cgroup_path=node.places.requested_parent(sandbox),
    )
    return replace(planned, state=AttachmentState.ADDING, pod=lost.pod, boot=node.machine.boot)


def _container(sandbox: SandboxRecord, container_id: str) -> ContainerRecord:
    return ContainerRecord(
        id=container_id,
        sandbox_id=sandbox.id,
        config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name=container_id)),
        sandbox_name=sandbox.name,
        image_ref="",
        image_id="",
        log_path="",
    )


async def _unmount(points: Collection[str]) -> None:
    """What is mounted in the directories that are to go, the innermost first. Raises CleanupIncomplete."""

    def pieces() -> Generator[None, None, None]:
        for point in sorted(points, key=len, reverse=True):
            mounts.unmount(point)
            yield

    try:
        await in_pieces(pieces())
    except OSError as exc:
        raise CleanupIncomplete(f"mounts cannot be taken away: {exc}") from exc

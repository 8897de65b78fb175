"""Pods without a pause container: their namespaces are pinned by mounts, and nothing of them runs before a workload.

    run   network attached | files, record in containerd         then   sysctls, inside the namespaces

containerd keeps a record of such a pod as it does of a pause container, without a root file system and without a
task: a lost ledger is rebuilt from it, and people see the pod with `ctr`. Which pods are pinned is decided when they
are made and recorded: a change of the configuration changes none that exists.
"""

from __future__ import annotations

from sandboxd import config as settings
from sandboxd import places, steps
from sandboxd.cni.conf import NetworkConfig
from sandboxd.machine import handlers, pins, pod_files
from sandboxd.model import SandboxRecord
from sandboxd.node import Node
from sandboxd.oci import pinned, sandbox
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import network


def is_for(node: Node, config: cri.PodSandboxConfig, handler: str) -> bool:
    """Whether a new pod of this handler is pinned. Raises InvalidRequest for an unknown handler."""
    wanted = handlers.resolve(node, handler).sandbox_mode
    return wanted == settings.PINNED and not pinned.needs_pause(config)


async def create_namespaces(node: Node, record: SandboxRecord) -> dict[str, int]:
    """Make and pin what the pod has of its own besides its network; their inodes, by kind. Raises NotReady."""
    with steps.step("pod.namespaces.create") as step:
        inodes = await pins.create(node, record)
        step.note(**inodes)
    return inodes


async def create(node: Node, record: SandboxRecord, chosen: NetworkConfig | None) -> None:
    """Make the pod's files, and its record in containerd.

    Raises NotReady when the machine refuses, InvalidRequest or Unsupported for what the pod cannot have.
    """
    with steps.step("pod.files.mount"):
        pod_files.prepare(node, record)
    found = await handlers.sandbox_facts(node, record)
    await pod_files.label(node, record, found)
    spec = pinned.pinned_spec(record, places=node.places, host=found)
    with steps.step("pod.pinned.record"):
        await node.runtime.create_container(
            record.id,
            spec=spec,
            image="",
            snapshotter="",
            snapshot_key="",
            labels=places.labels(record.config, record.id, kind="sandbox"),
            runtime=handlers.runtime_options(node, record),
            keep=network.kept(node, record.id, chosen),
        )


async def set_sysctls(node: Node, record: SandboxRecord) -> None:
    """Set the pod's sysctls: after the plugins, what they have made is there and what they have set is overridden.

    Raises NotReady naming the one that the kernel refuses.
    """
    values = sandbox.sysctls(record.config)
    if not values:
        return
    inside = [*filter(None, [record.netns_path]), *pinned.pins(record, node.places).values()]
    with steps.step("pod.sysctls.set", sysctls=len(values)):
        await node.netns.set_sysctls(inside, values)

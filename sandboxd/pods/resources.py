"""UpdatePodSandboxResources: a pod's resources, as its client has set them."""

from __future__ import annotations

from sandboxd import steps
from sandboxd.node import Node
from sandboxd.oci import validate
from sandboxd.operations import Held, perform
from sandboxd.pb.cri.v1 import api_pb2 as cri


async def update_sandbox(node: Node, sandbox_id: str, request: cri.UpdatePodSandboxResourcesRequest) -> None:
    """Record the pod's new resources; absent fields stay as they are. The client has already changed the cgroup,
    which it owns.

    Raises NotFound, InvalidRequest.
    """
    await perform(
        node,
        "UpdatePodSandboxResources",
        sandbox_id,
        lambda held: _update_sandbox(held, request),
        key=(sandbox_id, request.SerializeToString(deterministic=True)),
    )


async def _update_sandbox(held: Held, request: cri.UpdatePodSandboxResourcesRequest) -> None:
    record = held.sandbox()
    config = cri.PodSandboxConfig()
    config.CopyFrom(record.config)
    if request.HasField("overhead"):
        config.linux.overhead.CopyFrom(request.overhead)
    if request.HasField("resources"):
        config.linux.resources.CopyFrom(request.resources)
    validate.sandbox_config(config)
    with steps.step("pod.update", pod=record.name):
        held.node.ledger.update_sandbox(held.sandbox_id, config=config)

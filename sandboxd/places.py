"""What an id gives: labels."""

from __future__ import annotations

from sandboxd.pb.cri.v1 import api_pb2 as cri


def labels(config: cri.PodSandboxConfig, sandbox_id: str, *, kind: str, container: str = "") -> dict[str, str]:
    """What makes pods legible to `ctr` and `nerdctl`."""
    found = {
        "io.kubernetes.pod.name": config.metadata.name,
        "io.kubernetes.pod.namespace": config.metadata.namespace,
        "io.kubernetes.pod.uid": config.metadata.uid,
        "sandboxd.io/kind": kind,
        "sandboxd.io/sandbox": sandbox_id,
    }
    if container:
        found["io.kubernetes.container.name"] = container
    # containerd refuses a label whose key and value exceed 4096 bytes together; names never come near.
    return found

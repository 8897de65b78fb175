"""Requests for pods: what they ask for, and how far they have come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from sandboxd.model import SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods.run import run_sandbox
from tests.fakes.bundle import Bundle, pod_config
from tests.fakes.points import Point


def asked(fakes: Bundle, config: cri.PodSandboxConfig | None = None, handler: str = "") -> Awaitable[str]:
    """The request, made and under way."""
    return asyncio.ensure_future(run_sandbox(fakes.node, fakes.pause_image, config or pod_config(), handler))


async def run(fakes: Bundle, config: cri.PodSandboxConfig | None = None, handler: str = "") -> SandboxRecord:
    """The pod that was asked for; nothing goes on in the background any more."""
    sandbox_id = await asked(fakes, config, handler)
    await fakes.settled()
    return fakes.node.ledger.sandboxes[sandbox_id]


async def until(fakes: Bundle, point: Point, *, after: bool = False) -> tuple[Awaitable[str], SandboxRecord]:
    """The request for a pod, and its record, once it has come to this point."""
    fakes.points.hang(point, after=after)
    running = asked(fakes)
    await fakes.points.hangs.wait()
    (record,) = fakes.node.ledger.sandboxes.values()
    return running, record


async def turns() -> None:
    """Let everything go on that does not wait for a call that hangs."""
    for _ in range(100):
        await asyncio.sleep(0)


async def done(fakes: Bundle, running: Awaitable[str]) -> None:
    """Let a request that hangs come to its end."""
    fakes.points.release()
    await running
    await fakes.settled()


def on_host() -> cri.PodSandboxConfig:
    config = pod_config()
    config.linux.security_context.namespace_options.network = cri.NODE
    return config


def with_sysctl(name: str) -> cri.PodSandboxConfig:
    config = pod_config()
    config.linux.sysctls[name] = "1"
    return config


def with_user_namespace() -> cri.PodSandboxConfig:
    config = pod_config()
    options = config.linux.security_context.namespace_options.userns_options
    options.mode = cri.POD
    options.uids.add(host_id=100_000, container_id=0, length=65_536)
    options.gids.add(host_id=200_000, container_id=0, length=65_536)
    return config


def with_own_pids() -> cri.PodSandboxConfig:
    """A pod whose containers share no pid namespace, as a kubelet's."""
    config = pod_config()
    config.linux.security_context.namespace_options.pid = cri.CONTAINER
    return config


def nothing_left(fakes: Bundle) -> bool:
    """Whether no pod has left a thing or a record."""
    return not fakes.left() and not fakes.records()

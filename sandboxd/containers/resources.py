"""UpdateContainerResources: other limits for an existing container.

A container's limits are in three places: the runtime spec in containerd, from which it would be started, the cgroup
of its task, and the ledger, which answers clients. They change in this order and together: if the runtime
refuses, the earlier changes are reverted and the request fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from sandboxd import record_format
from sandboxd.errors import NotFound, NotReady, Unsupported
from sandboxd.model import ContainerRecord, ContainerState
from sandboxd.node import Node
from sandboxd.oci import linux, validate
from sandboxd.operations import Held, known_container, perform
from sandboxd.pb.cri.v1 import api_pb2 as cri

_PROC = Path("/proc")
_NO_LIMIT = {"quota": -1, "limit": -1, "swap": -1}


async def update_container(node: Node, container_id: str, wanted: cri.LinuxContainerResources) -> None:
    """Change the limits that `wanted` gives (0 and "" leave one as it is): all of them, or none and an error.

    Raises NotFound, NotReady for a container that has ended or with the runtime's words, InvalidRequest.
    """
    await perform(
        node,
        "UpdateContainerResources",
        known_container(node, container_id).sandbox_id,
        lambda held: _update(held, container_id, wanted),
        container_id=container_id,
        key=(container_id, wanted.SerializeToString(deterministic=True)),
    )


async def _update(held: Held, container_id: str, wanted: cri.LinuxContainerResources) -> None:
    container = held.container(container_id)
    if container.state is ContainerState.EXITED:
        raise NotReady(f"container {container_id} is {container.state.value}: it has no limits to change")
    config = cri.ContainerConfig()
    config.CopyFrom(container.config)
    config.linux.resources.CopyFrom(merged(container.config.linux.resources, wanted))
    validate.container_config(config, held.sandbox().config)
    if container.state is ContainerState.RUNNING:
        _check_hugepages(container.config.linux.resources, config.linux.resources)
    limits = linux.resources(config.linux.resources, held.node.machine.facts)
    spec = await held.node.runtime.spec(container_id)
    earlier: dict[int, str] = {}

    async def undo(_: BaseException) -> None:
        await asyncio.to_thread(_restore_oom_score_adj, earlier)
        await held.node.runtime.set_spec(container_id, spec, keep=record_format.keep_container(container))
        if container.state is ContainerState.RUNNING and limits:
            # On cgroup v2, runc has set some limits when the kernel refuses another, and does not set them back.
            with contextlib.suppress(NotFound):
                await held.node.runtime.update(container_id, earlier_limits(spec, limits))

    async with held.effect("container.update", undo=undo, container=container.config.metadata.name):
        await _apply(held.node, replace(container, config=config), spec, limits, wanted.oom_score_adj, earlier)
    held.node.ledger.update_container(container_id, config=config)


def _check_hugepages(before: cri.LinuxContainerResources, after: cri.LinuxContainerResources) -> None:
    """Raise Unsupported: OCI runtimes ignore these limits in an update and would report success."""

    def limits(resources: cri.LinuxContainerResources) -> dict[str, int]:
        return {item.page_size: item.limit for item in resources.hugepage_limits if item.limit}

    if limits(before) != limits(after):
        raise Unsupported("linux.hugepage_limits: cannot be changed while the container runs")


async def _apply(
    node: Node,
    container: ContainerRecord,
    spec: dict[str, Any],
    limits: dict[str, Any],
    oom_score_adj: int,
    earlier: dict[int, str],
) -> None:
    """Change the stored spec, and the task if the container runs; `earlier` gets the OOM scores that change."""
    if oom_score_adj:
        oom_score_adj = linux.oom_score_adj(oom_score_adj, node.machine.facts)
    keep = record_format.keep_container(container)
    await node.runtime.set_spec(container.id, updated_spec(spec, limits, oom_score_adj), keep=keep)
    if container.state is not ContainerState.RUNNING:
        return
    try:
        if oom_score_adj:
            # The OCI runtime cannot change this; children of these processes inherit it.
            await asyncio.to_thread(_set_oom_score_adj, node, container, oom_score_adj, earlier)
        if limits:
            await node.runtime.update(container.id, limits)
    except NotFound:
        pass  # it has just ended; settling will record that
    except OSError as exc:
        raise NotReady(f"the OOM score of container {container.id} cannot be set: {exc.strerror}") from exc


def merged(before: cri.LinuxContainerResources, wanted: cri.LinuxContainerResources) -> cri.LinuxContainerResources:
    """`before` with what `wanted` specifies: in CRI 0 and "" mean "not specified"."""
    result = cri.LinuxContainerResources()
    result.CopyFrom(before)
    for field, value in wanted.ListFields():
        if field.name == "hugepage_limits":
            given = {item.page_size for item in wanted.hugepage_limits}
            kept = [item for item in before.hugepage_limits if item.page_size not in given]
            del result.hugepage_limits[:]
            result.hugepage_limits.extend([*kept, *wanted.hugepage_limits])
        elif field.name == "unified":
            result.unified.update(wanted.unified)
        else:
            setattr(result, field.name, value)
    return result


def updated_spec(spec: dict[str, Any], limits: dict[str, Any], oom_score_adj: int) -> dict[str, Any]:
    """The runtime spec with these `linux.resources`; everything else in that section, devices foremost, stays."""
    result = copy.deepcopy(spec)
    resources = result.setdefault("linux", {}).setdefault("resources", {})
    for name, section in limits.items():
        if isinstance(section, dict):
            resources[name] = {**resources.get(name, {}), **section}
        else:
            resources[name] = section
    if oom_score_adj:
        result.setdefault("process", {})["oomScoreAdj"] = oom_score_adj
    return result


def earlier_limits(spec: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """What the spec says of each of these `linux.resources`; of a limit that it does not give, that there is none."""
    before = spec.get("linux", {}).get("resources", {})
    result = {}
    for name, section in limits.items():
        if isinstance(section, dict):
            known = {key: before.get(name, {}).get(key, _NO_LIMIT.get(key)) for key in section}
            result[name] = {key: value for key, value in known.items() if value is not None}
        elif name in before:
            result[name] = before[name]
    return result


def _set_oom_score_adj(node: Node, container: ContainerRecord, value: int, earlier: dict[int, str]) -> None:
    """Set it for every process of the container and save the previous values in `earlier`. Blocks: there can be
    thousands."""
    sandbox = node.ledger.sandboxes[container.sandbox_id]
    for pid in node.machine.cgroups.processes(node.places.cgroup(sandbox, container.id)):
        path = _PROC / str(pid) / "oom_score_adj"
        try:
            earlier[pid] = path.read_text(encoding="ascii")
            path.write_text(str(value), encoding="ascii")
        except (FileNotFoundError, ProcessLookupError):
            earlier.pop(pid, None)


def _restore_oom_score_adj(earlier: dict[int, str]) -> None:
    for pid, value in earlier.items():
        try:
            (_PROC / str(pid) / "oom_score_adj").write_text(value, encoding="ascii")
        except OSError:
            continue  # it has ended, or the kernel refuses again

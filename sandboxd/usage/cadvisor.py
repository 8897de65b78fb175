"""The metrics of all pods, under cAdvisor's names; `families` has the table."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path

from sandboxd.cgroups.sample import Sample
from sandboxd.model import SandboxRecord, SandboxState
from sandboxd.node import Node
from sandboxd.usage.families import metrics
from sandboxd.usage.readings import Subject
from sandboxd.usage.records import (
    ContainerMetrics,
    Filesystem,
    Layer,
    MeasuredContainer,
    MeasuredPod,
    PodMetrics,
)
from sandboxd.usage.stats import Stats


async def list_pod_metrics(node: Node, stats: Stats) -> list[PodMetrics]:
    """The metrics of every pod that is ready, and of its running containers."""
    ready = [record for record in node.ledger.sandboxes.values() if record.state is SandboxState.READY]
    pods = await stats.measure_pods(ready)
    running = [each.record.id for pod in pods for each in pod.containers if each.sample]
    layers = {container_id: stats.layers.get(container_id) for container_id in running}
    directory = node.images.fs_info().directory

    def collect() -> list[PodMetrics]:
        holding = filesystem(directory)
        return [_of_pod(pod, stats, layers, holding) for pod in pods]

    return await asyncio.to_thread(collect)


def _of_pod(
    pod: MeasuredPod, stats: Stats, layers: Mapping[str, Layer | None], holding: Filesystem | None
) -> PodMetrics:
    """The metrics of a pod. Reads what the processes of its containers hold, in /proc."""
    subject = Subject(
        container=None,
        sample=pod.sample,
        interfaces=pod.interfaces or (),
        devices=device_names(pod.sample),
        seen_at=pod.sample.at if pod.sample else time.time_ns(),
    )
    containers = []
    for measured in pod.containers:
        if measured.sample is None:
            continue
        inside = Subject(
            container=measured.record,
            sample=measured.sample,
            processes=stats.gauge.processes(measured),
            layer=layers[measured.record.id],
            filesystem=holding,
            devices=device_names(measured.sample),
            seen_at=measured.sample.at,
        )
        labels = _labels(pod.record, measured.cgroup, measured)
        containers.append(ContainerMetrics(container_id=measured.record.id, metrics=metrics(inside, labels)))
    return PodMetrics(
        sandbox_id=pod.record.id,
        metrics=metrics(subject, _labels(pod.record, pod.cgroup)),
        containers=tuple(containers),
    )


def _labels(sandbox: SandboxRecord, cgroup: str, measured: MeasuredContainer | None = None) -> tuple[str, ...]:
    meta = sandbox.config.metadata
    container, image, name = "", "", ""
    if measured is not None:
        config = measured.record.config
        container, name = config.metadata.name, measured.record.id
        image = config.image.user_specified_image or config.image.image
    return container, cgroup, image, name, meta.namespace, meta.name


def device_names(sample: Sample | None) -> dict[tuple[int, int], str]:
    """The paths of a sample's block devices ("/dev/vda1") by their numbers, as far as sysfs knows them."""
    names = {}
    for device in sample.devices if sample else ():
        if path := _device_path(device.major, device.minor):
            names[device.major, device.minor] = path
    return names


def _device_path(major: int, minor: int) -> str:
    try:
        lines = Path(f"/sys/dev/block/{major}:{minor}/uevent").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((f"/dev/{line.removeprefix('DEVNAME=')}" for line in lines if line.startswith("DEVNAME=")), "")


def filesystem(directory: str) -> Filesystem | None:
    """The file system that `directory` is on; None if that cannot be found out."""
    try:
        room, device = os.statvfs(directory), os.stat(directory).st_dev
    except OSError:
        return None
    major, minor = os.major(device), os.minor(device)
    return Filesystem(
        device=_device_path(major, minor) or f"{major}:{minor}",
        bytes=room.f_blocks * room.f_frsize,
        inodes=room.f_files,
        inodes_free=room.f_ffree,
    )

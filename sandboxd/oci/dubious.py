"""What is accepted as other runtimes accept it, although it may not be what was meant: said, not refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sandboxd.oci import linux
from sandboxd.oci.linux import HostFacts
from sandboxd.pb.cri.v1 import api_pb2 as cri


def container(config: cri.ContainerConfig, sandbox: cri.PodSandboxConfig, host: HostFacts) -> Iterator[str]:
    """A sentence on each dubious field of a validated config, beginning with the field, for the daemon's log."""
    if config.log_path and not sandbox.log_directory:
        yield "config.log_path: the sandbox has no log_directory, so what the container writes is discarded"
    elif config.log_path.startswith("/"):
        yield f"config.log_path: {config.log_path!r} is absolute, but taken below {sandbox.log_directory}"
    yield from _mounts(config)
    yield from _devices(config)
    yield from _resources(config.linux.resources, host)


def _mounts(config: cri.ContainerConfig) -> Iterator[str]:
    for i, mount in enumerate(config.mounts):
        if not mount.container_path.startswith("/"):
            place = linux.clean(mount.container_path)
            yield f"config.mounts[{i}].container_path: {mount.container_path!r} is relative, mounted at {place}"
    times = Counter(linux.clean(mount.container_path) for mount in config.mounts)
    for place in sorted(place for place, count in times.items() if count > 1):
        yield f"config.mounts: {place} is mounted {times[place]} times: the last mount hides the others"


def _devices(config: cri.ContainerConfig) -> Iterator[str]:
    for i, device in enumerate(config.devices):
        if device.container_path and not device.container_path.startswith("/"):
            place = linux.clean(device.container_path)
            yield f"config.devices[{i}].container_path: {device.container_path!r} is relative, made at {place}"


def _resources(wanted: cri.LinuxContainerResources, host: HostFacts) -> Iterator[str]:
    where = "config.linux.resources"
    if wanted.cpu_shares and not linux.LEAST_SHARES <= wanted.cpu_shares <= linux.MOST_SHARES:
        bounds = f"{linux.LEAST_SHARES} to {linux.MOST_SHARES}"
        yield f"{where}.cpu_shares: {wanted.cpu_shares} is not within the kernel's {bounds}: the nearest is set"
    limited = [item.page_size for item in wanted.hugepage_limits if item.limit]
    if limited and not host.hugetlb_controller:
        sizes = ", ".join(limited)
        yield f"{where}.hugepage_limits: {sizes}: not limited, since this machine has no hugetlb cgroup controller"

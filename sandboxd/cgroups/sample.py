"""The content of a cgroup's files. Pure.

One `Sample` for both versions of the interface, in the same units: bytes, nanoseconds, counts. None means that this
kernel does not measure it, which is not the same as 0.

Sources: Documentation/admin-guide/cgroup-v1/{cpuacct,memory,blkio-controller,pids,hugetlb}.rst,
Documentation/admin-guide/cgroup-v2.rst, Documentation/accounting/psi.rst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

_UNLIMITED = 1 << 62  # v1 writes "no limit" as the greatest number of whole pages
_TICK_NS = 10_000_000  # USER_HZ is 100 on every architecture that containers run on


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """CPU time in nanoseconds, and the effect of the quota."""

    usage: int
    user: int = 0
    system: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory in bytes; counters since the cgroup was created."""

    usage: int
    working_set: int  # usage without the inactive file cache
    limit: int | None = None
    rss: int = 0
    cache: int = 0
    mapped: int = 0
    kernel: int = 0
    active_file: int = 0
    inactive_file: int = 0
    peak: int | None = None
    swap: int | None = None
    swap_limit: int | None = None
    page_faults: int = 0
    major_page_faults: int = 0
    failures: int = 0  # times that usage hit the limit
    oom_kills: int = 0  # processes of the cgroup that an OOM killer has killed


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """I/O of a block device."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """One line of a pressure file: total nanoseconds, percent of the last 10, 60 and 300 seconds."""

    total: int
    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """How long some tasks, and how long all of them, waited for a resource."""

    some: Stall
    full: Stall


@dataclass(frozen=True, slots=True, kw_only=True)
class HugePages:
    """Huge pages of one size ("2MB") in bytes."""

    size: str
    usage: int
    peak: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A cgroup and everything below it at one moment (`at`, unix nanoseconds)."""

    at: int
    cpu: Cpu | None = None
    memory: Memory | None = None
    devices: tuple[Device, ...] = ()
    tasks: int | None = None  # processes and threads
    tasks_limit: int | None = None
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None
    hugepages: tuple[HugePages, ...] = ()


# The formats of the files


def keyed(text: str) -> dict[str, int]:
    """A flat keyed file ("anon 4096"); other lines are skipped."""
    values = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.isdecimal():
            values[key] = int(value)
    return values


def number(text: str) -> int | None:
    """A single number; None for "max", for v1's form of it, and for anything else."""
    text = text.strip()
    value = int(text) if text.isdecimal() else _UNLIMITED
    return value if value < _UNLIMITED else None


def pressure(text: str) -> Pressure | None:
    """A pressure file; None without a "some" line. Its total is in microseconds."""
    lines = {}
    for line in text.splitlines():
        kind, *pairs = line.split() or [""]
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        try:
            lines[kind] = Stall(
                total=int(values["total"]) * 1000,
                avg10=float(values["avg10"]),
                avg60=float(values["avg60"]),
                avg300=float(values["avg300"]),
            )
        except (KeyError, ValueError):
            continue
    if "some" not in lines:
        return None
    # Before Linux 5.13 there was no "full" line for the CPU.
    return Pressure(some=lines["some"], full=lines.get("full", Stall(total=0)))


def io_stat(text: str) -> tuple[Device, ...]:
    """v2's io.stat: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 …"."""
    devices = []
    for line in text.splitlines():
        name, *pairs = line.split() or [""]
        values = {key: int(value) for key, _, value in (pair.partition("=") for pair in pairs) if value.isdecimal()}
        if (numbers := _device_numbers(name)) and values:
            devices.append(
                Device(
                    major=numbers[0],
                    minor=numbers[1],
                    read_bytes=values.get("rbytes", 0),
                    write_bytes=values.get("wbytes", 0),
                    reads=values.get("rios", 0),
                    writes=values.get("wios", 0),
                )
            )
    return tuple(devices)


def blkio(sizes: str, counts: str) -> tuple[Device, ...]:
    """v1's blkio.throttle.io_service_bytes and .io_serviced: lines "8:0 Read 4096"."""
    table: dict[tuple[int, int], dict[str, int]] = {}
    for text, names in (
        (sizes, {"Read": "read_bytes", "Write": "write_bytes"}),
        (counts, {"Read": "reads", "Write": "writes"}),
    ):
        for line in text.splitlines():
            parts = line.split()
            if (
                len(parts) == 3
                and parts[1] in names
                and parts[2].isdecimal()
                and (numbers := _device_numbers(parts[0]))
            ):
                table.setdefault(numbers, {})[names[parts[1]]] = int(parts[2])
    return tuple(Device(major=major, minor=minor, **values) for (major, minor), values in sorted(table.items()))


def _device_numbers(text: str) -> tuple[int, int] | None:
    major, colon, minor = text.partition(":")
    return (int(major), int(minor)) if colon and major.isdecimal() and minor.isdecimal() else None


def cpu_v1(files: Mapping[str, str]) -> Cpu | None:
    """From cpuacct.usage, cpuacct.usage_user, cpuacct.usage_sys, cpuacct.stat and cpu.stat."""
    usage = number(files.get("cpuacct.usage", ""))
    if usage is None:
        return None
    ticks, quota = keyed(files.get("cpuacct.stat", "")), keyed(files.get("cpu.stat", ""))
    user, system = number(files.get("cpuacct.usage_user", "")), number(files.get("cpuacct.usage_sys", ""))
    return Cpu(
        usage=usage,
        user=ticks.get("user", 0) * _TICK_NS if user is None else user,
        system=ticks.get("system", 0) * _TICK_NS if system is None else system,
        periods=quota.get("nr_periods", 0),
        throttled_periods=quota.get("nr_throttled", 0),
        throttled=quota.get("throttled_time", 0),
    )


def cpu_v2(files: Mapping[str, str]) -> Cpu | None:
    """From cpu.stat, whose times are in microseconds."""
    stat = keyed(files.get("cpu.stat", ""))
    if "usage_usec" not in stat:
        return None
    return Cpu(
        usage=stat["usage_usec"] * 1000,
        user=stat.get("user_usec", 0) * 1000,
        system=stat.get("system_usec", 0) * 1000,
        periods=stat.get("nr_periods", 0),
        throttled_periods=stat.get("nr_throttled", 0),
        throttled=stat.get("throttled_usec", 0) * 1000,
    )


def memory_v1(files: Mapping[str, str]) -> Memory | None:
    """From memory.* files; the "total_" values include everything below the cgroup."""
    usage = number(files.get("memory.usage_in_bytes", ""))
    if usage is None:
        return None
    stat = keyed(files.get("memory.stat", ""))

    def total(key: str) -> int:
        return stat.get(f"total_{key}", stat.get(key, 0))

    # memory.memsw.* count memory and swap together.
    both = number(files.get("memory.memsw.usage_in_bytes", ""))
    limit, both_limit = (number(files.get(f"memory.{name}limit_in_bytes", "")) for name in ("", "memsw."))
    return Memory(
        usage=usage,
        working_set=max(0, usage - total("inactive_file")),
        limit=limit,
        rss=total("rss"),
        cache=total("cache"),
        mapped=total("mapped_file"),
        kernel=number(files.get("memory.kmem.usage_in_bytes", "")) or 0,
        active_file=total("active_file"),
        inactive_file=total("inactive_file"),
        peak=number(files.get("memory.max_usage_in_bytes", "")),
        swap=None if both is None else max(0, both - usage),
        swap_limit=None if both_limit is None or limit is None else max(0, both_limit - limit),
        page_faults=total("pgfault"),
        major_page_faults=total("pgmajfault"),
        failures=number(files.get("memory.failcnt", "")) or 0,
        oom_kills=keyed(files.get("memory.oom_control", "")).get("oom_kill", 0),
    )


def memory_v2(files: Mapping[str, str]) -> Memory | None:
    """From memory.current, .max, .stat, .peak, .events and memory.swap.*."""
    usage = number(files.get("memory.current", ""))
    if usage is None:
        return None
    stat, events = keyed(files.get("memory.stat", "")), keyed(files.get("memory.events", ""))
    return Memory(
        usage=usage,
        working_set=max(0, usage - stat.get("inactive_file", 0)),
        limit=number(files.get("memory.max", "")),
        rss=stat.get("anon", 0),
        cache=stat.get("file", 0),
        mapped=stat.get("file_mapped", 0),
        # "kernel" since 5.18; before, its parts.
        kernel=stat.get(
            "kernel", sum(stat.get(part, 0) for part in ("kernel_stack", "pagetables", "percpu", "slab"))
        ),
        active_file=stat.get("active_file", 0),
        inactive_file=stat.get("inactive_file", 0),
        peak=number(files.get("memory.peak", "")),
        swap=number(files.get("memory.swap.current", "")),
        swap_limit=number(files.get("memory.swap.max", "")),
        page_faults=stat.get("pgfault", 0),
        major_page_faults=stat.get("pgmajfault", 0),
        failures=events.get("max", 0),
        oom_kills=events.get("oom_kill", 0),
    )


def total(samples: Iterable[Sample]) -> Sample | None:
    """The sum of several cgroups, None if there are none. Limits and pressure cannot be added and are left out."""
    parts = list(samples)
    if not parts:
        return None
    devices: dict[tuple[int, int], list[Device]] = {}
    for part in parts:
        for device in part.devices:
            devices.setdefault((device.major, device.minor), []).append(device)
    counted = [part.tasks for part in parts if part.tasks is not None]
    return Sample(
        at=max(part.at for part in parts),
        cpu=_added(Cpu, [part.cpu for part in parts if part.cpu]),
        memory=_added(Memory, [part.memory for part in parts if part.memory], limit=None, swap_limit=None, peak=None),
        devices=tuple(
            Device(
                major=major,
                minor=minor,
                read_bytes=sum(d.read_bytes for d in same),
                write_bytes=sum(d.write_bytes for d in same),
                reads=sum(d.reads for d in same),
                writes=sum(d.writes for d in same),
            )
            for (major, minor), same in sorted(devices.items())
        ),
        tasks=sum(counted) if counted else None,
    )


Numbers = TypeVar("Numbers", Cpu, Memory)


def _added(kind: type[Numbers], parts: list[Numbers], **fixed: Any) -> Numbers | None:
    if not parts:
        return None
    values = dict(fixed)
    for name in (f.name for f in fields(kind) if f.name not in fixed):
        measured = [value for part in parts if (value := getattr(part, name)) is not None]
        values[name] = sum(measured) if measured else None
    return kind(**values)

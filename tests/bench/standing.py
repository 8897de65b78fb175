"""What does not live and die in a moment: many pods, many objects, a container's output, a daemon that waits."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.bench.life import CALL_SECONDS, Series, Times, down, up
from tests.bench.parties import Party
from tests.bench.processor import Spent
from tests.pods import container_config, pod_config
from tests.processes import until

CLIENTS = 8  # that bring up what is measured later
SLEEP = ("sleep", "1000000")

Calls = Mapping[str, Callable[[], object]]


@dataclass(slots=True, kw_only=True)
class Size:
    """A party with so many pods."""

    pods: int
    daemon_bytes: int
    bytes_with_containerd: int
    run: list[float]  # seconds, of further pods
    spent: dict[str, float]  # seconds, of one further pod, up and down


@dataclass(slots=True, kw_only=True)
class Crowded:
    """By party: what it is at each size; and of the idle daemons, percent of a core at `idle_pods`."""

    sizes: dict[str, list[Size]] = field(default_factory=dict)
    idle: dict[str, dict[str, float]] = field(default_factory=dict)
    idle_pods: int = 0


@dataclass(slots=True, kw_only=True)
class Flood:
    """A container that writes all it can, and what requests take beside it."""

    bytes_per_second: float
    quiet: Series
    flooded: Series


def crowded(
    parties: Sequence[Party], sizes: Sequence[int], idle_at: int, idle_seconds: float, window: int
) -> Crowded:
    """Grow every party from size to size; measure at each, and at `idle_at` how much they do when nobody asks.

    The cost at a size is that of so many further pods, one after the other: the window.
    """
    found = Crowded(sizes={p.name: [] for p in parties}, idle_pods=idle_at)
    pods: dict[str, list[str]] = {p.name: [] for p in parties}
    for size in sizes:
        for party in parties:
            with ThreadPoolExecutor(CLIENTS) as pool:
                wanted = range(size - len(pods[party.name]))
                pods[party.name] += [pod for pod, _ in pool.map(lambda _, p=party: up(p, "busybox", SLEEP), wanted)]
            found.sizes[party.name].append(_size(party, size, window))
        if size == idle_at:
            found.idle = idle(parties, idle_seconds)
    for party in parties:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda pod, p=party: down(p, pod), pods[party.name]))
    return found


def _size(party: Party, size: int, window: int) -> Size:
    daemon, both = party.account.memory()
    before, run = party.account.spent(), []
    for _ in range(window):
        pod, taken = up(party, "busybox", SLEEP)
        run.append(taken["run"])
        down(party, pod)
    spent = (party.account.spent() - before).each(window)
    return Size(pods=size, daemon_bytes=daemon, bytes_with_containerd=both, run=run, spent=spent)


def idle(parties: Sequence[Party], seconds: float) -> dict[str, dict[str, float]]:
    """Percent of one core that each party needs while nothing is asked of any of them."""
    before: dict[str, Spent] = {party.name: party.account.spent() for party in parties}
    began = time.perf_counter()
    time.sleep(seconds)
    taken = time.perf_counter() - began
    spent = {party.name: party.account.spent() - before[party.name] for party in parties}
    return {name: {part: 100 * used / taken for part, used in one.each(1).items()} for name, one in spent.items()}


def objects(parties: Sequence[Party], counts: Sequence[int], calls: int) -> dict[int, Times]:
    """Lists and states with so many pods, stopped but one, and so many containers, created and not started."""
    found: dict[int, Times] = {}
    homes = {party.name: _host_pod(party) for party in parties}
    pods = {party.name: [homes[party.name][0]] for party in parties}
    made: dict[str, list[str]] = {party.name: [] for party in parties}
    for count in counts:
        for party in parties:
            with ThreadPoolExecutor(CLIENTS) as pool:
                more = range(count - len(pods[party.name]))
                pods[party.name] += pool.map(lambda _, p=party: _stopped_pod(p), more)
                more = range(count - len(made[party.name]))
                made[party.name] += pool.map(lambda _, p=party: _container(p, *homes[p.name]), more)
        reads = {p.name: _reads(p, pods[p.name], made[p.name]) for p in parties}
        found[count] = by_turns(reads, calls)
    for party in parties:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda pod, p=party: down(p, pod), pods[party.name]))
    return found


def _reads(party: Party, pods: Sequence[str], containers: Sequence[str]) -> Calls:
    runtime = party.runtime
    one_pod = cri.PodSandboxStatusRequest(pod_sandbox_id=pods[len(pods) // 2])
    one_container = cri.ContainerStatusRequest(container_id=containers[len(containers) // 2])
    return {
        "list_containers": lambda: runtime.ListContainers(cri.ListContainersRequest(), timeout=CALL_SECONDS),
        "list_pods": lambda: runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=CALL_SECONDS),
        "container_status": lambda: runtime.ContainerStatus(one_container, timeout=CALL_SECONDS),
        "pod_status": lambda: runtime.PodSandboxStatus(one_pod, timeout=CALL_SECONDS),
        "status": lambda: runtime.Status(cri.StatusRequest(), timeout=CALL_SECONDS),
    }


def executions(parties: Sequence[Party], count: int) -> Times:
    """ExecSync of `true` in a container that runs."""
    made = {party.name: _running(party, SLEEP) for party in parties}
    calls = {
        party.name: {
            "exec_sync": lambda p=party: p.runtime.ExecSync(
                cri.ExecSyncRequest(container_id=made[p.name][1], cmd=["true"], timeout=60), timeout=CALL_SECONDS
            )
        }
        for party in parties
    }
    found = by_turns(calls, count)
    for party in parties:
        down(party, made[party.name][0])
    return found


def flood(party: Party, seconds: float, calls: int) -> Flood:
    """How much output of one container arrives in its log, and what it costs requests."""
    runtime = party.runtime
    reads: dict[str, Calls] = {
        party.name: {
            "version": lambda: runtime.Version(cri.VersionRequest(), timeout=CALL_SECONDS),
            "list_containers": lambda: runtime.ListContainers(cri.ListContainersRequest(), timeout=CALL_SECONDS),
        }
    }
    quiet = by_turns(reads, calls)[party.name]
    with _writing(party) as size:
        before, began = size(), time.perf_counter()
        flooded: Series = {}
        while time.perf_counter() - began < seconds:
            for name, taken in by_turns(reads, 1)[party.name].items():
                flooded.setdefault(name, []).extend(taken)
        flow = (size() - before) / (time.perf_counter() - began)
    return Flood(bytes_per_second=flow, quiet=quiet, flooded=flooded)


@contextmanager
def _writing(party: Party) -> Iterator[Callable[[], int]]:
    """A container that writes meanwhile; how long its log is by now."""
    pod, container = _running(party, ("sh", "-c", "echo on; exec yes"))
    request = cri.ContainerStatusRequest(container_id=container)
    log = party.bed.path(party.runtime.ContainerStatus(request, timeout=CALL_SECONDS).status.log_path)
    try:
        until(lambda: log.stat().st_size, what="the container writes")
        yield lambda: log.stat().st_size
    finally:
        down(party, pod)
        log.unlink()


def start_up(party: Party, times: int) -> tuple[list[float], list[float]]:
    """Seconds from the start of sandboxd's process to its first answer, and of processor time by then.

    Its containerd runs already, as after an update of sandboxd.
    """
    taken, spent = [], []
    for _ in range(times):
        party.bed.stop_daemon()
        began = time.perf_counter()
        party.bed.relaunch_daemon()
        taken.append(time.perf_counter() - began)
        party.account.look(party.bed.daemon_pid)
        spent.append(party.account.spent().daemon)
    return taken, spent


def by_turns(calls: Mapping[str, Calls], count: int) -> Times:
    """Every call of every party so many times, each time in another order, after each has been made once."""
    order = random.Random(0)
    all_ = [(party, name, call) for party, theirs in calls.items() for name, call in theirs.items()]
    found: Times = {party: {name: [] for name in theirs} for party, theirs in calls.items()}
    for number in range(count + 1):
        for party, name, call in order.sample(all_, len(all_)):
            began = time.perf_counter()
            call()
            if number:
                found[party][name].append(time.perf_counter() - began)
    return found


def _running(party: Party, command: Sequence[str]) -> tuple[str, str]:
    pod, _ = up(party, "busybox", command)
    request = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod))
    (container,) = party.runtime.ListContainers(request, timeout=CALL_SECONDS).containers
    return pod, container.id


def _host_pod(party: Party) -> tuple[str, cri.PodSandboxConfig]:
    """A pod without a network of its own: it is to be listed, and that is all."""
    options = cri.NamespaceOption(network=cri.NODE)
    linux = cri.LinuxPodSandboxConfig(
        cgroup_parent=party.bed.cgroup_parent,
        security_context=cri.LinuxSandboxSecurityContext(namespace_options=options),
    )
    config = pod_config(linux=linux)
    config.hostname = ""
    request = cri.RunPodSandboxRequest(config=config)
    return str(party.runtime.RunPodSandbox(request, timeout=CALL_SECONDS).pod_sandbox_id), config


def _stopped_pod(party: Party) -> str:
    pod, _ = _host_pod(party)
    party.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=CALL_SECONDS)
    return pod


def _container(party: Party, pod: str, home: cri.PodSandboxConfig) -> str:
    config = container_config("", "busybox", SLEEP)
    config.metadata.name = config.log_path.strip("-").removesuffix(".log")
    request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=home)
    return str(party.runtime.CreateContainer(request, timeout=CALL_SECONDS).container_id)

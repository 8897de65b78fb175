"""Lives of pods: one at a time and by turns, or many at once."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.bench.modes import POOL, POOL_SIZE
from tests.bench.parties import Party
from tests.bench.processor import Spent
from tests.pods import container_config, pod_config
from tests.processes import until

CALL_SECONDS = 120.0
OWN_PIDS = cri.NamespaceOption(pid=cri.CONTAINER)
REST_SECONDS = 0.05  # after a pod: what the kernel and the shims still do is not the next one's business
OPERATIONS = ("run", "create", "start", "first_200", "stop", "remove")
TITLES: Mapping[str, str] = {
    "run": "RunPodSandbox",
    "create": "CreateContainer",
    "start": "StartContainer",
    "first_200": "RunPodSandbox to HTTP 200",
    "stop": "StopPodSandbox",
    "remove": "RemovePodSandbox",
}

Series = dict[str, list[float]]  # seconds by operation, in order
Times = dict[str, Series]  # by party
Life = Callable[[Party, Series], None]


@dataclass(slots=True, kw_only=True)
class Turns:
    """What one client found, by party."""

    times: Times
    spent: dict[str, Spent]
    pods: int = 0  # of each party


@dataclass(slots=True, kw_only=True)
class Crowd:
    """What so many clients found, by party; rates in pods a second, one a round."""

    times: Times
    spent: dict[str, Spent]
    up: dict[str, list[float]] = field(default_factory=dict)
    down: dict[str, list[float]] = field(default_factory=dict)
    pods: int = 0


def turns(parties: Sequence[Party], rounds: int, deadline: float, live: Life | None = None) -> Turns:
    """So many pods of each party, one after the other, everybody once a round and in another order each time.

    There are fewer rounds, but one, when the deadline (monotonic) comes first. `live` is one life, if not `whole`.
    """
    live = live or whole
    order = random.Random(0)
    found = Turns(times={p.name: {} for p in parties}, spent={p.name: Spent() for p in parties})
    for party in parties:  # once without the clock: programs come into memory
        live(party, {})
    for number in range(rounds):
        if number and time.monotonic() > deadline:
            break
        for party in order.sample(parties, len(parties)):
            settle(party)
            before = party.account.spent()
            live(party, found.times[party.name])
            found.spent[party.name] += party.account.spent() - before
            time.sleep(REST_SECONDS)
        found.pods += 1
    return found


def crowd(parties: Sequence[Party], clients: int, pods: int, rounds: int, deadline: float) -> Crowd:
    """So many clients bring up so many pods, then take them down; by turns of parties."""
    order = random.Random(0)
    found = Crowd(
        times={p.name: {} for p in parties},
        spent={p.name: Spent() for p in parties},
        up={p.name: [] for p in parties},
        down={p.name: [] for p in parties},
    )
    for number in range(rounds):
        if number and time.monotonic() > deadline:
            break
        for party in order.sample(parties, len(parties)):
            settle(party)
            with party.clients(clients) as pool:
                all_here = threading.Barrier(clients)  # threads are started outside of the clock
                list(pool.map(lambda _, b=all_here: b.wait(), range(clients)))
                before, began = party.account.spent(), time.perf_counter()
                made = list(pool.map(lambda _, p=party: up(p), range(pods)))
                middle = time.perf_counter()
                ended = list(pool.map(lambda pod, p=party: down(p, pod[0]), made))
                end = time.perf_counter()
                found.spent[party.name] += party.account.spent() - before
            found.up[party.name].append(pods / (middle - began))
            found.down[party.name].append(pods / (end - middle))
            for (_, first), last in zip(made, ended, strict=True):
                _add(found.times[party.name], first | last)
            time.sleep(REST_SECONDS)
        found.pods += pods
    return found


def whole(party: Party, into: Series) -> None:
    """One pod with nginx: up, answering, down; what it took is added."""
    with party.clients(1) as pool:
        taken = pool.submit(_live, party).result()
    _add(into, taken)


def bare(party: Party, into: Series) -> None:
    """One pod without a container: up and down; what it took is added."""
    taken: dict[str, float] = {}
    with _clock(taken, "run"):
        request = cri.RunPodSandboxRequest(config=_config(party))
        pod = party.runtime.RunPodSandbox(request, timeout=CALL_SECONDS)
    _add(into, taken | down(party, pod.pod_sandbox_id))


def _live(party: Party) -> dict[str, float]:
    began = time.perf_counter()
    pod_id, taken = up(party)
    ask(address_of(party, pod_id))
    taken["first_200"] = time.perf_counter() - began
    return taken | down(party, pod_id)


def up(party: Party, image: str = "nginx", command: Sequence[str] = ()) -> tuple[str, dict[str, float]]:
    """RunPodSandbox, CreateContainer, StartContainer: the pod's id, and the seconds of each."""
    runtime = party.runtime
    config = _config(party)
    taken: dict[str, float] = {}
    with _clock(taken, "run"):
        pod = runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), timeout=CALL_SECONDS)
    security = cri.LinuxContainerSecurityContext(namespace_options=OWN_PIDS)
    request = cri.CreateContainerRequest(
        pod_sandbox_id=pod.pod_sandbox_id,
        config=container_config("main", image, command, linux=cri.LinuxContainerConfig(security_context=security)),
        sandbox_config=config,
    )
    with _clock(taken, "create"):
        container = runtime.CreateContainer(request, timeout=CALL_SECONDS)
    with _clock(taken, "start"):
        runtime.StartContainer(cri.StartContainerRequest(container_id=container.container_id), timeout=CALL_SECONDS)
    return pod.pod_sandbox_id, taken


def _config(party: Party) -> cri.PodSandboxConfig:
    """A pod as a kubelet asks for it: its containers have pid namespaces of their own."""
    security = cri.LinuxSandboxSecurityContext(namespace_options=OWN_PIDS)
    linux = cri.LinuxPodSandboxConfig(cgroup_parent=party.bed.cgroup_parent, security_context=security)
    return pod_config(linux=linux)


def down(party: Party, pod_id: str) -> dict[str, float]:
    """StopPodSandbox and RemovePodSandbox, and the seconds of each."""
    taken: dict[str, float] = {}
    with _clock(taken, "stop"):
        party.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=CALL_SECONDS)
    with _clock(taken, "remove"):
        party.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id), timeout=CALL_SECONDS)
    return taken


def address_of(party: Party, pod_id: str) -> str:
    """The pod's address."""
    request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id)
    return str(party.runtime.PodSandboxStatus(request, timeout=CALL_SECONDS).status.network.ip)


def ask(ip: str) -> None:
    """Wait for nginx' first answer, which must be 200."""
    deadline = time.monotonic() + CALL_SECONDS
    while True:
        try:
            connection = http.client.HTTPConnection(ip, 80, timeout=CALL_SECONDS)
            connection.request("GET", "/")
            status = connection.getresponse().status
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
            continue
        finally:
            connection.close()
        assert status == 200, f"nginx answers {status}"
        return


def settle(party: Party) -> None:
    """Let a warm pool be filled again first: it belongs to the pod before, and others would pay for it."""
    if party.name != POOL:
        return

    def full() -> bool:
        answer = party.runtime.Status(cri.StatusRequest(verbose=True), timeout=CALL_SECONDS)
        return len(json.loads(answer.info["pool"])["ready"]) == POOL_SIZE

    until(full, what="the pool is full")


@contextmanager
def _clock(taken: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    taken[name] = time.perf_counter() - began


def _add(into: Series, taken: Mapping[str, float]) -> None:
    for name, seconds in taken.items():
        into.setdefault(name, []).append(seconds)

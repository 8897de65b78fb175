"""Each plugin of a chain with real state fails, in ADD and in DEL, in every way, before and after its work.

A pod is a cell. Its name selects the fault, so that a wave of cells goes through one daemon side by side.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2
from tests.audit import observe
from tests.faults.bystander import Bystander, left
from tests.faults.cells import Cells
from tests.faults.sampling import sample, waves
from tests.pods import pod_config, pod_status, refused, remove_pod, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

PLUGINS = "/opt/cni/bin"
PLANS = "/opt/cni/plans"
# In the order of ADD. bridge runs host-local; each has state on the host that its DEL takes away.
CHAIN = ("bridge", "host-local", "portmap", "firewall")
KINDS = ("error", "silent", "malformed", "signal", "flood", "hang")  # hang last: it takes as long as a plugin may
WHEN = ("before", "after")  # its work
AT_ONCE = 8
PLUGIN_SECONDS = 15.0  # no plugin takes as long, on however busy a machine

# The real plugin, unless a plan exists for this pod, plugin and command. A DEL's output means nothing when it exits
# with 0, so there a plugin that says nonsense also exits with 1.
PLUGIN = """#!/bin/sh
name=${0##*/}
pod=${CNI_ARGS##*K8S_POD_NAME=}
plan=/opt/cni/plans/${pod%%;*}.$name.$CNI_COMMAND
[ -n "$CNI_ARGS" ] && [ -e "$plan" ] || exec "/usr/lib/cni/$name"
read -r kind when <"$plan"
if [ "$when" = after ]; then
    said=$("/usr/lib/cni/$name") || { printf %s "$said"; exit 1; }
else
    cat >/dev/null
fi
: >"$plan.met"
case $kind in
error) printf '{"cniVersion": "1.0.0", "code": 100, "msg": "as planned"}'; exit 1 ;;
silent) exit 3 ;;
malformed) printf '{"cniVersion": "1.0.0", "ips": [{"addr'; [ "$CNI_COMMAND" = ADD ] ;;
signal) kill -9 $$ ;;
flood)
    head -c 8000000 /dev/zero | tr '\\0' x
    head -c 8000000 /dev/zero | tr '\\0' y >&2
    [ "$CNI_COMMAND" = ADD ]
    ;;
hang) sleep 600 ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """One plugin, and what it does at one command."""

    plugin: str
    command: str
    kind: str
    when: str

    def __str__(self) -> str:
        return f"{self.command} of {self.plugin} {self.when} its work: {self.kind}"

    @property
    def told_of(self) -> str:
        """The plugin of the chain that fails with it."""
        return "bridge" if self.plugin == "host-local" else self.plugin


Cell = tuple[Fault, ...]  # at most one fault of each command


def every_fault(command: str) -> list[Cell]:
    return [(Fault(plugin, command, kind, when),) for kind, plugin, when in itertools.product(KINDS, CHAIN, WHEN)]


def every_pair() -> list[Cell]:
    """A failing ADD with a failing DEL: every two plugins, and every two kinds."""
    pairs = itertools.product(KINDS, KINDS, CHAIN, CHAIN)
    whens = itertools.cycle(itertools.product(WHEN, WHEN))
    return [
        (Fault(adds, "ADD", kind, when), Fault(deletes, "DEL", other, other_when))
        for (kind, other, adds, deletes), (when, other_when) in zip(pairs, whens, strict=False)
        if (kind == "hang") == (other == "hang")  # with one that hangs all wait, so two are tried at once
    ]


@pytest.fixture(scope="module")
def containerd_flavour() -> str:
    """What is tried is between us and the plugins."""
    return "debian"


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    """A bed whose plugins follow plans."""
    with Testbed() as started:
        network = started.default_network()
        plugins = [*network.conflist["plugins"], {"type": "firewall", "backend": "iptables"}]
        started.write(network.file, json.dumps({**network.conflist, "plugins": plugins}))
        for name in CHAIN:
            started.write(f"{PLUGINS}/{name}", PLUGIN, mode=0o755)
        started.path(PLANS).mkdir()
        started.start_daemon(network={"plugin_seconds": PLUGIN_SECONDS}, daemon={"reconcile_seconds": 1.0})
        started.load_image("busybox")
        yield started


@pytest.fixture(scope="module")
def bystander(bed: Testbed) -> Bystander:
    return Bystander.start(bed)


def plan(bed: Testbed, config: cri.PodSandboxConfig, faults: Cell) -> None:
    """The faults happen from now on."""
    for fault in faults:
        path = f"{PLANS}/{config.metadata.name}.{fault.plugin}.{fault.command}"
        bed.write(path, f"{fault.kind} {fault.when}\n")


def end(bed: Testbed, config: cri.PodSandboxConfig, faults: Cell) -> None:
    """The faults are gone. Each must have happened."""
    for fault in faults:
        path = bed.path(f"{PLANS}/{config.metadata.name}.{fault.plugin}.{fault.command}")
        path.unlink()
        met = path.with_name(f"{path.name}.met")
        met.unlink()


def debts(bed: Testbed, config: cri.PodSandboxConfig) -> list[host_pb2.Debt]:
    listed = bed.host.ListDebts(host_pb2.ListDebtsRequest()).debts
    return [debt for debt in listed if debt.pod == f"default/{config.metadata.name}"]


def try_cell(bed: Testbed, faults: Cell, port: int) -> None:
    """Meet the faults; then, without them, nothing is left and the same request succeeds."""
    config = pod_config(f"pod-{secrets.token_hex(4)}")
    config.port_mappings.add(container_port=80, host_port=port)
    adding = [fault for fault in faults if fault.command == "ADD"]
    deleting = [fault for fault in faults if fault.command == "DEL"]
    if adding:
        plan(bed, config, faults)
        with pytest.raises(grpc.RpcError) as caught:
            run_pod(bed, config)
        assert refused(caught.value)[0] not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
        assert adding[0].told_of in refused(caught.value)[1]
    else:
        pod_id = run_pod(bed, config)
        plan(bed, config, faults)
        remove_pod(bed, pod_id)
    owed = {owed.plugin for debt in debts(bed, config) for owed in debt.plugins}
    assert owed == {fault.told_of for fault in deleting}
    end(bed, config, faults)
    if adding:
        pod_id = run_pod(bed, config)  # whatever the first one owes
        assert pod_status(bed, pod_id).state == cri.SANDBOX_READY
        remove_pod(bed, pod_id)
    until(lambda: not debts(bed, config), what="what it owed is paid")


def try_all(bed: Testbed, bystander: Bystander, cells: Cells, tried: list[Cell]) -> None:
    """Try the cells, a wave at a time, and look for what each wave left."""
    before = observe(bed)
    ports = itertools.count(20000)

    def one(faults: Cell) -> None:
        with cells.cell("plugins", at=str(faults[0]), what=str(faults[-1])):
            try_cell(bed, faults, next(ports))

    with ThreadPoolExecutor(AT_ONCE) as clients:
        for wave in waves(tried, AT_ONCE):
            list(clients.map(one, wave))
            failed = cells.failed
            with cells.cell("plugins", at="audit", what=f"{wave[0][0]} and the {len(wave) - 1} that follow"):
                bystander.assert_undisturbed()
                found = left(bed, before, within=20)
                assert not found, "\n".join(found)
            if cells.failed > failed:
                before = observe(bed)  # it is told once


def test_an_add_that_fails_leaves_nothing(bed: Testbed, bystander: Bystander, cells: Cells, everything: bool) -> None:
    remove_pod(bed, run_pod(bed, published(19999)))
    try_all(bed, bystander, cells, sample(every_fault("ADD"), one_in=2, everything=everything))


def test_a_del_that_fails_is_owed_until_it_succeeds(
    bed: Testbed, bystander: Bystander, cells: Cells, everything: bool
) -> None:
    remove_pod(bed, run_pod(bed, published(19999)))
    try_all(bed, bystander, cells, sample(every_fault("DEL"), one_in=2, everything=everything))


def test_a_del_that_fails_for_an_add_that_failed_is_owed_until_it_succeeds(
    bed: Testbed, bystander: Bystander, cells: Cells, everything: bool
) -> None:
    remove_pod(bed, run_pod(bed, published(19999)))
    try_all(bed, bystander, cells, sample(every_pair(), one_in=16, everything=everything))


def published(port: int) -> cri.PodSandboxConfig:
    config = pod_config()
    config.port_mappings.add(container_port=80, host_port=port)
    return config

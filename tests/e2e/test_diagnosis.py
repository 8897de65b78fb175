"""Each way in which a pod's network fails, on real plugins: the cause and what comes next, wherever people look."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.cni.diagnosis import KINDS
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2
from tests.pods import pod_config, refused, remove_pod, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.insight]

CONF = "/etc/cni/net.d/10-test.conflist"
PLUGINS = "/opt/cni/bin"
REAL = "/usr/lib/cni"
# Long enough for every plugin that does something, on a busy machine; the one that hangs does so beside all others.
PLUGIN_SECONDS = 25.0

# Plugins that go wrong in ADD, and do nothing in DEL.
SCRIPTS = {
    "hangs": "sleep 600",
    "dies": "kill -SEGV $$",
    "mute": "exit 3",
    "odd": 'echo \'{"code": 999, "msg": "the switch is on fire"}\'; exit 1',
    "addressless": 'echo \'{"cniVersion": "1.0.0"}\'',
    "garbled": 'echo \'{"cniVersion": "1.0.0", "ips": 7}\'',
    "later": 'echo \'{"code": 11, "msg": "still starting"}\'; exit 1',
    "listens": 'echo \'{"code": 999, "msg": "listen tcp :80: bind: address already in use"}\'; exit 1',
    # The real one, without what it needs.
    "toolless": f"PATH=/nowhere exec {REAL}/bridge",
    "powerless": f"exec /usr/bin/setpriv --bounding-set=-net_admin,-sys_admin {REAL}/bridge",
    "panics": f"exec {REAL}/dhcp",
    # Somebody unmounts the namespace behind the daemon's back.
    "unmounts": 'umount -l "$CNI_NETNS"; echo \'{"cniVersion": "1.0.0"}\'',
}
SCRIPT = """#!/bin/sh
case $CNI_COMMAND in
VERSION) cat >/dev/null; echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
ADD) %s ;;
*) cat >/dev/null ;;
esac
"""


def bridge(name: str, subnet: str, **keys: Any) -> dict[str, Any]:
    return {"type": "bridge", "bridge": name, "isGateway": True, "ipam": ipam(subnet), **keys}


def ipam(subnet: str, **keys: Any) -> dict[str, Any]:
    return {"type": "host-local", "ranges": [[{"subnet": subnet, **keys}]]}


@dataclass(frozen=True)
class Case:
    """A network on which no pod can be run, and what is said about it."""

    kind: str
    plugins: tuple[dict[str, Any], ...]
    raw: str  # the plugin's own words
    told: tuple[str, ...] = ()  # parts of cause and next step
    command: str = "ADD"
    plugin: str = ""  # by default the first
    keys: dict[str, Any] = field(default_factory=dict)
    before: Callable[[Testbed], object] = lambda bed: None


CASES = {
    "a bridge of another subnet": Case(
        "bridge_address",
        (bridge("used", "10.61.0.0/24"),),
        '"used" already has an IP address different from 10.61.0.1/24',
        ("used was made for another subnet", "ip link delete used"),
        before=lambda bed: bed.run(
            ["sh", "-c", "ip link add used type bridge && ip addr add 10.60.0.1/24 dev used && ip link set used up"]
        ),
    ),
    "a subnet that is none": Case(
        "bad_range", (bridge("b2", "10.62.0.0/33"),), "invalid CIDR address: 10.62.0.0/33", ('correct "ipam"',)
    ),
    "a range outside of its subnet": Case(
        "bad_range",
        (bridge("b3", "", ipam=ipam("10.63.0.0/24", rangeStart="10.9.0.1")),),
        "RangeStart 10.9.0.1 not in network 10.63.0.0/24",
        ('correct "ipam"',),
    ),
    "a plugin that is not there": Case(
        "plugin_missing",
        ({"type": "nosuch"},),
        'CNI plugin "nosuch" (network "test", from /etc/cni/net.d/10-test.conflist) was not found',
        ("put its binary in one of them",),
        command="PREPARE",
    ),
    "a delegate that is not there": Case(
        "delegate_missing",
        (bridge("b4", "", ipam={"type": "nosuch"}),),
        'failed to find plugin "nosuch" in path [',
        ('the binary of "nosuch", which bridge runs', "install it there"),
    ),
    "a version that a plugin does not speak": Case(
        "version",
        (bridge("b5", "10.65.0.0/24"),),
        "speaks 0.1.0",
        ("set its cniVersion to one that all its plugins speak",),
        command="PREPARE",
        keys={"cniVersion": "1.1.0"},
    ),
    "two plugins that make the interface": Case(
        "interface_exists",
        (bridge("b6", "10.66.0.0/24"), bridge("b6", "10.66.0.0/24")),
        "container veth name provided (eth0) already exists",
        ("an earlier plugin of the chain has made this interface", "let one plugin of the chain only"),
    ),
    "no iptables in the PATH": Case(
        "iptables",
        ({**bridge("b7", "10.67.0.0/24", ipMasq=True), "type": "toolless"},),
        'failed to locate iptables: exec: "iptables": executable file not found in $PATH',
        ("toolless needs iptables", "apt-get install iptables"),
    ),
    "a port that a process has": Case("port_taken", ({"type": "listens"},), "address already in use", ("ss -lntup",)),
    "a namespace that somebody unmounts": Case(
        "namespace_gone",
        ({"type": "unmounts"}, bridge("b8", "10.68.0.0/24")),
        "unknown FS magic on",
        ("unmounted or removed the pod's network namespace", "create the pod again"),
        plugin="bridge",
    ),
    "no capability": Case(
        "permission",
        ({**bridge("b9", "10.69.0.0/24"), "type": "powerless"},),
        "operation not permitted",
        ("CAP_NET_ADMIN",),
    ),
    "a signal": Case("crash", ({"type": "dies"},), "killed by SIGSEGV", ("dies crashed, with SIGSEGV", "dmesg")),
    "a panic": Case(
        "crash", ({"type": "panics"},), "goroutine 1 [running]", ("panics crashed, with exit status 2", "update")
    ),
    "silence": Case("silent", ({"type": "mute"},), "exited with status 3 and said nothing", ("run it by hand",)),
    "a result without an address": Case(
        "no_address", ({"type": "addressless"},), "returned no address for eth0", ("prevResult",)
    ),
    "a result that is none": Case("bad_result", ({"type": "garbled"},), "malformed result", ("update garbled",)),
    "a plugin that is not ready": Case("not_ready", ({"type": "later"},), "still starting", ("try again",)),
    "a disk that is read-only": Case(
        "disk",
        (bridge("b10", "", ipam={**ipam("10.70.0.0/24"), "dataDir": "/var/lib/readonly"}),),
        "read-only file system",
        ("full or read-only", "make room there or remount it"),
        before=lambda bed: bed.run(
            ["sh", "-c", "mkdir /var/lib/readonly && mount -t tmpfs -o ro tmpfs /var/lib/readonly"]
        ),
    ),
    "an interface that is not a bridge": Case(
        "not_a_bridge", (bridge("lo", "10.71.0.0/24"),), '"lo" already exists but is not a bridge', ("another name",)
    ),
    "a master that is not there": Case(
        "link_missing",
        ({"type": "macvlan", "master": "nosuch0", "ipam": ipam("10.72.0.0/24")},),
        "Link not found",
        ("ip link",),
    ),
    "a sysctl that is not there": Case(
        "sysctl",
        (bridge("b11", "10.73.0.0/24"), {"type": "tuning", "sysctl": {"net.ipv4.nosuch": "1"}}),
        "open /proc/sys/net/ipv4/nosuch: no such file or directory",
        ("the kernel has no net/ipv4/nosuch",),
        plugin="tuning",
    ),
    "a plugin that should not be the first": Case(
        "chain", ({"type": "portmap"},), "must be called as chained plugin", ("put it behind such a plugin",)
    ),
    "words that nobody knows": Case("other", ({"type": "odd"},), "the switch is on fire"),
}


@pytest.fixture(scope="module")
def bed(containerd_bin: Path | None) -> Iterator[Testbed]:
    with Testbed(containerd_bin=containerd_bin) as made:
        for name, script in SCRIPTS.items():
            made.write(f"{PLUGINS}/{name}", SCRIPT % script, mode=0o755)
        made.start_daemon(network={"plugin_seconds": PLUGIN_SECONDS})
        yield made


@pytest.fixture(scope="module")
def hanging(bed: Testbed) -> Iterator[Any]:
    """What a client is told at last of a pod whose plugin hangs, beside all other tests."""
    use(bed, {"type": "hangs"}, name="stuck")
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(fails, bed, pod_config("hangs"))
        until(lambda: bed.run(["pgrep", "-f", f"{PLUGINS}/hangs"], check=False).stdout, what="its ADD is called")
        yield asked


def use(bed: Testbed, *plugins: dict[str, Any], **keys: Any) -> None:
    """Make this chain the bed's only network."""
    bed.write(CONF, json.dumps({"cniVersion": "1.0.0", "name": "test", "plugins": plugins, **keys}))


def fails(bed: Testbed, config: cri.PodSandboxConfig) -> str:
    """What a client is told of a pod that cannot be run."""
    with pytest.raises(grpc.RpcError) as error:
        run_pod(bed, config)
    return refused(error.value)[1]


def sandboxctl(bed: Testbed, *argv: str) -> str:
    return bed.run([str(Path(sys.executable).parent / "sandboxctl"), "--socket", str(bed.socket), *argv]).stdout


def metrics(bed: Testbed) -> str:
    return bed.host.Metrics(host_pb2.MetricsRequest()).text


def counted(bed: Testbed, plugin: str, command: str, kind: str) -> float:
    sample = f'sandboxd_network_failures_total{{command="{command}",kind="{kind}",plugin="{plugin}"}} '
    found = re.search(rf"^{re.escape(sample)}(\S+)$", metrics(bed), re.MULTILINE)
    return float(found[1]) if found else 0.0


def netns(bed: Testbed, pod_id: str) -> str:
    return bed.host.Explain(host_pb2.ExplainRequest(pod_sandbox_id=pod_id)).netns_path


def flat(text: str) -> str:
    """A text without its line ends and indentation."""
    return " ".join(text.split())


@pytest.mark.parametrize("name", CASES)
def test_a_failure_names_its_cause_and_the_next_step(bed: Testbed, hanging: Any, name: str) -> None:
    case = CASES[name]
    case.before(bed)
    use(bed, *case.plugins, **case.keys)
    plugin = case.plugin or case.plugins[0]["type"]
    before = counted(bed, plugin, case.command, case.kind)

    words = fails(bed, config := pod_config())

    explained = flat(sandboxctl(bed, "explain", "-v", config.metadata.name))
    for part in (case.raw, *case.told):
        assert part in words and part in explained
    assert ("; next: " in words) is (case.kind != "other" and case.command != "PREPARE")
    assert f"kind={case.kind}" in explained
    assert counted(bed, plugin, case.command, case.kind) == before + 1


def test_a_range_that_is_exhausted_names_the_holders_as_the_next_step(bed: Testbed, hanging: Any) -> None:
    use(bed, bridge("b20", "10.80.0.0/30"), name="tiny")
    holder = run_pod(bed, pod_config("holder"))
    words = fails(bed, pod_config("newcomer"))
    told = "cause: every address of the network is given out; next: free some of its addresses, which are held by 1"
    assert f"{told} running pod (default/holder)" in words
    assert "kind=addresses_exhausted" in flat(sandboxctl(bed, "explain", "-v", "newcomer"))
    assert counted(bed, "bridge", "ADD", "addresses_exhausted") == 1
    remove_pod(bed, holder)


def test_a_host_port_of_another_pod_names_that_pod(bed: Testbed, hanging: Any) -> None:
    use(bed, bridge("b21", "10.81.0.0/24"), {"type": "portmap", "capabilities": {"portMappings": True}})
    mapping = [cri.PortMapping(container_port=80, host_port=8080)]
    holder = run_pod(bed, pod_config("first", port_mappings=mapping))
    words = fails(bed, pod_config("second", port_mappings=mapping))
    assert "host port 8080/tcp is held by pod default/first" in words and "choose another or remove it" in words
    assert "kind=port_taken" in flat(sandboxctl(bed, "explain", "-v", "second"))
    assert counted(bed, "", "PREPARE", "port_taken") == 1
    remove_pod(bed, holder)


def test_an_empty_bridge_of_a_failed_first_add_is_told_with_a_remedy_that_works(bed: Testbed, hanging: Any) -> None:
    use(bed, bridge("b22", "", ipam={"type": "nosuch"}))
    fails(bed, pod_config())
    use(bed, bridge("b22", "10.82.0.0/24"))
    words = fails(bed, pod_config("second"))
    assert "could not set bridge's mac: invalid argument" in words
    assert "b22 is an empty bridge that an earlier ADD left" in words and "ip link delete b22" in words
    assert "kind=bridge_mac" in flat(sandboxctl(bed, "explain", "-v", "second"))
    assert counted(bed, "bridge", "ADD", "bridge_mac") == 1
    remove_pod(bed, run_pod(bed, pod_config("third")))
    bed.run(["ip", "link", "delete", "b22"])
    remove_pod(bed, run_pod(bed, pod_config("fourth")))


def test_rules_that_somebody_flushed_are_a_debt_with_its_cause_until_it_is_tried_again(
    bed: Testbed, hanging: Any
) -> None:
    # With a key that keeps it out of the process, where what is gone is no failure.
    use(bed, bridge("b23", "10.83.0.0/24", ipMasq=True, promiscMode=False))
    pod_id = run_pod(bed, pod_config("flushed"))
    bed.run(["iptables", "-t", "nat", "-F"])
    bed.run(["iptables", "-t", "nat", "-X"])
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    assert counted(bed, "bridge", "DEL", "rules_gone") == 1
    listed = flat(sandboxctl(bed, "explain", "-v", "flushed"))
    assert "kind=rules_gone" in listed and "nothing needs to be done" in listed
    remove_pod(bed, pod_id)  # tries again, which succeeds
    assert "flushed" not in sandboxctl(bed, "debts")


def test_a_pod_whose_interface_or_namespace_is_gone_is_removed_without_a_failure(bed: Testbed, hanging: Any) -> None:
    use(bed, bridge("b24", "10.84.0.0/24"), name="gone")
    without_link, without_netns = run_pod(bed), run_pod(bed)
    bed.run(["nsenter", f"--net={netns(bed, without_link)}", "ip", "link", "delete", "eth0"])
    bed.run(["umount", "-l", netns(bed, without_netns)])  # a plain file is left
    for pod_id in (without_link, without_netns):
        remove_pod(bed, pod_id)
        said = [
            line for line in bed.log_file.read_text("utf-8").splitlines() if pod_id[:12] in line and "cni.del" in line
        ]
        assert said and not [line for line in said if "error=" in line]
    assert not list(bed.path("/var/lib/cni/networks/gone").glob("10.*")), "their addresses are free"


def test_no_network_says_so(bed: Testbed, hanging: Any) -> None:
    bed.run(["rm", CONF])
    assert "no usable network configuration in /etc/cni/net.d (" in fails(bed, pod_config("lost"))
    assert "kind=no_network" in flat(sandboxctl(bed, "explain", "-v", "lost"))
    assert counted(bed, "", "PREPARE", "no_network") == 1


def test_a_plugin_that_hangs_is_told_with_its_limit(bed: Testbed, hanging: Any) -> None:
    words = hanging.result(timeout=180)
    assert f"did not finish ADD within {PLUGIN_SECONDS:g} seconds and was killed with its children" in words
    assert "when its time was over; next: see in its output" in words
    assert "kind=hang" in flat(sandboxctl(bed, "explain", "-v", "hangs"))
    assert counted(bed, "hangs", "ADD", "hang") == 1


def test_every_kind_that_is_counted_is_in_the_vocabulary(bed: Testbed) -> None:
    seen = set(re.findall(r'sandboxd_network_failures_total\{command="\w+",kind="(\w+)"', metrics(bed)))
    assert seen and seen <= set(KINDS)

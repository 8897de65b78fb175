"""Each way in which a pod's network breaks without CNI CHECK noticing, and what doctor says about it.

A pod is broken in one way; doctor names the evidence and the remedy and exits with 1; the remedy's commands are run
as they stand, and doctor finds nothing more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sandboxd.cli.commands import cli
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2
from tests.pods import pod_config, remove_pod, run_pod
from tests.testbed import UPLINK_ADDRESS, Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.insight]

CONF = "/etc/cni/net.d/10-test.conflist"
# Answers every query, of DNS, by a refusal.
NAME_SERVER = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((%r, 53))
print("there", flush=True)
while True:
    query, client = server.recvfrom(512)
    server.sendto(query[:2] + b"\\x80\\x05" + query[4:], client)
"""
LISTENER = """
import socket
server = socket.create_server(("0.0.0.0", 80))
print("there", flush=True)
while True:
    server.accept()[0].close()
"""
BRIDGE = {
    "type": "bridge",
    "bridge": "doc0",
    "isGateway": True,
    "ipMasq": True,
    "hairpinMode": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.90.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}


@dataclass(frozen=True)
class Case:
    """One way to break the pod, and what is said of it."""

    breaks: str  # for a shell; {netns}, {other}, {veth}, {ip} and {id} are the pod's
    name: str  # of the check
    evidence: str
    remedy: str
    commands: bool = True  # doctor gives some, and they are run
    undo: str = ""  # what they do not undo


INSIDE = "nsenter --net={netns}"
CASES = {
    "loopback down": Case(f"{INSIDE} ip link set lo down", "loopback", "lo in {netns} is down", "set it up"),
    "interface down": Case(
        f"{INSIDE} ip link set eth0 down && {INSIDE} ip link set eth0 up",
        "default-route",
        "no route 0.0.0.0/0 in {netns}",
        "add it",
    ),
    "address of the pod removed": Case(
        f"{INSIDE} ip address add 10.90.0.99/24 dev eth0 && {INSIDE} ip address del {{ip}}/24 dev eth0 && "
        f"{INSIDE} sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1",
        "interface",
        "eth0 in {netns} has",
        "add what is lost",
    ),
    "host end down": Case("ip link set {veth} down", "host-end", "{veth} on the machine is down", "set it up"),
    "host end off the bridge": Case(
        "ip link set {veth} nomaster", "host-end", "the master of {veth} is none", "make it one"
    ),
    "bridge down": Case("ip link set doc0 down", "bridge", "doc0 on the machine is down", "set it up"),
    "gateway address removed": Case("ip address del 10.90.0.1/24 dev doc0", "gateway-address", "doc0 has", "add it"),
    "forwarding off": Case(
        "sysctl -qw net.ipv4.ip_forward=0", "forwarding", "net.ipv4.ip_forward is 0", "turn it on"
    ),
    "masquerade flushed": Case(
        "iptables -t nat -F POSTROUTING",
        "masquerade",
        "the network has ipMasq, and no rule for nat masquerades {ip}",
        "make the rules again, as the plugin does",
    ),
    "masquerade flushed in its own chain": Case(
        "iptables -t nat -S | sed -n 's/^-N \\(CNI-[0-9a-f]*\\)$/\\1/p' | xargs -n 1 iptables -t nat -F",
        "masquerade",
        "no rule for nat masquerades {ip}",
        "make the rules again",
    ),
    "FORWARD policy of iptables": Case(
        "iptables -P FORWARD DROP",
        "forward-policy",
        "iptables-nft filter FORWARD policy drop",
        "let the traffic of doc0 through",
    ),
    "a rule that drops": Case(
        "iptables -P FORWARD ACCEPT && iptables -F FORWARD && iptables -A FORWARD -s 10.90.0.0/16 -j REJECT",
        "forward-policy",
        "iptables-nft filter FORWARD: -A FORWARD -s 10.90.0.0/16 -j REJECT",
        "let the traffic of doc0 through",
    ),
    "a chain of nft beside iptables": Case(
        "nft 'table inet wall { chain forward { type filter hook forward priority 0; policy drop; }; }'",
        "forward-policy",
        "nft inet wall forward policy drop",
        "let the traffic of doc0 through",
    ),
    "hairpin off": Case(
        "ip link set {veth} type bridge_slave hairpin off",
        "hairpin",
        "hairpin of {veth} on doc0 is off",
        "turn it on",
    ),
    "default route removed": Case(f"{INSIDE} ip route del default", "default-route", "no route 0.0.0.0/0", "add it"),
    "MTU of the way smaller": Case(
        "ip link set up0 mtu 1400",
        "mtu",
        "MTU 1500 of eth0 in {netns}, 1400 of up0",
        "lower the pod's",
        undo="ip link set up0 mtu 1500",
    ),
    "address of another pod": Case(
        "nsenter --net={other} ip address add {ip}/24 dev eth0",
        "duplicate-address",
        "ARP for the pod's address is answered by",
        "take the address from it",
        commands=False,
        undo="nsenter --net={other} ip address del {ip}/24 dev eth0",
    ),
    "a route in the way": Case(
        "ip route add {ip}/32 dev up0",
        "way-back",
        "its route to {ip} leads through up0",
        "remove or narrow the route",
        commands=False,
        undo="ip route del {ip}/32 dev up0",
    ),
    "ports of the bridge isolated": Case(
        "ip link set {veth} type bridge_slave isolated on; ip link set {peer} type bridge_slave isolated on",
        "other-pod",
        "(pod default/second): no answer in",
        "isolated (`bridge -d link`)",
        commands=False,
        undo="ip link set {veth} type bridge_slave isolated off; ip link set {peer} type bridge_slave isolated off",
    ),
    "no name server": Case(
        "cp {resolv} /run/saved; echo search x > {resolv}",
        "dns",
        "no line `nameserver`",
        "name some in dns_config",
        commands=False,
        undo="cat /run/saved > {resolv}",
    ),
    "a stub of the machine": Case(
        "cp {resolv} /run/saved; echo nameserver 127.0.0.53 > {resolv}",
        "dns",
        "127.0.0.53: refused",
        "a cache of the machine, such as systemd-resolved's, is not in the pod",
        commands=False,
        undo="cat /run/saved > {resolv}",
    ),
    "a name server that is silent": Case(
        "cp {resolv} /run/saved; echo nameserver 10.90.0.77 > {resolv}",
        "dns",
        "10.90.0.77: ",
        "check the server and the way to it",
        commands=False,
        undo="cat /run/saved > {resolv}",
    ),
    "rules of a host port removed": Case(
        "iptables -t nat -S CNI-HOSTPORT-DNAT | grep -v ^-N > /run/saved; iptables -t nat -F CNI-HOSTPORT-DNAT",
        "host-port",
        "no rule for nat, before routing, leads it to port 80 of {ip}",
        "remove the pod and run it again",
        commands=False,
        undo="while read -r rule; do eval iptables -t nat $rule; done < /run/saved",
    ),
}


class Broken:
    """A bed with two pods on a network, the first of which is looked at."""

    def __init__(self, bed: Testbed) -> None:
        self.bed = bed
        dns = cri.DNSConfig(servers=[UPLINK_ADDRESS])
        self.other = run_pod(bed, pod_config("second", dns_config=dns))
        ports = [cri.PortMapping(container_port=80, host_port=8080)]
        self.pod = run_pod(bed, pod_config("first", dns_config=dns, port_mappings=ports))
        first, second = (self._explained(pod_id) for pod_id in (self.pod, self.other))
        self.words = {
            "id": self.pod,
            "netns": first.netns_path,
            "other": second.netns_path,
            "veth": _veth(first),
            "peer": _veth(second),
            "ip": first.attachments[0].ips[0],
            "resolv": f"/var/lib/sandboxd/pod-files/{self.pod}/resolv.conf",
        }

    def _explained(self, pod_id: str) -> host_pb2.ExplainResponse:
        return self.bed.host.Explain(host_pb2.ExplainRequest(pod_sandbox_id=pod_id))

    def filled(self, text: str) -> str:
        for key, value in self.words.items():
            text = text.replace(f"{{{key}}}", value)
        return text

    def shell(self, script: str) -> None:
        self.bed.run(["sh", "-ec", self.filled(script)])

    def doctor(self, *argv: str) -> tuple[int, list[dict[str, Any]]]:
        """The exit status and what is said; in this process, as there are very many."""
        done = CliRunner().invoke(cli, ["--socket", str(self.bed.socket), "doctor", *argv, "-o", "json"])
        return done.exit_code, json.loads(done.stdout)["checks"]

    def findings(self) -> list[host_pb2.DoctorCheck]:
        """What of the pod is not well, by the API."""
        answer = self.bed.host.Doctor(host_pb2.DoctorRequest(pod_sandbox_id=self.pod))
        return [each for each in answer.checks if each.severity not in ("ok", "info")]


def _sandboxctl(bed: Testbed) -> list[str]:
    return [str(Path(sys.executable).parent / "sandboxctl"), "--socket", str(bed.socket)]


def _veth(explained: host_pb2.ExplainResponse) -> str:
    interfaces = json.loads(explained.attachments[0].result)["interfaces"]
    return str(next(each["name"] for each in interfaces if each["name"].startswith("veth")))


@pytest.fixture(scope="module")
def broken(containerd_bin: Path | None) -> Iterator[Broken]:
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.write(CONF, json.dumps({"cniVersion": "1.0.0", "name": "test", "plugins": [BRIDGE, PORTMAP]}))
        bed.start_daemon()
        server = bed.popen([sys.executable, "-I", "-c", NAME_SERVER % UPLINK_ADDRESS])
        assert server.stdout is not None and server.stdout.readline() == "there\n"
        made = Broken(bed)
        listener = bed.popen(["nsenter", f"--net={made.words['netns']}", sys.executable, "-I", "-c", LISTENER])
        assert listener.stdout is not None and listener.stdout.readline() == "there\n"
        yield made


def test_a_healthy_pod_is_a_short_list_of_what_is_well(broken: Broken) -> None:
    done = broken.bed.run([*_sandboxctl(broken.bed), "doctor", "first"])
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    wanted = (
        "loopback interface default-route host-end bridge hairpin mtu way-back forwarding forward-policy masquerade"
    )
    well = [row[1] for row in rows if row[0] == "ok"]
    assert well[-16:] == [*wanted.split(), "host-port", "duplicate-address", "gateway", "other-pod", "dns"]
    # Debian 12's portmap looks for rules of IPv6 for a pod that has no such address.
    assert well[:-16] == ["cni-check"] or "a fault of a plugin: portmap looks for rules of IPv6" in done.stdout
    assert len(done.stdout.splitlines()) <= 18
    assert "8080/tcp leads to the pod" in done.stdout and "(pod default/second)" in done.stdout


@pytest.mark.parametrize("name", CASES)
def test_what_is_broken_is_found_with_evidence_and_a_remedy_that_works(broken: Broken, name: str) -> None:
    case = CASES[name]
    broken.shell(case.breaks)

    status, checks = broken.doctor("first")

    found = [each for each in checks if each["severity"] in ("error", "warning")]
    assert status == 1
    (check,) = [each for each in found if each["name"] == case.name][:1]
    assert broken.filled(case.evidence) in check["evidence"]
    assert case.remedy in check["remedy"]
    commands = [command for each in found for command in each["commands"]]
    assert bool(check["commands"]) is case.commands
    for command in commands:
        broken.shell(command)
    if not commands:
        broken.shell(case.undo)
    if left := broken.findings():  # what an interface lost when it was down comes to light when it is up
        for command in [command for each in left for command in each.commands]:
            broken.shell(command)
        assert broken.findings() == []
    if commands and case.undo:
        broken.shell(case.undo)


def test_a_pod_that_is_gone_or_stopped_could_not_be_looked_at(broken: Broken) -> None:
    assert broken.bed.run([*_sandboxctl(broken.bed), "doctor", "nobody"], check=False).returncode == 3
    pod_id = run_pod(broken.bed, pod_config("ended"))
    broken.bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    status, (check,) = broken.doctor("ended")
    assert (status, check["severity"], check["name"]) == (2, "unknown", "network")
    remove_pod(broken.bed, pod_id)


def test_a_namespace_that_somebody_unmounts_is_named_and_put_back_by_the_remedy(broken: Broken) -> None:
    broken.shell("umount -l {netns}")
    status, (check,) = broken.doctor("first")
    assert (status, check["name"]) == (1, "namespace") and broken.words["netns"] in check["evidence"]
    _, *arguments = check["commands"][0].split()
    broken.bed.run([*_sandboxctl(broken.bed), *arguments])
    assert broken.findings() == []


def test_the_machine_is_looked_at(broken: Broken) -> None:
    broken.bed.write("/etc/cni/net.d/20-later.conflist", json.dumps({"cniVersion": "1.0.0", "name": "later"}))
    status, checks = broken.doctor()
    said = {each["name"]: each for each in checks}
    assert status == 1, "a file of the directory is broken"
    assert [each["says"] for each in checks if each["severity"] == "warning"] == [
        "/etc/cni/net.d/20-later.conflist: plugins: network 'later' needs at least one plugin"
    ]
    in_force = next(each for each in checks if each["name"] == "conf-file")["says"]
    assert f"{CONF} is in force: network 'test'" in in_force
    assert said["addresses"]["says"] == "network 'test': 251 of 253 addresses are left"
    assert said["containerd-version"]["says"].startswith("containerd ") and "runc" in said["runtime-version"]["says"]
    assert any("bridge" in each["says"] and "1.0.0" in each["says"] for each in checks if each["name"] == "plugins")
    assert {"kernel", "cgroups", "forwarding", "br-netfilter", "packet-filter", "debts", "disk"} <= said.keys()
    assert all(each["severity"] in ("ok", "info", "warning") for each in checks), checks
    broken.bed.run(["rm", "/etc/cni/net.d/20-later.conflist"])


def test_doctor_says_what_it_could_not_ask_when_a_plugin_hangs(broken: Broken) -> None:
    # Looked for before the directory with the real one.
    broken.bed.write("/opt/cni/bin/portmap", "#!/bin/sh\nsleep 600\n", mode=0o755)
    status, checks = broken.doctor("first")
    broken.bed.run(["rm", "/opt/cni/bin/portmap"])
    assert [each for each in checks if each["severity"] in ("error", "warning")] == []
    unknown = [each["says"] for each in checks if each["severity"] == "unknown"]
    assert status == 2
    assert unknown == ["CNI CHECK could not be asked: it did not end within 5 s"]

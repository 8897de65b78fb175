"""What failures mean, by the words of the reference plugins: of Debian's 1.1.1 where nothing else is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sandboxd.cni.diagnosis import KINDS, Diagnosis, Failure, diagnose

CODE = " (CNI error 999)"
NO_CHAIN = (
    "running [/usr/sbin/iptables -t nat -D POSTROUTING -s 10.3.0.2 -j CNI-a8c3aa9da9ebf509a31d96c7 -m comment "
    '--comment name: "n2" id: "d" --wait]: exit status 2: iptables v1.8.9 (nf_tables): Chain '
    "'CNI-a8c3aa9da9ebf509a31d96c7' does not exist\nTry `iptables -h' or 'iptables --help' for more information.\n"
)
NO_TABLE = (
    "unable to create chain CNI-HOSTPORT-SETMARK: failed to list iptables chains: running [/sbin/iptables -t nat -S "
    "--wait]: exit status 3: iptables v1.8.9 (legacy): can't initialize iptables table `nat': Table does not exist "
    "(do you need to insmod?)\n"
)
NO_TABLE_ALLOWED = NO_TABLE.replace(
    "Table does not exist (do you need to insmod?)", "Permission denied (you must be root)"
)

# plugin, command, the plugin's words; kind, and what the cause and the remedy name.
SAID = [
    (
        "bridge ADD failed to allocate for range 0: no IP addresses available in range set: 10.1.0.1-10.1.0.2",
        "addresses_exhausted",
        "every address of the network is given out",
    ),
    (
        "host-local ADD failed to allocate for range 0: requested IP address 10.4.0.9 is not available in range set"
        " 10.4.0.1-10.4.0.254",
        "address_taken",
        "10.4.0.9 is held by another container, or is no address of 10.4.0.1-10.4.0.254",
    ),
    ("host-local ADD failed to allocate all requested IPs: 10.9.0.9", "address_taken", "10.9.0.9"),
    ("bridge ADD container veth name provided (eth0) already exists", "interface_exists", "repeated without its DEL"),
    # 1.9.1
    ('bridge ADD container veth name ("eth0") peer provided ("veth1") already exists', "interface_exists", "earlier"),
    ("ptp ADD failed to make veth pair: file exists", "interface_exists", "earlier"),  # before 0.9
    (
        'bridge ADD failed to set bridge addr: "b0" already has an IP address different from 10.2.0.1/24',
        "bridge_address",
        "ip link delete b0",
    ),
    (
        "bridge ADD failed to set bridge addr: could not set bridge's mac: invalid argument",
        "bridge_mac",
        "delete sbx7",
    ),
    (
        # 1.5
        "bridge ADD failed to set bridge addr: could not set bridge's mac: invalid argument (00:00:00:00:00:00)",
        "bridge_mac",
        "sbx7 is an empty bridge",
    ),
    (
        'bridge ADD failed to create bridge "lo": "lo" already exists but is not a bridge',
        "not_a_bridge",
        "lo of another",
    ),
    ("bridge ADD invalid CIDR address: 10.2.0.0/33", "bad_range", "network pods"),
    ("bridge DEL invalid range set 0: RangeStart 10.9.0.1 not in network 10.3.0.0/24", "bad_range", '"subnet"'),
    ("bridge ADD invalid range set 0: Network 10.3.0.0/31 too small to allocate from", "bad_range", "ipam"),
    ("bridge ADD invalid range set 0: Network has host bits set. For a subnet mask of", "bad_range", "ipam"),
    ("bridge ADD range set 0 overlaps with 1", "bad_range", "ipam"),
    ("bridge ADD no IP ranges specified", "bad_range", "ipam"),
    (
        "bridge ADD the 'address' field is expected to be in CIDR notation, got: '10.1.1.1'",
        "bad_range",
        '{"subnet": "10.88.0.0/16"}',
    ),
    (
        'bridge ADD failed to find plugin "nosuch" in path [/usr/lib/cni /opt/cni/bin]',
        "delegate_missing",
        'binary of "nosuch", which bridge runs, is in none of /usr/lib/cni /opt/cni/bin',
    ),
    (
        "bridge ADD error dialing DHCP daemon: dial unix /run/cni/dhcp.sock: connect: no such file",
        "not_ready",
        "dhcp",
    ),
    (
        'bridge ADD failed to open netns "/run/netns/x": failed to Statfs "/run/netns/x": no such file or directory',
        "namespace_gone",
        "unmounted or removed",
    ),
    ('bridge DEL unknown FS magic on "/run/netns/plain": 1021994', "namespace_gone", "unmounted or removed"),
    (
        'portmap ADD failed to open iptables: exec: "iptables": executable file not found in $PATH',
        "iptables",
        "portmap needs iptables, which is not in its PATH",
    ),
    (
        'bridge ADD failed to locate iptables: exec: "iptables": executable file not found in $PATH',
        "iptables",
        "needs",
    ),
    (
        'firewall ADD could not initialize iptables protocol 1: exec: "ip6tables": executable file not found in'
        " $PATH",
        "iptables",
        "ip6tables",
    ),
    (f"portmap ADD {NO_TABLE}", "iptables", "the kernel lacks"),
    (f"portmap ADD {NO_TABLE_ALLOWED}", "permission", "CAP_NET_ADMIN"),
    (f"bridge DEL {NO_CHAIN}", "rules_gone", "nothing needs to be done"),
    (f"bridge ADD {NO_CHAIN}", "other", ""),
    ("bridge ADD no space left on device", "disk", "full or read-only"),
    (
        "bridge ADD failed to allocate for range 0: open /x/10.3.0.2: read-only file system",
        "disk",
        "full or read-only",
    ),
    (
        'bridge ADD failed to create bridge "b3": could not add "b3": operation not permitted',
        "permission",
        "bridge lacks",
    ),
    ("macvlan ADD Link not found", "link_missing", "ip link"),
    ('ipvlan ADD failed to lookup master "nosuch0": Link not found', "link_missing", "ip link"),
    ("host-device ADD failed to find host device: Link not found", "link_missing", "ip link"),
    ("bridge ADD could not lookup: Link not found", "other", ""),
    ("tuning ADD open /proc/sys/net/ipv4/nosuch: no such file or directory", "sysctl", "no net/ipv4/nosuch"),
    ("portmap ADD must be called as chained plugin", "chain", "put it behind"),
    ("tuning ADD Required prevResult missing", "chain", "put it behind"),
    ("proxy ADD listen tcp 0.0.0.0:80: bind: address already in use", "port_taken", "ss -lntup"),
    ("bridge CHECK Failed to match addr 10.66.0.3/24 on interface eth0", "changed", "since its ADD"),
    ("bridge CHECK Interface name eth0 not found", "changed", "since its ADD"),
    ("bridge ADD exited with status 3 and said nothing", "silent", "run it by hand"),
    ("bridge ADD returned no address for eth0", "no_address", "prevResult"),
    ("bridge ADD malformed result: 'ips' is not a list", "bad_result", "update bridge"),
    # Nothing is guessed.
    ("bridge ADD the switch is on fire", "other", ""),
    ("bridge ADD dial unix /var/run/dbus/system_bus_socket: connect: no such file or directory", "other", ""),
    ('bridge ADD could not add "averylongbridgename0": numerical result out of range', "other", ""),
]

# What sandboxd says itself, which has its next step in it.
OURS = [
    (
        'CNI plugin "x" (network "pods", from /c) was not found; looked in /a, /b; put its binary in one',
        "plugin_missing",
    ),
    ('CNI plugin "x" (network "pods") was found at /a/x, which is not executable; run: chmod', "plugin_missing"),
    ("CNI plugin /a/x cannot be executed: Exec format error", "plugin_missing"),
    ("CNI plugin /a/x cannot be read: Permission denied", "plugin_missing"),
    ('CNI plugin "x" (/a/x) speaks 0.1.0; network "pods", from /c, can use 1.1.0; set its', "version"),
    ("no usable network configuration in /etc/cni/net.d (no files)", "no_network"),
    ("host port 80/tcp is held by pod default/web/u/0 (abc); choose another or remove it", "port_taken"),
    ('annotation sandboxd.io/mac: no plugin of network "pods" (/c) has the capability "mac", so', "capability"),
    ("/run/netns/x is the host's own network namespace; plugins would change the host", "host_netns"),
]


def said(words: str, **more: Any) -> Failure:
    plugin, command, text = words.split(" ", 2)
    conf = {"name": "pods", "bridge": "sbx7"}
    told = f"CNI plugin {plugin} failed on {command}: {text}"
    return Failure(plugin=plugin, command=command, words=told, conf=conf, **more)


@pytest.mark.parametrize(("words", "kind", "names"), SAID, ids=[f"{kind}-{words[:20]}" for words, kind, _ in SAID])
@pytest.mark.parametrize("ending", ["", CODE])
def test_the_words_of_plugins_are_known(words: str, kind: str, names: str, ending: str) -> None:
    found = diagnose(said(words + ending, code=999, exit_code=1))

    assert found.kind == kind
    assert names in f"{found.cause}; {found.remedy}"
    if kind == "other":
        assert (found.cause, found.remedy) == ("", "")
    elif kind not in ("addresses_exhausted", "silent", "bad_result"):
        assert found.cause and found.remedy


@pytest.mark.parametrize(("words", "kind"), OURS)
def test_what_sandboxd_says_is_counted_and_not_repeated(words: str, kind: str) -> None:
    assert diagnose(Failure(plugin="x", command="PREPARE", words=words)) == Diagnosis(kind=kind)


@pytest.mark.parametrize(
    ("failure", "kind", "names"),
    [
        (said("bridge ADD incompatible CNI versions", code=1), "version", "cniVersion"),
        (said("calico ADD no data store", code=11), "not_ready", "cannot serve now"),
        (said("calico STATUS no data store", code=50), "not_ready", "calico depends on"),
        (said("bridge ADD killed by SIGSEGV", exit_code=-11), "crash", "bridge crashed, with SIGSEGV"),
        (said("bridge ADD killed by SIGKILL", exit_code=-9), "crash", "out of memory"),
        (said("bridge ADD killed by signal 99", exit_code=-99), "crash", "signal 99"),
        (said("dhcp ADD panic: nil", exit_code=2, panicked=True), "crash", "dhcp crashed, with exit status 2"),
        (said("bridge ADD no space left on device", timed_out=True, exit_code=-9), "hang", "network.plugin_seconds"),
    ],
)
def test_codes_of_the_spec_and_endings_are_known(failure: Failure, kind: str, names: str) -> None:
    found = diagnose(failure)

    assert found.kind == kind
    assert names in f"{found.cause}; {found.remedy}"
    assert found.cause and found.remedy


def test_what_a_configuration_lacks_or_has_wrong_is_told_all_the_same() -> None:
    words = "CNI plugin bridge failed on ADD: could not set bridge's mac: invalid argument"
    for conf in ({}, {"bridge": ""}):
        assert "delete cni0" in diagnose(Failure(plugin="bridge", command="ADD", words=words, conf=conf)).remedy
    odd = Failure(plugin="bridge", command="ADD", words="no IP ranges specified", conf={"name": [1]})
    assert diagnose(odd).kind == "bad_range" and "[1]" not in diagnose(odd).cause


def test_words_in_braces_are_only_words() -> None:
    found = diagnose(said('bridge ADD "{command} {0} {x.y}" already exists but is not a bridge'))

    assert "an interface {command} {0} {x.y} of" in found.cause


def test_a_megabyte_of_words_takes_no_time() -> None:
    """Beyond what is read, quadratic patterns would take minutes; the suite's time limit would end this."""
    assert diagnose(said("bridge DEL " + "iptables : " * 100_000)).kind == "other"


def test_every_kind_is_tested_and_documented() -> None:
    tested = {kind for _, kind, _ in SAID} | {kind for _, kind in OURS} | {"version", "not_ready", "crash", "hang"}
    page = Path(__file__).parents[3].joinpath("docs", "failures.md").read_text(encoding="utf-8")

    assert tested == set(KINDS)
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(KINDS)

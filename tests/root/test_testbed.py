"""The testbed keeps its promises: beds are apart, audits see every leak, and closing leaves nothing."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from sandboxd.pb.cri.v1.api_pb2 import VersionRequest
from tests.audit import Snapshot, difference, leaks, observe
from tests.processes import processes_in
from tests.testbed import CONFIG_FILE, UPLINK_ADDRESS, BedFailed, Testbed, toml

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def empty() -> Iterator[Testbed]:
    """A bed without a daemon."""
    with Testbed() as bed:
        yield bed


def traces_of(bed: Testbed) -> list[str]:
    """What the machine has by the name of the bed. Other beds come and go meanwhile."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found = [line for line in mounts if bed.name in line or bed.base.name in line]
    return found + [str(place) for place in (bed.base, *bed.cgroup_dirs()) if place.exists()]


def planted_on_the_machine() -> list[str]:
    """Which of the names that LEAKS gives, and beds give, exist outside of all beds."""
    links = {"lost0", "up0", "up1"} & set(os.listdir("/sys/class/net"))
    files = ("/etc/in-the-bed-only", "/run/lost", "/run/netns/lost", "/run/sandboxd/out", "/var/lib/sandboxd/lost")
    return sorted(links) + [name for name in (*files, "/etc/cni", "/opt/cni") if Path(name).exists()]


def make_cgroup(bed: Testbed) -> None:
    """A cgroup below the bed's parent, in some hierarchy of this machine."""
    hierarchies = sorted(p for p in Path("/sys/fs/cgroup").glob("pids") if p.is_dir())
    top = hierarchies[0] if hierarchies else Path("/sys/fs/cgroup")
    (top / bed.name / "pod").mkdir(parents=True)


def shell(script: str) -> Callable[[Testbed], None]:
    """An action that runs a shell script in the bed."""

    def act(bed: Testbed) -> None:
        bed.run(["sh", "-euc", script])

    return act


NAT_RULE = "-t nat -A POSTROUTING -s 10.9.9.9 -j MASQUERADE"

LEAKS = {
    "netns": (shell("ip netns add lost"), "+ netns lost"),
    "link": (shell("ip link add lost0 type bridge"), "+ link lost0 (bridge)"),
    "address": (shell("ip addr add 10.9.9.1/32 dev up0"), "+ address 10.9.9.1/32 on up0"),
    "route": (
        shell("ip route add 10.8.0.0/16 dev up0"),
        "+ route 10.8.0.0/16 dev up0 table main (unicast)",
    ),
    "iptables rule": (
        shell(f"iptables {NAT_RULE}"),
        "+ iptables nat -A POSTROUTING -s 10.9.9.9/32 -j MASQUERADE",
    ),
    "ip6tables rule": (
        shell("ip6tables -A INPUT -s fd00::9 -j ACCEPT"),
        "+ ip6tables filter -A INPUT -s fd00::9/128 -j ACCEPT",
    ),
    "nft table": (shell("nft add table inet lost"), '+ nft table {"family": "inet", "name": "lost"}'),
    "IPAM file": (
        lambda bed: bed.write("/var/lib/cni/networks/sandboxd/10.0.10.5", "podid\neth0"),
        "+ IPAM or CNI file /var/lib/cni/networks/sandboxd/10.0.10.5 = podid eth0",
    ),
    "mount": (
        shell("mkdir /run/lost; mount -t tmpfs lost /run/lost"),
        "+ mount /run/lost (tmpfs lost)",
    ),
    "process": (shell("setsid sleep 1000 >/dev/null 2>&1 &"), "+ process sleep 1000"),
    "FIFO": (shell("mkdir -p /run/sandboxd; mkfifo /run/sandboxd/out"), "+ FIFO /run/sandboxd/out"),
    "file": (lambda bed: bed.write("/var/lib/sandboxd/lost", ""), "+ file /var/lib/sandboxd/lost"),
    "cgroup": (make_cgroup, "+ cgroup "),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_audit_finds_a_leak_of_every_kind(empty: Testbed, kind: str) -> None:
    """Whatever a pod could leave behind is reported in words that name it."""
    plant, words = LEAKS[kind]
    before = observe(empty)
    plant(empty)
    found = leaks(empty, before, within=0)
    assert [line for line in found if line.startswith(words)], found
    assert not [line for line in found if line.startswith("-")], found


def test_audit_finds_nothing_where_nothing_changed(empty: Testbed) -> None:
    """Two looks at a quiet host are equal, counters and all."""
    empty.run(["sh", "-euc", "iptables -A OUTPUT -j ACCEPT"])
    before = observe(empty)
    empty.run([sys.executable, "-c", SEND])
    assert leaks(empty, before, within=0) == []


def test_audit_reports_what_went_missing(empty: Testbed) -> None:
    """Taking away what was there before is a change too."""
    empty.run(["ip", "link", "add", "there0", "type", "bridge"])
    before = observe(empty)
    empty.run(["ip", "link", "delete", "there0"])
    assert leaks(empty, before, within=0) == ["- link there0 (bridge)"]


def test_equal_things_are_counted() -> None:
    """A second mount on the same place is a leak although a line for it exists."""
    once, twice = Snapshot(lines=("mount /a",)), Snapshot(lines=("mount /a", "mount /a"))
    assert difference(once, twice) == ["+ mount /a"]
    assert difference(twice, once) == ["- mount /a"]


def test_leaks_waits_for_what_ends_by_itself(empty: Testbed) -> None:
    """A process that is about to end is no leak."""
    before = observe(empty)
    empty.run(["sh", "-c", "setsid sleep 0.3 >/dev/null 2>&1 &"])
    assert leaks(empty, before, within=20) == []


def test_beds_do_not_see_each_other() -> None:
    """The same link, netns, file and process names are free in a second bed."""
    with Testbed() as one, Testbed() as two:
        untouched = observe(two)
        one.run(["ip", "netns", "add", "pod"])
        one.run(["ip", "link", "add", "sbx0", "type", "bridge"])
        one.write("/etc/cni/net.d/10-x.conf", "{}")
        one.write("/var/lib/cni/networks/x/10.0.0.2", "id")
        sleeper = one.popen(["sleep", "1000"])
        assert difference(untouched, observe(two)) == []
        assert not two.path("/etc/cni/net.d").exists()
        assert two.pid_namespace != one.pid_namespace
        sleeper.kill()
        assert sleeper.wait(timeout=10) == -9


def test_close_leaves_the_machine_as_it_was() -> None:
    """No process, link, mount, cgroup or file of a bed is left, whatever was done in it."""
    before = planted_on_the_machine()
    with Testbed() as bed:
        for plant, _ in LEAKS.values():
            plant(bed)
        bed.run(["touch", "/etc/in-the-bed-only"])
        bed.popen(["sleep", "1000"])
        namespace = bed.pid_namespace
        assert processes_in(namespace)
        assert len(traces_of(bed)) > 1
    assert processes_in(namespace) == []
    assert traces_of(bed) == []
    assert planted_on_the_machine() == before


def test_close_may_be_repeated() -> None:
    """A second close does nothing."""
    bed = Testbed()
    bed.close()
    bed.close()
    assert not bed.base.exists()


def test_files_are_the_same_inside_and_outside(empty: Testbed) -> None:
    """`path` leads to what the bed sees, in its private directories and elsewhere in its overlay."""
    empty.write("/run/sandboxd/note", "from outside\n")
    assert empty.run(["cat", "/run/sandboxd/note"]).stdout == "from outside\n"
    empty.run(["sh", "-c", "echo from inside >/etc/note"])
    assert empty.path("/etc/note").read_text() == "from inside\n"
    assert not Path("/etc/note").exists()


def test_logs_are_the_beds_own(empty: Testbed) -> None:
    """What clients put into /var/log, as sandboxctl does, is not in the machine's."""
    empty.run(["sh", "-euc", "mkdir /var/log/of-a-bed && echo said >/var/log/of-a-bed/log"])
    assert empty.path("/var/log/of-a-bed/log").read_text() == "said\n"
    assert not Path("/var/log/of-a-bed").exists()


def test_what_unit_tests_run_with_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio's debug mode is for the test process; a daemon runs as it is shipped."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    with Testbed() as bed:
        assert bed.run(["sh", "-c", "echo ${PYTHONASYNCIODEBUG-none}"]).stdout == "none\n"


def test_default_network_is_installed_and_described(empty: Testbed) -> None:
    """What tests are told of the network is what the installed file says."""
    network = empty.default_network()
    assert json.loads(empty.run(["cat", network.file]).stdout) == network.conflist
    assert ip_address(network.gateway) in ip_network(network.subnet)
    assert network.bridge in {plugin.get("bridge") for plugin in network.conflist["plugins"]}


def test_a_program_that_runs_too_long_is_ended(empty: Testbed) -> None:
    """A timeout leaves no process in the bed."""
    before = observe(empty)
    with pytest.raises(BedFailed, match=r"sleep 1000: still running after 0\.2 s"):
        empty.run(["sleep", "1000"], timeout=0.2)
    assert leaks(empty, before, within=0) == []


def test_a_failing_program_is_reported_with_its_words(empty: Testbed) -> None:
    """`check` raises what the program said; without it the status is returned."""
    with pytest.raises(BedFailed, match="exit status 3: no luck"):
        empty.run(["sh", "-c", "echo no luck >&2; exit 3"])
    assert empty.run(["sh", "-c", "exit 3"], check=False).returncode == 3


def test_orphans_are_reaped(empty: Testbed) -> None:
    """The bed has an init: a shim whose parent ended leaves no zombie behind."""
    before = observe(empty)
    empty.run(["sh", "-c", "(sh -c 'exit 0' &)"])
    assert leaks(empty, before, within=10) == []


def test_http_get_fetches_from_inside(empty: Testbed) -> None:
    """A server that listens only in the bed is reached, also when it starts late."""
    script = "import http.server as h; h.HTTPServer(('127.0.0.1', 8088), h.SimpleHTTPRequestHandler).serve_forever()"
    empty.write("/run/www/index.html", "hello from the bed\n")
    server = empty.popen(["sh", "-c", f'cd /run/www && exec "$0" -c "{script}"', sys.executable])
    assert empty.http_get("127.0.0.1", 8088) == (200, "hello from the bed\n")
    assert empty.http_get("127.0.0.1", 8088, "/missing")[0] == 404
    server.kill()
    server.communicate(timeout=10)
    with pytest.raises(BedFailed, match="ConnectionRefusedError"):
        empty.http_get("127.0.0.1", 8088, within=0)


SEND = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
SNIFF = """
import socket
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
wire.bind(("up1", 0x0800))
wire.settimeout(10)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.sendto(b"x", ("203.0.113.9", 9))
packet = wire.recv(100)
while packet[16:20] != socket.inet_aton("203.0.113.9"):
    packet = wire.recv(100)
print(socket.inet_ntoa(packet[12:16]))
"""


def test_traffic_outwards_ends_at_the_uplink(empty: Testbed) -> None:
    """What is routed to the world arrives at up1, with the uplink's address."""
    assert empty.run([sys.executable, "-c", SNIFF]).stdout.strip() == UPLINK_ADDRESS


STAND_IN = """
import signal, sys, threading, tomllib
from concurrent import futures
import grpc
from sandboxd.pb.cri.v1 import api_pb2, api_pb2_grpc

assert sys.argv[1:3] == ["serve", "--config"]
if "broken" in tomllib.load(open(sys.argv[3], "rb"))["runtime"]:
    sys.exit("the stand-in does not want to start")


class Runtime(api_pb2_grpc.RuntimeServiceServicer):
    answers = 0

    def Version(self, request, context):
        Runtime.answers += 1
        if Runtime.answers < 4:
            context.abort(grpc.StatusCode.UNAVAILABLE, "recovering")
        return api_pb2.VersionResponse(runtime_name="stand-in")


stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
server = grpc.server(futures.ThreadPoolExecutor(2))
api_pb2_grpc.add_RuntimeServiceServicer_to_server(Runtime(), server)
server.add_insecure_port("unix:/run/sandboxd/sandboxd.sock")
server.start()
print("the stand-in serves", flush=True)
stop.wait()
server.stop(1).wait()
"""


@pytest.fixture
def served() -> Iterator[Testbed]:
    """A bed where a stand-in takes the daemon's place; it answers UNAVAILABLE three times first."""
    with Testbed() as bed:
        bed.write("/run/sandboxd/stand_in.py", STAND_IN)
        bed.daemon_argv = [sys.executable, "/run/sandboxd/stand_in.py"]
        yield bed


def test_start_waits_until_the_daemon_serves(served: Testbed) -> None:
    """UNAVAILABLE means that recovery goes on; SIGTERM ends the daemon and its status is returned."""
    served.start_daemon()
    assert served.runtime.Version(VersionRequest(), timeout=5).runtime_name == "stand-in"
    assert served.daemon_running
    assert served.stop_daemon() == 0
    assert not served.daemon_running
    assert served.log_tail() == "the stand-in serves"


def test_daemon_killed_and_started_again_serves_on_the_same_channel(served: Testbed) -> None:
    """A restart keeps the configuration, and tests go on with the stubs that they have."""
    served.start_daemon(containerd={"namespace": "other"})
    runtime, config = served.runtime, served.path(CONFIG_FILE).read_text()
    assert 'namespace = "other"' in config
    served.restart_daemon(kill=True)
    assert runtime.Version(VersionRequest(), timeout=5, wait_for_ready=True).runtime_name == "stand-in"
    assert served.path(CONFIG_FILE).read_text() == config
    assert served.kill_daemon() == -9


def test_daemon_that_does_not_start_is_reported_with_its_log(served: Testbed) -> None:
    """The end of the log is in the error, so a failing test tells why."""
    with pytest.raises(BedFailed, match="status 1 before it served:\nthe stand-in does not want to start"):
        served.start_daemon(runtime={"broken": True})


def test_configuration_is_written_as_toml() -> None:
    """Every kind of value that the daemon's configuration knows survives."""
    tables: dict[str, dict[str, Any]] = {
        "runtime": {
            "cgroup_parent": '/a"b',
            "handlers": {"runc": {"type": "io.containerd.runc.v2"}, "odd name": {"binary": ""}},
        },
        "network": {"plugin_dirs": ["/a", "/b"], "plugin_seconds": 1.5},
        "containerd": {"managed": True},
    }
    assert tomllib.loads(toml(tables)) == tables

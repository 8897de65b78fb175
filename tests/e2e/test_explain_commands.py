"""What `explain --commands` prints, pasted into a shell on another host: the same network, and nothing left of it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxd.cli import by_hand
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.audit import network
from tests.conftest import StartBed
from tests.pods import pod_config, remove_pod, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

SOCKET = "/run/sandboxd/sandboxd.sock"
SERVE = [sys.executable, "-I", "-m", "http.server", "80", "--directory", "/usr/share/common-licenses"]
SYSCTLS = ("net.ipv4.ip_forward", "net.ipv4.conf.sbx0.route_localnet")
# The ids of the user namespace that owns a network namespace: NS_GET_USERNS (ioctl_ns(2)), then setns(2) and its map.
OWNER = """
import ctypes, fcntl, os, sys
ns = os.open(sys.argv[1], os.O_RDONLY)
owner = fcntl.ioctl(ns, 0xB701)
if os.fstat(owner).st_ino != os.stat("/proc/self/ns/user").st_ino:
    assert ctypes.CDLL(None, use_errno=True).setns(owner, 0x10000000) == 0, ctypes.get_errno()
print(open("/proc/self/uid_map").read())
"""
VETH = re.compile(r"veth[0-9a-f]{8}")  # the bridge plugin takes random names


@pytest.fixture(scope="module")
def containerd_flavour() -> str:
    """One is enough: what is compared is made by plugins."""
    return "debian"


def explain(bed: Testbed, *argv: str) -> str:
    program = str(Path(sys.executable).parent / "sandboxctl")
    return bed.run([program, "--socket", SOCKET, "explain", *argv]).stdout


def paste(bed: Testbed, text: str) -> None:
    """Give the lines to an interactive person's shell; one that fails is an error."""
    said = bed.run(["sh", "-e"], stdin=text)
    assert said.stderr == "", said.stderr


def on_the_host(bed: Testbed) -> list[str]:
    """The host's network, and the files that plugins keep of it."""
    lines = [VETH.sub("veth-", line) for line in network(bed).lines]
    kept = bed.path("/var/lib/cni")
    files = sorted(path for path in kept.rglob("*") if path.is_file()) if kept.is_dir() else []
    lines += [f"{path.relative_to(kept)}: {path.read_text()!r}" for path in files]
    return [*lines, bed.run(["sysctl", *SYSCTLS], check=False).stdout]


def in_the_pod(bed: Testbed, netns: str) -> list[dict[str, Any]]:
    """Links, addresses, routes and rules inside; without what the kernel chooses at random."""
    told: list[dict[str, Any]] = []
    for words in (["-d", "address"], ["route", "show", "table", "all"], ["-6", "route"], ["rule"], ["neighbour"]):
        told += json.loads(bed.run(["ip", "-n", netns, "-json", *words]).stdout or "[]")
    for each in told:
        for chosen in ("address", "link_index", "link_netnsid", "ifindex", "lladdr", "state", "used"):
            each.pop(chosen, None)
        if "addr_info" in each:
            each["addr_info"] = [
                {"address": one["local"], "length": one["prefixlen"]}
                for one in each["addr_info"]
                if one["scope"] != "link"
            ]
    return [each for each in told if not str(each.get("dst", "")).startswith(("fe80", "ff00", "multicast"))]


def test_the_commands_make_a_network_like_the_pods_and_undo_it(fresh_bed: StartBed) -> None:
    pods, hand = fresh_bed(), fresh_bed(daemon=False, network=False)
    config = pod_config("", port_mappings=[cri.PortMapping(container_port=80, host_port=8080)])
    config.metadata.name = "web"
    pod_id = run_pod(pods, config)
    netns = f"sandboxd-{pod_id}"
    up, down = explain(pods, "--commands", "web"), explain(pods, "web", "--commands=down")

    paste(hand, up)

    until(lambda: in_the_pod(hand, netns) == in_the_pod(pods, netns), what="the namespaces are equal")
    assert on_the_host(hand) == on_the_host(pods)
    server = hand.popen(["ip", "netns", "exec", netns, *SERVE])
    assert hand.http_get("10.0.10.2", path="/GPL-3")[0] == 200
    assert hand.http_get("127.0.0.1", 8080, path="/GPL-3")[0] == 200
    server.kill()
    server.wait(60)

    paste(hand, down)
    remove_pod(pods, pod_id)

    until(lambda: on_the_host(hand) == on_the_host(pods), what="both hosts are as they are after a pod")
    assert not list(hand.path("/run/netns").iterdir())


@pytest.mark.parametrize(
    ("step", "path", "owner"),
    [
        ("pod.netns.create", "/run/netns/made", "0 0 4294967295"),
        ("pod.netns.create", "/run/some where/made", "0 0 4294967295"),
        ("pod.userns.create", "/run/netns/made", "0 65536 1000"),
    ],
    ids=["named", "elsewhere", "of a user namespace"],
)
def test_each_kind_of_namespace_is_made_with_its_loopback_up_and_undone(
    fresh_bed: StartBed, step: str, path: str, owner: str
) -> None:
    bed = fresh_bed(daemon=False, network=False)
    plugin = host.PluginExecution(command="ADD", binary="/bin/cat", env={"CNI_COMMAND": "ADD"}, stdin=b"{}")
    made = host.Step(name=step, duration=1, detail={"path": path, "host_uid": "65536", "length": "1000"})
    answer = host.ExplainResponse(netns_path=path, steps=[made, host.Step(name="cni.add", plugin=plugin, duration=2)])

    paste(bed, "\n".join(by_hand.commands(answer, "x")) + "\n")

    (lo,) = json.loads(bed.run(["nsenter", f"--net={path}", "ip", "-json", "link"]).stdout)
    assert "UP" in lo["flags"]
    assert bed.run([sys.executable, "-I", "-c", OWNER, path]).stdout.split() == owner.split()

    paste(bed, "\n".join(by_hand.undoing(answer, "x")) + "\n")

    assert not bed.path(path).exists() and path.replace(" ", "\\040") not in bed.mountinfo

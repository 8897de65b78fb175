"""What `explain --commands` prints, pasted into a shell on another host: the same network, and nothing left of it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import network
from tests.conftest import StartBed
from tests.pods import pod_config, remove_pod, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

SOCKET = "/run/sandboxd/sandboxd.sock"
SERVE = [sys.executable, "-I", "-m", "http.server", "80", "--directory", "/usr/share/common-licenses"]
SYSCTLS = ("net.ipv4.ip_forward", "net.ipv4.conf.sbx0.route_localnet")
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

"""What `explain --commands` prints, pasted into a shell on another host: the same pod, and nothing left of it."""

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
from tests.pods import container_config, pod_config, pod_info, remove_pod, run_container, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.insight]

SOCKET = "/run/sandboxd/sandboxd.sock"
CONTAINERD = "/run/sandboxd/containerd/containerd.sock"  # the managed one's
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
CTR = ["ctr", "-a", CONTAINERD, "-n", "sandboxd"]
# What a process is: its arguments and rights, where it is, what it sees of the pod's files and sysctls.
LOOK = """
import json, os, subprocess, sys
proc = f"/proc/{sys.argv[1]}"
def read(path): return open(path, "rb").read().decode("utf-8", "surrogateescape")
def inside(*argv): return subprocess.run(["nsenter", "-t", sys.argv[1], *argv], capture_output=True, text=True).stdout
status = dict(line.split(":", 1) for line in read(proc + "/status").splitlines())
kinds = ("net", "ipc", "uts", "pid")
print(json.dumps({
    "args": read(proc + "/cmdline").split("\\0"), "env": sorted(read(proc + "/environ").split("\\0")),
    "cwd": os.readlink(proc + "/cwd"), "root": sorted({*os.listdir(proc + "/root/")} - {"run"}),
    "rights": [status[key].split() for key in ("Uid", "Gid", "CapBnd", "NoNewPrivs", "Seccomp")]
        if read(proc + "/comm").strip() != "catatonit" else "",
    "files": {name: read(f"{proc}/root/etc/{name}") if os.path.exists(f"{proc}/root/etc/{name}") else None
        for name in ("hosts", "resolv.conf")},
    "mounts": sorted((line.split()[4], line.split()[5].split(",")[0])
        for line in read(proc + "/mountinfo").splitlines() if line.split()[4].startswith(("/etc/", "/licenses"))),
    "hostname": inside("-u", "hostname"),
    "sysctls": inside("-n", "-i", "sysctl", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range", "kernel.shm_rmid_forced"),
    "namespaces": {kind: os.readlink(f"{proc}/ns/{kind}") for kind in kinds},
}))
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
    said = bed.run(["sh", "-e"], stdin=text).stderr.splitlines()
    # ctr 2 complains of hosts with version 1 of cgroups.
    assert [line for line in said if "DEPRECATION" not in line] == []


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


def start_containerd(bed: Testbed, *images: Path) -> None:
    """Start a containerd where the daemon's is, and give it the images."""
    bed.write("/etc/by-hand.toml", 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    bed.path(CONTAINERD).parent.mkdir(parents=True)
    places = ["--address", CONTAINERD, "--root", "/var/lib/containerd", "--state", "/run/containerd"]
    with (bed.base / "containerd.log").open("w") as log:
        bed.popen(["containerd", "--config", "/etc/by-hand.toml", *places], stdout=log, stderr=log)
    until(lambda: bed.run([*CTR, "version"], check=False).returncode == 0, what="containerd answers")
    for archive in images:
        bed.path("/var/lib/images.tar").write_bytes(archive.read_bytes())
        bed.run([*CTR, "images", "import", "/var/lib/images.tar"])


def processes(bed: Testbed) -> dict[str, dict[str, Any]]:
    """What each container's process is, by the container's id; which namespaces it shares, by the ids that do."""
    tasks = [line.split() for line in bed.run([*CTR, "tasks", "ls"]).stdout.splitlines()[1:]]
    found = {id_: json.loads(bed.run([sys.executable, "-I", "-c", LOOK, pid]).stdout) for id_, pid, *_ in tasks}
    all_of: dict[tuple[str, str], list[str]] = {}
    for id_, each in found.items():
        for key in each["namespaces"].items():
            all_of.setdefault(key, []).append(id_)
    for each in found.values():
        inodes = each.pop("namespaces")
        each["shares"] = {
            kind: sorted(
                id_ for id_, (_, pid, *_) in ((t[0], t) for t in tasks) if namespace(bed, pid, kind) == inode
            )
            for kind, inode in inodes.items()
        }
    return found


def namespace(bed: Testbed, pid: str, kind: str) -> str:
    return bed.run(["readlink", f"/proc/{pid}/ns/{kind}"]).stdout.strip()


def start_containers(bed: Testbed, pod_id: str) -> None:
    """One that serves, as its image says, and one that has something of everything."""
    for name in ("nginx", "busybox"):
        bed.load_image(name)
    run_container(bed, pod_id, container_config("server", "nginx"))
    mount = cri.Mount(host_path="/usr/share/common-licenses", container_path="/licenses,all", readonly=True)
    side = container_config("side", "busybox", ["sleep", "1000"], working_dir="/tmp", mounts=[mount])
    side.envs.add(key="GREETING", value=b"it's \xc3\xa4 $HOME")
    side.linux.resources.memory_limit_in_bytes = 64 << 20
    side.linux.security_context.capabilities.drop_capabilities.append("MKNOD")
    side.linux.security_context.capabilities.add_capabilities.append("SYS_TIME")
    side.linux.security_context.namespace_options.pid = cri.CONTAINER
    run_container(bed, pod_id, side)


def test_the_commands_make_a_pod_like_the_daemons_and_undo_it(fresh_bed: StartBed) -> None:
    pods, hand = fresh_bed(), fresh_bed(daemon=False, network=False)
    config = pod_config("", port_mappings=[cri.PortMapping(container_port=80, host_port=8080)])
    config.metadata.name, config.hostname = "web", "web-1"
    config.linux.sysctls.update({"net.ipv4.ip_local_port_range": "20000 30000", "kernel.shm_rmid_forced": "1"})
    pod_id = run_pod(pods, config)
    netns = f"sandboxd-{pod_id}"
    start_containers(pods, pod_id)
    up, down = explain(pods, "--commands", "web"), explain(pods, "web", "--commands=down")
    # Both hosts have one tree of cgroups, in which each has a part of its own.
    up, down = (text.replace(pods.cgroup_parent, hand.cgroup_parent) for text in (up, down))
    names = pods.run([*CTR, "images", "ls", "-q"]).stdout.split()
    pods.run([*CTR, "images", "export", "/var/lib/images.tar", *(n for n in names if not n.startswith("sha256:"))])
    start_containerd(hand, pods.path("/var/lib/images.tar"))

    paste(hand, up)

    until(lambda: in_the_pod(hand, netns) == in_the_pod(pods, netns), what="the namespaces are equal")
    assert on_the_host(hand) == on_the_host(pods)
    assert processes(hand) == processes(pods)
    assert hand.http_get("10.0.10.2", within=30)[0] == 200
    assert hand.http_get("127.0.0.1", 8080)[0] == 200
    told_of_each_call(pods)

    paste(hand, down)
    remove_pod(pods, pod_id)

    until(lambda: on_the_host(hand) == on_the_host(pods), what="both hosts are as they are after a pod")
    assert not list(hand.path("/run/netns").iterdir())
    assert hand.run([*CTR, "containers", "ls", "-q"]).stdout == ""
    assert pod_id not in hand.mountinfo and not list(hand.path("/var/lib/sandboxd/pod-files").iterdir())


def told_of_each_call(bed: Testbed) -> None:
    """The timeline has the calls to containerd and the files, in each of its forms, and only verbosely for people."""
    steps = json.loads(explain(bed, "web", "-o", "json"))["steps"]
    acts = {step["name"]: [act["what"] for act in step.get("acts", ())] for step in steps}
    assert acts["pod.pause.rootfs"] == ["Snapshots.Prepare"]
    assert acts["pod.pause.record"] == ["Containers.Create"]
    assert acts["pod.pause.create"] == ["Tasks.Create"]
    assert acts["pod.pause.start"] == acts["container.task.start"] == ["Tasks.Start"]
    assert acts["pod.files.write"] == ["file"] * 3
    assert "fifo" in acts["container.log"]
    (pod,) = bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    timeline = pod_info(bed, pod.id)["timeline"]
    assert acts["pod.files.write"] == [
        act["what"] for step in timeline if step["step"] == "pod.files.write" for act in step["acts"]
    ]
    assert "Tasks.Create" in explain(bed, "-v", "web") and "Tasks.Create" not in explain(bed, "web")


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

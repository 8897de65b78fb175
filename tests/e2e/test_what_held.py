"""What an audit tried and did not get: images, requests and local users gain nothing by these, and are told so.

Nobody may answer INTERNAL or UNKNOWN to any of it: what is wrong with an image or a request has a name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.cri.v1.api_pb2_grpc import RuntimeServiceStub
from tests.conftest import StartBed
from tests.pods import (
    container_config,
    exited,
    log_lines,
    pod_config,
    refused,
    remove_pod,
    run_container,
    run_pod,
)
from tests.processes import until
from tests.testbed import ROOT, Testbed, toml

pytestmark = pytest.mark.e2e

BUSYBOX = "docker.io/library/busybox"
MARKER = "run/of-the-host"  # a file of the host, below its root
CRI_CONTAINERD = ROOT / "build" / "conformance" / "containerd-cri" / "bin"
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
BLAMELESS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


@pytest.fixture(scope="module")
def pod(bed: Testbed, images: tuple[str, ...]) -> Iterator[str]:
    bed.run(["sh", "-c", f"echo the host > /{MARKER}; mkdir -p /var/lib/offered"])
    pod_id = run_pod(bed)
    yield pod_id
    remove_pod(bed, pod_id)


# Images.


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Something in a layer."""

    name: str
    kind: bytes = tarfile.REGTYPE
    mode: int = 0o755
    link: str = ""
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def layer(entries: Sequence[Entry]) -> bytes:
    """An uncompressed layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.linkname, info.size = entry.kind, entry.mode, entry.link, len(entry.data)
            info.devmajor, info.devminor = entry.device
            tar.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def image(
    bed: Testbed, *, entries: Sequence[Entry] = (), config: Mapping[str, Any] | None = None
) -> tuple[str, Path]:
    """busybox with another layer and other configuration: its name and its archive."""
    with tarfile.open(bed.build_image("busybox")) as tar:
        blobs = {m.name: file.read() for m in tar.getmembers() if (file := tar.extractfile(m)) is not None}
    index = json.loads(blobs["index.json"])
    manifest = json.loads(blobs[_place(index["manifests"][0]["digest"])])
    document = json.loads(blobs[_place(manifest["config"]["digest"])])
    document.pop("history", None)
    document.setdefault("config", {}).update(config or {})
    if entries:
        added = _add(blobs, "layer.v1.tar", layer(entries))
        manifest["layers"].append(added)
        document["rootfs"]["diff_ids"].append(added["digest"])
    name = f"docker.io/test/held:{secrets.token_hex(6)}"
    manifest["config"] = _add(blobs, "config.v1+json", json.dumps(document).encode())
    top = _add(blobs, "manifest.v1+json", json.dumps(manifest).encode())
    index["manifests"] = [{**top, "annotations": {"io.containerd.image.name": name}}]
    blobs["index.json"] = json.dumps(index).encode()
    archive = bed.base / f"{secrets.token_hex(6)}.tar"
    with tarfile.open(archive, "w") as tar:
        for path, data in sorted(blobs.items()):
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return name, archive


def _place(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(blobs: dict[str, bytes], kind: str, data: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blobs[_place(digest)] = data
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": len(data)}


@dataclass(slots=True)
class Outcome:
    """What became of a container: what it printed, or why it was refused."""

    lines: list[str] = field(default_factory=list)
    code: grpc.StatusCode | None = None
    words: str = ""


def attempt(bed: Testbed, pod_id: str, archive: Path | None, name: str, script: str, **changes: Any) -> Outcome:
    """Load an image, run a script in it, and take both away again."""
    config = container_config(f"c-{secrets.token_hex(4)}", name, ["/bin/sh", "-c", f"exec 2>&1; {script}"], **changes)
    container = ""
    try:
        if archive is not None:
            bed.load_archive(archive)
        container = run_container(bed, pod_id, config)
        until(lambda: exited(bed, container), what="the script ends")
        return Outcome(lines=log_lines(bed, container))
    except grpc.RpcError as exc:
        code, words = refused(exc)
        return Outcome(code=code, words=words)
    finally:
        if archive is not None:
            archive.unlink()
        for left in bed.runtime.ListContainers(cri.ListContainersRequest(), timeout=30).containers:
            if left.metadata.name == config.metadata.name:
                bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=left.id), timeout=60)


# Another local user.


CONNECT = 'socket(my $s, PF_UNIX, SOCK_STREAM, 0); connect($s, sockaddr_un($ARGV[0])) or die "$!\\n"'


def connecting(bed: Testbed, path: str, *argv: str) -> str:
    """Connect to a socket as somebody; "" or why it is not possible."""
    return bed.run([*argv, "/usr/bin/perl", "-MSocket", "-e", CONNECT, path], check=False).stderr.strip()


def test_sockets_are_root_s(bed: Testbed, pod: str) -> None:
    """The daemon's, its logger's and its containerd's: all that has a socket."""
    found = bed.run(["find", "/run", "/var/lib/sandboxd", "-type", "s", "-printf", "%m %U:%G %p\n"]).stdout.split(
        "\n"
    )
    sockets = {line.split(" ", 2)[2]: line.split(" ")[:2] for line in found if line}

    assert {"/run/sandboxd/sandboxd.sock", "/run/sandboxd/logger.sock"} <= set(sockets)
    assert [path for path in sockets if "containerd.sock" in path]
    assert {owner for _, owner in sockets.values()} == {"0:0"}
    assert {sockets[f"/run/sandboxd/{name}.sock"][0] for name in ("sandboxd", "logger")} == {"600"}
    for path in sockets:
        assert connecting(bed, path, *NOBODY) == "Permission denied", path


def test_members_of_the_group_and_nobody_else_may_connect(fresh_bed: StartBed) -> None:
    bed = fresh_bed(api={"socket_group": "daemon"})
    found = os.stat(bed.socket)
    path = "/run/sandboxd/sandboxd.sock"
    member = ["setpriv", "--reuid=65534", f"--regid={found.st_gid}", "--clear-groups"]

    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o660, 0)
    assert connecting(bed, path, *NOBODY) == "Permission denied"
    assert connecting(bed, path, *member) == ""


def test_streams_are_served_on_loopback_by_urls_that_cannot_be_guessed(bed: Testbed, pod: str) -> None:
    container = run_container(bed, pod, container_config("streams", BUSYBOX, ["sleep", "1000"]))
    request = cri.ExecRequest(container_id=container, cmd=["true"], stdout=True)
    urls = [urlsplit(bed.runtime.Exec(request, timeout=30).url) for _ in range(20)]
    tokens = {url.path.rpartition("/")[2] for url in urls}

    assert {url.hostname for url in urls} == {"127.0.0.1"}
    assert len(tokens) == 20
    assert all(len(token) >= 32 for token in tokens)  # of 64 characters: 192 bits
    assert len({token[:6] for token in tokens}) == len({token[-6:] for token in tokens}) == 20
    listening = [line.split() for line in Path(f"/proc/{bed.daemon_pid}/net/tcp").read_text().splitlines()[1:]]
    assert {local[:8] for _, local, _, state, *_ in listening if state == "0A"} == {"0100007F"}
    assert not [
        line
        for line in Path(f"/proc/{bed.daemon_pid}/net/tcp6").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]


# A directory of the host by a descriptor that leaked (CVE-2024-21626).

LOOK = f"""
for up in . .. ../.. ../../.. ../../../.. ../../../../.. ../../../../../..; do
    [ -e $up/{MARKER} ] && echo OUTSIDE $up
done
echo looked from $(pwd)
"""


@pytest.mark.parametrize("where", ["request", "image"])
def test_a_working_directory_of_a_descriptor_leads_nowhere(bed: Testbed, pod: str, where: str) -> None:
    for number in range(3, 31) if where == "request" else (3, 7, 8, 9, 10, 11):
        for path in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/../../.."):
            if where == "request":
                outcome = attempt(bed, pod, None, BUSYBOX, LOOK, working_dir=path)
            elif path.endswith(".."):
                continue
            else:
                name, archive = image(bed, config={"WorkingDir": path})
                outcome = attempt(bed, pod, archive, name, LOOK)

            assert not [line for line in outcome.lines if "OUTSIDE" in line], path
            assert outcome.code not in BLAMELESS, (path, outcome.words)
            assert outcome.code or any("looked" in line for line in outcome.lines), path


def test_nor_does_it_for_a_process_that_is_executed_there(bed: Testbed, pod: str) -> None:
    """The container replaces its working directory by a link between its start and the exec."""
    script = "rm -rf /work; ln -s /proc/self/fd/$N /work; echo linked; sleep 1000"
    for number in range(3, 16):
        config = container_config(
            f"exec-{number}",
            BUSYBOX,
            ["sh", "-c", script.replace("$N", str(number))],
            working_dir="/work",
        )
        container = run_container(bed, pod, config)
        until(lambda c=container: log_lines(bed, c), what="the link is there")  # type: ignore[misc]
        try:
            answer = bed.runtime.ExecSync(
                cri.ExecSyncRequest(container_id=container, cmd=["/bin/sh", "-c", LOOK], timeout=60), timeout=60
            )
            assert b"OUTSIDE" not in answer.stdout + answer.stderr
        except grpc.RpcError as exc:
            assert refused(exc)[0] not in BLAMELESS
        bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=60)


# Configurations that no builder writes.

ODD: dict[str, dict[str, Any]] = {
    "Env of numbers": {"Env": [1]},
    "Env with NUL": {"Env": ["A=\0b"]},
    "Env without a name": {"Env": ["=b", "", "A"]},
    "a large Env": {"Env": [f"A{i}={'x' * 100_000}" for i in range(20)]},
    "User as a number": {"User": 7},
    "User with NUL": {"User": "a\0b"},
    "User out of range": {"User": "4294967295:99999999999999999999"},
    "Cmd as text": {"Cmd": "x"},
    "Entrypoint with NUL": {"Entrypoint": ["a\0b"]},
    "Volumes as a list": {"Volumes": ["/a"]},
    "a volume at /": {"Volumes": {"/": {}}},
    "a volume at /proc": {"Volumes": {"/proc": {}}},
    "a volume in /proc": {"Volumes": {"/proc/sys": {}}},
    "a volume at /dev": {"Volumes": {"/dev": {}}},
    "a volume at /dev/shm": {"Volumes": {"/dev/shm": {}}},
    "a volume at /sys": {"Volumes": {"/sys": {}}},
    "a volume at /sys/fs/cgroup": {"Volumes": {"/sys/fs/cgroup": {}}},
    "a volume at /etc": {"Volumes": {"/etc": {}}},
    "a volume that climbs": {"Volumes": {"/../../../etc": {}}},
    "a relative volume": {"Volumes": {"a/../../../run": {}}},
    "a volume with NUL": {"Volumes": {"/a\0b": {}}},
    "a volume of many parts": {"Volumes": {"/" + "a/" * 2000: {}}},
    "3,000 volumes": {"Volumes": {f"/v{i}": {} for i in range(3000)}},
    "WorkingDir that climbs": {"WorkingDir": "../../.."},
    "WorkingDir as a number": {"WorkingDir": 5},
    "WorkingDir in /proc/1": {"WorkingDir": "/proc/1/root"},
    "Labels of numbers": {"Labels": {"a": 5}},
    "StopSignal as a list": {"StopSignal": [1]},
    "StopSignal that nobody knows": {"StopSignal": "SIGNOPE"},
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_configuration_works_or_is_refused_by_name(bed: Testbed, pod: str, case: str) -> None:
    before = host(bed)
    name, archive = image(bed, config=ODD[case])

    outcome = attempt(bed, pod, archive, name, f"{LOOK} ls -d /proc/self /etc/passwd /dev/null; echo end")

    assert outcome.code not in BLAMELESS, outcome.words
    assert outcome.code or outcome.lines[-1] == "end", outcome.lines
    assert not [line for line in outcome.lines if "OUTSIDE" in line]
    assert host(bed) == before
    assert attempt(bed, pod, None, BUSYBOX, "echo end").lines == ["end"]


def host(bed: Testbed) -> str:
    """What nothing in here may change: directories and devices of the host, and what is mounted where."""
    script = (
        "ls -la --time-style=+%s /etc /dev/null /dev/zero | grep -v resolv | md5sum; "
        f"cat /{MARKER}; ls / /run /var/lib; grep -v sandboxd /proc/self/mountinfo | cut -d' ' -f4- | md5sum"
    )
    return bed.run(["sh", "-c", script]).stdout


# Links in images where requests and images mount something.

LINKS = {
    "up": "/../../../../../../run",
    "relative": "../../../../../../../../run",
    "root of another process": "/proc/1/root/run",
    "own root": "/proc/self/root/../../run",
    "descriptor": "/proc/self/fd/7/../../run",
    "loop": "/vol",
}


@pytest.mark.parametrize("how", ["volume", "mount", "below"])
@pytest.mark.parametrize("case", LINKS)
def test_a_link_where_something_is_mounted_stays_inside(bed: Testbed, pod: str, case: str, how: str) -> None:
    before = host(bed)
    entries = [Entry(name="vol", kind=tarfile.SYMTYPE, link=LINKS[case])]
    name, archive = image(bed, entries=entries, config={"Volumes": {"/vol": {}}} if how == "volume" else {})
    target = {"mount": "/vol", "below": "/vol/deeper/still"}.get(how)
    mounts = [cri.Mount(host_path="/var/lib/offered", container_path=target)] if target else []

    outcome = attempt(bed, pod, archive, name, f"{LOOK} touch /vol/touched; echo end", mounts=mounts)

    assert outcome.code not in BLAMELESS, outcome.words
    assert not [line for line in outcome.lines if "OUTSIDE" in line]
    assert host(bed) == before
    assert not bed.path("/run/touched").exists()
    assert not bed.path("/run/deeper").exists()


# Devices, and what is read from an image before its container runs.


def test_device_nodes_in_an_image_cannot_be_opened(bed: Testbed, pod: str) -> None:
    """The kernel's memory and the machine's disks: the cgroup's list of devices says no."""
    nodes = {"mem": (1, 1), "port": (1, 4), "kmsg": (1, 11), "loop0": (7, 0), "sda": (8, 0), "vda": (254, 0)}
    entries = [Entry(name=f"node-{n}", kind=tarfile.CHRTYPE, mode=0o666, device=d) for n, d in nodes.items()]
    entries += [Entry(name=f"block-{n}", kind=tarfile.BLKTYPE, mode=0o666, device=d) for n, d in nodes.items()]
    name, archive = image(bed, entries=entries)

    outcome = attempt(
        bed, pod, archive, name, "for f in /node-* /block-*; do head -c 1 $f && echo OPEN $f; done; echo end"
    )

    assert outcome.code is None, outcome.words
    assert outcome.lines[-1] == "end"
    assert not [line for line in outcome.lines if "OPEN" in line]


PASSWD: dict[str, Entry] = {
    "a link out": Entry(name="etc/passwd", kind=tarfile.SYMTYPE, link="/../../../../../../etc/passwd"),
    "a link to a process": Entry(name="etc/passwd", kind=tarfile.SYMTYPE, link="/proc/1/root/etc/passwd"),
    "a link to itself": Entry(name="etc/passwd", kind=tarfile.SYMTYPE, link="passwd"),
    "a FIFO": Entry(name="etc/passwd", kind=tarfile.FIFOTYPE),
    "a device": Entry(name="etc/passwd", kind=tarfile.CHRTYPE, device=(1, 5)),
    "a directory": Entry(name="etc/passwd", kind=tarfile.DIRTYPE),
    "huge": Entry(name="etc/passwd", data=b"x:x:1:1::/:/\n" * (2 << 20)),
    "one long line": Entry(name="etc/passwd", data=b"x" * (8 << 20)),
    "not UTF-8": Entry(name="etc/passwd", data=b"\xff\xfe:x:1:1::/:/\n"),
}


@pytest.mark.parametrize("case", PASSWD)
def test_the_users_of_an_image_are_its_own_whatever_they_are_kept_in(bed: Testbed, pod: str, case: str) -> None:
    """`sync` is a user of the host, and of none of these."""
    name, archive = image(bed, entries=[PASSWD[case]], config={"User": "sync"})

    outcome = attempt(bed, pod, archive, name, "id -u")

    refusals = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    assert outcome.code in refusals, (outcome.lines, outcome.words)
    assert attempt(bed, pod, None, BUSYBOX, "echo end").lines == ["end"]


# The same requests to containerd's own plugin.

Context = cri.LinuxContainerSecurityContext
COMPARED: dict[str, dict[str, Any]] = {
    "default": {},
    "privileged": {"privileged": True},
    "a user": {"run_as_user": cri.Int64Value(value=1000), "run_as_group": cri.Int64Value(value=1000)},
    "a read-only root": {"readonly_rootfs": True},
    "no new privileges": {"no_new_privs": True},
    "capabilities added": {"capabilities": cri.Capability(add_capabilities=["NET_ADMIN", "SYS_TIME"])},
    "all dropped": {"capabilities": cri.Capability(drop_capabilities=["ALL"])},
    "all added": {"capabilities": cri.Capability(add_capabilities=["ALL"])},
    "the default filter": {"seccomp": cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)},
    "own masks": {"masked_paths": ["/proc/kcore"], "readonly_paths": ["/proc/bus"]},
}


@dataclass(slots=True)
class Peer:
    """Something that serves CRI."""

    runtime: RuntimeServiceStub
    cgroups: str
    pods: dict[bool, tuple[str, cri.PodSandboxConfig]] = field(default_factory=dict)

    def pod(self, privileged: bool) -> tuple[str, cri.PodSandboxConfig]:
        """A pod in which containers may be privileged, or may not."""
        if privileged not in self.pods:
            context = cri.LinuxSandboxSecurityContext(privileged=privileged)
            config = pod_config(
                linux=cri.LinuxPodSandboxConfig(
                    security_context=context, cgroup_parent=f"{self.cgroups}/{secrets.token_hex(4)}"
                )
            )
            request = cri.RunPodSandboxRequest(config=config)
            self.pods[privileged] = (self.runtime.RunPodSandbox(request, timeout=60).pod_sandbox_id, config)
        return self.pods[privileged]

    def spec(self, context: Context) -> dict[str, Any]:
        """The runtime spec that a request leads to."""
        pod_id, pod = self.pod(context.privileged)
        config = container_config(f"spec-{secrets.token_hex(4)}", BUSYBOX, ["sleep", "1000"])
        config.linux.security_context.CopyFrom(context)
        request = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod)
        container = self.runtime.CreateContainer(request, timeout=60).container_id
        status = cri.ContainerStatusRequest(container_id=container, verbose=True)
        answer = json.loads(self.runtime.ContainerStatus(status, timeout=60).info["info"])
        self.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=60)
        found: dict[str, Any] = answer["runtimeSpec"]
        return found

    def close(self) -> None:
        """Remove the pods."""
        for pod_id, _ in self.pods.values():
            self.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=60)
            self.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id), timeout=60)


@pytest.fixture(scope="module")
def peers(bed: Testbed, pod: str, containerd_flavour: str) -> Iterator[tuple[Peer, Peer]]:
    """containerd's CRI plugin in the same bed, with the same image and network."""
    if containerd_flavour == "current" and not (CRI_CONTAINERD / "containerd").is_file():
        pytest.skip("containerd 2.x is not built with its plugin: with Go, run `python tests/conformance/build.py`")
    binary = str(CRI_CONTAINERD / "containerd") if containerd_flavour == "current" else "containerd"
    pause, archive = image(bed, config={"Entrypoint": ["sleep"], "Cmd": ["100000"]})
    cni = {"conf_dir": "/etc/cni/net.d"}
    plugins: dict[str, Any] = {
        "io.containerd.grpc.v1.cri": {
            "restrict_oom_score_adj": True,
            "sandbox_image": pause,
            "cni": cni | {"bin_dir": "/usr/lib/cni"},
        }
    }
    if containerd_flavour == "current":
        plugins = {
            "io.containerd.cri.v1.runtime": {
                "restrict_oom_score_adj": True,
                "cni": cni | {"bin_dirs": ["/usr/lib/cni"]},
            },
            "io.containerd.cri.v1.images": {"pinned_images": {"sandbox": pause}},
        }
    bed.write(
        "/etc/cni/plugin.toml",
        f"version = {3 if containerd_flavour == 'current' else 2}\n" + toml({"plugins": plugins}),
    )
    log = (bed.base / "plugin.log").open("w")
    process = bed.popen([binary, "--config", "/etc/cni/plugin.toml"], stdout=log, stderr=log)
    socket = bed.path("/run/containerd/containerd.sock")
    try:
        until(lambda: socket.exists() or process.poll() is not None, what="the plugin listens")
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            runtime = RuntimeServiceStub(channel)
            runtime.Version(cri.VersionRequest(), timeout=60, wait_for_ready=True)
            for each in (bed.build_image("busybox"), archive):
                bed.run(["ctr", "-n", "k8s.io", "images", "import", str(each)], timeout=60)
            sides = (Peer(bed.runtime, bed.cgroup_parent), Peer(runtime, bed.cgroup_parent))
            yield sides
            for side in sides:
                side.close()
    finally:
        process.terminate()
        process.communicate(timeout=30)
        log.close()


def mounts(spec: Mapping[str, Any]) -> dict[str, set[str]]:
    """What is mounted by the runtime itself, with the flags that restrict it."""
    kept = {"nosuid", "nodev", "noexec", "ro"}
    return {
        each["destination"]: kept & {o.replace("rro", "ro") for o in each.get("options", ())}
        for each in spec["mounts"]
    }


@pytest.mark.parametrize("case", COMPARED)
def test_a_container_is_given_no_more_than_containerd_s_plugin_gives(peers: tuple[Peer, Peer], case: str) -> None:
    ours, theirs = (peer.spec(Context(**COMPARED[case])) for peer in peers)
    process, other = ours["process"], theirs["process"]
    linux, compared = ours["linux"], theirs["linux"]

    for kind in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        given, reference = (set(p.get("capabilities", {}).get(kind) or ()) for p in (process, other))
        assert given <= reference, kind
        if kind in ("bounding", "effective", "permitted"):
            assert given == reference, kind
    for key in ("maskedPaths", "readonlyPaths"):
        assert set(linux.get(key) or ()) >= set(compared.get(key) or ()), key
    assert case == "privileged" or linux.get("maskedPaths")  # what is compared is there
    assert process.get("noNewPrivileges", False) >= other.get("noNewPrivileges", False)
    assert process["user"]["uid"] == other["user"]["uid"] and process["user"]["gid"] == other["user"]["gid"]
    assert (process.get("rlimits") or []) == (other.get("rlimits") or [])
    assert ours["root"].get("readonly", False) == theirs["root"].get("readonly", False)
    assert {d["path"] for d in linux.get("devices") or ()} <= {d["path"] for d in compared.get("devices") or ()}
    rules = [[_rule(r) for r in each["resources"].get("devices") or ()] for each in (linux, compared)]
    assert sorted(rules[0]) == sorted(rules[1])
    assert bool(linux.get("seccomp")) >= bool(compared.get("seccomp"))
    assert {n["type"] for n in linux["namespaces"]} >= {n["type"] for n in compared["namespaces"]}
    assert process.get("oomScoreAdj", 0) >= other.get("oomScoreAdj", 0)
    mounted, expected = mounts(ours), mounts(theirs)
    assert set(mounted) == set(expected)
    assert {path: flags for path, flags in mounted.items() if not flags >= expected[path]} == {}


def _rule(rule: Mapping[str, Any]) -> str:
    return json.dumps({**rule, "major": rule.get("major", -1), "minor": rule.get("minor", -1)}, sort_keys=True)

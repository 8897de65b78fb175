"""What the suite runs against: sandboxd on two generations of containerd, and their own CRI plugins to compare.

Each gets a bed of its own, with the suite's images in a real registry on the bed's loopback. One registry stands in
for every host: the `_default` directory of the certs.d configuration, which all four understand, leads there.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from sandboxd.pb.cri.v1.api_pb2 import ImageSpec, ListImagesRequest, RemoveImageRequest, StatusRequest
from sandboxd.pb.cri.v1.api_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from tests.conformance import own_pids, push
from tests.conformance.images import SANDBOX_IMAGE
from tests.processes import Inside, until
from tests.registry_server import start_registry
from tests.testbed import BedFailed, Testbed, toml

CERTS = "/etc/containerd/certs.d"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
REGISTRY_PORT = 5000

# SysV shared memory that the suite makes is not removed by it, so beds with it have an ipc namespace of their own.
_IPC = "/run/ipc-namespace"
_CGROUPS = Path("/sys/fs/cgroup")
_FOREIGN_PARENTS = ("k8s.io", "test.slice")  # where a CRI plugin puts pods, whatever the bed's parent cgroup is


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One thing that serves CRI. `least` is what it must pass of a whole run, 0 when it only is a yardstick.

    With `pinned`, pods have no pause container where they can do without, and those that say nothing of namespaces
    are asked for as a kubelet does (see own_pids). It runs when it is named.
    """

    name: str
    title: str
    sandboxd: bool
    programs: tuple[str, ...] = ()  # directories of build/conformance that come first in the PATH
    least: int = 0
    pinned: bool = False


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(name="sandboxd-debian", title="sandboxd, Debian's containerd", sandboxd=True, least=101),
        Peer(
            name="sandboxd-current",
            title="sandboxd, current containerd",
            sandboxd=True,
            programs=("containerd/bin", "runc/bin"),
            least=107,
        ),
        Peer(
            name="sandboxd-debian-pinned",
            title="sandboxd without pause containers, Debian's containerd",
            sandboxd=True,
            least=101,
            pinned=True,
        ),
        Peer(
            name="sandboxd-current-pinned",
            title="sandboxd without pause containers, current containerd",
            sandboxd=True,
            programs=("containerd/bin", "runc/bin"),
            least=107,
            pinned=True,
        ),
        Peer(name="plugin-debian", title="Debian's containerd, own plugin", sandboxd=False),
        Peer(
            name="plugin-current",
            title="current containerd, own plugin",
            sandboxd=False,
            programs=("containerd-cri/bin", "containerd/bin", "runc/bin"),
        ),
    )
}


@dataclass(slots=True, kw_only=True)
class Served:
    """A peer that serves CRI in its bed."""

    bed: Testbed
    socket: str  # inside
    versions: Mapping[str, str] = field(default_factory=dict)

    def inside(self, argv: Sequence[str]) -> list[str]:
        """A command, made to run in the ipc namespace that the runtime is in too."""
        return ["nsenter", f"--ipc={_IPC}", "--", *argv]

    def remove_images(self) -> None:
        """Remove every image, because the suite leaves most of those that it fetched."""
        with grpc.insecure_channel(f"unix:{self.bed.path(self.socket)}") as channel:
            service = ImageServiceStub(channel)
            for image in service.ListImages(ListImagesRequest(), timeout=30).images:
                if not image.pinned:
                    service.RemoveImage(RemoveImageRequest(image=ImageSpec(image=image.id)), timeout=60)


@contextmanager
def serving(peer: Peer, built: Path, layout: Path, log: Path) -> Iterator[Served]:
    """Bring a peer up with its registry, and everything down again; what the runtime says goes to `log`.

    Raises BedFailed.
    """
    before = _foreign_cgroups()
    try:
        with Testbed() as bed:
            try:
                yield _bring_up(bed, peer, built, layout)
            finally:
                _keep_log(bed, peer, log)
    finally:
        until(lambda: _removed(_foreign_cgroups() - before), what=f"the cgroups of {peer.name} are empty")


def _bring_up(bed: Testbed, peer: Peer, built: Path, layout: Path) -> Served:
    bed.env["PATH"] = ":".join([*(str(built / d) for d in peer.programs), bed.env["PATH"]])
    bed.default_network()
    # Nothing resolves here, so asking anybody only costs the time to give up.
    bed.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
    bed.write(f"{CERTS}/_default/hosts.toml", _hosts_toml(REGISTRY_PORT))
    bed.run(["sh", "-c", f"touch {_IPC} && unshare --ipc={_IPC} true"])
    registry = start_registry(bed, REGISTRY_PORT)
    bed.run([sys.executable, "-I", str(push.__file__), str(layout), registry.host], timeout=120)
    served = _sandboxd(bed, pinned=peer.pinned) if peer.sandboxd else _plugin(bed, peer, registry.host)
    served.versions = _versions(bed)
    return served


def _sandboxd(bed: Testbed, *, pinned: bool) -> Served:
    served = Served(bed=bed, socket="/run/sandboxd/sandboxd.sock")
    bed.daemon_argv = served.inside(bed.daemon_argv)
    # Not another word of configuration but that of the peer: certs.d is where sandboxd looks by default.
    handlers = {"runc": {"sandbox_mode": "pinned"}} if pinned else {"runc": {}}
    bed.start_daemon(daemon={"log_level": "info", "log_format": "console"}, runtime={"handlers": handlers})
    if pinned:
        served.socket = _own_pids(bed, served.socket)
    return served


def _own_pids(bed: Testbed, upstream: str) -> str:
    """The socket at which pods that say nothing of namespaces get pid namespaces of their containers' own."""
    socket = "/run/own-pids.sock"
    with (bed.base / "own-pids.log").open("w") as output:
        argv = [sys.executable, str(own_pids.__file__), socket, upstream]
        bed.popen(argv, stdout=output, stderr=output)
    until(lambda: bed.path(socket).exists(), what="the stand-in before sandboxd's socket listens")
    return socket


def plugin_config(sandbox_image: str, *, current: bool) -> str:
    """What containerd's CRI plugin is told, to do what it can do on a machine like this; `current` is 2.x."""
    cni = {"bin_dir": "/usr/lib/cni", "conf_dir": "/etc/cni/net.d"}
    hosts = {"config_path": CERTS}
    # The kernel may forbid a pause process to be less killable than its parent.
    oom = {"restrict_oom_score_adj": True}
    plugins: dict[str, Any] = {"io.containerd.grpc.v1.cri": oom | {"sandbox_image": sandbox_image, "cni": cni}}
    plugins["io.containerd.grpc.v1.cri"]["registry"] = hosts
    version = 2
    if current:
        version = 3
        cni_lists = {"bin_dirs": [cni["bin_dir"]], "conf_dir": cni["conf_dir"]}
        plugins = {
            "io.containerd.cri.v1.runtime": oom | {"cni": cni_lists},
            "io.containerd.cri.v1.images": {"pinned_images": {"sandbox": sandbox_image}, "registry": hosts},
        }
    return f"version = {version}\n" + toml({"plugins": plugins})


def _plugin(bed: Testbed, peer: Peer, registry: str) -> Served:
    config = plugin_config(f"{registry}/{SANDBOX_IMAGE}", current=bool(peer.programs))
    bed.write("/etc/containerd/conformance.toml", config)
    served = Served(bed=bed, socket=CONTAINERD_SOCKET)
    argv = served.inside(["containerd", "--config", "/etc/containerd/conformance.toml"])
    with (bed.base / "containerd.log").open("w") as output:
        process = bed.popen(argv, stdout=output, stderr=output)
    _wait_for(bed, process)
    return served


def _wait_for(bed: Testbed, process: Inside) -> None:
    """Wait until the plugin says that it and its network are ready."""
    with grpc.insecure_channel(f"unix:{bed.path(CONTAINERD_SOCKET)}") as channel:
        runtime = RuntimeServiceStub(channel)

        def ready() -> bool:
            if process.poll() is not None:
                words = (bed.base / "containerd.log").read_text("utf-8", "replace")[-2000:]
                raise BedFailed(f"containerd ended with status {process.returncode}:\n{words}")
            try:
                conditions = runtime.Status(StatusRequest(), timeout=5, wait_for_ready=True).status.conditions
            except grpc.RpcError:
                return False
            return bool(conditions) and all(c.status for c in conditions if c.type.endswith("Ready"))

        until(ready, what="containerd's CRI plugin is ready")


def _versions(bed: Testbed) -> dict[str, str]:
    """What runs, in its own words."""
    containerd = bed.run(["containerd", "--version"]).stdout.split()
    runc = bed.run(["runc", "--version"]).stdout.split()
    return {"containerd": containerd[2].removeprefix("v"), "runc": runc[2], "kernel": os.uname().release}


def _hosts_toml(port: int) -> str:
    return f'[host."http://127.0.0.1:{port}"]\ncapabilities = ["pull", "resolve"]\n'


def _keep_log(bed: Testbed, peer: Peer, log: Path) -> None:
    source = bed.log_file if peer.sandboxd else bed.base / "containerd.log"
    if source.is_file():
        shutil.copyfile(source, log)


def _foreign_cgroups() -> set[Path]:
    """Every cgroup below the parents that are no bed's own, and these parents."""
    parents = (place for name in _FOREIGN_PARENTS for place in (_CGROUPS / name, *_CGROUPS.glob(f"*/{name}")))
    return {Path(directory) for parent in parents for directory, _, _ in os.walk(parent)}


def _removed(cgroups: set[Path]) -> bool:
    """Remove cgroups, children before their parents; whether none is left."""
    for directory in sorted(cgroups, reverse=True):
        with suppress(OSError):
            directory.rmdir()
    return not any(directory.exists() for directory in cgroups)

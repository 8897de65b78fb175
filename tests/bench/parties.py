"""The parties of a benchmark: sandboxd in each way to run pods, and containerd's own CRI plugin, twice.

Each has a bed of its own with the same in it: containerd of the same binary, runc, plugins, conf, images, snapshotter
and a disk of the same size. The plugin's pause image is the very one that sandboxd makes. Its second instance shows
how far apart two of a kind are: what is no larger than that is noise.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from sandboxd import syscalls
from sandboxd.images.load import PAUSE_NAME
from sandboxd.pb.cri.v1.api_pb2 import ImageSpec, ImageStatusRequest, StatusRequest
from sandboxd.pb.cri.v1.api_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from sandboxd.pb.host.v1.host_pb2 import SaveImageRequest
from tests.bench.ground import DISABLED, DISK, SOCKET, Flavour, give_disk, start_containerd, wait_for_plugin
from tests.bench.modes import Mode, detect, settings
from tests.bench.processor import Account
from tests.conformance.peers import plugin_config
from tests.processes import children_of, until
from tests.testbed import ROOT, Testbed

PLUGIN, AGAIN = "plugin", "plugin again"
IMAGES = ("nginx", "busybox")
DISK_BYTES = 2 << 30
SANDBOXD_DISK = "/var/lib/sandboxd"
_CLONE_NEWNET = 0x40000000

# The story's network, with room for a thousand pods.
CONFLIST = {
    "cniVersion": "1.0.0",
    "name": "bench",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "bench0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.20.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    ],
}


@dataclass(slots=True, kw_only=True)
class Party:
    """One thing that serves CRI in its bed."""

    name: str
    bed: Testbed
    channel: grpc.Channel
    account: Account
    ours: bool

    @property
    def runtime(self) -> RuntimeServiceStub:
        return RuntimeServiceStub(self.channel)

    @contextmanager
    def clients(self, count: int) -> Iterator[ThreadPoolExecutor]:
        """Threads that are in the bed's network, where pods can be reached."""
        with (
            open(self.bed.netns, "rb") as file,
            ThreadPoolExecutor(count, initializer=_enter, initargs=(file.fileno(),)) as pool,
        ):
            yield pool


def _enter(netns: int) -> None:
    syscalls.setns(netns, _CLONE_NEWNET)


def known_modes() -> Sequence[Mode]:
    """What this sandboxd can do."""
    with Testbed() as bed:
        return detect(settings(bed.run([sys.executable, "-m", "sandboxd", "config"]).stdout))


@contextmanager
def gathered(
    flavour: Flavour, modes: Sequence[Mode], *, again: bool = True, daemon: Sequence[str] = ()
) -> Iterator[dict[str, Party]]:
    """Bring up sandboxd in each of the modes that are built, and the plugin; all of them end with it.

    Without `again` the plugin is there once; `daemon` is what is run as sandboxd, if not the product itself.

    Raises BedFailed, TimeoutError.
    """
    with ExitStack() as stack:
        parties = {mode.name: start_sandboxd(stack, flavour, mode, daemon) for mode in modes if mode.built}
        pause = _saved_pause(next(iter(parties.values())).bed)
        for name in (PLUGIN, AGAIN) if again else (PLUGIN,):
            parties[name] = _plugin(stack, flavour, name, pause)
        yield parties


def versions(party: Party) -> dict[str, str]:
    """What runs, in its own words."""
    containerd = party.bed.run(["containerd", "--version"]).stdout.split()[2].removeprefix("v")
    runc = party.bed.run(["runc", "--version"]).stdout.split()[2]
    return {"containerd": containerd, "runc": runc, "kernel": os.uname().release, "processors": str(os.cpu_count())}


def prepared(stack: ExitStack, flavour: Flavour, disk: str) -> tuple[Testbed, Account]:
    """A bed with everything but a daemon."""
    bed = stack.enter_context(Testbed())
    flavour.put_first(bed)
    bed.env |= {"PYTHONPATH": str(ROOT)}
    bed.write("/etc/cni/net.d/10-bench.conflist", json.dumps(CONFLIST))
    give_disk(bed, at=disk, size=DISK_BYTES)
    return bed, Account(bed)


def start_sandboxd(stack: ExitStack, flavour: Flavour, mode: Mode, daemon: Sequence[str] = ()) -> Party:
    """sandboxd with the images loaded; `daemon` is what is run as such, if not the product itself."""
    assert mode.sections is not None, f"{mode.name} is not built"
    bed, account = prepared(stack, flavour, SANDBOXD_DISK)
    bed.daemon_argv = account.charged(daemon or bed.daemon_argv)
    # What a service gets: its standard error is no terminal.
    sections: dict[str, Any] = {"daemon": {"log_level": "info", "log_format": "json"}, **mode.sections}
    bed.start_daemon(**sections)
    for image in IMAGES:
        bed.load_image(image)
    account.look(bed.daemon_pid)
    return Party(name=mode.name, bed=bed, channel=bed.channel, account=account, ours=True)


def _saved_pause(bed: Testbed) -> Path:
    archive = bed.base / "pause.tar"
    with archive.open("wb") as file:
        for answer in bed.host.SaveImage(SaveImageRequest(images=[PAUSE_NAME]), timeout=60):
            file.write(answer.chunk)
    return archive


def _plugin(stack: ExitStack, flavour: Flavour, name: str, pause: Path) -> Party:
    bed, account = prepared(stack, flavour, DISK)
    config = plugin_config(PAUSE_NAME, current=bool(flavour.programs))
    version, tables = config.split("\n", 1)
    process = start_containerd(bed, f"{version}\n{DISABLED}{tables}", account.charged(["containerd"]))
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 << 20)]
    channel = stack.enter_context(grpc.insecure_channel(f"unix:{bed.path(SOCKET)}", options))
    wait_for_plugin(bed, channel, process)
    images = ImageServiceStub(channel)
    archives = {PAUSE_NAME: pause} | {image: bed.build_image(image) for image in IMAGES}
    for image, archive in archives.items():
        bed.run(["ctr", "-n", "k8s.io", "images", "import", str(archive)], timeout=120)
        request = ImageStatusRequest(image=ImageSpec(image=image))
        until(lambda r=request: images.ImageStatus(r).HasField("image"), what=f"the plugin knows {image}")  # type: ignore[misc]
    _wait_for_network(channel)
    (pid,) = children_of(process.pid)
    account.look(pid)
    return Party(name=name, bed=bed, channel=channel, account=account, ours=False)


def _wait_for_network(channel: grpc.Channel) -> None:
    runtime = RuntimeServiceStub(channel)

    def ready() -> bool:
        conditions = runtime.Status(StatusRequest(), timeout=30).status.conditions
        return bool(conditions) and all(c.status for c in conditions if c.type.endswith("Ready"))

    until(ready, what="containerd's CRI plugin is ready")

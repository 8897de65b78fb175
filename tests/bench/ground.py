"""What the benchmarks against containerd's own CRI plugin stand on: the containerds, a disk, a plugin that serves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from sandboxd.pb.cri.v1.api_pb2 import VersionRequest
from sandboxd.pb.cri.v1.api_pb2_grpc import RuntimeServiceStub
from tests.processes import Inside, until
from tests.testbed import ROOT, BedFailed, Testbed

OUT = ROOT / "build" / "bench"
BUILT = ROOT / "build" / "conformance"
SOCKET = "/run/containerd/containerd.sock"
DISK = "/var/lib/containerd"
CONFIG = "/etc/containerd/bench.toml"

# Configured by nobody but for `opt`, which would create /opt/containerd on the machine itself.
DISABLED = 'disabled_plugins = ["io.containerd.internal.v1.opt"]\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """One containerd. `programs` are directories of build/conformance that come first in the PATH."""

    name: str
    programs: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """What is not built, "" when everything is there."""
        return next((d for d in self.programs if not (BUILT / d).is_dir()), "")

    def put_first(self, bed: Testbed) -> None:
        """Have this containerd found in the bed."""
        bed.env["PATH"] = ":".join([*(str(BUILT / d) for d in self.programs), bed.env["PATH"]])


FLAVOURS = (
    Flavour(name="debian"),
    Flavour(name="current", programs=("containerd-cri/bin", "containerd/bin")),
)


def chosen(names: Sequence[str], program: str) -> list[Flavour]:
    """Those that were asked for, or all, without what is not built, which `program` says."""
    found = []
    for flavour in FLAVOURS:
        if names and flavour.name not in names:
            continue
        if flavour.missing:
            print(f"{program}: {flavour.name}: left out, build/conformance/{flavour.missing} is not built")
        else:
            found.append(flavour)
    return found


def give_disk(bed: Testbed, *, at: str = DISK, size: int) -> None:
    """Mount a file system of its own, of so many bytes, in the bed; it goes with the bed. Raises BedFailed."""
    image = bed.base / "disk"
    try:
        with image.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as exc:
        raise BedFailed(f"no disk of {size >> 20} MiB for the benchmark: {exc}") from exc
    bed.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image)])
    bed.run(["mkdir", "-p", at])
    device = bed.run(["losetup", "--find", "--show", "--direct-io=on", str(image)]).stdout.strip()
    try:
        bed.run(["mount", device, at])
    finally:
        bed.run(["losetup", "--detach", device])  # when it is not mounted any more


def start_containerd(bed: Testbed, config: str, argv: Sequence[str] = ("containerd",)) -> Inside:
    """Start it with this configuration file's text."""
    bed.write(CONFIG, config)
    with (bed.base / "containerd.log").open("w") as output:
        return bed.popen([*argv, "--config", CONFIG], stdout=output, stderr=output)


def wait_for_plugin(bed: Testbed, channel: grpc.Channel, process: Inside) -> None:
    """Wait until the CRI plugin behind the channel answers. Raises BedFailed when containerd ends, TimeoutError."""
    runtime = RuntimeServiceStub(channel)

    def serves() -> bool:
        if process.poll() is not None:
            raise BedFailed(f"containerd ended:\n{(bed.base / 'containerd.log').read_text('utf-8')[-2000:]}")
        try:
            runtime.Version(VersionRequest(), timeout=5, wait_for_ready=True)
        except grpc.RpcError:
            return False
        return True

    until(serves, within=60, what="containerd's CRI plugin serves")

"""How long PullImage takes: `python -m tests.bench.pull [options]`.

Two images, 500 MB in one layer and 100 small layers, are pulled from a registry on loopback through sandboxd and
through the CRI plugin of the very containerd that sandboxd uses: by turns, and cold each time (the image is removed
and everything of it collected before the next pull), on a machine that is quiet but for that, then with one busy loop
beside. build/bench/pull.json gets every figure, the medians, their ratios, and the most memory that the daemon had
while it pulled the large image. Processor time is that of all who take part, the registry too, until PullImage has
answered; not what the kernel does on its own account, such as writing to the disk what both left it.

So that the two are compared and not what surrounds them, both have

    a disk        ext4 with a journal, made anew. What was deleted before on the machine's own would count otherwise:
                  without a journal ext4 passes over such inodes for minutes, searching through all of them each time
    memory        that the machine has touched, just before each pull. Where it is a virtual one, memory that its host
                  has yet to find costs a second for each GB, whoever asks first
    a registry    that collects its garbage rarely. Debian's makes 4 MiB of it for each blob, and on two cores that
                  would be a third of all the work. Elsewhere a registry is another machine

The exit status is 1 when a goal was missed. A containerd that is not built here is left out, and that is said.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

if not __package__:  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deploy.images import synthetic
from deploy.images.synthetic import Shape
from sandboxd.pb.cri.v1.api_pb2 import (
    ImageSpec,
    ListImagesRequest,
    PullImageRequest,
    RemoveImageRequest,
)
from sandboxd.pb.cri.v1.api_pb2_grpc import ImageServiceStub
from tests.bench.ground import (
    DISABLED,
    DISK,
    FLAVOURS,
    OUT,
    SOCKET,
    Flavour,
    chosen,
    give_disk,
    start_containerd,
    wait_for_plugin,
)
from tests.bench.processor import Account
from tests.bench.pull_figures import CONDITIONS, LARGE, OURS, QUIET, THEIRS, Figures, Pull, table
from tests.processes import children_of, until
from tests.registry_server import start_registry
from tests.testbed import Testbed

REGISTRY_PORT = 5000
PULL_SECONDS = 120.0
DISK_BYTES = 6 << 30
TOUCHED_BYTES = 2 << 30  # more than a pull fills with its files
REGISTRY_ENV = {"GOGC": "2000"}
_MADV_POPULATE_WRITE = 23  # madvise(2); Python has no name for it


@dataclass(slots=True, kw_only=True)
class Arena:
    """One bed: a containerd with its CRI plugin, sandboxd on the same socket, the registry with both images."""

    bed: Testbed
    account: Account
    services: Mapping[str, ImageServiceStub]
    registry: str

    def pull(self, who: str, image: str) -> Pull:
        """One cold pull; the image is gone again afterwards."""
        name = f"{self.registry}/{image}:v1"
        before = self._stored()
        os.sync()  # what earlier pulls left to be written is not this one's business
        touch(TOUCHED_BYTES)
        spent, began = self.account.spent(), time.monotonic()
        self.services[who].PullImage(PullImageRequest(image=ImageSpec(image=name)), timeout=PULL_SECONDS)
        seconds, spent = time.monotonic() - began, self.account.spent() - spent
        self.services[who].RemoveImage(RemoveImageRequest(image=ImageSpec(image=name)), timeout=PULL_SECONDS)
        until(lambda: self._stored() == before, within=30, what=f"everything of {image} is collected")
        return Pull(seconds=seconds, processor=spent.all, daemon=spent.daemon, containerd=spent.containerd)

    def forget_peak(self) -> None:
        """Begin to measure the daemon's peak memory anew (proc_pid_clear_refs(5))."""
        self._proc("clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        """The daemon's peak resident memory since then, in bytes."""
        lines = self._proc("status").read_text(encoding="utf-8").splitlines()
        (kib,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        return kib << 10

    def _proc(self, file: str) -> Path:
        return Path("/proc") / str(self.bed.daemon_pid) / file

    def _stored(self) -> tuple[set[str], set[str]]:
        """Blobs and snapshots on the disk, of all namespaces."""
        root = self.bed.proc.parent / DISK.lstrip("/")  # through the bed, which alone sees the mount
        blobs = root / "io.containerd.content.v1.content" / "blobs" / "sha256"
        snapshots = root / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
        return {p.name for p in blobs.glob("*")}, {p.name for p in snapshots.glob("*")}


@contextmanager
def arena(flavour: Flavour, shapes: Sequence[Shape]) -> Iterator[Arena]:
    """Bring everything up, and down again. Raises BedFailed, TimeoutError."""
    with Testbed() as bed:
        flavour.put_first(bed)
        account = Account(bed)
        bed.default_network()
        bed.env |= REGISTRY_ENV
        registry = start_registry(bed, REGISTRY_PORT)
        bed.env = {key: value for key, value in bed.env.items() if key not in REGISTRY_ENV}
        account.charge(children_of(registry.process.pid))
        for shape in shapes:
            registry.storage.publish(synthetic.OUT / shape.name, shape.name, "v1")
        give_disk(bed, size=DISK_BYTES)
        process = start_containerd(bed, "version = 2\n" + DISABLED, account.charged(["containerd"]))
        bed.daemon_argv = account.charged(bed.daemon_argv)
        bed.start_daemon(daemon={"log_level": "info"}, containerd={"managed": False, "socket": SOCKET})
        with grpc.insecure_channel(f"unix:{bed.path(SOCKET)}") as channel:
            wait_for_plugin(bed, channel, process)
            account.look(bed.daemon_pid)
            services = {OURS: bed.images, THEIRS: ImageServiceStub(channel)}
            yield Arena(bed=bed, account=account, services=services, registry=registry.host)


def touch(count: int) -> None:
    """Write to so many bytes of memory and give them back."""
    with mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(_MADV_POPULATE_WRITE)


@contextmanager
def beside(here: Arena, condition: str) -> Iterator[None]:
    """The condition in which pulls are measured; what makes it busy is not charged to them."""
    if condition == QUIET:
        yield
        return
    loop = here.bed.popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        loop.kill()
        loop.wait(timeout=30)


def measure(
    flavour: Flavour, shapes: Sequence[Shape], conditions: Sequence[str], rounds: int, deadline: float
) -> Figures:
    """Pull each image `rounds` times through both, fewer times when the deadline (monotonic) comes first."""
    with arena(flavour, shapes) as here:
        version = here.bed.run(["containerd", "--version"]).stdout.split()[2].removeprefix("v")
        figures = Figures(containerd=version)
        todo = [(condition, shape) for shape in shapes for condition in conditions]
        began = time.monotonic()
        for number, (condition, shape) in enumerate(todo, 1):
            # Once each without the clock: the registry's files come into memory, programs grow to their size.
            for who in here.services if condition == conditions[0] else ():
                here.pull(who, shape.name)
            until_then = began + (deadline - began) * number / len(todo)
            with beside(here, condition):
                figures.pulls[condition, shape.name] = _turns(here, shape.name, rounds, until_then, figures)
        left = here.services[OURS].ListImages(ListImagesRequest()).images
        assert all(image.pinned for image in left), "an image was not removed"
        return figures


def _turns(here: Arena, image: str, rounds: int, deadline: float, figures: Figures) -> dict[str, list[Pull]]:
    pulls: dict[str, list[Pull]] = {OURS: [], THEIRS: []}
    for number in range(rounds):
        if number and time.monotonic() > deadline:
            break
        # Whoever goes first changes, so that neither always finds the disk as the other left it.
        for who in (OURS, THEIRS) if number % 2 else (THEIRS, OURS):
            here.forget_peak()
            pulls[who].append(here.pull(who, image))
            if who == OURS and image == LARGE:
                figures.peak_bytes.append(here.peak())
    return pulls


def images(shapes: Sequence[Shape]) -> None:
    """Build the images that are not built yet."""
    for shape in shapes:
        place = synthetic.OUT / shape.name
        if not (place / "index.json").is_file():
            print(f"bench-pull: building {shape.name} ({shape.layers} x {shape.layer_bytes / 1e6:g} MB)", flush=True)
            synthetic.build(shape, place)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the head of this file."""
    names = [flavour.name for flavour in FLAVOURS]
    parser = argparse.ArgumentParser(description="Measure PullImage against containerd's own CRI plugin.")
    parser.add_argument("containerds", nargs="*", metavar="CONTAINERD", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument(
        "--rounds", type=int, default=11, help="pulls of each image through each (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=600, help="bound for all of it (default: %(default)s)")
    parser.add_argument("--image", choices=[shape.name for shape in synthetic.SHAPES], help="only this one")
    parser.add_argument("--beside", choices=CONDITIONS, help="only with the machine quiet, or busy (default: both)")
    options = parser.parse_args(arguments)
    if unknown := set(options.containerds) - set(names):
        parser.error(f"unknown containerd {', '.join(sorted(unknown))}: known are {', '.join(names)}")
    shapes = [shape for shape in synthetic.SHAPES if options.image in (None, shape.name)]
    conditions = [each for each in CONDITIONS if options.beside in (None, each)]
    images(shapes)
    flavours = chosen(options.containerds, "bench-pull")
    measured: dict[str, Figures] = {}
    began = time.monotonic()
    for number, flavour in enumerate(flavours, 1):
        share = options.seconds * number / len(flavours)
        measured[flavour.name] = measure(flavour, shapes, conditions, options.rounds, began + share)
    OUT.mkdir(parents=True, exist_ok=True)
    document = {name: figures.document() for name, figures in measured.items()}
    (OUT / "pull.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(table(measured))
    met = {f"{name}: {goal}": ok for name, figures in measured.items() for goal, ok in figures.goals().items()}
    for goal, ok in met.items():
        if not ok:
            print(f"missed: {goal}")
    print(f"bench-pull: {sum(met.values())} of {len(met)} goals met; {OUT / 'pull.json'} has every figure")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

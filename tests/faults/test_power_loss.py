"""The power fails at a commit: the daemon starts from what is on disk then, says so, and loses no address.

The life of two pods is recorded: what is on disk at each commit of the ledger. Each cut then begins as a machine
that has been switched on again, with that disk, an empty /run and another boot id. SQLite syncs its log at
checkpoints only (synchronous=NORMAL), containerd each of its commits, and plugins nothing at all. So a cut also finds

    the ledger older     than containerd's records, by some commits or by all of them
    the ledger torn      its log ends within a frame
    files empty          that had been created, but whose content had not been written

What the ledger does not know of is put back, if containerd knows it; the rest `sandboxctl audit --repair` removes.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import Snapshot, difference, observe
from tests.e2e.test_reboot import reboot
from tests.faults.cells import Cells
from tests.pods import container_config, create_container, pod_config, remove_pod, run_container, run_pod
from tests.processes import LIMIT, until
from tests.testbed import Testbed

pytestmark = pytest.mark.faults

LEDGER = "sandboxd/ledger.db"
ADDRESSES = "cni/networks/sandboxd"
WAL_HEADER, FRAME_HEADER = 32, 24  # bytes (https://www.sqlite.org/fileformat2.html#walformat)
BEHIND = 4  # commits by which an older ledger is older


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A bed, the disk at each commit, and how the bed was before the first of them."""

    bed: Testbed
    cuts: list[Path]
    pods: list[cri.PodSandboxConfig]
    before: Snapshot

    def what(self, cut: Path) -> str:
        """The commit at which it is cut."""
        return f"{cut.name} {cut.with_suffix('.what').read_text(encoding='utf-8')}"


@pytest.fixture
def recording() -> Iterator[Recording]:
    with Testbed() as bed:
        bed.default_network()
        cuts = bed.base / "cuts"
        cuts.mkdir()
        wrapper = str(Path(__file__).with_name("recorded.py"))
        bed.env["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        bed.daemon_argv = [sys.executable, wrapper, str(bed.base / "var-lib"), str(cuts)]
        bed.start_daemon()
        bed.load_image("busybox")
        reboot(bed)
        bed.relaunch_daemon()
        warm = run_pod(bed)
        run_container(bed, warm, container_config("warm", "busybox", ["true"]))
        remove_pod(bed, warm)
        before = observe(bed)
        (cuts / "now").touch()
        pods = [pod_config(f"cut-{number}") for number in range(2)]
        live(bed, pods)
        (cuts / "now").unlink()
        found = sorted(path.with_suffix("") for path in cuts.glob("*.what"))
        yield Recording(bed=bed, cuts=found, pods=pods, before=before)


def live(bed: Testbed, pods: list[cri.PodSandboxConfig]) -> None:
    """What is recorded: two pods come, and one goes, with all that a pod has."""
    sleeps = ["sleep", "100000"]
    first = run_pod(bed, pods[0])
    run_container(bed, first, container_config("sleeps", "busybox", sleeps))
    ends = run_container(bed, first, container_config("ends", "busybox", ["true"]))
    second = run_pod(bed, pods[1])
    create_container(bed, second, container_config("waits", "busybox", sleeps))
    bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=ends), timeout=LIMIT)
    remove_pod(bed, first)


def reserved(bed: Testbed) -> set[str]:
    """The addresses that are taken."""
    return {path.name for path in bed.path(f"/var/lib/{ADDRESSES}").glob("10.*")}


# What is on disk.


def power_fails(bed: Testbed, disk: Path) -> None:
    """The machine stops, and starts with this disk."""
    bed.run(["umount", "/proc/sys/kernel/random/boot_id"])
    reboot(bed)
    for directory in bed.cgroup_dirs():
        directory.rmdir()
    place = bed.base / "var-lib"
    for entry in place.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    bed.run(["cp", "-a", f"{disk}/.", str(place)])
    (place / f"{LEDGER}-shm").unlink(missing_ok=True)  # memory, though it has a name


def with_ledger_of(bed: Testbed, disk: Path) -> None:
    """The ledger is as old as this disk."""
    for suffix in ("", "-wal"):
        to = bed.base / "var-lib" / f"{LEDGER}{suffix}"
        to.unlink(missing_ok=True)
        if (disk / f"{LEDGER}{suffix}").exists():
            shutil.copy2(disk / f"{LEDGER}{suffix}", to)


def tear(bed: Testbed) -> None:
    """The last frame of the ledger's log is written by half."""
    wal = bed.base / "var-lib" / f"{LEDGER}-wal"
    with wal.open("r+b") as file:
        page = struct.unpack(">I", file.read(12)[8:])[0]
        frame = FRAME_HEADER + page
        frames = (wal.stat().st_size - WAL_HEADER) // frame
        file.truncate(WAL_HEADER + frames * frame - frame // 2)


def empty(bed: Testbed) -> None:
    """What plugins had written has its name, but no content."""
    for path in (bed.base / "var-lib" / "cni").rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


# What holds.


def starts_clean(recording: Recording, *, audited: bool = False) -> None:
    """The daemon starts and nothing of the old boot runs; the same pods can be had again; removed, nothing is left.

    `audited`: an audit repairs what the ledger says nothing of.
    """
    bed = recording.bed
    log = bed.log_file.stat().st_size
    bed.relaunch_daemon()
    listed = bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    assert all(pod.state == cri.SANDBOX_NOTREADY for pod in listed), listed
    containers = bed.runtime.ListContainers(cri.ListContainersRequest()).containers
    assert not [each for each in containers if each.state == cri.CONTAINER_RUNNING], containers
    said = bed.log_file.read_text("utf-8", "replace")[log:]
    for pod in listed:
        assert pod.id in said, "a pod that ended is named in the log"
    if audited:
        # Again: a pod that the start removes has what is its own until then.
        until(lambda: audit_finds_nothing(bed) and not reserved(bed), what="what is nobody's is repaired")

    again = [run_pod(bed, config) for config in recording.pods]
    assert not {pod.id for pod in listed} & set(again)
    until(lambda: len(reserved(bed)) == len(again), what="no address of the old boot stays reserved")
    for pod in bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
        remove_pod(bed, pod.id)
    assert not reserved(bed)
    assert left(recording) == []


def audit_finds_nothing(bed: Testbed) -> bool:
    """`sandboxctl audit --repair`: whether there was nothing to repair."""
    sandboxctl = str(Path(sys.executable).with_name("sandboxctl"))
    return bed.run([sandboxctl, "audit", "--repair"], check=False).returncode == 0


def left(recording: Recording) -> list[str]:
    """What there is more than before the recording, once nothing goes away any more."""
    bed = recording.bed
    lines: list[str] = []

    def clean() -> bool:
        lines[:] = [line for line in difference(recording.before, observe(bed)) if line.startswith("+")]
        return not lines

    try:
        until(clean, what="nothing is left")
    except TimeoutError:
        pass
    return lines


def chosen(cuts: list[Path], count: int, *, everything: bool) -> list[Path]:
    """So many of them, evenly."""
    if everything or len(cuts) <= count:
        return cuts
    return [cuts[round(i * (len(cuts) - 1) / (count - 1))] for i in range(count)]


@pytest.mark.timeout(7200)
def test_a_power_cut_at_any_commit_leaves_a_daemon_that_starts_and_frees_what_was(
    recording: Recording, cells: Cells, everything: bool
) -> None:
    bed, cuts = recording.bed, recording.cuts
    assert len(cuts) >= 20, [recording.what(cut) for cut in cuts]

    def try_all(some: list[Path], what: str, spoil: Callable[[Path], None], *, audited: bool) -> None:
        for cut in some:
            with cells.cell("power", at=recording.what(cut), what=what):
                power_fails(bed, cut)
                spoil(cut)
                starts_clean(recording, audited=audited)

    def older(cut: Path) -> None:
        with_ledger_of(bed, cuts[cuts.index(cut) - BEHIND])

    def some(of: list[Path], count: int) -> list[Path]:
        return chosen(of, count, everything=everything)

    try_all(some(cuts, 6), "all is written", lambda cut: None, audited=False)
    try_all(some(cuts[BEHIND:], 4), f"the ledger is {BEHIND} commits older", older, audited=True)
    try_all(some(cuts, 2), "the ledger is as before all pods", lambda cut: with_ledger_of(bed, cuts[0]), audited=True)
    try_all(some(cuts, 2), "the ledger is torn", lambda cut: tear(bed), audited=True)
    try_all(some(cuts[BEHIND:], 2), "plugins' files are empty", lambda cut: empty(bed), audited=False)

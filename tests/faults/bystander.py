"""A pod that has nothing to do with a fault, and must not notice it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.audit import Snapshot, difference, observe
from tests.pods import container_info, container_status, pod_info, pod_status, run_container, run_pod, shell
from tests.processes import until
from tests.testbed import Testbed

COUNTS = "n=0; while :; do echo $n; n=$((n + 1)); sleep 0.2; done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bystander:
    """A pod whose container writes the numbers from 0 on to its log."""

    bed: Testbed
    pod_id: str
    container_id: str
    ip: str
    pids: tuple[int, int]  # of the pause container and of its own
    log: Path

    @classmethod
    def start(cls, bed: Testbed) -> Self:
        """Run it; the image busybox must be there."""
        pod_id = run_pod(bed)
        container_id = run_container(bed, pod_id, shell(COUNTS))
        ip = pod_status(bed, pod_id).network.ip
        log = bed.path(container_status(bed, container_id).log_path)
        made = cls(
            bed=bed, pod_id=pod_id, container_id=container_id, ip=ip, pids=_pids(bed, pod_id, container_id), log=log
        )
        until(lambda: len(made._lines()) > 1, what="the bystander counts")
        return made

    def assert_undisturbed(self) -> None:
        """The same process, the same address, a log without a gap that still grows."""
        pids = _pids(self.bed, self.pod_id, self.container_id)
        assert pids == self.pids, "a container of the bystander's was started again"
        assert pod_status(self.bed, self.pod_id).network.ip == self.ip
        self._assert_counts()

    def _assert_counts(self) -> None:
        seen = len(self._lines())
        until(lambda: len(self._lines()) > seen, what="the bystander counts on")
        lines = self._lines()
        assert lines == [str(number) for number in range(len(lines))], "the bystander's log has a gap"

    def _lines(self) -> list[str]:
        """Without the last one, which may be half written."""
        return [line.split(" ", 3)[3] for line in self.log.read_text(encoding="utf-8").splitlines()[:-1]]


def _pids(bed: Testbed, pod_id: str, container_id: str) -> tuple[int, int]:
    return int(pod_info(bed, pod_id)["pid"]), int(container_info(bed, container_id)["pid"])


def lasting(snapshot: Snapshot) -> Snapshot:
    """Without the processes that come and go: the bystander's, and those that try what the machine can do.

    Of the bystander's shell there are two for a moment: each sleep begins as a copy of it.
    """
    passing = ("process sleep ", "zombie process [sleep]", "process /usr/sbin/runc features", "process unshare ")
    alike = ("process cat", f"process sh -c {COUNTS}")
    lines = (line for line in snapshot.lines if not line.startswith(passing) and line not in alike)
    return Snapshot(lines=tuple(lines))


def left(bed: Testbed, before: Snapshot, *, within: float) -> list[str]:
    """What is not as it was, apart from what does not last, once that is over or `within` seconds have passed."""
    lines: list[str] = []

    def same() -> bool:
        lines[:] = difference(lasting(before), lasting(observe(bed)))
        return not lines

    with suppress(TimeoutError):
        until(same, within=within, what="nothing is left")
    return lines

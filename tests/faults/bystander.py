"""A pod that has nothing to do with a fault, and must not notice it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.pods import container_info, container_status, pod_status, run_container, run_pod, shell
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
    pid: int
    log: Path

    @classmethod
    def start(cls, bed: Testbed) -> Self:
        """Run it; the image busybox must be there."""
        pod_id = run_pod(bed)
        container_id = run_container(bed, pod_id, shell(COUNTS))
        ip = pod_status(bed, pod_id).network.ip
        log = bed.path(container_status(bed, container_id).log_path)
        made = cls(bed=bed, pod_id=pod_id, container_id=container_id, ip=ip, pid=_pid(bed, container_id), log=log)
        until(lambda: len(made._lines()) > 1, what="the bystander counts")
        return made

    def assert_undisturbed(self) -> None:
        """The same process, the same address, a log without a gap that still grows."""
        assert _pid(self.bed, self.container_id) == self.pid, "the bystander's container was started again"
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


def _pid(bed: Testbed, container_id: str) -> int:
    return int(container_info(bed, container_id)["pid"])

"""A bed on which a matrix tries one fault after the other, with a bystander that none of them may touch."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc

from sandboxd.pb.host.v1.host_pb2 import AuditRequest
from tests.audit import Snapshot, difference, observe
from tests.faults.armed import Arms
from tests.faults.bystander import Bystander, lasting
from tests.faults.glance import glance
from tests.faults.points import Point
from tests.pods import run_pod
from tests.processes import LIMIT, until
from tests.testbed import Testbed

LATER_SECONDS = 5.0  # for what an operation does after its answer


class Bench:
    """A bed, its arms, its bystander, and how it looked with nothing else in it."""

    def __init__(self, bed: Testbed, *, images: bool = False, **sections: Any) -> None:
        """Start the daemon of `bed`, whose networks are installed. With `images`, stored images are compared too."""
        self.bed = bed
        self.arms = Arms(bed)
        self._images = images
        bed.start_daemon(**sections)
        bed.load_image("busybox")
        self.pod = run_pod(bed)  # for cells that are about containers
        self._bystander = Bystander.start(bed)
        self._before: Snapshot | None = None
        self._audited: Snapshot | None = None

    def settle(self) -> None:
        """From now on, this is how it looks with nothing in it; call it after a warm-up."""
        self._before = self._glance()
        self._audited = self._observe()

    def points(self, verb: str) -> list[Point]:
        """What the first operation of this name passed since the record began, as far as it has come."""
        found = [point for point in self.arms.points if point.verb == verb]
        return [point for point in found if (point.pid, point.operation) == (found[0].pid, found[0].operation)]

    def fired(self) -> bool:
        """Whether the plan was carried out, if need be after the answer."""
        with suppress(TimeoutError):
            until(lambda: self.arms.fired, within=LATER_SECONDS, what="it is carried out")
        return self.arms.fired

    def check(self, *, thorough: bool, new: tuple[str, ...] = ()) -> None:
        """Nothing is left, and the bystander lives as before. Raises AssertionError naming every difference.

        `new` are words of paths that may be there now, whoever made them.
        """
        assert self._before is not None and self._audited is not None, "settle comes first"
        before = self._before
        self._await_equal(lambda: _without(new, difference(before, self._glance())))
        self._bystander.assert_undisturbed()
        if thorough:
            audited = self._audited
            self._await_equal(lambda: _without(new, difference(audited, self._observe())))
            self._await_equal(self._findings)

    def _await_equal(self, compare: Callable[[], list[str]]) -> None:
        deadline = time.monotonic() + LIMIT
        while lines := compare():
            assert time.monotonic() < deadline, "it is not as it was before:\n" + "\n".join(lines)
            time.sleep(0.05)

    def _glance(self) -> Snapshot:
        return lasting(glance(self.bed, images=self._images))

    def _observe(self) -> Snapshot:
        return lasting(observe(self.bed))

    def _findings(self) -> list[str]:
        """What the product's own audit finds."""
        findings = self.bed.host.Audit(AuditRequest(), timeout=LIMIT).findings
        return [f"{each.kind} {each.name}: {each.why}" for each in findings]


def _without(words: tuple[str, ...], lines: list[str]) -> list[str]:
    return [line for line in lines if not any(word in line for word in words)]


def succeeded(ask: Callable[[], object]) -> bool:
    """Whether the request was answered without an error."""
    try:
        ask()
    except grpc.RpcError:
        return False
    return True

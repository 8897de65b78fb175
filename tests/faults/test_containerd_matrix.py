"""containerd is killed, stopped, or replaced by a newer version, at each call that a request makes to it.

The daemon is held at the call, before it is sent or after it was answered, while that is done to containerd.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.conftest import CURRENT_CONTAINERD
from tests.faults.bench import Bench
from tests.faults.cells import Cells
from tests.faults.sampling import sample
from tests.faults.verbs import (
    CreateContainer,
    RemovePod,
    RunPod,
    StartContainer,
    StopContainer,
    StopPod,
    Verb,
    recorded,
)
from tests.pods import refused
from tests.processes import until
from tests.testbed import Testbed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

VERBS = (RunPod, CreateContainer, StartContainer, StopContainer, StopPod, RemovePod)
PROGRAMS = "/opt/programs"  # inside: what goes first in PATH
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
ENDS_SECONDS = 200.0  # a request: the limit of one call to a containerd that is stopped, and what undoes it
AUDITED = 10  # cells from one audit to the next
# What the newer version makes besides, for itself or beside a task of the older one.
NEWER = ("/io.containerd.mount-manager.", "/io.containerd.sandbox.controller.", "/bootstrap.json")
BRIEF = {"kill": 3, "stop": 40, "replace": 1000}  # one in so many, at least one; the last two take long

Act = Callable[[Testbed], None]


def containerd(bed: Testbed) -> str:
    """The pid, inside, of the private containerd."""
    return bed.path("/run/sandboxd/containerd/containerd.pid").read_text().strip()


def ready(bed: Testbed) -> bool:
    """Whether Status says that containerd answers."""
    conditions = bed.runtime.Status(cri.StatusRequest(), timeout=60).status.conditions
    return all(condition.status for condition in conditions if condition.type == "RuntimeReady")


def use_programs(bed: Testbed, directory: Path) -> None:
    """Make containerd, its shim and ctr those of a directory, from the next start on."""
    bed.path(PROGRAMS).mkdir(exist_ok=True)
    for name in ("containerd", "containerd-shim-runc-v2", "ctr"):
        new = bed.path(f"{PROGRAMS}/{name}.new")
        new.symlink_to(directory / name)
        new.rename(new.with_suffix(""))


def open_verb(kind: type[Verb], stack: ExitStack) -> Verb:
    """The verb on a bed that has seen the request once."""
    bed = stack.enter_context(Testbed())
    bed.env["PATH"] = f"{PROGRAMS}:{bed.env['PATH']}"
    use_programs(bed, Path("/usr/bin"))
    bed.default_network()
    verb = kind(Bench(bed))
    about = verb.prepare()
    verb.ask(about)
    verb.finish(about)
    return verb


def killed(bed: Testbed, end: Callable[[], None]) -> None:
    """SIGKILL; the daemon starts it again."""
    bed.run(["kill", "-9", containerd(bed)])
    end()


def stopped(bed: Testbed, end: Callable[[], None]) -> None:
    """SIGSTOP, until the daemon says so, then SIGCONT."""
    pid = containerd(bed)
    bed.run(["kill", "-STOP", pid])
    end()
    until(lambda: not ready(bed), what="Status says that it does not answer")
    bed.run(["kill", "-CONT", pid])


def replaced(bed: Testbed, end: Callable[[], None]) -> None:
    """The programs are those of the next version, and containerd ends, as an upgrade has it."""
    use_programs(bed, CURRENT_CONTAINERD)
    bed.run(["kill", "-TERM", containerd(bed)])
    end()


ACTS = {"kill": killed, "stop": stopped, "replace": replaced}


def answered(verb: Verb, about: object) -> None:
    """Make the request until containerd is there to do it."""

    def asked() -> bool:
        try:
            verb.ask(about)
        except grpc.RpcError as error:
            assert refused(error)[0] in AWAY, refused(error)
            return False
        return True

    until(asked, what=f"{verb.name} succeeds")


def try_cell(verb: Verb, name: str, nth: int, what: str) -> bool:
    """Do it to containerd at this call; the request ends, the same again succeeds, and can be undone.

    False when the request did not make the call: an event can be faster, and do for it what it would have done.
    """
    bed, arms = verb.bed, verb.bench.arms
    about = verb.prepare()
    before = containerd(bed)
    arms.clear()
    arms.plan(verb.name, name, "stop", nth=nth)
    with ThreadPoolExecutor(1) as client:
        request: Future[None] = client.submit(verb.ask, about)
        try:
            until(lambda: arms.fired or request.done(), what="the daemon has come to its call")
            if reached := arms.fired:
                ACTS[what](bed, arms.disarm)
        finally:
            arms.disarm()
        error = request.exception(timeout=ENDS_SECONDS)
    assert error is None or (reached and refused(error)[0] in AWAY), error
    if not reached:
        verb.finish(about)
        return False
    until(lambda: (containerd(bed) == before) == (what == "stop") and ready(bed), what="containerd answers again")
    answered(verb, about)
    verb.finish(about)
    return True


def calls(verb: Verb) -> list[tuple[str, int]]:
    """Every call to containerd that the request makes, before and after."""
    found = [(name, nth) for name, nth in recorded(verb) if name.startswith("containerd ")]
    assert len(found) > 2, found
    return found


def try_all(verb: Verb, cells: Cells, what: str, points: list[tuple[str, int]]) -> bool:
    """Try the points until one fails or all are done; those that are tried are removed. Whether all went well."""
    failed = cells.failed
    while points and cells.failed == failed:
        name, nth = points.pop(0)
        reached, at = True, f"{verb.name} {name} {nth}"
        with cells.cell("containerd", at=at, what=what):
            reached = try_cell(verb, name, nth, what)
            new = NEWER if what == "replace" else ()
            verb.bench.check(thorough=len(points) % AUDITED == 0, new=new)
        if not reached:
            with cells.cell("containerd, not reached", at=at, what=what):
                pass
    return cells.failed == failed


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.name)
def test_a_containerd_that_is_killed_or_stopped_during_a_request_is_survived(
    kind: type[Verb], cells: Cells, everything: bool
) -> None:
    with ExitStack() as stack:
        verb = open_verb(kind, stack)
        every = calls(verb)
        verb.bench.settle()
        for what in ("kill", "stop"):
            points = sample(every, one_in=BRIEF[what], everything=everything)
            while not try_all(verb, cells, what, points):
                stack.close()
                verb = open_verb(kind, stack)
                verb.bench.settle()


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.name)
def test_a_containerd_that_is_replaced_by_a_newer_version_during_a_request_is_survived(
    kind: type[Verb], cells: Cells, everything: bool
) -> None:
    if not (CURRENT_CONTAINERD / "containerd").is_file():
        pytest.skip("containerd 2.x is not built: with Go installed, run `python tests/conformance/build.py`")
    with ExitStack() as first:
        points = sample(calls(open_verb(kind, first)), one_in=BRIEF["replace"], everything=everything)
    for point in points:
        with ExitStack() as stack:
            verb = open_verb(kind, stack)
            verb.bench.settle()
            try_all(verb, cells, "replace", [point])

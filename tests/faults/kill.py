"""The kill matrix: SIGKILL of the daemon at every point of a request; restart; the same request again; remove; audit.

The points come from a recording of the request, so that a new step is covered without being added.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults import matrix
from tests.faults.bench import succeeded
from tests.faults.cells import Cells
from tests.faults.matrix import Fault
from tests.faults.verbs import OpenVerb, Verb
from tests.processes import until


def try_all(open_verb: OpenVerb, cells: Cells, *, one_in: int) -> None:
    """Kill at one in so many of the points of a request."""
    matrix.run("kill", open_verb, cells, _kill, _killed, one_in=one_in)


def _kill(point: str, nth: int) -> Sequence[Fault]:
    return [Fault(point=point, nth=nth, action="kill", words="SIGKILL")]


def _killed(verb: Verb, fault: Fault) -> bool:
    bench, arms = verb.bench, verb.bench.arms
    about = verb.prepare()
    fault.arm(verb)
    answered = succeeded(lambda: verb.ask(about))
    reached = bench.fired() if answered else arms.fired
    arms.disarm()
    assert answered or reached, "the request failed, and nobody had killed the daemon"
    if reached:
        until(lambda: not bench.bed.daemon_running, what="the daemon is dead")
        bench.bed.relaunch_daemon()
        verb.all_or_nothing(about)
        verb.ask(about)
    verb.finish(about)
    return reached

"""The kill matrix: SIGKILL of the daemon at every point of a request; restart; the same request again; remove; audit.

The points come from a recording of the request, so that a new step is covered without being added.
"""

from __future__ import annotations

from contextlib import ExitStack

from tests.faults.bench import succeeded
from tests.faults.cells import Cells
from tests.faults.verbs import OpenVerb, Verb, recorded, sample
from tests.processes import until

AUDITED = 10  # cells from one audit to the next


def matrix(open_verb: OpenVerb, cells: Cells, *, one_in: int) -> None:
    """Try one in so many of the points of a request. A bed with a failed cell is replaced."""
    with ExitStack() as stack:
        verb = _opened(open_verb, stack)
        points = sample(recorded(verb), one_in)
        assert len(points) > 20 // one_in, points
        verb.bench.settle()
        for number, (name, nth) in enumerate(points, 1):
            at = f"{verb.name} {name} {nth}"
            failed, reached = cells.failed, False
            with cells.cell("kill", at=at, what="SIGKILL"):
                reached = _killed(verb, name, nth) or _killed(verb, name, nth)
                verb.bench.check(thorough=number % AUDITED == 0 or number == len(points))
            if cells.failed > failed:
                stack.close()
                verb = _opened(open_verb, stack)
                verb.bench.settle()
            elif not reached:
                with cells.cell("kill, not reached", at=at, what="SIGKILL"):
                    pass


def _opened(open_verb: OpenVerb, stack: ExitStack) -> Verb:
    """The verb on a bed that has seen the request once, and a daemon that was killed."""
    verb = open_verb(stack)
    about = verb.prepare()
    verb.ask(about)
    verb.finish(about)
    verb.bench.bed.restart_daemon(kill=True)
    return verb


def _killed(verb: Verb, name: str, nth: int) -> bool:
    """Try one point; whether it was reached."""
    bench, arms = verb.bench, verb.bench.arms
    about = verb.prepare()
    arms.clear()
    arms.plan(verb.name, name, "kill", nth=nth)
    answered = succeeded(lambda: verb.ask(about))
    reached = bench.fired() if answered else arms.fired
    arms.disarm()
    assert answered or reached, "the request failed, and nobody had killed the daemon"
    if reached:
        until(lambda: not bench.bed.daemon_running, what="the daemon is dead")
        bench.bed.relaunch_daemon()
        verb.ask(about)
    verb.finish(about)
    return reached

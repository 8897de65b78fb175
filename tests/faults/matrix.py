"""How a matrix goes through the points of a request, one fault after the other, on a bed that is kept while whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tests.faults.cells import Cells
from tests.faults.sampling import sample
from tests.faults.verbs import OpenVerb, Verb, recorded

AUDITED = 10  # cells from one audit to the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is to happen at which point; see tests.faults.armed.Plan."""

    point: str
    nth: int
    action: str
    seconds: float = 0.0
    times: int = 1
    everywhere: bool = False  # in whatever else the daemon does too, and not in this request only
    words: str = ""

    def arm(self, verb: Verb) -> None:
        """Plan it for the next request of this kind, and begin a new record."""
        verb.bench.arms.clear()
        verb.bench.arms.plan(verb.name, self.point, self.action, nth=self.nth, seconds=self.seconds, times=self.times)


def run(
    matrix: str,
    open_verb: OpenVerb,
    cells: Cells,
    faults_at: Callable[[str, int], Sequence[Fault]],
    attempt: Callable[[Verb, Fault], bool],
    *,
    one_in: int,
) -> None:
    """Try one in so many of the faults. `attempt` tries one and says whether its point was reached.

    A point that is not reached is tried once more, by a daemon that remembers nothing, and then noted as such: the
    branches of a request that run side by side do not share their points out in the same way every time. A bed with a
    failed cell is replaced.
    """
    with ExitStack() as stack:
        verb = _opened(open_verb, stack)
        points = recorded(verb)
        faults = sample([fault for name, nth in points for fault in faults_at(name, nth)], one_in=one_in)
        assert len(points) > 6 and faults, points
        verb.bench.settle()
        for number, fault in enumerate(faults, 1):
            at, reached, failed = f"{verb.name} {fault.point} {fault.nth}", False, cells.failed
            with cells.cell(matrix, at=at, what=fault.words):
                reached = attempt(verb, fault)
                if not reached:
                    verb.bench.bed.restart_daemon(kill=True)
                    reached = attempt(verb, fault)
                verb.bench.check(thorough=number % AUDITED == 0 or number == len(faults))
            if cells.failed > failed:
                stack.close()
                verb = _opened(open_verb, stack)
                verb.bench.settle()
            elif not reached:
                with cells.cell(f"{matrix}, not reached", at=at, what=fault.words):
                    pass


def _opened(open_verb: OpenVerb, stack: ExitStack) -> Verb:
    """The verb on a bed that has seen the request once, and a daemon that was killed."""
    verb = open_verb(stack)
    about = verb.prepare()
    verb.ask(about)
    verb.finish(about)
    verb.bench.bed.restart_daemon(kill=True)
    return verb

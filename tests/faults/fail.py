"""The fail matrix: at every point of a request where something outside can fail, it does.

Calls to containerd fail before and after they had their effect, once, for as long as the request lasts, at their own
limit, or are slow; programs cannot be started; namespaces cannot be made or removed; the ledger cannot be written.
The request ends. Once the fault is gone nothing is left of it, without a person, and the same request succeeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from tests.faults import matrix
from tests.faults.bench import succeeded
from tests.faults.cells import Cells
from tests.faults.matrix import Fault
from tests.faults.verbs import OpenVerb, Verb

SLOW_SECONDS = 0.5


def try_all(open_verb: OpenVerb, cells: Cells, *, one_in: int) -> None:
    """Try one in so many of the faults that a request can meet."""
    matrix.run("fail", open_verb, cells, faults_at, _failed, one_in=one_in)


def faults_at(point: str, nth: int) -> Sequence[Fault]:
    """What can go wrong at a point: what the other side of it can do, and nothing that our own code would have to."""
    kind, _, when = point.partition(" ")[0], *point.rpartition(":")[1:]
    once = Fault(point=point, nth=nth, action="fail", words="fails once")
    long = Fault(point=point, nth=0, action="fail", times=0, everywhere=True, words="fails for long")
    late = Fault(point=point, nth=nth, action="late", words="hangs until its limit")
    slow = Fault(point=point, nth=nth, action="hang", seconds=SLOW_SECONDS, words="is slow")
    first = [long] if nth == 1 else []
    if kind == "containerd":
        # How long a wait may take is what a client asked for, such as a grace period; its end is no fault.
        hung = [] if point.startswith("containerd Tasks/Wait:") else [late]
        return [once, *hung, *first, *([slow] if when == "before" else [])]
    if kind in ("netns", "spawn", "commit") and when == "before":
        return [once, *first, slow]
    return []


def _failed(verb: Verb, fault: Fault) -> bool:
    arms = verb.bench.arms
    about = verb.prepare()
    fault.arm(verb)
    answered = succeeded(lambda: verb.ask(about))
    reached = verb.bench.fired() if answered else arms.fired
    arms.disarm()
    assert answered or reached, "the request failed, and nothing had gone wrong"
    if not answered:
        verb.all_or_nothing(about)
        try:
            verb.ask(about)
        except grpc.RpcError as error:
            if not verb.is_final(about):
                raise error
    verb.finish(about)
    return reached

"""Which answers the requests about one pod may get, given what overlapped.

A history is what was asked and answered about one pod's name, and when. It is explained by an order of its requests:
each takes place at a moment between question and answer, and each answer follows from what took place before it
(linearizability; searched as by Wing and Gong, "Testing and Verifying Concurrent Objects", 1993).

Most requests take place at one moment. Some take a while: they begin at one moment and end at another, and whoever
looks in between may see what they undo as it was, or already undone.

    RunPodSandbox                                         has the name from its beginning, and is seen at its end
    StopPodSandbox, RemovePodSandbox, RemoveContainer     hold the pod: nothing else changes it meanwhile
    StopContainer, ExecSync                               hold nothing
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

OK = "ok"
CREATED, RUNNING, EXITED = "CREATED", "RUNNING", "EXITED"
NOT_FOUND, NOT_READY, EXISTS = "NotFound", "NotReady", "AlreadyExists"
TWO_MOMENTS = frozenset(("Run", "Stop", "Remove", "StopContainer", "RemoveContainer", "Exec"))
# What may come of a process whose container is being ended.
CUT_OFF = frozenset((OK, NOT_FOUND, NOT_READY, "Exit", "CleanupIncomplete", "TimedOut", "Unclassified"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request and its answer."""

    verb: str
    target: str = ""  # the id of a pod or container
    name: str = ""  # of the container that is to be made
    variant: int = 0  # which of the configurations that have this name
    asked: int  # moments of any clock that only goes forward
    answered: int
    answer: object = OK  # OK, the name of an error, an id, or what a list holds

    def __str__(self) -> str:
        what = " ".join(filter(None, (self.target[:8], self.name, f"({self.variant})" if self.variant else "")))
        return f"{self.asked:>6}–{self.answered:<6} {self.verb} {what} → {self.answer}"


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Container:
    """A container of the model."""

    name: str
    id: str
    variant: int
    state: str = CREATED
    ending: frozenset[int] = frozenset()  # the requests that are ending it


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """What a pod's name stands for; no pod without an id."""

    id: str = ""
    variant: int = 0
    ready: bool = False
    maker: int = -1  # the request that makes it, while it takes a while
    holder: int = -1  # the request that holds the pod, while it takes a while
    removing: bool = False  # the holder is a RemovePodSandbox
    containers: tuple[Container, ...] = ()
    gone: frozenset[str] = frozenset()  # ids that were removed
    running: frozenset[tuple[int, str]] = frozenset()  # execs that began in a container that runs, and its id
    marred: frozenset[int] = frozenset()  # those whose container was being ended meanwhile

    def container(self, container_id: str) -> Container | None:
        return next((each for each in self.containers if each.id == container_id), None)

    def named(self, name: str) -> Container | None:
        return next((each for each in self.containers if each.name == name), None)

    def put(self, changed: Container) -> Pod:
        others = [each for each in self.containers if each.id != changed.id]
        return replace(self, containers=tuple(sorted([*others, changed])))

    def without(self, container_id: str) -> Pod:
        left = tuple(each for each in self.containers if each.id != container_id)
        return replace(self, containers=left, gone=self.gone | {container_id})

    def is_ending(self, container: Container) -> bool:
        return bool(container.ending) or (self.holder >= 0 and self.ending_all)

    @property
    def ending_all(self) -> bool:
        """Whether the whole pod is being stopped or removed."""
        return self.holder >= 0 and not any(self.holder in each.ending for each in self.containers)


def explain(history: Sequence[Request]) -> list[str]:
    """No lines when the history can be explained, else the history itself, a line each."""
    count = len(history)
    full = tuple(2 if each.verb in TWO_MOMENTS else 1 for each in history)
    seen: set[tuple[tuple[int, ...], Pod]] = set()
    stack: list[tuple[tuple[int, ...], Pod]] = [((0,) * count, Pod())]
    furthest: tuple[int, ...] = (0,) * count
    while stack:
        done, pod = stack.pop()
        if (done, pod) in seen:
            continue
        seen.add((done, pod))
        if done == full:
            return []
        if sum(done) > sum(furthest):
            furthest = done
        stack.extend(_next(history, full, done, pod))
    stuck = [i for i in range(count) if furthest[i] < full[i]]
    return [
        f"{'?' if i in stuck else ' '} {history[i]}" for i in sorted(range(count), key=lambda i: history[i].asked)
    ]


def _next(
    history: Sequence[Request], full: tuple[int, ...], done: tuple[int, ...], pod: Pod
) -> list[tuple[tuple[int, ...], Pod]]:
    """What may come next: the next moment of each request that was asked before any other had to be answered."""
    left = [i for i in range(len(history)) if done[i] < full[i]]
    first = min(history[i].answered for i in left)
    found = []
    for i in left:
        if history[i].asked > first:
            continue
        after = (*done[:i], done[i] + 1, *done[i + 1 :])
        for then in _moments(pod, i, history[i], last=after[i] == full[i]):
            if then == pod:
                return [(after, then)]  # what changes nothing may as well come first
            found.append((after, then))
    return found


def _moments(pod: Pod, i: int, request: Request, *, last: bool) -> Iterator[Pod]:
    """What the pod may be after the next moment of request `i`; nothing when its answer contradicts the pod."""
    match request.verb:
        case "Stop" | "Remove":
            yield from _ends(pod, i, request) if last else _begins(pod, i, request)
        case "StopContainer" | "RemoveContainer":
            yield from _container_ends(pod, i, request) if last else _container_begins(pod, i, request)
        case "Exec":
            yield from _exec_ends(pod, i, request) if last else _exec_begins(pod, i, request)
        case "Run":
            yield from _run_ends(pod, i, request) if last else _run_begins(pod, i, request)
        case "Create":
            yield from _create(pod, request)
        case "Start":
            yield from _start(pod, request)
        case "ListPods":
            if request.answer in _listed_pods(pod):
                yield pod
        case "ListContainers":
            if _is_list(pod, request):
                yield pod
        case other:
            raise ValueError(other)


def _run_begins(pod: Pod, i: int, request: Request) -> Iterator[Pod]:
    same = pod.variant == request.variant
    if pod.maker >= 0:
        if request.answer == EXISTS and not same:
            yield pod
    elif not pod.id:
        if request.answer not in (EXISTS, NOT_READY, NOT_FOUND) and request.answer not in pod.gone:
            yield replace(pod, maker=i, variant=request.variant)
    elif pod.ready and not pod.ending_all:
        if request.answer == (pod.id if same else EXISTS):
            yield pod
    elif request.answer == EXISTS or (pod.ready and same and request.answer == pod.id):
        yield pod


def _run_ends(pod: Pod, i: int, request: Request) -> Iterator[Pod]:
    yield replace(pod, maker=-1, id=str(request.answer), ready=True) if pod.maker == i else pod


def _begins(pod: Pod, i: int, request: Request) -> Iterator[Pod]:
    if request.answer != OK:
        return
    if not pod.id or request.target != pod.id:
        yield pod
    elif pod.holder < 0:
        marred = pod.marred | {each for each, _ in pod.running}
        yield replace(pod, holder=i, removing=request.verb == "Remove", marred=marred)


def _ends(pod: Pod, i: int, request: Request) -> Iterator[Pod]:
    if pod.holder != i:
        yield pod
    elif request.verb == "Stop":
        ended = [replace(each, state=EXITED if each.state == RUNNING else each.state) for each in pod.containers]
        yield replace(pod, holder=-1, ready=False, containers=tuple(sorted(ended)))
    else:
        gone = pod.gone | {pod.id, *(each.id for each in pod.containers)}
        yield Pod(gone=gone, running=pod.running, marred=pod.marred)


def _create(pod: Pod, request: Request) -> Iterator[Pod]:
    if not pod.id or request.target != pod.id:
        if request.answer == NOT_FOUND:
            yield pod
        return
    if pod.holder >= 0:
        return
    if not pod.ready:
        if request.answer == NOT_READY:
            yield pod
        return
    there = pod.named(request.name)
    if there is None:
        fresh = str(request.answer)
        if request.answer not in (EXISTS, NOT_READY, NOT_FOUND) and fresh not in pod.gone:
            yield pod.put(Container(name=request.name, id=fresh, variant=request.variant))
        return
    same = there.variant == request.variant and there.state != EXITED
    if request.answer == (there.id if same else EXISTS) or (same and there.ending and request.answer == EXISTS):
        yield pod


def _start(pod: Pod, request: Request) -> Iterator[Pod]:
    there = pod.container(request.target)
    if there is None:
        if request.answer == NOT_FOUND:
            yield pod
    elif pod.holder >= 0:
        return
    elif there.state == CREATED and pod.ready:
        if request.answer == OK:
            yield pod.put(replace(there, state=RUNNING))
    elif there.state == RUNNING:
        if request.answer == OK or (there.ending and request.answer == NOT_READY):
            yield pod
    elif request.answer == NOT_READY:
        yield pod


def _container_begins(pod: Pod, i: int, request: Request) -> Iterator[Pod]:
    if request.answer != OK:
        return
    there = pod.container(request.target)
    holds = request.verb == "RemoveContainer"
    if there is None or (not holds and there.state != RUNNING):
        yield pod
    elif holds and pod.holder >= 0:
        return
    else:
        changed = pod.put(replace(there, ending=there.ending | {i}))
        marred = pod.marred | {each for each, inside in pod.running if inside == there.id}
        yield replace(changed, holder=i if holds else pod.holder, marred=marred)


def _container_ends(pod: Pod, i: int, request: Request) -> Iterator[Pod]:
    there = pod.container(request.target)
    holds = pod.holder == i
    if there is None or i not in there.ending:
        yield replace(pod, holder=-1) if holds else pod
    elif holds:
        yield replace(pod.without(there.id), holder=-1)
    else:
        yield pod.put(replace(there, state=EXITED, ending=there.ending - {i}))


def _exec_begins(pod: Pod, i: int, request: Request) -> Iterator[Pod]:
    there = pod.container(request.target)
    if there is None:
        if request.answer == NOT_FOUND:
            yield pod
    elif there.state == RUNNING:
        marred = pod.marred | {i} if pod.is_ending(there) else pod.marred
        yield replace(pod, running=pod.running | {(i, there.id)}, marred=marred)
    elif request.answer == NOT_READY:
        yield pod


def _exec_ends(pod: Pod, i: int, request: Request) -> Iterator[Pod]:
    if (i, request.target) not in pod.running:
        yield pod
    elif request.answer == OK or (i in pod.marred and request.answer in CUT_OFF):
        yield replace(pod, running=pod.running - {(i, request.target)}, marred=pod.marred - {i})


def _listed_pods(pod: Pod) -> list[object]:
    """What ListPodSandbox may show under this name: (id, whether it is ready), or None."""
    if not pod.id:
        return [None]
    shown: list[object] = [(pod.id, pod.ready)]
    if pod.ending_all:
        shown.append((pod.id, False))
    return shown


def _is_list(pod: Pod, request: Request) -> bool:
    """Whether ListContainers may show this: a set of (id, state)."""
    if not pod.id or request.target != pod.id:
        return request.answer == frozenset()
    shown = request.answer
    assert isinstance(shown, frozenset)
    states = dict(shown)
    if set(states) - {each.id for each in pod.containers}:
        return False
    for each in pod.containers:
        may: set[str | None] = {each.state}
        if each.state == RUNNING and pod.is_ending(each):
            may.add(EXITED)
        if (pod.ending_all and pod.removing) or pod.holder in each.ending:
            may |= {None, EXITED if each.state == RUNNING else each.state}
        if states.get(each.id) not in may:
            return False
    return True

"""What races have in common: the requests that hypothesis chooses, their histories, and the judgement.

Two machines send them: `interleaved` to the fakes, `side_by_side` to a daemon in a bed.
"""

from __future__ import annotations

from collections import defaultdict

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.faults.history import Request, explain

PODS, CONTAINERS = ("a", "b"), ("x", "y")
NOBODY = "0" * 64  # an id that nothing has
AT_ONCE = 5  # requests about one pod; the orders of many more are too many to search

pods = st.sampled_from(PODS)
names = st.sampled_from(CONTAINERS)
variants = st.sampled_from((0, 0, 0, 1))


class Race(RuleBasedStateMachine):
    """The verbs on two pods with two containers each. A subclass sends them, looks, and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.histories: dict[str, list[Request]] = defaultdict(list)
        self._pods: dict[str, str] = {}  # what clients were told last
        self._containers: dict[tuple[str, str], str] = {}

    # What a subclass does.

    def send(self, pod: str, verb: str, target: str, name: str, variant: int) -> None:
        """Begin a request; `answered` is called when there is an answer. Waits when AT_ONCE are under way."""
        raise NotImplementedError

    def look(self, pod: str) -> None:
        """Note in the pod's history what ListPodSandbox and ListContainers say of it now."""
        raise NotImplementedError

    def everything_ends(self) -> None:
        """Wait until every request is answered and nothing goes on behind."""
        raise NotImplementedError

    # What is asked.

    @initialize()
    def begin(self) -> None:
        """One pod has a container that runs, so that the first requests meet something."""
        self.run("a", 0)
        self.everything_ends()
        self.create("a", "x", 0)
        self.everything_ends()
        self.start("a", "x")
        self.everything_ends()

    @rule(pod=pods, variant=variants)
    def run(self, pod: str, variant: int) -> None:
        self.send(pod, "Run", "", "", variant)

    @rule(pod=pods)
    def stop(self, pod: str) -> None:
        self.send(pod, "Stop", self.pod_id(pod), "", 0)

    @rule(pod=pods)
    def remove(self, pod: str) -> None:
        self.send(pod, "Remove", self.pod_id(pod), "", 0)

    @rule(pod=pods, name=names, variant=variants)
    def create(self, pod: str, name: str, variant: int) -> None:
        self.send(pod, "Create", self.pod_id(pod), name, variant)

    @rule(pod=pods, name=names)
    def start(self, pod: str, name: str) -> None:
        self.send(pod, "Start", self.container_id(pod, name), "", 0)

    @rule(pod=pods, name=names)
    def stop_container(self, pod: str, name: str) -> None:
        self.send(pod, "StopContainer", self.container_id(pod, name), "", 0)

    @rule(pod=pods, name=names)
    def remove_container(self, pod: str, name: str) -> None:
        self.send(pod, "RemoveContainer", self.container_id(pod, name), "", 0)

    @rule(pod=pods, name=names)
    def exec(self, pod: str, name: str) -> None:
        self.send(pod, "Exec", self.container_id(pod, name), "", 0)

    @rule(pod=pods)
    def list(self, pod: str) -> None:
        self.look(pod)

    # What clients know, and what came of it.

    def pod_id(self, pod: str) -> str:
        """The id of the pod that somebody was told of last."""
        return self._pods.get(pod, NOBODY)

    def container_id(self, pod: str, name: str) -> str:
        return self._containers.get((pod, name), NOBODY)

    def answered(self, pod: str, request: Request) -> None:
        """Note an answer."""
        self.histories[pod].append(request)
        if request.verb == "Run" and _is_id(request.answer):
            self._pods[pod] = str(request.answer)
        elif request.verb == "ListPods" and isinstance(request.answer, tuple):
            self._pods[pod] = str(request.answer[0])
        elif request.verb == "Create" and _is_id(request.answer):
            self._containers[pod, request.name] = str(request.answer)

    def all_removed(self) -> None:
        """Once nothing goes on: the lists are as the answers say; then remove every pod."""
        self.everything_ends()
        for pod in PODS:
            self.look(pod)
        self.judge()
        for pod in PODS:
            self.remove(pod)
        self.everything_ends()
        for pod in PODS:
            self.look(pod)
            (shown,) = [each for each in self.histories[pod] if each.verb == "ListPods"][-1:]
            assert shown.answer is None, f"pod {pod} was removed and is there: {shown}"
        self.judge()

    def judge(self) -> None:
        """Fail with the history that no order of its requests explains."""
        for pod, history in self.histories.items():
            lines = explain(history)
            assert not lines, f"no order of these requests explains their answers (pod {pod}):\n" + "\n".join(lines)


def _is_id(answer: object) -> bool:
    return isinstance(answer, str) and len(answer) == len(NOBODY)

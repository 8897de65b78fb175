"""The judge of races: what some order explains is explained, and nothing else."""

from __future__ import annotations

import pytest

from tests.faults.history import EXISTS, NOT_FOUND, NOT_READY, Request, explain

pytestmark = pytest.mark.faults

POD, INSIDE = "pod", "inside"
RUN = Request(verb="Run", asked=1, answered=2, answer=POD)
CREATE = Request(verb="Create", target=POD, name="x", asked=3, answered=4, answer=INSIDE)
START = Request(verb="Start", target=INSIDE, asked=5, answered=6)
BEFORE = [RUN, CREATE, START]


def request(
    verb: str, asked: int, answered: int, answer: object = "ok", target: str = POD, variant: int = 0
) -> Request:
    return Request(verb=verb, target=target, asked=asked, answered=answered, answer=answer, variant=variant)


def inside(state: str) -> frozenset[tuple[str, str]]:
    return frozenset([(INSIDE, state)])


EXPLAINED = {
    "the same pod again": [request("Run", 7, 8, POD, "")],
    "another with its name": [request("Run", 7, 8, EXISTS, "", variant=1)],
    "a name that is had before its pod is seen": [
        request("Remove", 7, 8),
        request("Run", 9, 14, "other", ""),
        request("Run", 10, 11, EXISTS, "", variant=1),
        request("ListPods", 12, 13, None),
    ],
    "a pod that is being stopped, seen before": [request("Stop", 7, 12), request("ListPods", 8, 8, (POD, True))],
    "and seen after": [request("Stop", 7, 12), request("ListPods", 8, 8, (POD, False))],
    "a create that comes first": [request("Stop", 7, 12), request("Create", 8, 9, INSIDE)],
    "a start that comes too late": [request("Stop", 7, 12), request("Start", 8, 13, NOT_READY, INSIDE)],
    "a process that is cut off": [
        request("StopContainer", 7, 12, "ok", INSIDE),
        request("Exec", 8, 9, "Exit", INSIDE),
    ],
    "a pod that is gone, and another": [request("Remove", 7, 12), request("Run", 8, 13, "other", "")],
    "a container that is already gone": [
        request("Remove", 7, 12),
        request("ListContainers", 8, 8, frozenset()),
        request("ListPods", 9, 9, (POD, False)),
    ],
}
NOT_EXPLAINED = {
    "two pods with one name": [request("Run", 7, 8, "other", "")],
    "a pod that is stopped and ready": [request("Stop", 7, 8), request("ListPods", 9, 9, (POD, True))],
    "a pod that is back without being asked for": [
        request("Remove", 7, 8),
        request("ListPods", 9, 9, (POD, False)),
    ],
    "a pod that is seen gone and then again": [
        request("Remove", 7, 12),
        request("ListPods", 8, 8, None),
        request("ListPods", 9, 9, (POD, False)),
    ],
    "a container in a pod that is stopped": [request("Stop", 7, 8), request("Create", 9, 10, "other")],
    "a container that runs in a stopped pod": [
        request("Stop", 7, 8),
        request("ListContainers", 9, 9, inside("RUNNING")),
    ],
    "a removed container that starts": [
        request("RemoveContainer", 7, 8, "ok", INSIDE),
        request("Start", 9, 10, "ok", INSIDE),
    ],
    "a lost container": [request("ListContainers", 7, 7, frozenset())],
    "a process that fails for no reason": [request("Exec", 7, 8, NOT_READY, INSIDE)],
    "a process that is cut off before": [
        request("Exec", 7, 8, "Exit", INSIDE),
        request("StopContainer", 9, 12, "ok", INSIDE),
    ],
    "an error of nobody": [request("Stop", 7, 8, "CleanupIncomplete")],
    "a name that nobody has": [request("Remove", 7, 8), request("Run", 9, 10, EXISTS, "", variant=1)],
    "a pod that is not found": [request("Create", 7, 8, NOT_FOUND)],
}


@pytest.mark.parametrize("more", EXPLAINED.values(), ids=EXPLAINED.keys())
def test_what_an_order_of_the_requests_gives_is_explained(more: list[Request]) -> None:
    assert explain([*BEFORE, *more]) == []


@pytest.mark.parametrize("more", NOT_EXPLAINED.values(), ids=NOT_EXPLAINED.keys())
def test_what_no_order_of_the_requests_gives_is_shown(more: list[Request]) -> None:
    lines = explain([*BEFORE, *more])
    assert len(lines) == len(BEFORE) + len(more)
    assert any(line.startswith("?") for line in lines)

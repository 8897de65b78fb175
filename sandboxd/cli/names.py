"""Finding the pod or container that a user refers to.

A pod can be given by NAME, NAMESPACE/NAME or a prefix of its id; a container by NAME, POD/NAME,
NAMESPACE/POD/NAME or a prefix of its id. Full ids are tried first, then names, then prefixes; the first of the
three with any match decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from sandboxd.pb.cri.v1 import api_pb2 as cri

SHORT_ID = 12

T = TypeVar("T", cri.PodSandbox, cri.Container)


class NoMatch(LookupError):
    """No object matches the reference."""


class SeveralMatch(LookupError):
    """More than one object matches the reference; the message lists them."""


def looks_like_id(reference: str) -> bool:
    """Whether the reference can only be an id: 12 or more hex digits are not a pod's name."""
    return re.fullmatch(r"[0-9a-f]{12,64}", reference) is not None


def pod_name(pod: cri.PodSandbox) -> str:
    """NAMESPACE/NAME."""
    return f"{pod.metadata.namespace}/{pod.metadata.name}"


def container_name(container: cri.Container, pods: Mapping[str, cri.PodSandbox]) -> str:
    """POD/NAME, or only NAME if the pod is not known."""
    pod = pods.get(container.pod_sandbox_id)
    return f"{pod.metadata.name}/{container.metadata.name}" if pod else container.metadata.name


def find_pod(reference: str, pods: Sequence[cri.PodSandbox], namespace: str = "") -> cri.PodSandbox:
    """The pod that `reference` means; with `namespace`, a bare NAME is looked up only there.

    Raises NoMatch, SeveralMatch.
    """
    matches = (
        [pod for pod in pods if pod.id == reference]
        or [pod for pod in pods if _pod_has_name(pod, reference, namespace)]
        or _starting_with(reference, pods)
    )
    if not matches:
        raise NoMatch(f"there is no pod {reference!r}")
    return _one(f"{reference!r} is more than one pod", matches, _pod_line)


def find_container(
    reference: str, containers: Sequence[cri.Container], pods: Sequence[cri.PodSandbox]
) -> cri.Container:
    """The container that `reference` means; the name of a pod stands for its only container.

    Raises NoMatch, SeveralMatch.
    """
    by_id = {pod.id: pod for pod in pods}
    matches = (
        [each for each in containers if each.id == reference]
        or [each for each in containers if reference in _container_names(each, by_id)]
        or _starting_with(reference, containers)
    )
    problem = f"{reference!r} is more than one container"
    if not matches:
        try:
            pod = find_pod(reference, pods)
        except NoMatch:
            raise NoMatch(f"there is no container {reference!r}") from None
        matches = [each for each in containers if each.pod_sandbox_id == pod.id]
        if not matches:
            raise NoMatch(f"pod {pod_name(pod)} has no containers")
        problem = f"pod {pod_name(pod)} has more than one container"
    return _one(problem, matches, lambda each: _container_line(each, by_id))


def find(
    reference: str, pods: Sequence[cri.PodSandbox], containers: Sequence[cri.Container]
) -> cri.PodSandbox | cri.Container:
    """The pod or container that `reference` means. Names of pods come before names of containers.

    So after `run --name web`, which gives both the same name, "web" is the pod and "web/web" the container.

    Raises NoMatch, SeveralMatch.
    """
    by_id = {pod.id: pod for pod in pods}
    everything: list[cri.PodSandbox | cri.Container] = [*pods, *containers]
    stages: list[list[cri.PodSandbox | cri.Container]] = [
        [each for each in everything if each.id == reference],
        [pod for pod in pods if _pod_has_name(pod, reference, "")],
        [each for each in containers if reference in _container_names(each, by_id)],
        [*_starting_with(reference, pods), *_starting_with(reference, containers)],
    ]
    for matches in stages:
        if len(matches) == 1:
            return matches[0]
        if matches:
            lines = [
                _pod_line(each) if isinstance(each, cri.PodSandbox) else _container_line(each, by_id)
                for each in matches
            ]
            raise SeveralMatch(_listing(f"{reference!r} is more than one pod or container", lines))
    raise NoMatch(f"there is no pod or container {reference!r}")


def _pod_has_name(pod: cri.PodSandbox, reference: str, namespace: str) -> bool:
    if reference == pod_name(pod):
        return True
    return reference == pod.metadata.name and namespace in ("", pod.metadata.namespace)


def _container_names(container: cri.Container, pods: Mapping[str, cri.PodSandbox]) -> tuple[str, ...]:
    name = container.metadata.name
    pod = pods.get(container.pod_sandbox_id)
    return (name, f"{pod.metadata.name}/{name}", f"{pod_name(pod)}/{name}") if pod else (name,)


def _starting_with(reference: str, things: Iterable[T]) -> list[T]:
    return [each for each in things if reference and each.id.startswith(reference)]


def _one(problem: str, matches: Sequence[T], line: Callable[[T], str]) -> T:
    if len(matches) > 1:
        raise SeveralMatch(_listing(problem, [line(each) for each in matches]))
    return matches[0]


def _listing(problem: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{problem}; choose one by its id:", *(f"  {line}" for line in lines)])


def _pod_line(pod: cri.PodSandbox) -> str:
    state = cri.PodSandboxState.Name(pod.state).removeprefix("SANDBOX_").lower()
    return f"{pod.id[:SHORT_ID]}  pod {pod_name(pod)}  {state}"


def _container_line(container: cri.Container, pods: Mapping[str, cri.PodSandbox]) -> str:
    state = cri.ContainerState.Name(container.state).removeprefix("CONTAINER_").lower()
    return f"{container.id[:SHORT_ID]}  container {container_name(container, pods)}  {state}"

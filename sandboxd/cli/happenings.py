"""CRI's events, and what records tell of the past → lines for people and objects for programs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sandboxd.cli.names import SHORT_ID
from sandboxd.pb.cri.v1 import api_pb2 as cri

_WORDS = {
    cri.CONTAINER_CREATED_EVENT: "created",
    cri.CONTAINER_STARTED_EVENT: "started",
    cri.CONTAINER_STOPPED_EVENT: "stopped",
    cri.CONTAINER_DELETED_EVENT: "deleted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something that happened to a pod or a container."""

    at: int  # unix nanoseconds
    what: str  # created, started, stopped, deleted
    kind: str  # "pod" or "container"
    id: str
    name: str  # "namespace/pod", "namespace/pod/container"
    detail: str = ""  # an address, an exit code

    def line(self) -> str:
        """For people: "2026-11-30 16:52:40.011  started  pod        default/web  903bd2ae8baa  10.0.10.2"."""
        moment = datetime.fromtimestamp(self.at // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
        millis = self.at // 10**6 % 1000
        named = f"{self.name or '(unknown)'}  {self.id[:SHORT_ID]}"
        return f"{moment}.{millis:03}  {self.what:<7}  {self.kind:<9}  {named}  {self.detail}".rstrip()

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "time": self.at,
            "event": self.what,
            "kind": self.kind,
            "id": self.id,
            "name": self.name,
            "detail": self.detail,
        }


class Names:
    """The names of pods and containers by id, of those that have gone too: an event has only what is left."""

    def __init__(self, pods: Iterable[cri.PodSandbox] = (), containers: Iterable[cri.Container] = ()) -> None:
        listed = list(pods)
        self._known = {pod.id: _pod_name(pod.metadata) for pod in listed} | full_names(listed, containers)

    def happening(self, event: cri.ContainerEventResponse) -> Happening:
        """What an event means."""
        pod = event.pod_sandbox_status
        if pod.id:
            self._known[pod.id] = _pod_name(pod.metadata)
        for each in event.containers_statuses:
            self._known[each.id] = f"{self._known.get(pod.id, '')}/{each.metadata.name}".lstrip("/")
        of_pod = event.container_id == pod.id
        status = next((each for each in event.containers_statuses if each.id == event.container_id), None)
        detail = pod.network.ip if of_pod else ""
        if status is not None and event.container_event_type == cri.CONTAINER_STOPPED_EVENT:
            detail = _ended(status)
        return Happening(
            at=event.created_at,
            what=_WORDS.get(event.container_event_type, "changed"),
            kind="pod" if of_pod else "container",
            id=event.container_id,
            name=self._known.get(event.container_id, ""),
            detail=detail,
        )


def past(
    pods: Iterable[cri.PodSandboxStatus],
    containers: Iterable[cri.ContainerStatus],
    names: Mapping[str, str],
) -> list[Happening]:
    """What the records of what exists tell, oldest first: no daemon keeps the events themselves.

    `names` are those of the containers, by id.
    """
    found = [
        Happening(
            at=pod.created_at,
            what="created",
            kind="pod",
            id=pod.id,
            name=_pod_name(pod.metadata),
            detail=pod.network.ip,
        )
        for pod in pods
    ]
    for each in containers:
        for at, what, detail in (
            (each.created_at, "created", ""),
            (each.started_at, "started", ""),
            (each.finished_at, "stopped", _ended(each)),
        ):
            if at:
                name = names.get(each.id, each.metadata.name)
                found.append(Happening(at=at, what=what, kind="container", id=each.id, name=name, detail=detail))
    return sorted(found, key=lambda each: each.at)


def full_names(pods: Iterable[cri.PodSandbox], containers: Iterable[cri.Container]) -> dict[str, str]:
    """ "namespace/pod/container" by id."""
    owners = {pod.id: _pod_name(pod.metadata) for pod in pods}
    return {each.id: f"{owners.get(each.pod_sandbox_id, '?')}/{each.metadata.name}" for each in containers}


def _pod_name(meta: cri.PodSandboxMetadata) -> str:
    return f"{meta.namespace}/{meta.name}"


def _ended(status: cri.ContainerStatus) -> str:
    reason = f" ({status.reason})" if status.reason else ""
    return f"exit code {status.exit_code}{reason}"

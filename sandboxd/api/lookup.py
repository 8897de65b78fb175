"""Which records a request is about: by its ids, or by the filter of a list.

An id may be given by any unambiguous prefix of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sandboxd.api import views
from sandboxd.errors import NotFound, SandboxdError
from sandboxd.ledger import Ledger
from sandboxd.model import ContainerRecord, ContainerState, SandboxRecord, find, subject_of
from sandboxd.node import Images


class Specs(Protocol):
    """Where the OCI runtime specs are."""

    async def spec(self, container_id: str) -> dict[str, Any]: ...


class Lookup:
    """The records of the ledger, as requests name them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def sandbox(self, text: str) -> SandboxRecord:
        """The pod whose id is or begins with `text`. Raises NotFound, or InvalidRequest if it is ambiguous."""
        return self._ledger.sandboxes[find(self._ledger.sandboxes, text, "pod")]

    def explained(self, sandbox_id: str, reference: str) -> SandboxRecord | None:
        """The pod that an id or else a reference means, also one that is being made; None if there is none.

        A reference is an id or its beginning, a name or "namespace/name". Raises NotFound for an id that is none's.
        """
        if sandbox_id:
            return self.sandbox(sandbox_id)
        try:
            return self.sandbox(reference)
        except NotFound:
            pass
        named = [
            each
            for each in self._ledger.sandboxes.values()
            if reference in (each.config.metadata.name, subject_of(each.config.metadata))
        ]
        return max(named, key=lambda each: each.created_at, default=None)

    def container(self, text: str) -> ContainerRecord:
        """The container whose id is or begins with `text`. Raises NotFound, or InvalidRequest if it is ambiguous."""
        return self._ledger.containers[find(self._ledger.containers, text, "container")]

    def created_container(self, text: str) -> ContainerRecord:
        """The same, of the containers that clients can see: not of one that is still being created."""
        record = self.container(text)
        if record.state is ContainerState.CREATING:
            raise NotFound(f"container {text} does not exist")
        return record

    # CRI: stopping or removing what does not exist succeeds.

    def sandbox_id_if_known(self, text: str) -> str:
        """The full id of the pod, "" if there is none. Raises InvalidRequest if `text` is ambiguous."""
        try:
            return self.sandbox(text).id
        except NotFound:
            return ""

    def container_id_if_known(self, text: str) -> str:
        """The full id of the container, "" if there is none. Raises InvalidRequest if `text` is ambiguous."""
        try:
            return self.container(text).id
        except NotFound:
            return ""

    # Lists never show what is still being created, nor what is prepared for whoever asks.

    def sandboxes(self, prefix: str, selector: Mapping[str, str]) -> list[SandboxRecord]:
        """The pods whose ids begin with `prefix` and that have the selector's labels."""
        found = [each for each in self._ledger.sandboxes.values() if each.is_shown]
        if prefix:
            found = [each for each in found if each.id.startswith(prefix)]
        if selector:
            found = [each for each in found if views.labels_match(selector, each.config.labels)]
        return found

    def containers(self, prefix: str, sandbox_prefix: str, selector: Mapping[str, str]) -> list[ContainerRecord]:
        """The containers whose ids and whose pods' ids begin so and that have the selector's labels."""
        found = [each for each in self._ledger.containers.values() if each.state is not ContainerState.CREATING]
        if prefix:
            found = [each for each in found if each.id.startswith(prefix)]
        if sandbox_prefix:
            found = [each for each in found if each.sandbox_id.startswith(sandbox_prefix)]
        if selector:
            found = [each for each in found if views.labels_match(selector, each.config.labels)]
        return found


async def spec_if_known(specs: Specs, container_id: str) -> dict[str, Any] | None:
    """The container's runtime spec; None if it cannot be had: a status without it is better than no status."""
    try:
        return await specs.spec(container_id)
    except SandboxdError:
        return None


def image_name(images: Images, reference: str) -> str | None:
    """containerd's name for an image, the one that people know if it has several; None if it is not here any more."""
    try:
        found = images.resolve(reference)
    except SandboxdError:
        return None
    return found.name if found.name in found.records else next(iter(found.records), None)

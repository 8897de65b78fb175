"""Which operations a person means who names a pod, a container or an image. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from sandboxd.model import is_id_prefix

MIN_PREFIX = 4  # digits of an id; a shorter one is a name


class About(Protocol):
    """What an operation under way and one that failed have in common."""

    @property
    def subject(self) -> str: ...
    @property
    def sandbox_id(self) -> str: ...
    @property
    def container_id(self) -> str: ...


Operation = TypeVar("Operation", bound=About)


def about(operations: Iterable[Operation], *references: str) -> list[Operation]:
    """Those about what one of the references names, in their order.

    A reference is an id or its beginning; a name, with or without what comes before it ("web" is "default/web",
    "web/nginx" is "default/web/nginx"); a pod's name means its containers too.
    """
    return [each for each in operations if any(_is_about(each, reference) for reference in references)]


def _is_about(operation: About, reference: str) -> bool:
    return bool(reference.strip("/")) and (_by_id(operation, reference) or _by_name(operation, reference))


def _by_id(operation: About, reference: str) -> bool:
    if len(reference) < MIN_PREFIX or not is_id_prefix(reference):
        return False
    return operation.sandbox_id.startswith(reference) or operation.container_id.startswith(reference)


def _by_name(operation: About, reference: str) -> bool:
    return f"/{reference.strip('/')}/" in f"/{operation.subject}/"

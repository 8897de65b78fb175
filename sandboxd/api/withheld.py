"""What is private in a request and in the objects that it names. Pure.

The values of environment variables, credentials and the commands to execute are private: passwords are passed in all
three. Names, images, paths, labels and annotations are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from google.protobuf.message import Message

from sandboxd.errors import InvalidRequest
from sandboxd.model import ContainerRecord
from sandboxd.registry import auth

_CREDENTIALS = ("password", "auth", "identity_token", "registry_token")
_COMMANDS = ("cmd", "command", "args")
_ENVIRONMENT = ("value",)  # of a KeyValue
_PRIVATE = {"AuthConfig": _CREDENTIALS, "KeyValue": _ENVIRONMENT}


def private(containers: Callable[[], Iterable[ContainerRecord]]) -> Callable[[Any], Iterator[str]]:
    """A function from a request to its private texts; what is not a message has none. `containers` returns all."""

    def texts(request: Any) -> Iterator[str]:
        if not isinstance(request, Message):
            return
        yield from in_message(request)
        container = str(getattr(request, "container_id", ""))
        pod = str(getattr(request, "pod_sandbox_id", ""))
        for record in containers():
            if record.id.startswith(container) and record.sandbox_id.startswith(pod):
                yield from in_message(record.config)

    return texts


def in_message(message: Message) -> Iterator[str]:
    """The private texts of a message and of those inside it."""
    names = (*_COMMANDS, *_PRIVATE.get(message.DESCRIPTOR.name, ()))
    for field, value in message.ListFields():
        if field.name in names:
            yield from _texts(value)
            if field.name == "auth":
                yield from _password(value)
        elif isinstance(value, Message):
            yield from in_message(value)
        elif not isinstance(value, str | bytes | int | float) and not hasattr(value, "items"):
            for item in value:
                if isinstance(item, Message):
                    yield from in_message(item)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "surrogateescape")
    elif isinstance(value, Message):
        yield from in_message(value)
    else:
        for item in value:
            yield from _texts(item)


def _password(encoded: Any) -> Iterator[str]:
    """The password inside docker's base64 form."""
    if isinstance(encoded, str):
        try:
            yield auth.decode(encoded)[1]
        except InvalidRequest:
            pass

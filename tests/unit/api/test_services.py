"""Services are composed from rooms: each RPC has exactly one method, and one that can answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.descriptor import ServiceDescriptor

from sandboxd.api import services
from sandboxd.api.services import Miscomposed, compose
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2

IMAGES: ServiceDescriptor = cri.DESCRIPTOR.services_by_name["ImageService"]


class Anything:
    """A resource that nothing is asked of."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __fspath__(self) -> str:
        return "/nowhere"


ANYTHING: Any = Anything()


class Reading:
    async def ListImages(self, request: Any, context: Any) -> str:
        return f"listed {request}"

    async def StreamImages(self, request: Any, context: Any) -> AsyncIterator[int]:
        yield request
        yield request + 1

    async def ImageStatus(self, request: Any, context: Any) -> None: ...

    async def ImageFsInfo(self, request: Any, context: Any) -> None: ...


class Writing:
    async def PullImage(self, request: Any, context: Any) -> None: ...

    async def RemoveImage(self, request: Any, context: Any) -> None: ...


class PullingToo:
    async def PullImage(self, request: Any, context: Any) -> None: ...


class Plain:
    def PullImage(self, request: Any, context: Any) -> None: ...

    async def RemoveImage(self, request: Any, context: Any) -> AsyncIterator[None]:
        yield


class Whole:
    """A stream that would be answered all at once."""

    async def ListImages(self, request: Any, context: Any) -> None: ...

    async def StreamImages(self, request: Any, context: Any) -> None: ...

    async def ImageStatus(self, request: Any, context: Any) -> None: ...

    async def ImageFsInfo(self, request: Any, context: Any) -> None: ...


class Misspelt(Writing):
    async def PullImages(self, request: Any, context: Any) -> None: ...


async def test_each_call_reaches_the_room_that_has_it_in_whatever_order_they_come() -> None:
    for rooms in ((Reading(), Writing()), (Writing(), Reading())):
        composed = compose(IMAGES, *rooms)
        assert await composed.ListImages("x", None) == "listed x"
        assert [number async for number in composed.StreamImages(1, None)] == [1, 2]


@pytest.mark.parametrize(
    ("rooms", "problem"),
    [
        ((Reading(),), "PullImage is implemented by no room; RemoveImage is implemented by no room"),
        ((Reading(), Writing(), PullingToo()), "PullImage is implemented by Writing, PullingToo"),
        ((Reading(), Plain()), "Plain.PullImage is not a coroutine function; Plain.RemoveImage is not a coroutine"),
        ((Whole(), Writing()), "Whole.StreamImages is not an async generator"),
        ((Reading(), Misspelt()), "Misspelt.PullImages is not an RPC"),
    ],
    ids=["missing", "ambiguous", "plain", "whole", "misspelt"],
)
def test_rooms_that_do_not_make_up_the_service_are_an_error_at_start(rooms: tuple[object, ...], problem: str) -> None:
    with pytest.raises(Miscomposed) as caught:
        compose(IMAGES, *rooms)

    assert str(caught.value).startswith(f"runtime.v1.ImageService: {problem}")


@pytest.mark.parametrize(
    ("service", "composed"),
    [
        (
            cri.DESCRIPTOR.services_by_name["RuntimeService"],
            lambda: services.runtime_service(ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING),
        ),
        (IMAGES, lambda: services.image_service(ANYTHING, ANYTHING, ANYTHING)),
        (
            host_pb2.DESCRIPTOR.services_by_name["Host"],
            lambda: services.host_service(ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING),
        ),
    ],
    ids=["RuntimeService", "ImageService", "Host"],
)
def test_every_call_of_a_contract_has_a_method_of_ours(service: ServiceDescriptor, composed: Any) -> None:
    assert set(vars(composed())) == set(service.methods_by_name)

"""What is known of tasks without asking containerd: that they were deleted here, unless another may still come."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from google.protobuf import empty_pb2

from sandboxd.containerd.tasks import Tasks
from sandboxd.errors import NotFound, Unavailable
from sandboxd.pb.containerd.services.tasks.v1 import tasks_pb2
from sandboxd.pb.containerd.types.task import task_pb2

ENDED = task_pb2.Process(id="c", status=task_pb2.Status.STOPPED, pid=7)


class Channel:
    """Answers as its attributes say, and counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.away = False  # once, at the next Create
        self.there = False  # a task

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        name = method.rpartition("/")[2]

        async def call(request: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return getattr(self, f"_{name.lower()}", lambda: empty_pb2.Empty())()

        return call

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return self.unary_unary(method)

    stream_unary = stream_stream = unary_stream

    def _create(self) -> tasks_pb2.CreateTaskResponse:
        if self.away:
            self.away = False
            raise _error(grpc.StatusCode.UNAVAILABLE)
        self.there = True
        return tasks_pb2.CreateTaskResponse(pid=7)

    def _delete(self) -> tasks_pb2.DeleteResponse:
        if not self.there:
            raise _error(grpc.StatusCode.NOT_FOUND)
        self.there = False
        return tasks_pb2.DeleteResponse(exit_status=3)

    def _get(self) -> tasks_pb2.GetResponse:
        if not self.there:
            raise _error(grpc.StatusCode.NOT_FOUND)
        return tasks_pb2.GetResponse(process=ENDED)

    def _list(self) -> tasks_pb2.ListTasksResponse:
        return tasks_pb2.ListTasksResponse(tasks=[ENDED] if self.there else [])


def _error(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, "its words")


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def tasks(channel: Channel) -> Tasks:
    return Tasks(cast(Any, SimpleNamespace(metadata=(), owned={}, channel=channel)))


async def test_of_a_task_that_was_deleted_nothing_is_asked(channel: Channel, tasks: Tasks) -> None:
    await tasks.create("c", ())
    assert await tasks.delete("c")
    channel.calls.clear()

    assert await tasks.delete("c") is None
    await tasks.kill("c", 9)
    with pytest.raises(NotFound):
        await tasks.wait("c")
    with pytest.raises(NotFound):
        await tasks.get("c")
    assert channel.calls == []


async def test_another_that_is_made_here_or_is_listed_is_asked_about(channel: Channel, tasks: Tasks) -> None:
    await tasks.create("c", ())
    await tasks.delete("c")
    channel.there = True  # somebody else's
    assert await tasks.list()
    assert await tasks.delete("c")

    await tasks.create("c", ())
    assert (await tasks.get("c")).pid == 7


async def test_a_task_that_was_not_there_may_still_come(channel: Channel, tasks: Tasks) -> None:
    """An earlier daemon's call may be under way."""
    assert await tasks.delete("c") is None
    channel.there = True
    assert (await tasks.get("c")).pid == 7
    assert await tasks.delete("c")


async def test_a_creation_without_an_answer_may_be_carried_out_later(channel: Channel, tasks: Tasks) -> None:
    """containerd was stopped, and reads the request when it goes on: after the task was looked for and deleted."""
    channel.away = True
    with pytest.raises(Unavailable):
        await tasks.create("c", ())
    channel.there = True
    assert await tasks.delete("c")
    channel.there = True

    assert (await tasks.get("c")).pid == 7
    assert await tasks.delete("c")

"""An event only says where to look; what is recorded is what is found there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from sandboxd.containerd import events as containerd_events
from sandboxd.containerd.client import Containerd
from sandboxd.containerd.events import EXIT, IMAGES, OOM, Event
from sandboxd.containers.create import create_container
from sandboxd.containers.ending import OOM_KILLED
from sandboxd.containers.start import start_container
from sandboxd.errors import Unavailable
from sandboxd.images.store import ImageStore
from sandboxd.model import ContainerState, SandboxState
from sandboxd.pods import follow as module
from sandboxd.pods.follow import follow
from tests.fakes.bundle import Bundle, container_config
from tests.unit.pods.conftest import LogLines, RunPod

NOBODY = "0" * 64


class Stream:
    """containerd's event stream: what it sends, and how it breaks."""

    def __init__(self, fakes: Bundle) -> None:
        self.events: list[Event] = []
        self.error: Exception | None = None
        self.looked_before = False  # something was compared before the stream was there
        self._fakes = fakes

    async def subscribe(self, client: Containerd) -> AsyncIterator[Event]:
        self.looked_before = self._fakes.points.count("runtime.list") > 0
        for event in self.events:
            await self._fakes.settled()  # so that what is seen afterwards is this event's work
            yield event
        await self._fakes.settled()
        if self.error is not None:
            raise self.error


class Refreshed:
    """The image store, as far as events reach."""

    def __init__(self) -> None:
        self.times = 0

    async def refresh(self) -> None:
        self.times += 1


@pytest.fixture
def stream(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> Stream:
    made = Stream(fakes)
    monkeypatch.setattr(containerd_events, "subscribe", made.subscribe)
    return made


@pytest.fixture
def images() -> Refreshed:
    return Refreshed()


@pytest.fixture
async def pod(run_pod: RunPod) -> str:
    return await run_pod()


@pytest.fixture
async def container(fakes: Bundle, pod: str) -> str:
    created = await create_container(fakes.node, pod, container_config())
    await start_container(fakes.node, created)
    await fakes.settled()
    fakes.points.reset()
    return created


async def following(fakes: Bundle, images: Refreshed) -> None:
    await follow(fakes.node, cast("Containerd", None), cast("ImageStore", images))
    await fakes.settled()


def only_in_the_stream(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first comparison finds nothing: what happens later does so because of an event."""

    async def nothing(node: object) -> None:
        pass

    monkeypatch.setattr("sandboxd.pods.follow.compare", nothing)


async def test_what_happened_while_nobody_listened_is_found(
    fakes: Bundle, stream: Stream, images: Refreshed, pod: str, container: str
) -> None:
    fakes.runtime.tasks[container].init.end(4)

    await following(fakes, images)

    assert fakes.node.ledger.containers[container].exit_code == 4
    assert images.times == 1


async def test_the_stream_is_there_before_anything_is_compared(
    fakes: Bundle, stream: Stream, images: Refreshed
) -> None:
    """Else an end between the two would wait for the next comparison."""
    await following(fakes, images)

    assert fakes.points.count("runtime.list") == 1
    assert not stream.looked_before


async def test_the_exit_of_a_container_is_recorded(
    fakes: Bundle,
    stream: Stream,
    images: Refreshed,
    pod: str,
    container: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only_in_the_stream(fakes, monkeypatch)
    fakes.runtime.tasks[container].init.end(4)
    stream.events = [Event(topic=EXIT, container_id=container)]

    await following(fakes, images)

    ended = fakes.node.ledger.containers[container]
    assert (ended.state, ended.exit_code) == (ContainerState.EXITED, 4)
    assert fakes.node.ledger.sandboxes[pod].state is SandboxState.READY


async def test_the_exit_of_a_pause_container_is_recorded(
    fakes: Bundle, stream: Stream, images: Refreshed, pod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_in_the_stream(fakes, monkeypatch)
    fakes.runtime.tasks[pod].init.end(4)
    stream.events = [Event(topic=EXIT, container_id=pod)]

    await following(fakes, images)

    assert fakes.node.ledger.sandboxes[pod].state is SandboxState.NOTREADY


async def test_an_exit_event_is_not_believed_without_looking(
    fakes: Bundle, stream: Stream, images: Refreshed, pod: str, container: str
) -> None:
    stream.events = [Event(topic=EXIT, container_id=container), Event(topic=EXIT, container_id=pod)]

    await following(fakes, images)

    assert fakes.node.ledger.containers[container].state is ContainerState.RUNNING
    assert fakes.node.ledger.sandboxes[pod].state is SandboxState.READY


async def test_a_kill_for_lack_of_memory_is_noted_for_when_the_container_ends(
    fakes: Bundle, stream: Stream, images: Refreshed, container: str
) -> None:
    stream.events = [Event(topic=OOM, container_id=container)]

    await following(fakes, images)

    assert fakes.node.ledger.containers[container].reason == OOM_KILLED


@pytest.mark.parametrize("topic", [EXIT, OOM])
async def test_an_event_of_somebody_elses_container_is_none_of_ours(
    fakes: Bundle, stream: Stream, images: Refreshed, container: str, log_lines: LogLines, topic: str
) -> None:
    records = dict(fakes.node.ledger.containers), dict(fakes.node.ledger.sandboxes)
    stream.events = [Event(topic=topic, container_id=NOBODY)]

    await following(fakes, images)

    assert (dict(fakes.node.ledger.containers), dict(fakes.node.ledger.sandboxes)) == records
    assert images.times == 1, "that is the one at the beginning"
    assert not log_lines


async def test_a_changed_image_makes_the_images_be_read_again(
    fakes: Bundle, stream: Stream, images: Refreshed
) -> None:
    stream.events = [Event(topic=f"{IMAGES}create"), Event(topic=f"{IMAGES}delete")]

    await following(fakes, images)

    assert images.times == 3


async def test_an_event_whose_work_fails_does_not_end_the_following(
    fakes: Bundle,
    stream: Stream,
    images: Refreshed,
    pod: str,
    container: str,
    log_lines: LogLines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only_in_the_stream(fakes, monkeypatch)
    for task in (container, pod):
        fakes.runtime.tasks[task].init.end(1)
    fakes.points.fail_always("logs.drain", Unavailable("not now"))
    stream.events = [Event(topic=EXIT, container_id=container), Event(topic=EXIT, container_id=pod)]

    await following(fakes, images)

    assert fakes.node.ledger.sandboxes[pod].state is SandboxState.NOTREADY
    assert [line["job"] for line in log_lines if line["event"] == "job failed"] == [f"settle {container}"]


async def test_a_broken_stream_ends_the_following_with_its_error(
    fakes: Bundle, stream: Stream, images: Refreshed
) -> None:
    """Whoever follows begins again, and compares first."""
    stream.error = Unavailable("containerd's events: connection reset")

    with pytest.raises(Unavailable, match="connection reset"):
        await following(fakes, images)


class Looked(Containerd):
    """A containerd that answers as it is told, then no more."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.asked_all = asyncio.Event()

    async def look(self, timeout: float) -> bool:
        if not self.answers:
            self.asked_all.set()
            await asyncio.Event().wait()
        return self.answers.pop(0)


async def test_when_containerd_answers_again_what_failed_is_tried_at_once(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    fakes.node.jobs.retries.failed("what waits for containerd", "it was away")
    client = Looked(False, True, False)
    fakes.node.jobs.watch("look", lambda: module.look(fakes.node, client))
    async with asyncio.timeout(60):
        await client.asked_all.wait()
    await fakes.settled()

    assert fakes.points.count("runtime.list") == 1
    assert fakes.node.jobs.retries.due("what waits for containerd")

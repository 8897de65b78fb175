"""Images in and out, as far as that needs no containerd, over a real gRPC connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from sandboxd.api.audit import Audit
from sandboxd.api.debts import Debts
from sandboxd.api.doctor import Doctor
from sandboxd.api.edge import Edge
from sandboxd.api.history import History
from sandboxd.api.host import Host
from sandboxd.api.networks import Networks
from sandboxd.api.replay import Replay
from sandboxd.api.services import compose
from sandboxd.api.transfer import Transfer
from sandboxd.errors import NotFound
from sandboxd.images import load
from sandboxd.images.load import Loaded
from sandboxd.images.pull import Pulls
from sandboxd.images.store import ImageStore
from sandboxd.images.uploads import Uploads
from sandboxd.jobs import Jobs
from sandboxd.model import ImageRecord, Progress, Report, Stage
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2, host_pb2_grpc
from sandboxd.registry.client import Registries
from sandboxd.registry.reference import Reference

SECONDS = 20  # after which a call without an answer is a failed test
RECORD = cast(ImageRecord, SimpleNamespace(id="sha256:id", digest="sha256:manifest", size=7))


class Scripted(Pulls):
    """Pulls that do what the test says instead of asking a registry."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__(cast(ImageStore, None), jobs, cast(Registries, None))
        self.tell: Report | None = None
        self.begun = asyncio.Event()
        self.release = asyncio.Event()
        self.ended = asyncio.Event()
        self.error: Exception | None = None
        self.runs = 0

    async def _pull(self, name: Reference, credentials: Any, report: Report) -> ImageRecord:
        self.runs += 1
        self.tell = report
        self.begun.set()
        try:
            await self.release.wait()
            if self.error:
                raise self.error
            return RECORD
        finally:
            self.ended.set()


class Site:
    """The service behind the edge, its pulls, and a client."""

    def __init__(self, pulls: Scripted, jobs: Jobs, channel: grpc.aio.Channel) -> None:
        self.pulls = pulls
        self.jobs = jobs
        self.host = host_pb2_grpc.HostStub(channel)

    def pull(self, image: str = "web", **fields: Any) -> Any:
        return self.host.PullImage(host_pb2.PullImageRequest(image=image, **fields), timeout=SECONDS)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    jobs = Jobs()
    pulls = Scripted(jobs)
    store: Any = None
    transfer = Transfer(store, pulls, Uploads(store, jobs, str(tmp_path / "uploads")), jobs)
    reading = Host(cast(Any, None), cast(Any, None), lambda: b"")
    server = grpc.aio.server(interceptors=(Edge(lambda: ""),))
    nothing: Any = None
    others = (
        History(nothing, nothing),
        Debts(nothing),
        Audit(nothing),
        Replay(cast(Any, SimpleNamespace(ledger=None))),
        Networks(nothing),
        Doctor(cast(Any, SimpleNamespace(ledger=None)), nothing),
    )
    service = compose(host_pb2.DESCRIPTOR.services_by_name["Host"], transfer, reading, *others)
    host_pb2_grpc.add_HostServicer_to_server(cast(Any, service), server)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        yield Site(pulls, jobs, channel)
    await pulls.stop()
    await server.stop(None)


async def rest(call: Any) -> list[host_pb2.PullImageResponse]:
    """What comes until the end of a call that was read from."""
    answers = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        answers.append(answer)
    return answers


async def test_a_pull_tells_where_its_layers_are_and_ends_with_the_image(site: Site) -> None:
    call = site.pull()
    await site.pulls.begun.wait()
    assert site.pulls.tell is not None
    for done in range(1000):
        site.pulls.tell(Progress(stage=Stage.FETCH, digest="sha256:a", done=done, total=999))
    site.pulls.tell(Progress(stage=Stage.WAIT, digest="sha256:b", done=0, total=5))

    first, second = await call.read(), await call.read()
    site.pulls.tell(Progress(stage=Stage.DONE, digest="sha256:a", done=999, total=999))
    site.pulls.release.set()
    told, last = await rest(call)

    assert [(each.layer.digest, each.layer.stage, each.layer.done_bytes) for each in (first, second)] == [
        ("sha256:a", "fetch", 999),
        ("sha256:b", "wait", 0),
    ]
    assert first.layer.total_bytes == 999
    assert told.layer.stage == "done"
    assert last.image == host_pb2.PulledImage(
        name="docker.io/library/web:latest", image_id="sha256:id", digest="sha256:manifest", size=7
    )


async def test_the_end_of_every_layer_is_told_before_the_image(site: Site) -> None:
    call = site.pull()
    await site.pulls.begun.wait()
    assert site.pulls.tell is not None
    site.pulls.tell(Progress(stage=Stage.DONE, digest="sha256:a", done=9, total=9))
    site.pulls.release.set()

    answers = [answer async for answer in call]

    assert [answer.WhichOneof("event") for answer in answers] == ["layer", "image"]


async def test_two_calls_for_one_image_are_one_pull_and_one_may_leave(site: Site) -> None:
    leaving = site.pull("web")
    await site.pulls.begun.wait()
    staying = site.pull("docker.io/library/web:latest")
    assert site.pulls.tell is not None
    site.pulls.tell(Progress(stage=Stage.FETCH, digest="sha256:a", done=1, total=2))
    assert (await leaving.read()).layer.done_bytes == 1
    assert (await staying.read()).layer.done_bytes == 1

    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving.read()
    site.pulls.release.set()

    assert [answer.image.image_id for answer in await rest(staying)] == ["sha256:id"]
    assert site.pulls.runs == 1


async def test_a_call_that_is_cancelled_stops_a_pull_that_nobody_else_wants(site: Site) -> None:
    call = site.pull()
    await site.pulls.begun.wait()

    call.cancel()

    async with asyncio.timeout(SECONDS):
        await site.pulls.ended.wait()
        assert await site.jobs.drain(SECONDS) == ()
    assert site.pulls.counters.cancelled == 1
    assert site.pulls.in_flight() == ()


async def test_other_credentials_are_another_pull(site: Site) -> None:
    mine = site.pull(auth=cri.AuthConfig(username="me", password="secret"))
    others = site.pull()
    site.pulls.release.set()

    for call in (mine, others):
        assert [answer.image.image_id async for answer in call] == ["sha256:id"]
    assert site.pulls.runs == 2


async def test_a_pull_that_fails_has_its_status_and_words(site: Site) -> None:
    site.pulls.error = NotFound("the registry has no web:latest")
    site.pulls.release.set()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [answer async for answer in site.pull()]

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "the registry has no web:latest"


async def test_what_is_no_reference_is_refused(site: Site) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [answer async for answer in site.pull("A b")]

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_shutdown_ends_a_watched_pull_and_says_so(site: Site) -> None:
    call = site.pull()
    await site.pulls.begun.wait()

    await site.pulls.stop()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [answer async for answer in call]
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def sent(*chunks: bytes) -> AsyncIterator[host_pb2.LoadImageRequest]:
    async def messages() -> AsyncIterator[host_pb2.LoadImageRequest]:
        for chunk in chunks:
            yield host_pb2.LoadImageRequest(chunk=chunk)

    return messages()


async def test_an_archive_is_answered_with_progress_and_then_its_images(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def loading(store: Any, path: Path, report: Report) -> list[Loaded]:
        assert path.read_bytes() == b"archive"
        report(Progress(stage=Stage.VERIFY, done=3, total=7))
        return [Loaded(names=("web:latest",), image_id="sha256:id", digest="sha256:manifest", size=7)]

    monkeypatch.setattr(load, "load", loading)
    answers = [answer async for answer in site.host.LoadImage(sent(b"arch", b"ive"), timeout=SECONDS)]

    assert answers == [
        host_pb2.LoadImageResponse(progress=host_pb2.Progress(stage="verify", done_bytes=3, total_bytes=7)),
        host_pb2.LoadImageResponse(
            loaded=host_pb2.LoadedImage(names=["web:latest"], image_id="sha256:id", digest="sha256:manifest", size=7)
        ),
    ]


async def test_an_archive_without_a_byte_is_refused(site: Site) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [answer async for answer in site.host.LoadImage(sent(), timeout=SECONDS)]

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_a_pull_tells_while_an_answer_is_sent_is_told_before_the_image() -> None:
    jobs = Jobs()
    pulls = Scripted(jobs)
    context = SimpleNamespace(add_done_callback=lambda ended: None)
    service = Transfer(cast(ImageStore, None), pulls, cast(Uploads, None), jobs)
    answers = aiter(service.PullImage(host_pb2.PullImageRequest(image="web"), context))
    first = asyncio.ensure_future(anext(answers))
    await pulls.begun.wait()
    assert pulls.tell is not None
    pulls.tell(Progress(stage=Stage.FETCH, digest="sha256:a", done=1, total=2))
    assert (await first).layer.stage == "fetch"

    # The client has not taken it yet: the service is in the middle of sending.
    pulls.tell(Progress(stage=Stage.DONE, digest="sha256:a", done=2, total=2))
    pulls.release.set()
    await pulls.ended.wait()
    await jobs.drain(SECONDS)

    assert (await anext(answers)).layer.stage == "done"
    assert (await anext(answers)).image.image_id == RECORD.id

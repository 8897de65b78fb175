"""The same pull is made once, for as long as somebody wants it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from sandboxd.errors import InvalidRequest, NotFound, Unavailable
from sandboxd.images.pull import Pulls, credentials_of
from sandboxd.images.store import ImageStore
from sandboxd.jobs import Jobs
from sandboxd.model import ImageRecord, Progress, Report, Stage
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.registry.auth import Credentials
from sandboxd.registry.client import Registries
from sandboxd.registry.reference import Reference

RECORD = cast(ImageRecord, object())
ME = Credentials(username="me", password="secret")
AT = Progress(stage=Stage.FETCH, digest="sha256:x", done=1, total=2)


class Scripted(Pulls):
    """Pulls that wait for the test instead of a registry."""

    def __init__(self) -> None:
        super().__init__(cast(ImageStore, None), Jobs(), cast(Registries, None))
        self.begun: list[tuple[str, Credentials]] = []
        self.release = asyncio.Event()
        self.cleaned_up = asyncio.Event()
        self.error: Exception | None = None

    async def _pull(self, name: Reference, credentials: Credentials, report: Report) -> ImageRecord:
        self.begun.append((str(name), credentials))
        try:
            report(AT)
            await self.release.wait()
        except asyncio.CancelledError:
            await self.cleaned_up.wait()
            raise
        if self.error:
            raise self.error
        return RECORD


@pytest.fixture
async def pulls() -> AsyncIterator[Scripted]:
    made = Scripted()
    yield made
    made.cleaned_up.set()
    await made.stop()


async def started(pulls: Scripted, text: str, *arguments: Any) -> asyncio.Task[ImageRecord]:
    """A waiter that is on board."""
    task = asyncio.create_task(pulls.pull(text, *arguments))
    await settle()
    return task


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_all_spellings_of_a_reference_are_one_pull(pulls: Scripted) -> None:
    waiters = [await started(pulls, text) for text in ("nginx", "docker.io/library/nginx:latest", "library/nginx")]

    pulls.release.set()

    assert await asyncio.gather(*waiters) == [RECORD] * 3
    assert [name for name, _ in pulls.begun] == ["docker.io/library/nginx:latest"]
    assert pulls.counters.succeeded == 1
    assert pulls.in_flight() == ()


async def test_other_credentials_are_another_pull(pulls: Scripted) -> None:
    waiters = [await started(pulls, "nginx"), await started(pulls, "nginx", ME)]

    pulls.release.set()
    await asyncio.gather(*waiters)

    assert [credentials for _, credentials in pulls.begun] == [Credentials(), ME]


async def test_a_waiter_that_goes_away_leaves_the_pull_to_the_others(pulls: Scripted) -> None:
    leaving, staying = await started(pulls, "nginx"), await started(pulls, "nginx")

    leaving.cancel()
    await settle()
    pulls.release.set()

    assert await staying is RECORD
    assert leaving.cancelled()


async def test_the_last_waiter_that_goes_away_stops_the_pull(pulls: Scripted) -> None:
    waiters = [await started(pulls, "nginx"), await started(pulls, "nginx")]
    pulls.cleaned_up.set()

    for waiter in waiters:
        waiter.cancel()
    await settle()

    assert pulls.counters.cancelled == 1
    assert pulls.in_flight() == ()


async def test_a_new_pull_waits_until_the_stopped_one_has_let_go(pulls: Scripted) -> None:
    (await started(pulls, "nginx")).cancel()
    await settle()
    again = await started(pulls, "nginx")
    assert len(pulls.begun) == 1

    pulls.cleaned_up.set()
    pulls.release.set()

    assert await again is RECORD
    assert len(pulls.begun) == 2


async def test_an_error_is_everybodys_and_the_next_one_tries_again(pulls: Scripted) -> None:
    waiters = [await started(pulls, "nginx"), await started(pulls, "nginx")]
    pulls.error = NotFound("no such image")
    pulls.release.set()

    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(result) for result in results] == [NotFound, NotFound]

    pulls.error = None
    assert await pulls.pull("nginx") is RECORD


async def test_everybody_who_waits_sees_the_progress(pulls: Scripted) -> None:
    seen: list[Progress] = []
    waiter = await started(pulls, "nginx", None, seen.append)
    pulls.release.set()
    await waiter

    assert seen == [AT]


async def test_who_joins_late_is_told_where_each_layer_is(pulls: Scripted) -> None:
    first = await started(pulls, "nginx")
    seen: list[Progress] = []
    second = await started(pulls, "nginx", None, seen.append)
    pulls.release.set()
    await asyncio.gather(first, second)

    assert seen == [AT]


async def test_shutdown_stops_pulls_and_says_so(pulls: Scripted) -> None:
    waiter = await started(pulls, "nginx")
    pulls.cleaned_up.set()

    await pulls.stop()

    with pytest.raises(Unavailable, match="shutting down"):
        await waiter
    with pytest.raises(Unavailable, match="shutting down"):
        await pulls.pull("nginx")


@pytest.mark.parametrize("text", ["", "Upper", "a b", f"nginx@sha512:{'ab' * 64}"])
async def test_what_cannot_be_pulled_is_refused_at_once(pulls: Scripted, text: str) -> None:
    with pytest.raises(InvalidRequest):
        await pulls.pull(text)


def test_cris_credentials_are_read() -> None:
    encoded = base64.b64encode(b"me:secret").decode()

    assert credentials_of(cri.AuthConfig(auth=encoded)) == ME
    assert credentials_of(cri.AuthConfig(auth="ignored", username="me", password="secret")) == ME
    assert credentials_of(cri.AuthConfig()) == Credentials()
    assert credentials_of(cri.AuthConfig(identity_token="i", registry_token="r", server_address="s")) == Credentials(
        identity_token="i", registry_token="r", server_address="s"
    )

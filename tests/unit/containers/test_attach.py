"""Attach: clients come and go, and the container notices only what they send."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandboxd.containers.attach import Attached, Attaching
from sandboxd.containers.create import create_container
from sandboxd.containers.start import start_container
from sandboxd.errors import NotFound, NotReady
from sandboxd.model import SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.fakes.bundle import Bundle, container_config
from tests.fakes.points import Point

ARRIVING = (("stdout", b"one"), ("stderr", b"two"), ("stdout", b"three"))


def asking_for(*, stdin: bool = True, stdin_once: bool = False, tty: bool = False) -> cri.ContainerConfig:
    config = container_config()
    config.stdin, config.stdin_once, config.tty = stdin, stdin_once, tty
    return config


@pytest.fixture
def attaching(fakes: Bundle) -> Attaching:
    return Attaching(fakes.node)


async def run(fakes: Bundle, pod: SandboxRecord, config: cri.ContainerConfig | None = None) -> str:
    """A container that runs."""
    container_id = await create_container(fakes.node, pod.id, config or asking_for())
    await start_container(fakes.node, container_id)
    await fakes.settled()
    return container_id


async def to_stdin(attaching: Attaching, container_id: str) -> Attached:
    return await attaching.attach(container_id, stdin=True, stdout=False, stderr=False)


def stdin_of(fakes: Bundle, container_id: str) -> str:
    return f"{fakes.places.streams(container_id)}/stdin"


def writers(path: str) -> int:
    """How many descriptors of ours can write to a FIFO."""
    found = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{entry}") == path:
                flags = Path(f"/proc/self/fdinfo/{entry}").read_text().split("flags:")[1].split()[0]
                found += int(flags, 8) & os.O_ACCMODE == os.O_WRONLY
        except FileNotFoundError:
            pass  # the one of the listing itself
    return found


def received(fakes: Bundle, container_id: str) -> bytes:
    """What the container can read from its stdin."""
    fd = os.open(stdin_of(fakes, container_id), os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


@asynccontextmanager
async def _output(container_id: str) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
    async def arriving() -> AsyncIterator[tuple[str, bytes]]:
        for pair in ARRIVING:
            yield pair

    yield arriving()


async def test_only_a_container_that_runs_can_be_attached_to(
    fakes: Bundle, pod: SandboxRecord, attaching: Attaching
) -> None:
    container_id = await create_container(fakes.node, pod.id, asking_for())

    with pytest.raises(NotFound, match="container nowhere does not exist"):
        await to_stdin(attaching, "nowhere")
    with pytest.raises(NotReady, match=f"container {container_id} is created, not running"):
        await to_stdin(attaching, container_id)


async def test_a_container_without_a_stdin_can_be_attached_to_for_its_output_alone(
    fakes: Bundle, pod: SandboxRecord, attaching: Attaching
) -> None:
    container_id = await run(fakes, pod, asking_for(stdin=False))

    with pytest.raises(NotReady, match="has no stdin to attach to; create it with stdin"):
        await to_stdin(attaching, container_id)
    await (await attaching.attach(container_id, stdin=False, stdout=True, stderr=True)).close()


async def test_what_clients_send_reaches_the_container(
    fakes: Bundle, pod: SandboxRecord, attaching: Attaching
) -> None:
    container_id = await run(fakes, pod)
    first, second = await to_stdin(attaching, container_id), await to_stdin(attaching, container_id)
    await first.write_stdin(b"one ")
    await second.write_stdin(b"two")

    assert received(fakes, container_id) == b"one two"
    await first.close()
    await second.close()
    assert writers(stdin_of(fakes, container_id)) == 0


@pytest.mark.parametrize("config", [asking_for(), asking_for(stdin_once=True, tty=True)], ids=["plain", "terminal"])
async def test_stdin_stays_for_the_others_and_for_later_when_a_client_has_sent_everything(
    fakes: Bundle, pod: SandboxRecord, attaching: Attaching, config: cri.ContainerConfig
) -> None:
    """Always with a terminal: it has no end."""
    container_id = await run(fakes, pod, config)
    first, second = await to_stdin(attaching, container_id), await to_stdin(attaching, container_id)
    await first.close_stdin()
    await second.write_stdin(b"on")
    later = await to_stdin(attaching, container_id)
    await later.write_stdin(b" and on")

    assert received(fakes, container_id) == b"on and on"
    for client in (first, second, later):
        await client.close()


async def test_with_stdin_once_it_ends_for_everybody_when_the_first_client_has_sent_everything(
    fakes: Bundle, pod: SandboxRecord, attaching: Attaching
) -> None:
    container_id = await run(fakes, pod, asking_for(stdin_once=True))
    first, second = await to_stdin(attaching, container_id), await to_stdin(attaching, container_id)
    await first.close_stdin()

    with pytest.raises(BrokenPipeError):
        await second.write_stdin(b"more")
    with pytest.raises(NotReady, match=f"the stdin of container {container_id} was closed by an earlier client"):
        await to_stdin(attaching, container_id)
    assert writers(stdin_of(fakes, container_id)) == 0
    await first.close()
    await second.close()


async def test_with_stdin_once_a_client_that_only_watched_ends_nothing(
    fakes: Bundle, pod: SandboxRecord, attaching: Attaching
) -> None:
    container_id = await run(fakes, pod, asking_for(stdin_once=True))
    await (await attaching.attach(container_id, stdin=False, stdout=True, stderr=False)).close()
    client = await to_stdin(attaching, container_id)
    await client.write_stdin(b"hello")

    assert received(fakes, container_id) == b"hello"
    await client.close()


async def test_a_stdin_that_cannot_be_opened_says_why(
    fakes: Bundle, pod: SandboxRecord, attaching: Attaching
) -> None:
    container_id = await run(fakes, pod)
    os.unlink(stdin_of(fakes, container_id))

    with pytest.raises(NotReady, match=f"the stdin of container {container_id} cannot be opened: No such file"):
        await to_stdin(attaching, container_id)


async def test_a_client_that_cannot_have_the_output_leaves_no_stdin_open(
    fakes: Bundle, pod: SandboxRecord, attaching: Attaching
) -> None:
    container_id = await run(fakes, pod)
    fakes.points.fail(Point("logs.output", 1), NotReady("the logger is away"))

    with pytest.raises(NotReady, match="the logger is away"):
        await attaching.attach(container_id, stdin=True, stdout=True, stderr=True)
    assert not fakes.points.unreached
    assert writers(stdin_of(fakes, container_id)) == 0


async def test_each_stream_is_read_without_waiting_for_the_other(
    fakes: Bundle, pod: SandboxRecord, attaching: Attaching, monkeypatch: pytest.MonkeyPatch
) -> None:
    container_id = await run(fakes, pod)
    monkeypatch.setattr(fakes.logs, "output", _output)
    client = await attaching.attach(container_id, stdin=False, stdout=True, stderr=True)

    assert [data async for data in client.stderr()] == [b"two"]
    assert [data async for data in client.stdout()] == [b"one", b"three"]
    await client.close()


async def test_attaching_ends_with_the_container_and_not_before(
    fakes: Bundle, pod: SandboxRecord, attaching: Attaching
) -> None:
    container_id = await run(fakes, pod)
    client = await to_stdin(attaching, container_id)
    waiting = asyncio.create_task(client.wait())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    await fakes.runtime.kill(container_id, 9)

    await waiting
    await fakes.runtime.delete(container_id)
    await client.wait()  # its task is gone
    await client.close()


async def test_a_client_that_leaves_does_not_affect_the_container(
    fakes: Bundle, pod: SandboxRecord, attaching: Attaching
) -> None:
    container_id = await run(fakes, pod)
    client = await attaching.attach(container_id, stdin=True, stdout=True, stderr=True)
    left = fakes.left()
    await client.close()
    await client.close()

    assert fakes.left() == left
    assert fakes.runtime.tasks[container_id].init.exit is None


async def test_the_terminals_size_is_that_of_the_containers_own_process(
    fakes: Bundle, pod: SandboxRecord, attaching: Attaching, monkeypatch: pytest.MonkeyPatch
) -> None:
    container_id = await run(fakes, pod, asking_for(tty=True))
    client = await to_stdin(attaching, container_id)
    sizes: list[tuple[str, str, int, int]] = []

    async def resize(container_id: str, exec_id: str, *, width: int, height: int) -> None:
        sizes.append((container_id, exec_id, width, height))

    monkeypatch.setattr(fakes.runtime.processes, "resize", resize)
    await client.resize(width=80, height=24)
    assert sizes == [(container_id, "", 80, 24)]
    await client.close()

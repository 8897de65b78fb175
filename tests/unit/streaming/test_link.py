"""One connection: what ends it, and that nothing is lost at its end."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sandboxd.streaming.link import Broken, Gone, Idle, Limits, Link
from sandboxd.streaming.spdy import Connection
from sandboxd.streaming.streams import Event, StreamOpened
from tests.streaming.spdy_client import Frames, control, data_frame

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def linked(
    received: bytes = b"", *, linger: float = 0.05, idle: float = 60.0
) -> AsyncIterator[tuple[Link, Client]]:
    """A link and the client at its other end."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = await asyncio.open_connection(*listener.getsockname())
    accepted, _ = listener.accept()
    listener.close()
    reader, writer = await asyncio.open_connection(sock=accepted)
    link = Link(reader, writer, Connection(), limits=Limits(linger=linger, idle=idle), received=received)
    try:
        yield link, client
    finally:
        link.close()
        client[1].close()
        await asyncio.sleep(0)


async def ignore(event: Event) -> None:
    pass


async def test_events_come_in_order_starting_with_what_was_already_read() -> None:
    """Then the end is the client's."""
    frames = Frames()
    first, second = frames.syn_stream(1, {}), frames.syn_stream(3, {})
    seen: list[Event] = []

    async def note(event: Event) -> None:
        seen.append(event)

    async with linked(received=first) as (link, (_, client)):
        client.write(second)
        client.write_eof()
        with pytest.raises(Gone, match="closed"):
            await link.read(note)
    assert seen == [StreamOpened(stream=1, headers={}), StreamOpened(stream=3, headers={})]


async def test_a_broken_protocol_is_told_to_the_client_and_raised() -> None:
    """GOAWAY goes out before the error."""
    async with linked(received=b"\xff" * 16) as (link, (client, _)):
        with pytest.raises(Broken):
            await link.read(ignore)
        assert (await client.readexactly(16))[:4] == b"\x80\x03\x00\x07"


async def test_an_end_within_a_frame_is_a_broken_protocol() -> None:
    """Not a client that left."""
    async with linked(received=data_frame(1, b"abc")[:-1]) as (link, (_, client)):
        client.write_eof()
        with pytest.raises(Broken, match="middle"):
            await link.read(ignore)


async def test_a_lost_connection_is_a_client_that_left() -> None:
    """For the reader and for writers."""
    async with linked() as (link, (_, client)):
        client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.transport.abort()
        with pytest.raises(Gone):
            await link.read(ignore)
        with pytest.raises(Gone):
            await link.flush()


async def test_a_hang_up_is_noticed_while_an_event_is_handled() -> None:
    """Though nothing is read meanwhile; the handler is cancelled after the limit."""
    cancelled = asyncio.Event()

    async def stuck(event: Event) -> None:
        try:
            client.close()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with linked(received=Frames().syn_stream(1, {})) as (link, (_, client)):
        with pytest.raises(Gone, match="hung up"):
            await link.read(stuck)
    assert cancelled.is_set()


async def test_what_was_sent_before_a_hang_up_is_still_handled() -> None:
    """A client may send and leave; everything that can be handled in time is."""
    frames = Frames()
    handled = 0

    async def count(event: Event) -> None:
        nonlocal handled
        handled += 1
        await asyncio.sleep(0)

    async with linked() as (link, (_, client)):
        client.write(b"".join(frames.syn_stream(2 * number + 1, {}) for number in range(500)))
        client.close()
        with pytest.raises(Gone, match="closed"):
            await link.read(count)
    assert handled == 500


async def test_idleness_is_counted_from_the_last_byte() -> None:
    """And told with the limit."""
    async with linked(idle=0.02) as (link, _):
        with pytest.raises(Idle, match=r"0\.02 s"):
            await link.watch_idle()


async def test_finish_delivers_everything_to_a_client_that_is_still_sending() -> None:
    """Unread input must not turn the end into a reset that destroys the output."""
    async with linked(received=Frames().syn_stream(1, {}), linger=5.0) as (link, (reader, writer)):
        reading = asyncio.create_task(link.read(ignore))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        writer.write(data_frame(1, bytes(3_000_000)))
        sending = asyncio.create_task(link.send(1, b"x" * 2_000_000, fin=True))

        async def drain() -> bytes:
            said = await reader.read()
            writer.close()
            return said

        draining = asyncio.create_task(drain())
        await sending
        await link.finish()
        assert (await draining).count(b"x") == 2_000_000


async def test_finish_does_not_wait_for_ever() -> None:
    """A client that never hangs up is left."""
    async with linked() as (link, (reader, _)):
        await link.finish()
        assert (await reader.readexactly(16))[:4] == b"\x80\x03\x00\x07"


async def test_a_flood_that_wants_answers_from_a_client_that_does_not_read_is_held_back() -> None:
    """Pings are not read on while their echoes pile up."""
    ping = control(6, 0, struct.pack(">I", 1)) * 100_000
    async with linked() as (link, (reader, writer)):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        reading = asyncio.create_task(link.read(ignore))

        async def flood() -> None:
            for _ in range(20):
                writer.write(ping)
                await writer.drain()

        flooding = asyncio.create_task(flood())
        while link.unsent <= 256 * 1024:  # noqa: ASYNC110  # the transport has no event for it
            await asyncio.sleep(0)
        for _ in range(300):
            await asyncio.sleep(0)
            assert link.unsent < 512 * 1024
        assert not flooding.done()
        for task in (flooding, reading):
            task.cancel()
        await asyncio.gather(flooding, reading, return_exceptions=True)
        writer.transport.abort()

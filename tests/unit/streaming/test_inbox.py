"""The inbox is bounded, keeps order, and lets both sides go."""

from __future__ import annotations

import asyncio

from sandboxd.streaming.inbox import Inbox


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_is_put_is_taken_in_order_and_then_the_end() -> None:
    """Pieces may come joined; empty ones vanish."""
    inbox = Inbox()
    await inbox.put(b"a")
    await inbox.put(b"")
    await inbox.put(b"b")
    inbox.close()
    assert [await inbox.take(), await inbox.take(), await inbox.take()] == [b"ab", b"", b""]


async def test_a_full_inbox_holds_the_writer_until_it_is_emptied() -> None:
    """It holds less than its limit and one piece more."""
    inbox = Inbox(limit=10)
    await inbox.put(b"123456789")
    await inbox.put(b"0123456789")
    writing = asyncio.create_task(inbox.put(b"x"))
    await turn()
    assert not writing.done()
    assert inbox.size == inbox.peak == 19
    assert await inbox.take() == b"1234567890123456789"
    await writing
    assert await inbox.take() == b"x"


async def test_a_reader_waits_for_data_or_the_end() -> None:
    """Nothing is not the end."""
    inbox = Inbox()
    reading = asyncio.create_task(inbox.take())
    await turn()
    assert not reading.done()
    inbox.close()
    assert await reading == b""


async def test_discard_frees_a_waiting_writer_and_drops_everything() -> None:
    """Nobody waits for a reader that is gone."""
    inbox = Inbox(limit=1)
    await inbox.put(b"x")
    writing = asyncio.create_task(inbox.put(b"y"))
    await turn()
    assert not writing.done()
    inbox.discard()
    await writing
    await inbox.put(b"z")
    assert inbox.size == 0

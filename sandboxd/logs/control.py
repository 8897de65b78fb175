"""The daemon's connection to the logger: requests and their answers, and the logger's notices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from sandboxd.errors import NotReady
from sandboxd.logs import wire


class Control(asyncio.Protocol):
    """One connection. It needs no task of its own: the event loop's callbacks hand answers to their waiters."""

    def __init__(self, notice: Callable[[dict[str, Any]], None]) -> None:
        self.lost = asyncio.Event()
        self._notice = notice
        self._frames = wire.Frames()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._transport: asyncio.Transport | None = None

    async def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """Make a request and wait for its answer, without a time limit: the caller must set one.

        Raises ConnectionError when the logger ends before it answers, NotReady with its words when it refuses.
        """
        if self._transport is None or self.lost.is_set():
            raise ConnectionResetError("the logger has ended")
        self._number += 1
        number = self._number
        waiter: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiter
        try:
            self._transport.write(wire.message(op=op, id=number, **fields))
            answer = await waiter
        finally:
            self._waiting.pop(number, None)
        if "error" in answer:
            raise NotReady(str(answer["error"]))
        return answer

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio.Protocol"""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """asyncio.Protocol"""
        try:
            for kind, payload in self._frames.feed(data):
                if kind == wire.MESSAGE:
                    self._received(wire.parse(payload))
        except wire.Garbled:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio.Protocol"""
        self.lost.set()
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(ConnectionResetError("the logger has ended"))

    def _received(self, fields: dict[str, Any]) -> None:
        if "notice" in fields:
            self._notice(fields)
            return
        waiter = self._waiting.get(fields.get("id", 0))
        if waiter is not None and not waiter.done():
            waiter.set_result(fields)

"""A streaming server on loopback, and the check that nothing of it is left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from sandboxd.jobs import Jobs
from sandboxd.streaming.link import Limits
from sandboxd.streaming.server import StreamingServer

Serve = Callable[..., Coroutine[Any, Any, StreamingServer]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start servers; at the end none has a session, and no job is left."""
    jobs = Jobs()
    servers: list[StreamingServer] = []

    async def start(**options: Any) -> StreamingServer:
        options.setdefault("limits", Limits(linger=2.0, half_closed=0.05))
        server = StreamingServer(jobs=jobs, **options)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.close()
        assert not server.sessions
    assert await jobs.drain(10) == ()

"""The connections of a pull, with their library, which only pulls need."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sandboxd.registry.proxies import Proxies

if TYPE_CHECKING:
    from sandboxd.registry.transport import Transport


async def connections(proxies: Proxies, user_agent: str) -> Transport:
    """A transport that has not been entered yet."""
    # In a thread: the first time it takes a tenth of a second and more.
    return (await asyncio.to_thread(_transport))(proxies, user_agent)


def _transport() -> type[Transport]:
    # Here and not above: aiohttp, which also reads all of the machine's certificate authorities when it is imported,
    # would be a sixth of what starting the daemon takes.
    from sandboxd.registry.transport import Transport

    return Transport

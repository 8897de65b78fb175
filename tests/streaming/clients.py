"""What the clients of the streaming tests have in common."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.streaming.spdy_client import SpdyClient

SPDY = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]


async def opened(client: SpdyClient, *names: str) -> dict[str, int]:
    """Open the streams of a remote command, in this order."""
    return {name: await client.open({"streamtype": name}) for name in names}


async def forwarded(client: SpdyClient, port: int, request: int | None = 0) -> tuple[int, int]:
    """Open a connection as kubectl does: the error stream, ended at once, then the data stream."""
    headers = {"port": str(port)} | ({"requestid": str(request)} if request is not None else {})
    error = await client.open({"streamtype": "error", **headers})
    await client.send(error, b"", fin=True)
    return error, await client.open({"streamtype": "data", **headers})


async def websocket(url: str, *protocols: str, **options: Any) -> ClientConnection:
    return await connect(
        url.replace("http", "ws", 1),
        subprotocols=[Subprotocol(name) for name in protocols] or None,
        compression=None,
        max_size=None,
        **options,
        ping_interval=None,  # else a client that does not read gives up by itself, after 40 s
    )


async def messages(ws: ClientConnection) -> dict[int, bytes]:
    """Everything the server says until it closes, by channel."""
    said: dict[int, bytes] = {}
    try:
        async for message in ws:
            if isinstance(message, str):
                channel, data = ord(message[0]) - ord("0"), base64.b64decode(message[1:])
            else:
                channel, data = message[0], message[1:]
            said[channel] = said.get(channel, b"") + data
    except ConnectionClosed:
        pass
    return said


async def until(condition: Any) -> None:
    """Let the loop turn until a state is reached; the test's own timeout bounds it."""
    while not condition():  # noqa: ASYNC110  # the states waited for are the server's own and have no event
        await asyncio.sleep(0.001)

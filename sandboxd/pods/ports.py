"""Connections to a port on a pod's localhost, made inside the pod's network namespace."""

from __future__ import annotations

import asyncio
import os
import socket

from sandboxd import netns
from sandboxd.errors import NotReady
from sandboxd.machine import pins
from sandboxd.node import Node
from sandboxd.operations import hold, unstopped_sandbox

CONNECT_SECONDS = 10.0


class PodPorts:
    """One pod's ports; for a pod in the host's network those of the host."""

    def __init__(self, node: Node, sandbox_id: str) -> None:
        self._node = node
        self._sandbox_id = sandbox_id

    async def open(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the port over IPv4, or over IPv6 if that fails. Raises NotReady."""
        record = unstopped_sandbox(self._node, self._sandbox_id)
        if not pins.intact(self._node, record):
            async with hold(self._node, self._sandbox_id):
                record = unstopped_sandbox(self._node, self._sandbox_id)
                await pins.restore(self._node, record)
        refused: Exception | None = None
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                return await self._connect(record.netns_path, family, address, port)
            except (NotReady, OSError) as exc:  # a TimeoutError is an OSError, without words
                refused = refused or exc  # IPv6 may be disabled, which says nothing about the port
        # asyncio's own message for a failed connect does not give the reason.
        number = getattr(refused, "errno", None)
        words = os.strerror(number) if number else str(refused) or f"no answer in {CONNECT_SECONDS:g} s"
        raise NotReady(f"nothing to connect to on the localhost of pod {record.name}: {words}") from refused

    async def _connect(
        self, path: str, family: int, address: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = await self._socket(path, family)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
            return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise

    async def _socket(self, path: str, family: int) -> socket.socket:
        if path:
            return await netns.open_socket(path, family, socket.SOCK_STREAM)
        return socket.socket(family, socket.SOCK_STREAM)

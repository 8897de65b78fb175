"""What an ExecSync's process has written, kept until the client has it.

One may write 16 MiB, and many may at once: what all of them hold together is bounded (`node.Load`). A process whose
output finds no room is not read meanwhile, so it waits, as at any full pipe.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sandboxd.node import LARGEST_OUTPUT_BYTES, Node
from sandboxd.turns import Share

# Bytes that ExecSync returns; what is more is read and dropped. CRI clients take messages of 16 MiB.
MAX_OUTPUT_BYTES = LARGEST_OUTPUT_BYTES - 65536
FREE_BYTES = 16384  # that need no room: a probe, which says a line, waits for nobody
SEND_SECONDS = 30.0  # after which an answer that its client does not take no longer counts


class Output:
    """One process's output. `collected` and `sent` say when it grows no more, and when the client is done with it."""

    def __init__(self, node: Node) -> None:
        self._share = Share(node.machine.load.output)
        self._taken = 0
        self._waiting = 0
        self._waited = False
        self._collected = False
        self.wanted = True  # by a client
        self.stdout = bytearray()
        self.stderr = bytearray()

    def _size(self) -> int:
        return len(self.stdout) + len(self.stderr)

    async def pour(self, source: AsyncIterator[bytes], into: bytearray) -> None:
        """Add what `source` yields to `into`, as much as an answer holds. Errors make way for the output."""
        async for data in source:
            # Another stream may grow while this one waits, so room is what counts at the end.
            await self._make_room(min(MAX_OUTPUT_BYTES, self._size() + len(data)))
            taken = len(self.stdout) if into is self.stdout else self._size()
            into += data[: MAX_OUTPUT_BYTES - taken]
            del self.stderr[MAX_OUTPUT_BYTES - len(self.stdout) :]

    def take(self) -> tuple[bytes, bytes]:
        """(stdout, stderr) so far, no longer kept here: there is one copy less while it is sent."""
        taken = bytes(self.stdout), bytes(self.stderr)
        self.stdout.clear()
        self.stderr.clear()
        return taken

    async def _make_room(self, total: int) -> None:
        more = total - max(self._taken, FREE_BYTES)
        if more <= 0:
            return
        self._taken = total
        self._waiting += 1
        try:
            await self._share.take(more)
        finally:
            self._waiting -= 1
            self._waited = True

    def has_waited(self) -> bool:
        """Whether it waits for room, or did since this was last asked."""
        waited, self._waited = self._waited or self._waiting > 0, False
        return waited

    def collected(self) -> None:
        """It grows no more."""
        self._collected = True
        if self.wanted:
            asyncio.get_running_loop().call_later(SEND_SECONDS, self._share.give_back)
        else:
            self._share.give_back()

    def sent(self) -> None:
        """The client has the answer, or has left."""
        self.wanted = False
        if self._collected:
            self._share.give_back()

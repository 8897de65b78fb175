"""A container's FIFOs: created, found again, and kept alive.

A FIFO loses its content once no process has it open (pipe(7), fifo(7)). While the container runs its shim has both
ends open; the `Keeper` holds it open in the daemon, so that a container that ends while there is no logger does not
lose its last lines.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping

from sandboxd import steps


def make_fifos(directory: str, streams: tuple[str, ...]) -> dict[str, str]:
    """Create the named FIFOs below `directory`, return their paths; those that exist are kept."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    paths = {stream: f"{directory}/{stream}" for stream in streams}
    for path in paths.values():
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            continue
        steps.act("fifo", path)
    return paths


def fifo_paths(directory: str) -> dict[str, str]:
    """The FIFOs that `make_fifos` created below `directory`."""
    paths = {stream: f"{directory}/{stream}" for stream in ("stdout", "stderr")}
    return {stream: path for stream, path in paths.items() if os.path.exists(path)}


class Keeper:
    """Holds FIFOs open for reading, and never reads them."""

    def __init__(self, fifos: Mapping[str, str]) -> None:
        """Raises OSError, with nothing left open."""
        self._fds: dict[str, int] = {}
        try:
            for stream, path in fifos.items():
                self._fds[stream] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self.close()
            raise

    def abandoned(self) -> frozenset[str]:
        """The streams that have had a writer since they were opened here, and have none now."""
        poll = select.poll()
        for fd in self._fds.values():
            poll.register(fd, 0)
        hung_up = {fd for fd, events in poll.poll(0) if events & select.POLLHUP}
        return frozenset(stream for stream, fd in self._fds.items() if fd in hung_up)

    def close(self) -> None:
        """Close the FIFOs."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

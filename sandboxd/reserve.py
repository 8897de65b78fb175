"""Room on the disk that is set aside, so that pods can be removed when there is none.

What removes things needs a little room itself: the ledger and containerd's database write new pages before they free
old ones. The reserve is a file that is given up a slice at a time, so that whoever fills the disk cannot take all of
it at once, and filled again when there is plenty.
"""

from __future__ import annotations

import os

import structlog

from sandboxd import private

log = structlog.get_logger(__name__)

BYTES = 8 << 20
SLICE = 1 << 20
PLENTY = 4 * BYTES  # free on the file system, before any of it is set aside


class Reserve:
    """One file; "" reserves nothing."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def missing(self) -> int:
        """Bytes that it has given up, or never got."""
        if not self.path:
            return 0
        try:
            return max(0, BYTES - os.stat(self.path).st_size)
        except OSError:
            return BYTES

    def fill(self) -> None:
        """Set aside what is missing, if there is plenty of room. What fails is logged."""
        if not self.path:
            return
        try:
            room = os.statvfs(os.path.dirname(self.path))
            with open(self.path, "ab", opener=private.opener) as file:
                size = os.fstat(file.fileno()).st_size
                if size < BYTES and room.f_bfree * room.f_frsize >= PLENTY:
                    os.posix_fallocate(file.fileno(), size, BYTES - size)
        except OSError as exc:
            log.warning("no room can be set aside on the disk", path=self.path, error=exc.strerror or str(exc))

    def give_up(self) -> bool:
        """Free a slice of it; whether there was one."""
        try:
            size = os.stat(self.path).st_size
            if size:
                os.truncate(self.path, max(0, size - SLICE))
        except OSError:
            return False
        return size > 0

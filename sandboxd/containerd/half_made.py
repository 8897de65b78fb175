"""Snapshots that a containerd has left when it died: a directory has been made, and its record has not.

The snapshotter overlayfs numbers its snapshots in its database, and renames a directory to the number before the
transaction is committed. Killed in between, it gives the same number to the next snapshot, and fails at the directory
for ever: "failed to rename: ... file exists" (tried on 1.6 and 2.4, whose Cleanup does not reach the snapshotter).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Generator

from sandboxd import trees
from sandboxd.errors import CleanupIncomplete

_RENAME = re.compile(r"failed to rename: rename (/.*)/new-[0-9]+ (/.*)/([0-9]+): file exists")


def left_in(message: str) -> str:
    """The directory that is in the way of a new snapshot, of containerd's words about that; "" for other words."""
    found = _RENAME.search(message)
    return f"{found[2]}/{found[3]}" if found and found[1] == found[2] else ""


def remove(directory: str) -> Generator[None, None, None]:
    """Remove it, a piece at a time. Nobody has used it: its snapshot was never given to anyone.

    It must still be in the way: who calls this has just been told so, and nobody else removes it. Raises
    CleanupIncomplete.
    """
    # At once, and by the name of what containerd removes itself: the next snapshot gets the number.
    aside = f"{os.path.dirname(directory)}/rm-{secrets.token_hex(8)}"
    try:
        os.rename(directory, aside)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise CleanupIncomplete(f"{directory}, which a containerd that died has left, stays: {exc.strerror}") from exc
    yield from trees.remove(aside)

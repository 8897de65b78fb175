"""Files that commands write: replaced as a whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def replaced(path: str, *, private: bool = False) -> Iterator[BinaryIO]:
    """The file to write; "-" is stdout. Raises OSError.

    A regular file is replaced when the block ends, and left as it was when the block fails. A `private` one can be
    read by its owner only, whatever could be read before.
    """
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        with open(path, "wb") as device:
            yield device
        return
    target = os.path.realpath(path)  # a symbolic link is kept
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=f".{os.path.basename(target)}-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        if not private:  # as mkstemp(3) made it
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise

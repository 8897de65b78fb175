"""sandboxd with a clock that a test sets: what a circumstance runs as its daemon.

The wall clock of a machine is everybody's, and no namespace has one of its own (time_namespaces(7)); so this program
moves the daemon's, from outside: `python -m tests.faults.clock serve ...`, with the seconds to add in a file that is
read whenever the daemon asks for the time. Only `time.time_ns` is moved, which is what the daemon asks: grpc makes
deadlines of `time.time`, for a clock that a real jump moves as well.
"""

from __future__ import annotations

import time
from pathlib import Path

OFFSET = "/var/log/clock-offset"  # inside the bed

_real = time.time_ns


def _time_ns() -> int:
    try:
        offset = int(Path(OFFSET).read_bytes() or b"0")
    except OSError:  # also where no more files can be opened
        offset = 0
    return _real() + offset * 10**9


def main() -> None:
    """Move the clock and run the product."""
    time.time_ns = _time_ns
    from sandboxd.__main__ import main as run

    run()


if __name__ == "__main__":
    main()

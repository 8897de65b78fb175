"""The daemon, and what it holds in memory: on SIGUSR2 it writes its tasks and locks as JSON to the file in COUNTED.

python counted.py FILE serve --config …
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from typing import Any

from sandboxd import jobs
from sandboxd.__main__ import main


def _count(of: jobs.Jobs, file: str) -> None:
    tasks = Counter(task.get_name().split(":")[0].rstrip("-0123456789") for task in asyncio.all_tasks())
    told = {"tasks": tasks, "jobs": [jobs.described(key) for key in of.in_flight()], "locks": sorted(of.held())}
    with open(f"{file}.new", "w", encoding="utf-8") as out:
        json.dump(told, out)
    os.replace(f"{file}.new", file)


def counted(file: str) -> None:
    """Have every `Jobs` that is made answer the signal."""
    original = jobs.Jobs.__init__

    def made(self: jobs.Jobs, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, _count, self, file)

    jobs.Jobs.__init__ = made  # type: ignore[method-assign]


if __name__ == "__main__":
    counted(sys.argv.pop(1))
    main()

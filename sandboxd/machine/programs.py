"""Asking a program of the machine a question: what an OCI runtime can do, whether CRIU works here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

_MOST_BYTES = 1 << 20


async def ask(argv: Sequence[str], seconds: float) -> tuple[int, bytes, bytes]:
    """(exit status, stdout, stderr) of a program, at most 1 MiB of each.

    Raises OSError when it cannot be executed, TimeoutError when it takes longer than `seconds`; it has ended then.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
    )
    try:
        async with asyncio.timeout(seconds):
            output, words = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output[:_MOST_BYTES], words[:_MOST_BYTES]

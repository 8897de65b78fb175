"""Asking a program of the machine a question: what an OCI runtime can do, whether CRIU works here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

_MOST_BYTES = 1 << 20


async def ask(
    argv: Sequence[str], seconds: float, *, stdin: bytes = b"", most: int = _MOST_BYTES
) -> tuple[int, bytes, bytes]:
    """(exit status, stdout, stderr) of a program, at most `most` bytes of each.

    Raises OSError when it cannot be executed, TimeoutError when it takes longer than `seconds`; it has ended then.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
    )
    try:
        async with asyncio.timeout(seconds):
            output, words = await process.communicate(stdin or None)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output[:most], words[:most]

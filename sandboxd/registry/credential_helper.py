"""Runs `docker-credential-NAME`: the only module of this package that starts a process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from sandboxd.errors import NotReady

TIMEOUT_SECONDS = 30.0


async def run(argv: Sequence[str], stdin: bytes) -> tuple[int, bytes]:
    """Run a helper to its end: (exit status, stdout). Its stderr may contain secrets and is dropped.

    Raises NotReady when the program is missing or takes longer than half a minute.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as exc:
        raise NotReady(f"the credential helper {argv[0]} cannot be run: {exc.strerror}; is it installed?") from exc
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            stdout, _ = await process.communicate(stdin)
    except TimeoutError as exc:
        raise NotReady(f"the credential helper {argv[0]} did not answer within {TIMEOUT_SECONDS:g} s") from exc
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return process.returncode or 0, stdout

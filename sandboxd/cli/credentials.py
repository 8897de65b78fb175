"""Who pulls: what --creds, --username and stdin say together.

A command line is no place for a password: every user of the machine reads it in the list of processes, and the
shell keeps it. So it is asked for, or comes on stdin, and stays out of what is said when something is wrong with it.
"""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from sandboxd.cli.parse import CredentialsFlag

MOST_BYTES = 64 * 1024  # of a password: tokens and key files have a few thousand


def given(creds: CredentialsFlag | None, username: str | None, *, from_stdin: bool) -> CredentialsFlag | None:
    """The credentials, without a password where it is to be asked for; None for nobody in particular.

    Raises click.UsageError when the flags contradict each other, or stdin has no password.
    """
    if creds is not None and username is not None:
        raise click.UsageError("--creds and --username exclude each other")
    if not from_stdin:
        return creds if username is None else CredentialsFlag(username=username, password=None)
    if username is None:
        raise click.UsageError("--password-stdin goes with --username USER")
    if sys.stdin is None:
        raise click.UsageError("there is no password on stdin: it is closed")
    if sys.stdin.isatty():
        raise click.UsageError(
            "--password-stdin wants a pipe or a file as stdin, and it is a terminal: without it the password is"
            " asked for"
        )
    return CredentialsFlag(username=username, password=_password(sys.stdin.buffer))


def _password(stdin: BinaryIO) -> str:
    """All that is on stdin, less the line end that echo and editors put there."""
    data = stdin.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise click.UsageError(f"what is on stdin is longer than {MOST_BYTES} bytes, and no password")
    data = data.removesuffix(b"\n").removesuffix(b"\r") if data.endswith(b"\n") else data
    if not data:
        raise click.UsageError("there is no password on stdin")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise click.UsageError("the password on stdin is not UTF-8") from None

"""The credentials for a pull, from --creds, --username and stdin.

A command line is not a place for a password: every user of the machine can read it in the list of processes, and
the shell keeps it in its history. So it can also be entered at a prompt or read from stdin; no message shows it.
"""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from sandboxd.cli.parse import CredentialsFlag

MAX_BYTES = 64 * 1024  # of a password: tokens and key files have a few thousand


def given(creds: CredentialsFlag | None, username: str | None, *, from_stdin: bool) -> CredentialsFlag | None:
    """The credentials, without a password if it must be prompted for; None for an anonymous pull.

    Raises click.UsageError when the flags contradict each other, or stdin has no password.
    """
    if creds is not None and username is not None:
        raise click.UsageError("--creds and --username exclude each other")
    if not from_stdin:
        return creds if username is None else CredentialsFlag(username=username, password=None)
    if username is None:
        raise click.UsageError("--password-stdin requires --username USER")
    if sys.stdin is None:
        raise click.UsageError("there is no password on stdin: it is closed")
    if sys.stdin.isatty():
        raise click.UsageError(
            "--password-stdin needs a pipe or a file as stdin, but it is a terminal: leave the flag out to be"
            " prompted for the password"
        )
    return CredentialsFlag(username=username, password=_password(sys.stdin.buffer))


def _password(stdin: BinaryIO) -> str:
    """All of stdin, without the final newline that echo and editors add."""
    data = stdin.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise click.UsageError(f"the password on stdin is longer than {MAX_BYTES} bytes")
    data = data.removesuffix(b"\n").removesuffix(b"\r") if data.endswith(b"\n") else data
    if not data:
        raise click.UsageError("there is no password on stdin")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise click.UsageError("the password on stdin is not UTF-8") from None

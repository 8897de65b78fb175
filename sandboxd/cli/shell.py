"""Text → words, comments and here-documents for any POSIX shell, that a terminal takes as they are. Pure."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence


def quoted(text: str) -> str:
    """The text as one word for any POSIX shell; what a terminal might take for more than text, as octal escapes.

    Newlines at its end are lost, as the shell's command substitution loses them.
    """
    if text.isascii() and text.isprintable():
        return shlex.quote(text)
    escaped = "".join(
        f"\\0{each:03o}" if each < 0x20 or each > 0x7E or each == 0x5C else chr(each) for each in text.encode()
    )
    return f'"$(printf %b {shlex.quote(escaped)})"'


def comment(text: str) -> str:
    """The text for one line of a comment."""
    text = text.replace("→", "->")
    return text.encode("ascii", "backslashreplace").decode() if text.isprintable() else ascii(text)


def fed(command: str, lines: Sequence[str]) -> Iterator[str]:
    """The command with these lines on its standard input, as a here-document."""
    end = next(word for word in _delimiters() if word not in lines)
    yield f"{command} <<'{end}'"
    yield from lines
    yield end


def _delimiters() -> Iterator[str]:
    yield "EOF"
    yield from (f"EOF{number}" for number in itertools.count(2))

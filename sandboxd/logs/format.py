"""The CRI log format: splitting output into entries, and reading entries back. Pure.

An entry is one line of the file:

    2026-11-24T03:07:00.123456789Z stdout F the text\n

The time is RFC 3339 with nanoseconds in UTC, the stream is stdout or stderr, the tag is F for the end of an
application's line and P for a part of one that continues in the stream's next entry (kubernetes/kubernetes,
design proposal "CRI: Log management for container stdout/stderr streams").
"""

from __future__ import annotations

import calendar
import re
import time
from dataclasses import dataclass

FULL, PARTIAL = b"F", b"P"

_TIME = re.compile(rb"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))")

_HEADS = tuple(b"0001-01-01T00:00:00.000000000Z %s F " % stream for stream in (b"stdout", b"stderr"))


def timestamp(now: int) -> bytes:
    """Unix nanoseconds as RFC 3339 in UTC, always with nine decimals so that entries line up."""
    seconds, nanos = divmod(now, 1_000_000_000)
    return b"%s.%09dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode(), nanos)


class LineSplitter:
    """Turns one stream's bytes into entries.

    A line longer than `max_line` bytes is split into partial entries of exactly `max_line` bytes and a rest. A
    carriage return before the newline is dropped. Feeding the same bytes in other pieces gives the same entries
    (except for the times, which the caller passes in). `held` is what an earlier splitter of the stream left over.
    """

    __slots__ = ("_held", "_max", "_stream")

    def __init__(self, stream: str, max_line: int, held: bytes = b"") -> None:
        self._stream = stream.encode()
        self._max = max_line
        self._held = held

    @property
    def held(self) -> bytes:
        """The beginning of an unfinished line, not part of an entry yet; at most `max_line` + 1 bytes."""
        return self._held

    def feed(self, data: bytes, now: int) -> bytes:
        """The entries that `data` completes."""
        head = timestamp(now) + b" " + self._stream + b" "
        lines, newline, self._held = (self._held + data).rpartition(b"\n")
        out = [self._lines(head, lines.replace(b"\r\n", b"\n").removesuffix(b"\r"))] if newline else []
        # One byte more than the limit is held back: it may be the carriage return of a line of exactly the limit.
        if len(self._held) > self._max + 1:
            cut = (len(self._held) - 2) // self._max * self._max
            out += self._partial(head, self._held[:cut])
            self._held = self._held[cut:]
        return b"".join(out)

    def _lines(self, head: bytes, lines: bytes) -> bytes:
        """The entries of complete lines with newlines between them."""
        full = head + FULL + b" "
        texts = lines.split(b"\n")
        if max(map(len, texts)) <= self._max:
            # The common case, and fast: a flood of short lines is what costs the logger most.
            return full + lines.replace(b"\n", b"\n" + full) + b"\n"
        out = []
        for text in texts:
            cut = max(len(text) - 1, 0) // self._max * self._max
            out += self._partial(head, text[:cut])
            out.append(full + text[cut:] + b"\n")
        return b"".join(out)

    def _partial(self, head: bytes, text: bytes) -> list[bytes]:
        start = head + PARTIAL + b" "
        return [start + text[i : i + self._max] + b"\n" for i in range(0, len(text), self._max)]

    def eof(self, now: int) -> bytes:
        """What is left when the stream ends without a newline: partial entries, as the line was never completed."""
        held, self._held = self._held, b""
        return b"".join(self._partial(timestamp(now) + b" " + self._stream + b" ", held))


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a log file."""

    timestamp: int  # unix nanoseconds
    stream: str
    partial: bool
    text: bytes


def parse(line: bytes) -> Entry | None:
    """Read an entry (without its newline); None if it is not one."""
    parts = line.split(b" ", 3)
    if len(parts) != 4:
        return None
    when = parse_time(parts[0])
    if when is None or parts[1] not in (b"stdout", b"stderr"):
        return None
    # Tags are separated by ":"; the first says whether the line is whole.
    tag = parts[2].split(b":", 1)[0]
    if tag not in (FULL, PARTIAL):
        return None
    return Entry(timestamp=when, stream=parts[1].decode(), partial=tag == PARTIAL, text=parts[3])


def begins_entry(data: bytes) -> bool:
    """Whether `data` (without a newline) is the beginning of an entry, or all of it."""
    return any(parse(data + head[len(data) :]) for head in _HEADS)


def parse_time(text: bytes) -> int | None:
    """RFC 3339 to unix nanoseconds; None when it is not a time."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(g) for g in match.groups()[:6])
    if not (year and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        return None
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    if match[8]:
        offset = int(match[9]) * 3600 + int(match[10]) * 60
        seconds -= offset if match[8] == b"+" else -offset
    return seconds * 1_000_000_000 + int((match[7] or b"0").ljust(9, b"0"))

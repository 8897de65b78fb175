"""The CRI log format, byte for byte."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.logs.format import Entry, LineSplitter, begins_entry, parse, parse_time, timestamp

NOW = 1_764_000_000_123_456_789
HEAD = b"2025-11-24T16:00:00.123456789Z stdout "
YEAR_10000 = 253_402_300_800 * 10**9


def entries(*feeds: bytes, limit: int = 5, eof: bool = False) -> list[bytes]:
    """What comes after the head of each entry that `feeds` give."""
    splitter = LineSplitter("stdout", limit)
    output = b"".join(splitter.feed(data, NOW) for data in feeds) + (splitter.eof(NOW) if eof else b"")
    assert output == b"" or output.endswith(b"\n")
    lines = output.split(b"\n")[:-1]
    assert all(line.startswith(HEAD) for line in lines)
    return [line.removeprefix(HEAD) for line in lines]


@pytest.mark.parametrize(
    ("feeds", "expected"),
    [
        ([b"abc\n"], [b"F abc"]),
        ([b"a", b"b", b"c\n"], [b"F abc"]),
        ([b"a\nb\n"], [b"F a", b"F b"]),
        ([b"\n"], [b"F "]),
        ([b"\n\n"], [b"F ", b"F "]),
        ([b"abc"], []),
        ([b""], []),
        ([b"12345\n"], [b"F 12345"]),
        ([b"12345", b"\n"], [b"F 12345"]),
        ([b"123456\n"], [b"P 12345", b"F 6"]),
        ([b"1234567890\n"], [b"P 12345", b"F 67890"]),
        ([b"12345678901\n"], [b"P 12345", b"P 67890", b"F 1"]),
        ([b"12345678"], [b"P 12345"]),
        ([b"abc\r\n"], [b"F abc"]),
        ([b"abc\r", b"\n"], [b"F abc"]),
        ([b"12345\r\n"], [b"F 12345"]),
        ([b"12345\r", b"\n"], [b"F 12345"]),
        ([b"12345", b"\r", b"\n"], [b"F 12345"]),
        ([b"1234567890\r", b"\n"], [b"P 12345", b"F 67890"]),
        ([b"12345\rx\n"], [b"P 12345", b"F \rx"]),
        ([b"a\rb\n"], [b"F a\rb"]),
        ([b"a\r\r\n"], [b"F a\r"]),
        ([b"\x00\xff \n"], [b"F \x00\xff "]),
    ],
)
def test_output_becomes_entries(feeds: list[bytes], expected: list[bytes]) -> None:
    assert entries(*feeds) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"abc\n", [b"F abc"]),
        (b"abc", [b"P abc"]),
        (b"12345", [b"P 12345"]),
        (b"123456", [b"P 12345", b"P 6"]),
        (b"a\nrest", [b"F a", b"P rest"]),
    ],
)
def test_a_stream_that_ends_without_a_newline_loses_nothing(data: bytes, expected: list[bytes]) -> None:
    assert entries(data, eof=True) == expected


def test_after_its_end_a_stream_holds_nothing_back() -> None:
    splitter = LineSplitter("stdout", 5)
    splitter.feed(b"abc", NOW)
    splitter.eof(NOW)

    assert splitter.eof(NOW) == b""


_OUTPUT = st.lists(st.sampled_from([b"a", b"bb", b"\r", b"\n", b"\r\n", b"cccc", b"\xff\x00"]), max_size=30).map(
    b"".join
)


@given(data=_OUTPUT, cuts=st.lists(st.integers(0, 60), max_size=8), limit=st.integers(1, 6))
def test_any_chunking_gives_the_same_entries(data: bytes, cuts: list[int], limit: int) -> None:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(places)]

    assert entries(*pieces, limit=limit, eof=True) == entries(data, limit=limit, eof=True)


@given(data=_OUTPUT, limit=st.integers(1, 6))
def test_joining_the_entries_gives_the_lines_back_and_none_is_too_long(data: bytes, limit: int) -> None:
    got = entries(data, limit=limit, eof=True)

    assert all(len(entry) - 2 <= limit for entry in got)
    joined = b"".join(entry[2:] + (b"\n" if entry.startswith(b"F") else b"") for entry in got)
    assert joined == data.replace(b"\r\n", b"\n")


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (0, b"1970-01-01T00:00:00.000000000Z"),
        (1, b"1970-01-01T00:00:00.000000001Z"),
        (NOW, HEAD.split(b" ")[0]),
        (YEAR_10000 - 1, b"9999-12-31T23:59:59.999999999Z"),
    ],
)
def test_a_time_has_nine_decimals_and_is_in_utc(now: int, expected: bytes) -> None:
    assert timestamp(now) == expected


@given(st.integers(0, YEAR_10000 - 1))
def test_a_time_that_is_written_is_read_back(now: int) -> None:
    assert parse_time(timestamp(now)) == now


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1970-01-01T00:00:01Z", 10**9),
        (b"1970-01-01T00:00:00.5Z", 5 * 10**8),
        (b"1970-01-01T01:30:00+01:30", 0),
        (b"1969-12-31T23:00:00-01:00", 0),
        (b"2016-12-31T23:59:60Z", 1_483_228_800 * 10**9),
        (b"0001-01-01T00:00:00Z", -62_135_596_800 * 10**9),
    ],
)
def test_other_writers_times_are_read(text: bytes, expected: int) -> None:
    assert parse_time(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"yesterday",
        b"2025-11-24 16:00:00Z",
        b"2025-11-24T16:00:00",
        b"2025-13-24T16:00:00Z",
        b"2025-00-24T16:00:00Z",
        b"2025-11-32T16:00:00Z",
        b"2025-11-24T24:00:00Z",
        b"2025-11-24T16:60:00Z",
        b"2025-11-24T16:00:61Z",
        b"2025-11-24T16:00:00.1234567890Z",
        b"0000-01-01T00:00:00Z",
        "٢٠٢٥-11-24T16:00:00Z".encode(),
        b"2025-11-24T16:00:00Z\n",
    ],
)
def test_what_is_no_time_is_none(text: bytes) -> None:
    assert parse_time(text) is None


@pytest.mark.parametrize(
    ("tail", "partial", "text"),
    [
        (b"stdout F abc", False, b"abc"),
        (b"stdout P abc", True, b"abc"),
        (b"stderr F  two  spaces ", False, b" two  spaces "),
        (b"stdout F ", False, b""),
        (b"stdout F:x:y abc", False, b"abc"),
    ],
)
def test_an_entry_is_read(tail: bytes, partial: bool, text: bytes) -> None:
    assert parse(timestamp(NOW) + b" " + tail) == Entry(NOW, tail.split()[0].decode(), partial, text)


@pytest.mark.parametrize(
    "line",
    [b"", b"abc", b"x stdout F abc"]
    + [timestamp(NOW) + tail for tail in (b" stdin F a", b" stdout X a", b" stdout F")],
)
def test_what_is_no_entry_is_none(line: bytes) -> None:
    assert parse(line) is None


@given(st.binary(max_size=60) | st.from_regex(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ stdout [FP] .*", fullmatch=True))
def test_reading_never_fails(line: bytes) -> None:
    entry = parse(line)

    assert entry is None or line.endswith(entry.text)


@given(
    text=st.binary(max_size=30).filter(lambda text: b"\n" not in text and not text.endswith(b"\r")),
    stream=st.sampled_from(["stdout", "stderr"]),
    now=st.integers(0, YEAR_10000 - 1),
)
def test_what_is_written_is_read_back(text: bytes, stream: str, now: int) -> None:
    written = LineSplitter(stream, 100).feed(text + b"\n", now)

    assert parse(written[:-1]) == Entry(now, stream, False, text)


@pytest.mark.parametrize("tag", ["F", "P"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_every_beginning_of_an_entry_is_known_as_one(stream: str, tag: str) -> None:
    whole = f"2031-12-31T23:59:59.987654321Z {stream} {tag} a text".encode()

    assert all(begins_entry(whole[:length]) for length in range(len(whole) + 1))


@pytest.mark.parametrize(
    "data",
    [
        b"r",
        b"root:x:0:0:root:/root:/bin/bash",
        b"2031-12-31",  # a date, and a file of dates ends in one: but an entry may be cut there too
        b"2031-12-31 a line of another log",
        b"2031-12-31T23:59:59Z something else",
        b"2031-12-31T23:59:59.987654321Z stdin F x",
        b"\0" * 40,
    ],
)
def test_what_begins_no_entry_is_known(data: bytes) -> None:
    assert begins_entry(data) is (data == b"2031-12-31")

"""Header blocks inflate to what was written, or the connection is told to end."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.streaming.spdy_headers import (
    DICTIONARY,
    MAX_INFLATED_BYTES,
    MAX_PAIRS,
    BadHeaders,
    HeaderReader,
    HeaderWriter,
)
from tests.streaming.spdy_client import plain_headers

NAMES = st.text(st.characters(codec="latin-1", exclude_categories=["Lu"]), min_size=1, max_size=20).filter(
    lambda name: name == name.lower()
)
VALUES = st.text(st.characters(codec="latin-1", exclude_characters="\0"), max_size=60)


def deflated(plain: bytes) -> bytes:
    deflater = zlib.compressobj(zdict=DICTIONARY)
    return deflater.compress(plain) + deflater.flush(zlib.Z_SYNC_FLUSH)


def test_the_dictionary_is_the_draft_s_byte_for_byte() -> None:
    """Streams name it by this checksum: "78 bb e3 c6 a7 c2" begins every first block."""
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)
    assert HeaderWriter().write({})[:6] == bytes.fromhex("78bbe3c6a7c2")


@given(st.lists(st.dictionaries(NAMES, VALUES, max_size=8), max_size=5))
def test_blocks_of_one_direction_read_back_in_order(blocks: list[dict[str, str]]) -> None:
    """Each continues the compression of the one before."""
    writer, reader = HeaderWriter(), HeaderReader()
    assert [reader.read(writer.write(headers)) for headers in blocks] == blocks


def test_of_several_values_the_first_counts() -> None:
    """They are joined by NUL."""
    assert HeaderReader().read(deflated(plain_headers({"port": "80\x0081"}))) == {"port": "80"}


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"not deflated", "inflate"),
        (deflated(b""), "length"),
        (deflated(b"\0\0"), "length"),
        (deflated(struct.pack(">I", 1)), "length"),
        (deflated(struct.pack(">II", 1, 0xFFFFFFFF)), "longer than its block"),
        (deflated(struct.pack(">II", 1, 5) + b"name"), "longer than its block"),
        (deflated(struct.pack(">I", 0xFFFFFFFF)), "headers"),
        (deflated(struct.pack(">I", MAX_PAIRS + 1)), "at most"),
        (deflated(plain_headers({"": "x"})), "not a header name"),
        (deflated(plain_headers({"Upper": "x"})), "not a header name"),
        (deflated(struct.pack(">I", 2) + plain_headers({"a": "1"})[4:] * 2), "twice"),
        (deflated(plain_headers({"a": "1"}) + b"\0"), "follow"),
        (deflated(bytes(MAX_INFLATED_BYTES + 1)), "inflate to more"),
        (deflated(bytes(50_000_000)), "inflate to more"),
        (zlib.compress(plain_headers({"a": "1"})), "ended"),
    ],
)
def test_a_block_that_cannot_be_read_is_refused(block: bytes, reason: str) -> None:
    """Bombs, truncation, duplicates: always BadHeaders."""
    with pytest.raises(BadHeaders, match=reason):
        HeaderReader().read(block)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(block: bytes) -> None:
    """As raw input and as the content of a valid compression."""
    for candidate in (block, deflated(block)):
        try:
            HeaderReader().read(candidate)
        except BadHeaders:
            pass

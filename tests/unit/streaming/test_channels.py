"""The channel number comes before each message, in binary or in base64."""

from __future__ import annotations

import base64
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.streaming.channels import BadMessage, ChannelReader, message


@pytest.mark.parametrize(
    ("channel", "data", "binary", "text"),
    [(0, b"hi", b"\0hi", b"0aGk="), (4, b"", b"\4", b"4"), (3, b"\xff", b"\3\xff", b"3/w==")],
)
def test_messages_are_written_as_the_protocols_say(channel: int, data: bytes, binary: bytes, text: bytes) -> None:
    """One byte, or a digit and base64."""
    assert message(channel, data, base64_text=False) == binary
    assert message(channel, data, base64_text=True) == text


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 100), st.binary(max_size=50)), max_size=6),
    st.lists(st.integers(0, 70), max_size=6),
)
def test_messages_read_back_however_they_are_fragmented(
    base64_text: bool, messages: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    """Whole, byte by byte and split at random."""
    for bounds in (cuts, list(range(1, 200)), []):
        reader = ChannelReader(base64_text=base64_text)
        for channel, data in messages:
            raw = message(channel, data, base64_text=base64_text)
            edges = [0, *sorted(cut for cut in bounds if cut < len(raw)), len(raw)]
            pieces = [raw[a:b] for a, b in itertools.pairwise(edges)]
            read = [reader.read(piece, last=index == len(pieces) - 1) for index, piece in enumerate(pieces)]
            assert b"".join(part for _, part in read) == data
            assert read[-1][0] == channel


def test_an_empty_message_has_no_channel() -> None:
    """It is ignored, and the next one is read as usual."""
    reader = ChannelReader(base64_text=False)
    assert reader.read(b"", last=True) == (None, b"")
    assert reader.read(b"\1x", last=True) == (1, b"x")


@pytest.mark.parametrize("raw", [b"0!!!!", b"0aGk", b"0aGk=aGk=", b"\n", b"0a", b"0aGk\xff"])
def test_what_is_not_base64_is_refused(raw: bytes) -> None:
    """Garbage, missing padding, padding in the middle."""
    with pytest.raises(BadMessage):
        ChannelReader(base64_text=True).read(raw, last=True)


@given(st.booleans(), st.lists(st.tuples(st.binary(max_size=30), st.booleans()), max_size=8))
def test_no_bytes_raise_anything_else(base64_text: bool, fragments: list[tuple[bytes, bool]]) -> None:
    """Random fragments give data or BadMessage, and nothing is held back but part of a base64 group."""
    reader = ChannelReader(base64_text=base64_text)
    for fragment, last in fragments:
        try:
            reader.read(fragment, last=last)
        except BadMessage:
            return
        assert len(reader._rest) < 4


def test_base64_is_decoded_as_it_comes() -> None:
    """Whole groups are passed on before the message ends."""
    reader = ChannelReader(base64_text=True)
    encoded = b"0" + base64.b64encode(b"abcdef")
    assert reader.read(encoded[:6], last=False) == (0, b"abc")
    assert reader.read(encoded[6:], last=True) == (0, b"def")

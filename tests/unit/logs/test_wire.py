"""Frames arrive whole however they are cut, and what is no frame is refused."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.logs import wire

FRAMES = st.lists(st.tuples(st.sampled_from([b"J", b"O", b"E"]), st.binary(max_size=200)), max_size=8)


@given(FRAMES, st.lists(st.integers(min_value=0, max_value=2000)))
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    frames: list[tuple[bytes, bytes]], at: list[int]
) -> None:
    data = b"".join(wire.frame(kind, payload) for kind, payload in frames)
    cuts = [0, *sorted(cut for cut in at if cut < len(data)), len(data)]
    receiving = wire.Frames()

    found = [got for a, b in itertools.pairwise(cuts) for got in receiving.feed(data[a:b])]

    assert found == frames


def test_a_message_is_one_json_object() -> None:
    ((kind, payload),) = wire.Frames().feed(wire.message(op="open", log="/x/é", id=7))

    assert kind == wire.MESSAGE
    assert wire.parse(payload) == {"op": "open", "log": "/x/é", "id": 7}


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\0J",
        b"\0\0\0\1X",
        (wire.MAX_FRAME_BYTES + 1).to_bytes(4, "big") + b"J",
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(wire.Garbled):
        list(wire.Frames().feed(data))


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'"x"', b"\xff", json.dumps(None).encode()])
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(wire.Garbled):
        wire.parse(payload)


def test_the_pid_file_is_beside_the_socket() -> None:
    assert wire.pid_file("/run/sandboxd/logger.sock") == "/run/sandboxd/logger.pid"


def test_a_message_that_nests_too_deeply_is_garbled() -> None:
    with pytest.raises(wire.Garbled):
        wire.parse(b"[" * 100_000)

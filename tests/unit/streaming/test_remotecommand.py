"""What each version of the remote command protocol expects and says."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest
from sandboxd.streaming.remotecommand import (
    SPDY_PROTOCOLS,
    WEBSOCKET_PROTOCOLS,
    Exited,
    Failed,
    Outcome,
    ResizeReader,
    Streams,
    StreamSet,
    TerminalSize,
    check,
    choose,
    expected,
    offered,
    outcome_message,
)

ALL = Streams(stdin=True, stdout=True, stderr=True)
TTY = Streams(stdin=True, stdout=True, tty=True)


@pytest.mark.parametrize(
    ("version", "streams", "websocket", "names"),
    [
        (1, ALL, False, "error stdin stdout stderr"),
        (2, ALL, False, "error stdin stdout stderr"),
        (3, ALL, False, "error stdin stdout stderr"),
        (4, ALL, False, "error stdin stdout stderr"),
        (1, TTY, False, "error stdin stdout"),
        (2, TTY, False, "error stdin stdout"),
        (3, TTY, False, "error stdin stdout resize"),
        (4, TTY, False, "error stdin stdout resize"),
        (4, Streams(stdout=True), False, "error stdout"),
        (4, Streams(stderr=True), False, "error stderr"),
        (4, Streams(stdin=True), False, "error stdin"),
        (4, Streams(stdin=True, stdout=True, stderr=True, tty=True), False, "error stdin stdout resize"),
        (1, TTY, True, "error stdin stdout resize"),
        (5, ALL, True, "error stdin stdout stderr"),
        (5, TTY, True, "error stdin stdout resize"),
    ],
)
def test_each_version_expects_its_streams(version: int, streams: Streams, websocket: bool, names: str) -> None:
    """error always; stderr not with a terminal; resize from v3 on, and on every WebSocket."""
    assert expected(version, streams, websocket=websocket) == set(names.split())


@pytest.mark.parametrize("streams", [Streams(), Streams(tty=True), Streams(stdout=True, stderr=True, tty=True)])
def test_combinations_that_the_cri_forbids_are_refused(streams: Streams) -> None:
    """No stream at all, or a separate stderr with a terminal."""
    with pytest.raises(InvalidRequest):
        check(streams)


@pytest.mark.parametrize("streams", [ALL, TTY, Streams(stdin=True), Streams(stdout=True), Streams(stderr=True)])
def test_other_combinations_are_allowed(streams: Streams) -> None:
    """Any one stream is enough."""
    check(streams)


@pytest.mark.parametrize(
    ("client", "server", "chosen"),
    [
        (["v5.channel.k8s.io", "v4.channel.k8s.io, v3.channel.k8s.io"], SPDY_PROTOCOLS, "v4.channel.k8s.io"),
        (["v3.channel.k8s.io", "v4.channel.k8s.io"], SPDY_PROTOCOLS, "v3.channel.k8s.io"),
        (["v5.channel.k8s.io,v4.channel.k8s.io"], WEBSOCKET_PROTOCOLS, "v5.channel.k8s.io"),
        (["v2.channel.k8s.io"], WEBSOCKET_PROTOCOLS, None),
        ([" , ", ""], SPDY_PROTOCOLS, None),
        (["V4.CHANNEL.K8S.IO"], SPDY_PROTOCOLS, None),
    ],
)
def test_the_client_s_order_decides(client: list[str], server: dict[str, int], chosen: str | None) -> None:
    """Several header lines and several names in one are the same."""
    assert choose(offered(client), server) == chosen


def test_streams_are_taken_once_and_by_name() -> None:
    """Unknown, unwanted and repeated ones are not."""
    streams = StreamSet(frozenset({"error", "stdout"}))
    assert streams.add(1, {"streamtype": "stdout"}) == "stdout"
    assert streams.add(3, {"streamtype": "stdout"}) is None
    assert streams.add(5, {"streamtype": "stdin"}) is None
    assert streams.add(7, {}) is None
    assert streams.missing == {"error"}
    assert streams.add(9, {"streamtype": "error"}) == "error"
    assert not streams.missing
    assert (streams.stream("stdout"), streams.name(9), streams.stream("stdin"), streams.name(3)) == (
        1,
        "error",
        None,
        None,
    )


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (b'{"Width":80,"Height":24}\n', [(80, 24)]),
        (b'{"width":80,"height":24}{"Height":30,"Width":90,"x":1}', [(80, 24), (90, 30)]),
        (b' \n {"Width":80,\n"Height":24}  ', [(80, 24)]),
        (b'{"Width":0,"Height":24}{"Width":80,"Height":0}{"Width":1,"Height":65535}', [(1, 65535)]),
        (
            b'{"Width":65536,"Height":24}{"Width":-1,"Height":1}{"Width":1.5,"Height":1}{"Width":"80","Height":1}{}',
            [],
        ),
        (b'[1]{"Width":80,"Height":24}', []),
        (b'nonsense{"Width":80,"Height":24}', []),
        (b'{"Width":80,"Height":24}{bad}{"Width":90,"Height":30}', [(80, 24)]),
        (b'{"Width":' + b"9" * 4090 + b',"Height":1}{"Width":80,"Height":24}', []),
        (b'{"a":' + b"[" * 3000 + b'}{"Width":80,"Height":24}', []),
        (b"\xff\xfe", []),
        (b"", []),
    ],
)
def test_sizes_are_read_however_they_are_cut(text: bytes, sizes: list[tuple[int, int]]) -> None:
    """Whole and byte by byte; impossible sizes are left out, and after garbage nothing is read."""
    expected_sizes = [TerminalSize(width=width, height=height) for width, height in sizes]
    assert ResizeReader().read(text) == expected_sizes
    reader = ResizeReader()
    assert [size for byte in text for size in reader.read(bytes([byte]))] == expected_sizes


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_no_bytes_make_the_size_reader_raise_or_grow(pieces: list[bytes]) -> None:
    """Whatever comes, what is kept is bounded."""
    reader = ResizeReader()
    for piece in pieces:
        reader.read(piece * 100)
        assert len(reader._text) <= 4096


@pytest.mark.parametrize(
    ("outcome", "text", "status", "reason", "cause"),
    [
        (Exited(), "", "Success", None, None),
        (Exited(code=3), "command terminated with exit code 3", "Failure", "NonZeroExitCode", "3"),
        (Exited(code=137), "command terminated with exit code 137", "Failure", "NonZeroExitCode", "137"),
        (Exited(code=4242), "command terminated with exit code 4242", "Failure", "NonZeroExitCode", "255"),
        (Exited(code=-1), "command terminated with exit code -1", "Failure", "NonZeroExitCode", "255"),
        (Failed(message="no such container"), "no such container", "Failure", "InternalError", "no such container"),
    ],
)
def test_outcomes_are_text_before_v4_and_a_status_from_then_on(
    outcome: Outcome, text: str, status: str, reason: str | None, cause: str | None
) -> None:
    """Exit codes fit into the eight bits that clients read."""
    for version in (1, 2, 3):
        assert outcome_message(version, outcome) == text.encode()
    for version in (4, 5):
        said = json.loads(outcome_message(version, outcome))
        assert (said["status"], said.get("reason")) == (status, reason)
        if cause is not None:
            assert said["details"]["causes"][0]["message"] == cause
            assert said["message"] == text


@given(st.text(), st.integers(-(2**31), 2**31), st.integers(1, 5))
def test_every_outcome_can_be_told(message: str, code: int, version: int) -> None:
    """From v4 on as JSON that says it whole."""
    for outcome in (Failed(message=message), Exited(code=code)):
        said = outcome_message(version, outcome)
        if version >= 4:
            status = json.loads(said)
            assert (status["status"] == "Success") == (outcome == Exited(code=0))
            assert isinstance(outcome, Exited) or status["message"] == message
        else:
            assert isinstance(outcome, Exited) or said.decode() == message


@given(
    st.lists(st.tuples(st.integers(1, 65535), st.integers(1, 65535)), max_size=6),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_all_sizes_are_read_from_any_pieces(sizes: list[tuple[int, int]], cuts: list[int]) -> None:
    """In order."""
    text = b"".join(json.dumps({"Width": width, "Height": height}).encode() for width, height in sizes)
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(text)}), len(text)]
    reader = ResizeReader()
    read = [size for start, end in itertools.pairwise(edges) for size in reader.read(text[start:end])]
    assert [(size.width, size.height) for size in read] == sizes

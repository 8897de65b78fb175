"""Two streams make one forwarded connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest
from sandboxd.streaming.portforward import Pair, Pairing, channel_headers, port_prefix


def headers(kind: str, port: str = "80", request: str | None = None) -> dict[str, str]:
    return {"streamtype": kind, "port": port} | ({"requestid": request} if request is not None else {})


@pytest.mark.parametrize("order", [("error", "data"), ("data", "error")])
def test_streams_of_one_request_are_paired_in_any_order(order: tuple[str, str]) -> None:
    """By their request id."""
    pairing = Pairing()
    ids = dict(zip(order, (1, 3), strict=True))
    assert pairing.add(1, headers(order[0], request="7")) == ("7", None)
    pair = Pair(port=80, data=ids["data"], error=ids["error"])
    assert pairing.add(3, headers(order[1], request="7")) == ("7", pair)
    assert pairing.waiting == 0


def test_without_request_ids_data_belongs_to_the_error_stream_before_it() -> None:
    """Stream id minus two, for clients older than the header."""
    pairing = Pairing()
    assert pairing.add(5, headers("error")) == ("5", None)
    assert pairing.add(7, headers("data")) == ("5", Pair(port=80, data=7, error=5))


def test_a_request_id_can_be_used_again_once_its_pair_is_complete() -> None:
    """Pairs that are complete are forgotten."""
    pairing = Pairing()
    for first in (1, 5):
        pairing.add(first, headers("error", request="1"))
        assert pairing.add(first + 2, headers("data", request="1"))[1] == Pair(port=80, data=first + 2, error=first)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"streamtype": "data"},
        {"port": "80"},
        headers("stdin"),
        *(headers("data", port) for port in ("", "0", "65536", "-1", "+80", "8 0", "80.0", "１２", "9" * 5000)),
    ],
)
def test_streams_that_cannot_belong_to_a_pair_are_refused(bad: dict[str, str]) -> None:
    """No kind, no port, no such port; nothing is kept of them."""
    pairing = Pairing()
    with pytest.raises(InvalidRequest):
        pairing.add(1, bad)
    assert pairing.waiting == 0


@pytest.mark.parametrize("second", [headers("error", request="1"), headers("data", "81", request="1")])
def test_a_second_half_of_the_same_kind_or_another_port_is_refused(second: dict[str, str]) -> None:
    """The first half still waits for its own."""
    pairing = Pairing()
    pairing.add(1, headers("error", request="1"))
    with pytest.raises(InvalidRequest):
        pairing.add(3, second)
    assert pairing.add(5, headers("data", request="1"))[1] == Pair(port=80, data=5, error=1)


def test_an_incomplete_request_can_be_dropped() -> None:
    """It says which stream it had; a complete or unknown one has none."""
    pairing = Pairing()
    pairing.add(1, headers("error", request="1"))
    pairing.add(3, headers("data", request="2"))
    assert [pairing.drop(request) for request in ("1", "2", "1", "3")] == [
        (None, 1),
        (3, None),
        (None, None),
        (None, None),
    ]


def test_channels_stand_for_the_ports_in_order() -> None:
    """Data and error of each, with the headers that SPDY streams would have; the pairing reads them."""
    channels = channel_headers([80, 443, 80])
    pairing = Pairing()
    pairs = [pairing.add(channel, found)[1] for channel, found in channels.items()]
    assert [pair for pair in pairs if pair] == [
        Pair(port=80, data=0, error=1),
        Pair(port=443, data=2, error=3),
        Pair(port=80, data=4, error=5),
    ]


@pytest.mark.parametrize("count", [0, 101])
def test_channels_need_some_ports_but_not_too_many(count: int) -> None:
    """A channel's number is one byte, and some are taken."""
    with pytest.raises(InvalidRequest):
        channel_headers([80] * count)


@given(st.integers(1, 65535))
def test_the_port_prefix_is_little_endian(port: int) -> None:
    """Two bytes."""
    prefix = port_prefix(port)
    assert prefix[0] + 256 * prefix[1] == port
    assert len(prefix) == 2

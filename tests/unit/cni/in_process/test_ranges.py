"""Which addresses a network gives out, and in which order."""

from __future__ import annotations

import ipaddress
import itertools
from typing import Any

import pytest

from sandboxd.cni.in_process import ranges


def order(ipam: dict[str, Any], last: str = "", number: int = 0) -> list[str]:
    (one,) = ranges.sets(ipam)
    after = ipaddress.ip_address(last) if last else None
    found = itertools.islice(ranges.candidates(one, after), number or None)
    return [str(address) for address, _ in found]


def test_a_subnet_gives_all_but_its_ends_and_its_gateway() -> None:
    assert order({"subnet": "10.0.0.0/29"}) == [f"10.0.0.{n}" for n in range(2, 7)]


def test_a_subnet_of_ipv6_gives_its_last_address_too() -> None:
    assert order({"subnet": "fd00::/126"}) == ["fd00::2", "fd00::3"]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("10.0.0.4", ["10.0.0.5", "10.0.0.3", "10.0.0.4"]),
        ("10.0.0.5", ["10.0.0.3", "10.0.0.4", "10.0.0.5"]),
        ("10.0.0.9", ["10.0.0.3", "10.0.0.4", "10.0.0.5"]),
        ("fd00::4", ["10.0.0.3", "10.0.0.4", "10.0.0.5"]),
    ],
)
def test_the_next_address_is_the_one_after_the_last(last: str, expected: list[str]) -> None:
    """From the beginning where the last is of no range."""
    assert order({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.3", "rangeEnd": "10.0.0.5"}, last) == expected


def test_the_ranges_of_a_set_follow_each_other_in_a_circle() -> None:
    first = {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.8", "rangeEnd": "10.0.0.9"}
    second = {"subnet": "10.0.1.0/24", "rangeStart": "10.0.1.1", "rangeEnd": "10.0.1.3"}

    assert order({"ranges": [[first, second]]}, "10.0.1.2") == [
        *("10.0.1.3", "10.0.0.8", "10.0.0.9"),
        "10.0.1.2",  # 10.0.1.1 is the gateway
    ]


def test_a_large_range_is_not_counted_out() -> None:
    assert order({"subnet": "10.0.0.0/8"}, "10.200.0.0", 1) == ["10.200.0.1"]
    (one,) = ranges.sets({"subnet": "fd00::/64"})
    assert str(next(ranges.candidates(one, None))[0]) == "fd00::2"


def test_a_set_is_shown_as_the_plugin_shows_it() -> None:
    (one,) = ranges.sets({"ranges": [[{"subnet": "10.0.0.0/30"}, {"subnet": "10.0.1.0/24", "rangeEnd": "10.0.1.9"}]]})

    assert ranges.shown(one) == "10.0.0.1-10.0.0.2,10.0.1.1-10.0.1.9"


@pytest.mark.parametrize(
    "ipam",
    [
        {},
        {"ranges": []},
        {"ranges": [[]]},
        {"ranges": {}},
        {"subnet": "10.0.0.1/24"},
        {"subnet": "10.0.0.0/31"},
        {"subnet": 4},
        {"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"},
        {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"},
        {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.0"},
        {"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.255"},
        {"subnet": "10.0.0.0/24", "gateway": "10.0.1.1"},
        {"subnet": "10.0.0.0/24", "gateway": "fd00::1"},
        {"gateway": "10.0.0.1"},
        {"ranges": [[{"subnet": "10.0.0.0/24", "other": 1}]]},
        {"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]},
        {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.1.0/24"}]]},
        {"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/25"}]]},
        {"subnet": "10.0.0.0/24", "ranges": [[{"subnet": "10.0.0.0/25"}]]},
    ],
)
def test_what_is_not_plain_is_left_to_the_plugin(ipam: dict[str, Any]) -> None:
    with pytest.raises(ranges.Odd):
        ranges.sets(ipam)


@pytest.mark.parametrize("order", [1, -1])
def test_ranges_that_overlap_are_left_to_the_plugin_in_whichever_order(order: int) -> None:
    listed = [{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.128/25"}][::order]
    with pytest.raises(ranges.Odd, match="overlap"):
        ranges.sets({"ranges": [listed]})

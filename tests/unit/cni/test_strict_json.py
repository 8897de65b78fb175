"""JSON objects of other programs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.cni.strict_json import DEPTH, in_any_case, load_object


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\xff\xfe", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": 1} {"b": 2}', "not valid JSON"),
        (b"[1]", "expected a JSON object, got a list"),
        (b"null", "expected a JSON object, got nothing"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a":' + b"[" * 100_000, "nested deeper than 100 levels"),
        (b'{"a":' + b"[" * DEPTH + b"]" * DEPTH + b"}", "nested deeper than 100 levels"),
    ],
)
def test_what_is_not_one_plain_object_is_refused_with_the_reason(data: bytes, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        load_object(data)


def test_bytes_that_are_not_utf_8_are_replaced_as_go_does() -> None:
    assert load_object(b'{"comment": "caf\xe9", "a": 1}') == {"comment": "caf\ufffd", "a": 1}


def test_of_a_key_that_is_written_twice_the_last_counts_as_in_go() -> None:
    assert load_object(b'{"a": 1, "a": null, "a": 2}') == {"a": 2}


@pytest.mark.parametrize(
    ("item", "value"), [({"CNIVersion": 1}, 1), ({"CNIVERSION": 1, "cniVersion": 2}, 2), ({"cni": 1}, None)]
)
def test_a_key_is_found_in_any_case_and_in_its_own_first(item: dict[str, int], value: int | None) -> None:
    assert in_any_case(item, "cniVersion") == value


def test_the_deepest_object_allowed_is_read() -> None:
    assert load_object(b'{"a":' + b"[" * (DEPTH - 2) + b"]" * (DEPTH - 2) + b"}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values))
def test_every_object_reads_as_it_was_written(document: dict[str, object]) -> None:
    assert load_object(json.dumps(document).encode()) == document

"""JSON of strangers is read, or refused in a few words: nothing of it fails later."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd import foreign_json
from sandboxd.errors import InvalidRequest


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff{}", "UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
        (b"[" * 101 + b"]" * 101, "nested"),
        (b"[" * 500 + b"]" * 500, "nested"),
        (b"[" * 200_000 + b"]" * 200_000, "nested"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested"),
        (b"[" * 5_000_000, "nested"),
        (b"9" * 5000, "digits"),
        (b"-" + b"9" * 101, "digits"),
        (b"0." + b"9" * 5000, "digits"),
        (b"1e999", "too large"),
        (b"NaN", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b"[-Infinity]", "Infinity"),
        (b'{"a": 1, "a": 1}', "twice"),
        (b'[{"b": {"a": 1, "a": 2}}]', "twice"),
        (rb'"\ud800"', "surrogate"),
        (rb'{"\uDFFF": 1}', "surrogate"),
        (rb'[{"a": ["\ud83d and more"]}]', "surrogate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_json_or_fails_later_is_refused_in_short_words(document: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        foreign_json.parse(document, "the document")

    assert str(caught.value).startswith("the document: not valid JSON")
    assert len(str(caught.value)) < 200
    assert caught.value.__cause__ is None or not isinstance(caught.value.__cause__, RecursionError)


@pytest.mark.parametrize(
    "document",
    [
        b'\xef\xbb\xbf{"a": 1}',
        rb'["\ud83d\ude00"]',
        b"[" * 100 + b"]" * 100,
        b'["' + b"[" * 1000 + b'"]',
        b"9" * 100,
        b"-1.5e300",
        b"[]",
    ],
)
def test_what_is_json_is_read(document: bytes) -> None:
    assert foreign_json.parse(document, "x") == json.loads(document.decode("utf-8-sig"))


def test_a_member_may_be_given_twice_where_that_is_allowed() -> None:
    assert foreign_json.parse(b'{"a": 1, "a": 2}', "x", repeated=True) == {"a": 2}


@pytest.mark.parametrize("document", [b"[]", b"null", b'"a"', b"1"])
def test_an_object_is_an_object(document: bytes) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        foreign_json.parse_object(document, "x")


WORDS = st.text().filter(lambda text: text.isprintable() or text.isascii())
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), 1 << 64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner),
)


@given(JSON, st.booleans())
def test_what_was_written_is_read(document: object, ascii_only: bool) -> None:
    data = json.dumps(document, ensure_ascii=ascii_only).encode()
    found = foreign_json.parse(data, "x")

    assert found == document
    json.dumps(found, ensure_ascii=False).encode()


@given(st.binary(max_size=50) | st.text(max_size=50).map(lambda text: json.dumps(text).encode()))
def test_anything_is_read_or_refused_and_can_be_written_again(data: bytes) -> None:
    try:
        found = foreign_json.parse(data, "x")
    except InvalidRequest:
        return
    json.dumps(found, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize("value", ["x" * 1_000_000, {"a": "x" * 1_000_000}, ["x" * 1_000_000], 10**99, None, True])
def test_what_is_shown_of_a_value_is_short(value: object) -> None:
    assert len(foreign_json.shown(value)) < 150

"""YAML of others is read, or refused with one kind of error and within bounds."""

from __future__ import annotations

import pytest

from sandboxd.errors import InvalidRequest
from sandboxd.foreign_yaml import DEPTH, parse


def test_a_document_is_read() -> None:
    assert parse(b"a: &x [1, two]\nb: *x\n", "it") == {"a": [1, "two"], "b": [1, "two"]}
    assert parse(b"", "it") is None


@pytest.mark.parametrize(
    "text",
    [
        "a: !!timestamp x", "a: !!bool x", "a: !!int ''", "a: !!float .", "a: 2020-99-99", "? [a]\n: b", "a: [",
        "\x00", "a: !!python/object:os.system x", "---\n---\n", "\ud800",
    ],
)  # fmt: skip
def test_what_the_library_stumbles_over_is_refused_with_the_name_of_the_file(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^x\.yaml: not valid YAML: "):
        parse(text.encode("utf-8", "surrogatepass"), "x.yaml")


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a":' * 100_000, "- " * 100_000])
def test_deep_nesting_is_refused_before_it_costs_time(nested: str) -> None:
    with pytest.raises(InvalidRequest, match=f"nested deeper than {DEPTH} levels"):
        parse(nested.encode(), "x.yaml")

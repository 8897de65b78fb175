"""HTML from text that nobody vouches for."""

from __future__ import annotations

import pytest

from sandboxd.cli.markup import escaped, joined, tag
from tests.unit.cli.told import HOSTILE


def test_text_within_and_in_attributes_is_escaped() -> None:
    assert tag("p", "<b>", class_="\"'>") == '<p class="&quot;&#x27;&gt;">&lt;b&gt;</p>'
    assert "<" not in escaped(HOSTILE) and "&lt;script&gt;" in escaped(HOSTILE)


def test_control_characters_are_written_out_and_those_of_plain_text_stay() -> None:
    assert escaped("\x1b[2J\u202e\x00\ud800") == "\\x1b[2J\\u202e\\x00\\ud800"
    assert escaped("a\tb\nc") == "a\tb\nc"


def test_elements_within_are_not_escaped_again() -> None:
    assert tag("ol", [tag("li", each, 1) for each in "<&"]) == "<ol><li>&lt;1</li><li>&amp;1</li></ol>"
    assert joined("<", tag("br"), tag("rect", x=1.25)) == '&lt;<br><rect x="1.25"/>'


def test_attributes_are_spelled_as_html_spells_them_and_none_is_left_out() -> None:
    assert tag("p", aria_hidden="true", class_="a", id=None) == '<p aria-hidden="true" class="a"></p>'


def test_a_name_that_is_no_word_is_refused() -> None:
    for name, attributes in (("p onload=x", {}), ("p", {"a b": "c"}), ("", {})):
        with pytest.raises(ValueError, match="is not a name"):
            tag(name, **attributes)

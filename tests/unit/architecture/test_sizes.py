"""A module can be read in one sitting, and says what it is for."""

from __future__ import annotations

import ast

import pytest

from tests.unit.architecture.source import MODULES, text, tree

MOST_LINES = 500


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_can_be_read_in_one_sitting(name: str) -> None:
    assert len(text(name).splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_says_at_its_head_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(tree(name))


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"base", "common", "core", "helper", "helpers", "manager", "misc", "util", "utils"}

    assert not {name for name in MODULES if set(name.split(".")) & empty}

"""A module can be read in one sitting, a function at one glance, and both say what they are for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields

import pytest

from sandboxd.node import Node
from tests.unit.architecture.source import MODULES, text, tree

MOST_LINES_OF_A_MODULE = 500
MOST_LINES_OF_A_FUNCTION = 40
MOST_FIELDS_OF_THE_NODE = 10

# Functions that are longer. An entry that has become untrue fails, and none may be of the rooms that change most.
TOO_LONG = {
    "cli.commands_run.run",  # an option a parameter
    "daemon.serve",
    "images.fetch.layers",
    "oci.container.container_spec",  # one visible expression, as the two below
    "oci.sandbox.sandbox_spec",
    "oci.tar.next_of",
}
NEVER_TOO_LONG = ("pods.", "containers.")


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Each function's name, and how many lines of code it has: no docstring of its own, no comment, no empty line."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            code = lines[body[0].lineno - 1 : node.end_lineno] if body else []
            yield node.name, sum(1 for line in code if line.strip() and not line.strip().startswith("#"))


def test_a_module_can_be_read_in_one_sitting() -> None:
    lengths = {name: len(text(name).splitlines()) for name in MODULES}

    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_MODULE} == {}


def test_a_function_can_be_read_at_one_glance() -> None:
    """Exactly the known ones cannot: what has become shorter leaves the list."""
    long = {
        f"{module}.{name}"
        for module in MODULES
        for name, lines in functions(text(module))
        if lines > MOST_LINES_OF_A_FUNCTION
    }

    assert long == TOO_LONG


def test_pods_and_containers_have_no_function_that_is_too_long() -> None:
    assert [name for name in TOO_LONG if name.startswith(NEVER_TOO_LONG)] == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f(): return 1", 1),
        ("def f():\n    return 1", 1),
        ("def f(\n    a,\n    b,\n):\n    return (\n        a\n    )", 3),
        ('def f():\n    """Says\n\n    what."""\n    a = 1\n\n    # why\n    return a', 2),
        ('def f():\n    """Only says."""', 0),
        ("async def f():\n    await g()\n    return 1", 2),
    ],
)
def test_what_counts_is_code(source: str, lines: int) -> None:
    assert list(functions(source)) == [("f", lines)]


def test_a_module_says_at_its_head_what_it_is_for() -> None:
    assert [name for name in MODULES if not ast.get_docstring(tree(name))] == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"base", "common", "core", "helper", "helpers", "manager", "misc", "util", "utils"}

    assert not {name for name in MODULES if set(name.split(".")) & empty}


def test_what_every_operation_gets_fits_into_one_glance() -> None:
    """Whatever is added to the node is part of one of its resources, or a good reason to change another one."""
    assert len(fields(Node)) <= MOST_FIELDS_OF_THE_NODE

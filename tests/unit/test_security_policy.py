"""SECURITY.md promises only what a test tries to break: each of its sentences names one, and it exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
POLICY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PROSE = {"Who is trusted", "What is not promised", "Reporting a vulnerability"}
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def promises() -> list[str]:
    """Each item of each section that promises something."""
    found = []
    for section in POLICY.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        if title not in PROSE:
            items = text.split("\n- ")[1:]
            assert items, f"the section {title!r} promises nothing"
            # What follows after an empty line is prose.
            found += [" ".join(item.split("\n\n")[0].split()) for item in items]
    return found


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("promise", promises(), ids=lambda promise: promise[:60])
def test_a_promise_names_tests_that_exist(promise: str) -> None:
    references = REFERENCE.findall(promise)
    assert references, "no test tries the opposite"
    for path, name in references:
        assert name in functions_of(path), f"{path} has no {name}"


def test_every_reference_is_understood() -> None:
    assert POLICY.count("::test_") == len(REFERENCE.findall(POLICY)) > 30

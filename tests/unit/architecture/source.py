"""The package's own source for the rules in this directory, read and parsed once for all of them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "sandboxd"


def words(text: str) -> frozenset[str]:
    """The words of a list that is easier to read without quotes."""
    return frozenset(text.split())


def modules() -> dict[str, Path]:
    """Every module of the package that people write, by its name below it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "pb" and not parts[-1].startswith("__"):
            found[".".join(parts)] = path
    return found


MODULES = modules()


@cache
def text(name: str) -> str:
    return MODULES[name].read_text()


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(text(name))


@cache
def names_used(name: str) -> frozenset[str]:
    """The full name of everything that the module imports, and of every use of it."""
    return frozenset(used for _, used in uses(tree(name)))


def users(of: Callable[[str], bool]) -> set[str]:
    """The modules that use a name that satisfies `of`."""
    return {name for name in MODULES if any(of(used) for used in names_used(name))}


def imported(module: ast.Module) -> dict[str, str]:
    """Local name to full name of everything that is imported, wherever in the module."""
    names = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else (alias.name.partition(".")[0])
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def uses(module: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, full name) of every import and of every use of what is imported, as deep as its attributes go."""
    names = imported(module)
    inner = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Attribute)}
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner:
            parts: list[str] = []
            at: ast.expr = node
            while isinstance(at, ast.Attribute):
                parts.append(at.attr)
                at = at.value
            if isinstance(at, ast.Name) and at.id in names:
                yield node.lineno, ".".join((names[at.id], *reversed(parts)))


def within(name: str, known: frozenset[str]) -> bool:
    """Whether `name` is one of `known` or something inside one."""
    parts = name.split(".")
    return any(".".join(parts[: i + 1]) in known for i in range(len(parts)))

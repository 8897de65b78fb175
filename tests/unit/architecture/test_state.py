"""The rooms keep no state of their own: every object is built once, by the daemon, and handed to who needs it.

State of a module is shared by all who import it, two tests included; it is not seen in any signature, and nobody
owns it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.unit.architecture.source import MODULES, imported, tree, words

STATELESS = ("pods", "containers", "images", "machine", "operations", "node")

# Calls whose answers cannot change, or that are the same for everybody.
_CONSTANT = words(
    """
    bytes enum.auto float frozenset int os.fsencode pathlib.Path pathlib.PurePosixPath re.compile
    sandboxd.oci.linux.ALL_CAPABILITIES.index sorted str struct.Struct structlog.get_logger tuple
    types.MappingProxyType typing.NewType typing.TypeVar
    """
)
_CACHES = words("functools.cache functools.lru_cache")
_CHANGES = words(
    """
    add append appendleft clear difference_update discard extend extendleft insert intersection_update pop popitem
    popleft remove reverse setdefault sort symmetric_difference_update update
    """
)
_CONTAINERS = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp, ast.GeneratorExp)


def state(module: ast.Module) -> list[str]:
    """What of the module outlives a call and can change, as "line: name"."""
    names = imported(module)
    changed = set(changes(module))

    def can_change(name: str, value: ast.expr) -> bool:
        if isinstance(value, ast.Call):
            return full_name(value.func, names) not in _CONSTANT
        return isinstance(value, _CONTAINERS) and (not name.strip("_").isupper() or name in changed)

    found = [f"{value.lineno}: {name}" for name, value in lasting(module) if can_change(name, value)]
    for node in ast.walk(module):
        if isinstance(node, ast.Global):
            found.append(f"{node.lineno}: global {', '.join(node.names)}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            called = [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]
            found += [f"{node.lineno}: {node.name}" for each in called if full_name(each, names) in _CACHES]
    return found


def lasting(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of what is assigned in the module or in one of its classes; fields of instances are not."""
    scopes: list[ast.Module | ast.ClassDef] = [module]
    scopes += [node for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
    for scope in scopes:
        for node in scope.body:
            if isinstance(node, ast.Assign):
                yield from ((ast.unparse(target), node.value) for target in node.targets)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                annotation = ast.unparse(node.annotation)
                if scope is module or "ClassVar" in annotation:
                    yield ast.unparse(node.target), node.value


def changes(module: ast.Module) -> Iterator[str]:
    """The names of what is changed in place, somewhere in the module."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGES:
            yield ast.unparse(node.func.value)
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield ast.unparse(node.value)
        elif isinstance(node, ast.AugAssign):
            yield ast.unparse(node.target)


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    first, _, rest = ast.unparse(node).partition(".")
    return ".".join(part for part in (names.get(first, first), rest) if part)


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.partition(".")[0] in STATELESS))
def test_a_room_has_no_state_of_its_own(name: str) -> None:
    assert state(tree(name)) == []


@pytest.mark.parametrize(
    "planted",
    [
        "_asked = {}",
        "_asked: dict[str, bytes] = {}",
        "_probed = None\ndef f():\n    global _probed",
        "seen = set()",
        "SEEN = set()",
        "KNOWN = {}\ndef f(): KNOWN['a'] = 1",
        "KNOWN = {'a': 1}\ndef f(): del KNOWN['a']",
        "KNOWN = ['a']\ndef f(): KNOWN.append('b')",
        "KNOWN = {'a': 1}\ndef f(): KNOWN.setdefault('b', 2)",
        "_lock = asyncio.Lock()",
        "from sandboxd.jobs import Jobs\nJOBS = Jobs()",
        "from collections import deque\nLATEST = deque(maxlen=3)",
        "_live = weakref.WeakSet()",
        "from functools import lru_cache\n@lru_cache\ndef f(): ...",
        "import functools\n@functools.lru_cache(maxsize=2)\ndef f(): ...",
        "from functools import cache as once\n@once\ndef f(): ...",
        "class C:\n    under_way: ClassVar[set[C]] = set()",
        "class C:\n    under_way = []",
        "class C:\n    KNOWN = {}\n    def f(self): C.KNOWN['a'] = 1\nKNOWN = C.KNOWN\nKNOWN.update(a=1)",
        "def f():\n    class C:\n        lock = threading.Lock()",
    ],
)
def test_planted_state_is_seen(planted: str) -> None:
    assert state(ast.parse(planted))


@pytest.mark.parametrize(
    "harmless",
    [
        "import re\n_NAME = re.compile('x')",
        "MOST = 3\nNAMES = ('a', 'b')\nKINDS = frozenset({'a'})",
        "_STATES = {1: 'a'}\ndef f(): return _STATES[1]",
        "STATES = {1: 'a'}\ndef f():\n    states = dict(STATES)\n    states[2] = 'b'",
        "from pathlib import Path\n_PROC = Path('/proc')",
        "import structlog\nlog = structlog.get_logger(__name__)",
        "class C:\n    a: list[str] = field(default_factory=list)\n    b = 1\n    __slots__ = ('c',)",
        "class C:\n    def __init__(self):\n        self.seen = set()",
        "from functools import cached_property\nclass C:\n    @cached_property\n    def f(self): ...",
    ],
)
def test_constants_and_instances_are_not_state(harmless: str) -> None:
    assert state(ast.parse(harmless)) == []

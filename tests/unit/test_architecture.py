"""The rules of the layout that import-linter cannot see: purity, sole owners, sizes, and a test for each module.

What a module may import is import-linter's business (`.importlinter`, `make layers`); this is about what it does.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 500


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# No IO, no clock, no environment, no async, no threads, no chance: the answer depends on the arguments alone.
PURE = words(
    """
    errors foreign_json model mountinfo places
    oci.cdi oci.compression oci.container oci.files oci.image oci.layers oci.layout oci.links oci.linux oci.lsm
    oci.recording oci.sandbox oci.seccomp oci.stop_signal oci.tar oci.userns oci.users oci.validate
    cni.conf cni.request cni.result cni.strict_json cni.template
    cgroups.sample
    registry.auth registry.hosts registry.reference
    streaming.channels streaming.portforward streaming.remotecommand streaming.spdy streaming.spdy_headers
    streaming.tokens streaming.upgrade streaming.websocket
    logs.format logs.wire
    pods.reconcile
    api.views api.withheld
    insight.explain
    cli.configs cli.names cli.parse cli.render cli.timeline
    """
)
PLANNED = frozenset({"insight.explain"})  # pure modules of the design that are yet to be written

_IMPURE_MODULES = words(
    """
    aiohttp asyncio builtins concurrent ctypes fcntl getpass glob grpc http io locale logging mmap multiprocessing os
    pathlib platform pyroute2 queue random resource sched secrets select selectors shutil socket socketserver sqlite3
    ssl structlog subprocess sys syslog tempfile threading time urllib.request uuid
    """
)
# Of those modules, what only computes with its arguments.
_PURE_NAMES = frozenset({"io.BytesIO", "io.RawIOBase", "time.gmtime", "time.strftime"})
_IMPURE_NAMES = frozenset({"datetime.datetime.now", "datetime.datetime.today", "datetime.datetime.utcnow"})
_IMPURE_CALLS = frozenset({"breakpoint", "input", "open", "print"})

# Modules whose tests have another place: what they do shows only on a real kernel, containerd or daemon.
ELSEWHERE = {
    "api.events": "tests/e2e/test_events.py",
    "api.exec": "tests/e2e/test_exec.py",
    "api.resources": "tests/e2e/test_resources.py",
    "api.stats": "tests/e2e/test_stats.py",
    "cli.session": "tests/unit/cli/test_commands.py",
    "containerd.content": "tests/root/test_images_on_containerd.py",
    "containerd.events": "tests/e2e/test_lifecycle.py",
    "containerd.extract": "tests/root/test_extract.py",
    "containerd.images": "tests/root/test_images_on_containerd.py",
    "containerd.leases": "tests/root/test_images_on_containerd.py",
    "containerd.processes": "tests/e2e/test_exec.py",
    "containerd.snapshots": "tests/root/test_images_on_containerd.py",
    "containerd.tasks": "tests/e2e/test_lifecycle.py",
    "daemon": "tests/e2e/test_daemon.py",
    "containers.attach": "tests/e2e/test_attach.py",
    "containers.checkpoint": "tests/e2e/test_checkpoint.py",
    "containers.create": "tests/e2e/test_lifecycle.py",
    "pods.follow": "tests/e2e/test_lifecycle.py",
    "images.fetch": "tests/e2e/test_pull.py",
    "node": "tests/e2e/test_story.py",
    "images.load": "tests/root/test_images_on_containerd.py",
    "pods.network": "tests/e2e/test_bad_input.py",
    "pods.files": "tests/e2e/test_lifecycle.py",
    "pods.ports": "tests/e2e/test_port_forward.py",
    "pods.run": "tests/e2e/test_story.py",
    "machine.userns": "tests/root/test_user_namespaces.py",
    "mounts": "tests/root/test_mounts.py",
    "netns": "tests/root/test_netns.py",
    "streaming.sessions": "tests/unit/streaming/test_stdio.py",
    "streaming.streams": "tests/unit/streaming/test_websocket.py",
    "syscalls": "tests/root/test_netns.py",
}
# Nobody tests these yet. Rooms end with a dot. An entry that has become untrue fails.
UNTESTED = {"insight.doctor", "registry."}


def modules() -> dict[str, Path]:
    """Every module of the package that people write, by its name below it."""
    found = {}
    for path in sorted((ROOT / "sandboxd").rglob("*.py")):
        parts = path.relative_to(ROOT / "sandboxd").with_suffix("").parts
        if parts[0] != "pb" and not parts[-1].startswith("__"):
            found[".".join(parts)] = path
    return found


MODULES = modules()


def imported(tree: ast.Module) -> dict[str, str]:
    """Local name to full name of everything that is imported, wherever in the module."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else (alias.name.partition(".")[0])
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, full name) of every import and of every use of what is imported, as deep as its attributes go."""
    names = imported(tree)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
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


def impurities(source: str) -> list[str]:
    """What a pure module must not do, as "line: name"."""
    tree = ast.parse(source)
    used = list(uses(tree))
    # `import io` does nothing by itself; what is taken from it is seen where it is used.
    opened = {name.rpartition(".")[0] for _, name in used}
    found = [
        f"{line}: {name}"
        for line, name in used
        if within(name, _IMPURE_NAMES)
        or (within(name, _IMPURE_MODULES) and not within(name, _PURE_NAMES) and name not in opened)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await):
            found.append(f"{node.lineno}: async")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _IMPURE_CALLS:
            found.append(f"{node.lineno}: {node.func.id}()")
    return found


@pytest.mark.parametrize("name", sorted(PURE - PLANNED))
def test_a_pure_module_does_nothing_but_compute(name: str) -> None:
    assert impurities(MODULES[name].read_text()) == []


def test_planned_modules_are_not_there_yet() -> None:
    assert not PLANNED & set(MODULES), "written by now: take them out of PLANNED"


@pytest.mark.parametrize(
    "planted",
    [
        "import os\nos.getpid()",
        "import os",
        "import os.path\nos.path.exists('/')",
        "import os as harmless\nharmless.getpid()",
        "from os import environ",
        "from os import environ as e",
        "import asyncio",
        "from asyncio import Lock",
        "import time\ntime.time()",
        "import time\ntime.gmtime(0)\ntime.monotonic()",
        "from time import time_ns",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.now(None)",
        "from pathlib import Path",
        "import random\nrandom.random()",
        "import secrets",
        "import socket",
        "import subprocess",
        "import threading",
        "import io\nio.open('x')",
        "def f():\n    import tempfile",
        "from urllib.request import urlopen",
        "open('x')",
        "print('x')",
        "async def f(): ...",
        "async def f():\n    async with g: ...",
    ],
)
def test_a_planted_impurity_is_seen(planted: str) -> None:
    assert impurities(planted)


@pytest.mark.parametrize(
    "harmless",
    [
        "import json\njson.loads('1')",
        "import time\ntime.strftime('%Y', time.gmtime(0))",
        "from time import gmtime",
        "import io\nio.BytesIO(b'')",
        "from datetime import datetime\ndatetime.fromisoformat('x')",
        "import posixpath\nposixpath.join('a', 'b')",
        "from urllib.parse import urlsplit",
        "def f(x): return x.open()",
    ],
)
def test_computing_is_pure(harmless: str) -> None:
    assert impurities(harmless) == []


@cache
def names_used(path: Path) -> frozenset[str]:
    return frozenset(name for _, name in uses(ast.parse(path.read_text())))


def users(of: Callable[[str], bool]) -> set[str]:
    """The modules that use a name that satisfies `of`."""
    return {name for name, path in MODULES.items() if any(of(used) for _, used in uses(ast.parse(path.read_text())))}


@pytest.mark.parametrize(
    ("names", "owners"),
    [
        ("asyncio.create_task asyncio.ensure_future", {"jobs"}),
        ("os.environ os.getenv os.putenv os.environb", {"config"}),
        # Whatever ends with a request is started by the event loop: see the next test.
        ("subprocess", {"supervised"}),
        ("os.fork os.system os.popen os.posix_spawn os.spawnv multiprocessing", set()),
        ("ctypes", {"syscalls"}),
        ("pyroute2", {"netns"}),
        ("sqlite3", {"ledger"}),
        ("aiohttp", {"registry.transport"}),
        # Whoever signals by number makes sure that it is neither 0, all of our own group, nor 1, everybody.
        ("os.kill os.killpg", {"cgroups.removal", "cni.invoker", "containers.exec"}),
        # What images and containers made is walked and removed without recursion, by descriptor.
        ("shutil.rmtree shutil.copytree os.walk os.fwalk os.removedirs glob", set()),
    ],
)
def test_some_things_have_one_owner(names: str, owners: set[str]) -> None:
    """Users are the owners exactly: an owner that has no use for a thing any more is no owner."""
    known = frozenset(names.split())

    assert users(lambda used: within(used, known)) == owners


def test_processes_of_the_event_loop_are_started_in_four_places() -> None:
    ways = ("create_subprocess_exec", "create_subprocess_shell", "subprocess_exec", "subprocess_shell")
    starting = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ways
    }

    assert starting == {
        "cni.invoker",
        "machine.programs",
        "netns",
        "registry.credential_helper",
    }


def test_grpc_is_known_to_the_edges_only() -> None:
    rooms = {name.partition(".")[0] for name in users(lambda used: within(used, frozenset({"grpc"})))}

    assert rooms == {"api", "cli", "containerd", "daemon"}


def test_status_codes_are_chosen_in_one_place() -> None:
    """cli and containerd read what others chose."""
    choosing = users(lambda used: within(used, frozenset({"grpc.StatusCode"})))

    assert {name for name in choosing if name.partition(".")[0] not in ("cli", "containerd")} == {"api.edge"}


def test_an_owners_check_sees_a_renamed_import() -> None:
    for source in ("from asyncio import create_task as go\ngo(x)", "import asyncio as a\na.create_task(x)"):
        assert any(name == "asyncio.create_task" for _, name in uses(ast.parse(source)))


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_can_be_read_in_one_sitting(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_says_at_its_head_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text()))


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"base", "common", "core", "helper", "helpers", "manager", "misc", "util", "utils"}

    assert not {name for name in MODULES if set(name.split(".")) & empty}


def with_own_tests() -> set[str]:
    """The modules that have test files of their own at their place below tests/unit."""
    found = set()
    for name in MODULES:
        *room, module = name.split(".")
        place = ROOT.joinpath("tests", "unit", *room)
        if (place / f"test_{module}.py").is_file():
            found.add(name)
    return found


def test_every_module_has_a_test_file_at_its_place_or_a_known_one_elsewhere() -> None:
    rooms = tuple(name for name in UNTESTED if name.endswith("."))
    missing = set(MODULES) - with_own_tests() - set(ELSEWHERE) - UNTESTED

    assert not {name for name in missing if not name.startswith(rooms)}


def test_the_list_of_modules_that_are_tested_elsewhere_is_true() -> None:
    assert set(ELSEWHERE) <= set(MODULES), "modules that are gone"
    assert not set(ELSEWHERE) & with_own_tests(), "modules that have a test file of their own by now"
    assert not [place for place in ELSEWHERE.values() if not (ROOT / place).is_file()]


def test_the_list_of_modules_that_nobody_tests_is_true() -> None:
    untested = set(MODULES) - with_own_tests() - set(ELSEWHERE)

    for name in UNTESTED:
        assert any(module == name or (name.endswith(".") and module.startswith(name)) for module in untested), (
            f"{name} is tested by now, or gone: take it out of UNTESTED"
        )


def test_every_unit_test_file_belongs_to_a_module_that_is_there() -> None:
    """A test file beside no module tests something that is gone; more than one for a module share its name."""
    strangers = []
    for path in sorted((ROOT / "tests" / "unit").rglob("test_*.py")):
        room = path.relative_to(ROOT / "tests" / "unit").parts[:-1]
        stem = path.stem.removeprefix("test_")
        names = [name.rpartition(".")[2] for name in MODULES if tuple(name.split(".")[:-1]) == room]
        if not any(stem == name or stem.startswith(f"{name}_") for name in names):
            strangers.append(str(path.relative_to(ROOT)))

    # The rules of the whole, and what lies outside the package.
    assert set(strangers) <= {
        "tests/unit/test_apt_get.py",
        "tests/unit/test_architecture.py",
        "tests/unit/test_security_policy.py",
        "tests/unit/test_wire.py",
        "tests/unit/deploy/test_images_build.py",
        "tests/unit/oci/test_bombs.py",
    }

"""A pure module only computes: its answer depends on its arguments alone, and so does what it imports."""

from __future__ import annotations

import ast

import pytest

from tests.unit.architecture.source import MODULES, text, tree, uses, within, words

# No IO, no clock, no environment, no async, no threads, no chance: the answer depends on the arguments alone.
PURE = words(
    """
    errors foreign_json foreign_yaml links model mountinfo network_state places record_format vocabulary
    oci.cdi oci.compression oci.container oci.files oci.image oci.layers oci.layout oci.links oci.linux oci.lsm
    oci.pinned oci.recording oci.sandbox oci.seccomp oci.stop_signal oci.tar oci.userns oci.users oci.validate
    cni.conf cni.diagnosis cni.convert cni.failures cni.ranges cni.request cni.result cni.strict_json cni.template
    cni.in_process.dialects cni.in_process.ranges cni.in_process.rules cni.in_process.supported
    cgroups.sample
    containerd.calls
    registry.auth registry.hosts registry.reference
    streaming.channels streaming.exchange streaming.portforward streaming.remotecommand streaming.spdy
    streaming.spdy_headers streaming.streams streaming.tokens streaming.upgrade streaming.websocket
    logs.format logs.wire
    machine.rule_lists
    pods.eligible pods.reconcile
    insight.diagnose insight.diagnose_filters insight.diagnose_links insight.diagnose_reach insight.evidence
    insight.residue insight.rulesets insight.rulesets_read
    api.lists api.usage_views api.views api.withheld
    usage.families usage.readings usage.records
    cli.by_hand cli.changes cli.configs cli.ctr cli.drawing cli.markup cli.names cli.nesting cli.page cli.parse
    cli.plugin_results cli.render cli.sentences cli.shell cli.stylesheet cli.timeline cli.topology cli.waterfall
    """
)

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


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_does_nothing_but_compute(name: str) -> None:
    assert impurities(text(name)) == []


def impure_imports(source: str) -> list[str]:
    """What a pure module must not take from the package's other modules, as "line: name".

    All of a pure module and of the generated messages may be taken, and of any other its records: a frozen dataclass
    or an enumeration says what the caller found out, and finds out nothing itself.
    """
    return [
        f"{line}: {name}"
        for line, name in uses(ast.parse(source))
        if within(name, frozenset({"sandboxd"}))
        and not within(name, frozenset({"sandboxd.pb"}) | {f"sandboxd.{pure}" for pure in PURE})
        and not is_record(name)
    ]


def is_record(name: str) -> bool:
    """Whether a full name is that of a record, or of something on it."""
    parts = name.removeprefix("sandboxd.").split(".")
    for depth in range(1, len(parts)):
        if (module := ".".join(parts[:depth])) in MODULES:
            return parts[depth] in records(module)
    return False


def records(module: str) -> set[str]:
    classes = [node for node in tree(module).body if isinstance(node, ast.ClassDef)]
    return {
        node.name
        for node in classes
        if any(ast.unparse(base).endswith("Enum") for base in node.bases)
        or any("frozen=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    }


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_imports_nothing_impure(name: str) -> None:
    """It would be as pure as what it calls."""
    assert impure_imports(text(name)) == []


@pytest.mark.parametrize(
    "planted",
    [
        "from sandboxd import jobs",
        "from sandboxd import a_new_module",
        "import sandboxd.netns",
        "import sandboxd.netns as n\nn.create()",
        "from sandboxd.jobs import Jobs",
        "from sandboxd.steps import step",
        "from sandboxd.config import Config, load",
        "from sandboxd.cni import conf, invoker",
        "from sandboxd.cgroups.kernel import Cgroups",
        "from sandboxd.a_new_room.module import Thing",
        "def f():\n    from sandboxd.pods import run",
        "import sandboxd",
    ],
)
def test_a_planted_impure_import_is_seen(planted: str) -> None:
    assert impure_imports(planted)


@pytest.mark.parametrize(
    "harmless",
    [
        "from sandboxd import errors",
        "import sandboxd.errors",
        "from sandboxd.errors import NotFound\nNotFound.code",
        "from sandboxd.pb.cri.v1 import api_pb2 as cri\ncri.Mount()",
        "from sandboxd.config import Config\nConfig.daemon",
        "from sandboxd.steps import StepRecord",
    ],
)
def test_messages_records_and_what_is_pure_may_be_imported(harmless: str) -> None:
    assert impure_imports(harmless) == []


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

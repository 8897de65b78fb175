"""Some things have one owner, and only the owner uses them."""

from __future__ import annotations

import ast

import pytest

from tests.unit.architecture.source import MODULES, tree, users, uses, within


@pytest.mark.parametrize(
    ("names", "owners"),
    [
        ("asyncio.create_task asyncio.ensure_future", {"jobs"}),
        ("os.environ os.getenv os.putenv os.environb", {"environment"}),
        # Whatever ends with a request is started by the event loop: see the next test.
        ("subprocess", {"supervised"}),
        ("os.fork os.system os.popen os.posix_spawn os.spawnv multiprocessing", set()),
        ("ctypes", {"syscalls"}),
        ("pyroute2", {"netns", "rtnetlink"}),
        ("sqlite3", {"commits", "database", "ledger", "timelines"}),
        ("aiohttp", {"registry.transport"}),
        ("opentelemetry", {"insight.traces"}),
        ("prometheus_client", {"insight.figures", "insight.metrics"}),
        # Whoever signals by number makes sure that it is neither 0, all of our own group, nor 1, everybody.
        ("os.kill os.killpg", {"cgroups.removal", "cni.execution", "containers.exec"}),
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
        for name in MODULES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Attribute) and node.attr in ways
    }

    assert starting == {
        "cni.execution",
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

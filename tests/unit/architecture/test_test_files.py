"""Every module has a test file at its place, and every test file a module."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.unit.architecture.source import MODULES, ROOT, uses, within, words

# Modules whose tests have another place: what they do shows only on a real kernel, containerd or daemon.
ELSEWHERE = {
    "vocabulary": "tests/unit/test_steps.py",
    "api.events": "tests/e2e/test_events.py",
    "api.inside": "tests/e2e/test_exec.py",
    "api.usage": "tests/e2e/test_stats.py",
    "cni.in_process.bridge": "tests/root/test_in_process.py",
    "cni.in_process.netlink": "tests/root/test_in_process.py",
    "cli.session": "tests/unit/cli/test_commands.py",
    "cni.executions": "tests/unit/cni/test_invoker.py",
    "containerd.content": "tests/root/test_images_on_containerd.py",
    "containerd.events": "tests/e2e/test_lifecycle.py",
    "containerd.extract": "tests/root/test_extract.py",
    "containerd.images": "tests/root/test_images_on_containerd.py",
    "containerd.leases": "tests/root/test_images_on_containerd.py",
    "containerd.processes": "tests/e2e/test_exec.py",
    "containerd.records": "tests/root/contracts/test_runtime_contract.py",
    "containerd.snapshots": "tests/root/test_images_on_containerd.py",
    "daemon": "tests/e2e/test_daemon.py",
    "insight.evidence": "tests/unit/insight/test_diagnose.py",
    "insight.probes": "tests/e2e/test_doctor.py",
    "links": "tests/root/test_netns.py",
    "mounts": "tests/root/test_mounts.py",
    "netns": "tests/root/test_netns.py",
    "node": "tests/e2e/test_story.py",
    "registry.request": "tests/unit/registry/test_transport.py",
    "rtnetlink": "tests/root/test_rtnetlink.py",
    "streaming.sessions": "tests/unit/streaming/test_stdio.py",
    "streaming.streams": "tests/unit/streaming/test_websocket.py",
    "streaming.upgrade": "tests/unit/streaming/test_exchange.py",
    "syscalls": "tests/root/test_netns.py",
    "usage.readings": "tests/unit/usage/test_families.py",
    "usage.records": "tests/unit/usage/test_stats.py",
}
# What happens to a pod, a container or an image is decided in these rooms, and all that they use has a fake.
NEVER_ELSEWHERE = ("pods.", "containers.", "images.", "machine.")
# Modules that are owed tests of their own. An entry that has become untrue fails.
OWED = words(
    """
    containerd.runtime
    registry.credential_helper
    registry.login
    """
)


def with_own_tests() -> set[str]:
    """The modules that have test files of their own at their place below tests/unit, and are imported there."""
    return {name for name in MODULES if (place := place_of_tests(name)).is_file() and is_imported(name, place)}


def place_of_tests(name: str) -> Path:
    *room, module = name.split(".")
    return ROOT.joinpath("tests", "unit", *room, f"test_{module}.py")


def is_imported(name: str, place: Path) -> bool:
    """sandboxctl's commands are not: they are tested as their user runs them."""
    known = frozenset({f"sandboxd.{name}"})
    return name.startswith("cli.commands_") or any(within(used, known) for _, used in uses(parsed(place)))


@cache
def parsed(place: Path) -> ast.Module:
    return ast.parse(place.read_text())


def test_every_module_has_a_test_file_at_its_place_or_a_known_one_elsewhere() -> None:
    """Exactly the owed ones have none: what has been tested since, or is gone, leaves the list."""
    assert set(MODULES) - with_own_tests() - set(ELSEWHERE) == OWED


@pytest.mark.parametrize("room", NEVER_ELSEWHERE)
def test_the_rooms_in_the_middle_are_tested_at_their_place(room: str) -> None:
    assert [name for name in ELSEWHERE if name.startswith(room)] == []


def test_the_list_of_modules_that_are_tested_elsewhere_is_true() -> None:
    assert set(ELSEWHERE) <= set(MODULES), "modules that are gone"
    assert not set(ELSEWHERE) & with_own_tests(), "modules that have a test file of their own by now"
    assert not [place for place in ELSEWHERE.values() if not (ROOT / place).is_file()]


def test_a_test_file_that_does_not_import_its_module_is_none(tmp_path: Path) -> None:
    (place := tmp_path / "test_run.py").write_text("from sandboxd.pods import teardown\nfrom sandboxd import pods")

    assert not is_imported("pods.run", place)
    assert is_imported("pods.teardown", place)


def test_every_unit_test_file_belongs_to_a_module_that_is_there() -> None:
    """A test file beside no module tests something that is gone; more than one for a module share its name."""
    strangers = []
    for path in sorted((ROOT / "tests" / "unit").rglob("test_*.py")):
        room = path.relative_to(ROOT / "tests" / "unit").parts[:-1]
        stem = path.stem.removeprefix("test_")
        if room == ("architecture",):  # the rules of the whole
            continue
        names = [name.rpartition(".")[2] for name in MODULES if tuple(name.split(".")[:-1]) == room]
        if not any(stem == name or stem.startswith(f"{name}_") for name in names):
            strangers.append(str(path.relative_to(ROOT)))

    # What lies outside the package, and what is about many modules.
    assert set(strangers) <= {
        "tests/unit/test_apt_get.py",
        "tests/unit/test_security_policy.py",
        "tests/unit/test_wire.py",
        "tests/unit/deploy/test_images_build.py",
        "tests/unit/matrix/test_cancellation.py",
        "tests/unit/matrix/test_rollback.py",
        "tests/unit/oci/test_bombs.py",
    }

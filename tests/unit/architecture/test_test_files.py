"""Every module has a test file at its place, and every test file a module."""

from __future__ import annotations

from tests.unit.architecture.source import MODULES, ROOT

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
        if room == ("architecture",):  # the rules of the whole
            continue
        names = [name.rpartition(".")[2] for name in MODULES if tuple(name.split(".")[:-1]) == room]
        if not any(stem == name or stem.startswith(f"{name}_") for name in names):
            strangers.append(str(path.relative_to(ROOT)))

    # What lies outside the package.
    assert set(strangers) <= {
        "tests/unit/test_apt_get.py",
        "tests/unit/test_security_policy.py",
        "tests/unit/test_wire.py",
        "tests/unit/deploy/test_images_build.py",
        "tests/unit/oci/test_bombs.py",
    }

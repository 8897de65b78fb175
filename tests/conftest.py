"""Fixtures for the tests that need a host of their own, and the report of a failing one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.machine.host import Machine
from tests.pods import remove_pod, run_pod
from tests.testbed import ROOT, Testbed

CURRENT_CONTAINERD = ROOT / "build" / "conformance" / "containerd" / "bin"

StartBed = Callable[..., Testbed]

# What is between us and containerd differs between its versions; what is between us and a client, a plugin or the
# kernel does not. `make test` holds our calls to containerd on both: the contracts of runtime and images, the root
# file systems, what its shims do with processes and checkpoints, and one complete story for what nobody thought of.
ON_BOTH = frozenset(
    {
        "tests/e2e/test_checkpoint.py",
        "tests/e2e/test_exec.py",
        "tests/e2e/test_lifecycle.py",
        "tests/e2e/test_story.py",
        "tests/root/contracts/test_images_contract.py",
        "tests/root/contracts/test_runtime_contract.py",
        "tests/root/test_extract.py",
        "tests/root/test_images_on_containerd.py",
        "tests/root/test_same_tree.py",
        "tests/root/test_user_namespaces.py",
    }
)
# What else depends on its content, snapshots, tasks and metrics: on both too, but the second one has a target of its
# own, `make test-second-containerd`, which CI runs.
WHERE_IT_CAN_DIFFER = frozenset(
    f"tests/e2e/test_{name}.py"
    for name in (
        "accounting",
        "adoption",
        "audit",
        "handlers",
        "hostile_images",
        "image_leftovers",
        "other_users",
        "outages",
        "pinned",
        "pull",
        "pull_faults",
        "pull_wrong_images",
        "resources",
        "restart",
        "stats",
        "streaming",
    )
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-containerd", action="store_true", help="run every test that starts containerd on both")
    parser.addoption(
        "--this-machine",
        action="store_true",
        help="use this machine itself in place of a bed (tests/machine/host.py), for the tests that need one only",
    )


def pytest_configure() -> None:
    """Make temporary directories where beds are: TMPDIR may be long, and a unix socket's path holds 107 bytes."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/tmp")


@pytest.hookimpl(tryfirst=True)  # before `-m` looks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the second containerd to where it can differ; side by side, run what takes a host of its own first.

    At the end, many short modules leave no worker idle.
    """
    without = []
    for item in items:
        module = item.nodeid.partition("::")[0]
        if _flavour(item) != "current" or module in ON_BOTH:
            continue
        item.add_marker("second_containerd")
        if module not in WHERE_IT_CAN_DIFFER and not config.getoption("--every-containerd"):
            without.append(item)
    if config.getoption("--this-machine"):
        without += [item for item in items if "fresh_bed" in getattr(item, "fixturenames", ())]
    if without:
        config.hook.pytest_deselected(items=without)
        left_out = set(without)
        items[:] = [item for item in items if item not in left_out]
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in ("root", "e2e", "conformance")))


def _flavour(item: pytest.Item) -> str:
    return str(item.callspec.params.get("containerd_flavour", "")) if hasattr(item, "callspec") else ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need root fail without it: a skipped test would look like a passed one."""
    needs_root = any(item.get_closest_marker(name) for name in ("root", "e2e", "faults"))
    if needs_root and os.geteuid() != 0:
        pytest.fail("this test makes namespaces and mounts: run it as root (sudo make test)", pytrace=False)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test shows the end of the log of every daemon that it used."""
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    if not report.failed:
        return
    values = getattr(item, "funcargs", {}).values()
    beds = {id(bed): bed for bed in (*values, *item.stash.get(_BEDS, [])) if isinstance(bed, Testbed)}
    for bed in beds.values():
        if tail := bed.log_tail():
            report.sections.append((f"end of sandboxd's log in {bed.name}", tail))


_BEDS = pytest.StashKey[list[Testbed]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the matrices have covered: how many calls of each verb failed or hung."""
    properties = (item for report in terminalreporter.getreports("passed") for item in report.user_properties)
    covered = [str(value) for name, value in properties if name == "covered"]
    if covered:
        terminalreporter.section("calls that failed or hung")
        for line in covered:
            terminalreporter.line(line)


@pytest.fixture(scope="module", params=["debian", "current"])
def containerd_flavour(request: pytest.FixtureRequest) -> str:
    """The containerd that the bed runs: the distribution's, or the current 2.x built from its Go module."""
    flavour = str(request.param)
    if flavour == "current" and not (CURRENT_CONTAINERD / "containerd").is_file():
        pytest.skip("containerd 2.x is not built: with Go installed, run `python tests/conformance/build.py`")
    return flavour


@pytest.fixture(scope="module")
def containerd_bin(containerd_flavour: str) -> Path | None:
    """The directory that goes first in the bed's PATH, None for the distribution's containerd."""
    return CURRENT_CONTAINERD if containerd_flavour == "current" else None


@pytest.fixture(scope="module")
def bed(containerd_bin: Path | None, request: pytest.FixtureRequest) -> Iterator[Testbed]:
    """A bed with the default network and a serving daemon, shared by the tests of a module."""
    this_machine = request.config.getoption("--this-machine")
    with Machine() if this_machine else Testbed(containerd_bin=containerd_bin) as started:
        started.default_network()
        started.start_daemon()
        yield started


@pytest.fixture(scope="module")
def images(bed: Testbed) -> tuple[str, ...]:
    """The names of the images that are loaded into `bed`."""
    names = ("nginx", "busybox")
    for name in names:
        bed.load_image(name)
    return names


@pytest.fixture
def pod(bed: Testbed) -> Iterator[str]:
    """The id of a pod for one test."""
    pod_id = run_pod(bed)
    yield pod_id
    remove_pod(bed, pod_id)


@pytest.fixture(scope="module")
def shared_pod(bed: Testbed, images: tuple[str, ...]) -> Iterator[str]:
    """The id of a pod for all tests of a module."""
    pod_id = run_pod(bed)
    yield pod_id
    remove_pod(bed, pod_id)


@pytest.fixture
def fresh_bed(request: pytest.FixtureRequest, containerd_bin: Path | None) -> Iterator[StartBed]:
    """Make beds for one test only: `fresh_bed(daemon=True, network=True, **config_sections)`."""
    beds = request.node.stash.setdefault(_BEDS, [])
    with ExitStack() as stack:

        def start(*, daemon: bool = True, network: bool = True, **sections: Any) -> Testbed:
            made = stack.enter_context(Testbed(containerd_bin=containerd_bin))
            beds.append(made)
            if network:
                made.default_network()
            if daemon:
                made.start_daemon(**sections)
            return made

        yield start

"""Fixtures for the tests that need a host of their own, and what a failing one tells about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.testbed import ROOT, Testbed

CURRENT_CONTAINERD = ROOT / "build" / "conformance" / "containerd" / "bin"

StartBed = Callable[..., Testbed]


def pytest_configure() -> None:
    """Make temporary directories where beds are: TMPDIR may be long, and a unix socket's path holds 107 bytes."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/tmp")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, what takes a host of its own runs first: at the end, many short modules leave no worker idle."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in ("root", "e2e", "conformance")))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of the real thing fail without root: a skipped one would look like a passed one."""
    needs_root = any(item.get_closest_marker(name) for name in ("root", "e2e"))
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


@pytest.fixture(scope="module", params=["debian", "current"])
def containerd_flavour(request: pytest.FixtureRequest) -> str:
    """Which containerd the bed runs: the distribution's, or the current 2.x built from its Go module."""
    flavour = str(request.param)
    if flavour == "current" and not (CURRENT_CONTAINERD / "containerd").is_file():
        pytest.skip("containerd 2.x is not built: with Go installed, run `python tests/conformance/build.py`")
    return flavour


@pytest.fixture(scope="module")
def containerd_bin(containerd_flavour: str) -> Path | None:
    """The directory that goes first in the bed's PATH, None for the distribution's containerd."""
    return CURRENT_CONTAINERD if containerd_flavour == "current" else None


@pytest.fixture(scope="module")
def bed(containerd_bin: Path | None) -> Iterator[Testbed]:
    """A bed with the default network and a serving daemon, shared by the tests of a module."""
    with Testbed(containerd_bin=containerd_bin) as started:
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

"""What the fault matrices share: cells, how much to try, and the table at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import cells as all_cells
from tests.faults.cells import PROPERTY, Cells
from tests.testbed import ROOT

HERE = Path(__file__).parent
SUMMARY = ROOT / "build" / "faults" / "summary.json"


# Each of their tests has a bed of its own, and takes minutes: first, and each wherever a process is free.
LONG = ("test_kill_pods", "test_fail_pods", "test_kill_images", "test_kill_containers", "test_fail_images")


@pytest.hookimpl(tryfirst=True)  # before xdist looks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the other modules whole, as they share a bed, and let what takes longest begin first."""
    for item in items:
        if item.path.parent != HERE:
            continue
        alone = item.path.stem in LONG
        item.add_marker(pytest.mark.xdist_group(item.name if alone else item.path.stem))
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture
def cells(record_property: Callable[[str, object], None]) -> Iterator[Cells]:
    """Where a matrix notes its cells; fails the test for those that failed."""
    noted = Cells(record_property)
    yield noted
    noted.finish()


@pytest.fixture(scope="session")
def everything() -> bool:
    """Whether all cells are to be tried (`FAULTS=long`), or as many as fit into fifteen minutes."""
    return os.environ.get("FAULTS", "") == "long"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, and write every cell to build/faults/summary.json."""
    reports = [report for kind in ("passed", "failed", "error") for report in terminalreporter.getreports(kind)]
    texts = {text for report in reports for name, text in report.user_properties if name == PROPERTY}
    found = [all_cells.parse(text) for text in texts]
    if not found:
        return
    all_cells.write(found, SUMMARY)
    terminalreporter.section("faults")
    for line in all_cells.table(found):
        terminalreporter.line(line)

"""A matrix notes every cell, and its test fails for one that failed."""

from __future__ import annotations

import pytest

from tests.faults.cells import Cells, parse, table

pytestmark = pytest.mark.faults


def test_a_failed_cell_is_noted_the_next_is_tried_and_the_test_fails_at_its_end() -> None:
    noted: list[object] = []
    cells = Cells(lambda _name, value: noted.append(value))
    with cells.cell("kill", at="StopPodSandbox 3", what="SIGKILL"):
        raise ValueError("a veth is left")
    with cells.cell("kill", at="StopPodSandbox 4", what="SIGKILL"):
        pass
    first, second = map(parse, noted)
    assert "a veth is left" in first.error
    assert (second.at, second.error) == ("StopPodSandbox 4", "")
    assert table([first, second])[1].split()[:3] == ["kill", "2", "1"]
    with pytest.raises(AssertionError, match="1 cells failed"):
        cells.finish()

"""The daemon is killed at every point of every request about pods: nothing is lost, nothing is left."""

from __future__ import annotations

import pytest

from tests.faults import kill
from tests.faults.cells import Cells
from tests.faults.verbs import RemovePinnedPod, RemovePod, RunPinnedPod, RunPod, StopPinnedPod, StopPod, Verb, opener

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

ONE_IN = 2  # of the points, in the short mode


@pytest.mark.parametrize("kind", [RunPod, StopPod, RemovePod, RunPinnedPod, StopPinnedPod, RemovePinnedPod])
def test_a_daemon_that_dies_anywhere_leaves_a_request_that_can_be_repeated(
    kind: type[Verb], cells: Cells, everything: bool
) -> None:
    kill.try_all(opener(kind), cells, one_in=1 if everything else ONE_IN)

"""What a request about images needs fails, hangs or is slow at every point: it ends, and nothing is left."""

from __future__ import annotations

import pytest

from tests.faults import fail
from tests.faults.cells import Cells
from tests.faults.verbs import LoadImage, PullImage, Verb, opener

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

QUICK = {"reconcile_seconds": 1.0}  # what was left is looked for soon
ONE_IN = 8  # of the faults, in the short mode


@pytest.mark.parametrize("kind", [PullImage, LoadImage])
def test_a_request_that_meets_a_fault_ends_and_can_be_repeated(
    kind: type[Verb], cells: Cells, everything: bool
) -> None:
    fail.try_all(opener(kind, daemon=QUICK), cells, one_in=1 if everything else ONE_IN)

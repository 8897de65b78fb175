"""What `make bench-pull` measures with."""

from __future__ import annotations

from tests.bench.ground import FLAVOURS


def test_the_distributions_containerd_needs_nothing_to_be_built() -> None:
    assert FLAVOURS[0].name == "debian"
    assert FLAVOURS[0].missing == ""

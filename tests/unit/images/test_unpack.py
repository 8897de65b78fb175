"""Which layers share a snapshot. How they are unpacked is seen on a real containerd, in tests/e2e/test_pull.py."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandboxd.images.unpack import MANY, SMALL_BYTES, TOGETHER, Memory, shared_snapshots

SMALL, LARGE = SMALL_BYTES, SMALL_BYTES + 1


def test_an_image_of_a_usual_height_has_a_snapshot_for_each_layer() -> None:
    assert shared_snapshots([SMALL] * MANY, 0) == list(range(MANY))


def test_small_neighbours_of_a_tall_one_share_and_large_ones_stand_alone() -> None:
    sizes = [LARGE, *[SMALL] * (TOGETHER + 2), LARGE, LARGE, SMALL]

    found = shared_snapshots(sizes + [LARGE] * MANY, 0)

    full, rest = TOGETHER, TOGETHER + 2
    assert found[: len(sizes)] == [0, *[full] * TOGETHER, *[rest] * 2, rest + 1, rest + 2, rest + 3]
    assert found[len(sizes) :] == list(range(len(sizes), len(sizes) + MANY))


def test_what_is_unpacked_is_not_shared_with() -> None:
    found = shared_snapshots([SMALL] * 30, 5)

    assert found[:5] == [0, 1, 2, 3, 4]
    assert found[5] == 5 + TOGETHER - 1


@given(st.lists(st.sampled_from([1, SMALL, LARGE]), min_size=MANY + 1, max_size=120), st.integers(0, 30))
def test_every_layer_is_in_one_run_that_ends_with_its_uppermost(sizes: list[int], first: int) -> None:
    found = shared_snapshots(sizes, first)

    assert found == sorted(found)
    for number, uppermost in enumerate(found):
        assert number <= uppermost < number + TOGETHER
        assert found[uppermost] == uppermost
        assert uppermost == number or {sizes[n] for n in range(number, uppermost + 1)} <= {1, SMALL}
        assert number >= first or uppermost == number


def test_memory_is_given_whole_or_not_at_all() -> None:
    memory = Memory(left=10)

    assert memory.take(7)
    assert not memory.take(4)
    assert memory.take(3)
    assert memory.left == 0

"""Lists cut into messages."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.api.lists import BATCH_BYTES, BATCH_ITEMS, batches
from sandboxd.pb.cri.v1 import api_pb2 as cri


def pods(sizes: list[int]) -> list[cri.PodSandbox]:
    return [cri.PodSandbox(id=f"{number}:{'x' * size}") for number, size in enumerate(sizes)]


@settings(deadline=None)  # several MiB for each example, on a machine that may be busy
@given(st.lists(st.sampled_from([1, 1000, BATCH_BYTES // 3, BATCH_BYTES, BATCH_BYTES * 2]), max_size=12))
def test_every_item_comes_once_in_order_in_parts_that_fit_and_are_not_empty(sizes: list[int]) -> None:
    items = pods(sizes)
    parts = list(batches(items))
    assert [item for part in parts for item in part] == items
    for part in parts:
        assert part
        assert len(part) == 1 or sum(item.ByteSize() for item in part) <= BATCH_BYTES


def test_many_small_items_are_cut_by_their_number() -> None:
    parts = list(batches(pods([0] * (BATCH_ITEMS * 2 + 1))))
    assert [len(part) for part in parts] == [BATCH_ITEMS, BATCH_ITEMS, 1]

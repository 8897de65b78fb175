"""Lists in the parts of a streaming RPC, for those that outgrow one message. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

BATCH_ITEMS = 1000
BATCH_BYTES = 1 << 20  # clients take messages of 4 MiB at the least; one item alone may be larger

Item = TypeVar("Item", bound=Message)


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in order, in parts that fit a message: each item exactly once, no part empty."""
    batch: list[Item] = []
    size = 0
    for item in items:
        more = item.ByteSize()
        if batch and (len(batch) >= BATCH_ITEMS or size + more > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += more
    if batch:
        yield batch

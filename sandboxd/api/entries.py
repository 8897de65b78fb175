"""The entries of a list, encoded once for each record.

Clients list everything again and again, and from one list to the next little changes. To put a record into a message
costs much more than to find it. Rules:

1. Records are immutable: an entry is that of the very record that is listed, or it is made anew.
2. What is kept of records that are gone is bounded by `MOST_GONE`.

The encoding of a repeated field is that of its parts, one after the other:
https://protobuf.dev/programming-guides/encoding/#last-one-wins
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from google.protobuf.message import Message

from sandboxd.model import AnyRecord

MOST_GONE = 100  # entries

Record = TypeVar("Record", bound=AnyRecord)
Answer = TypeVar("Answer", bound=Message)


class Entries(Generic[Record, Answer]):
    """What a list says of each record."""

    def __init__(self, answer: type[Answer], single: Callable[[Record], Answer]) -> None:
        """`answer` is the list's message; `single` makes the list of one record, which depends on nothing else."""
        self._answer = answer
        self._single = single
        self._kept: dict[str, tuple[Record, bytes]] = {}

    def __len__(self) -> int:
        """How many entries are kept."""
        return len(self._kept)

    def of(self, records: Iterable[Record], known: Mapping[str, Record]) -> Answer:
        """The list of these records in their order; `known` are all that there are now, by id."""
        if len(self._kept) > len(known) + MOST_GONE:
            self._kept = {id_: kept for id_, kept in self._kept.items() if id_ in known}
        return self._answer.FromString(b"".join(map(self._encoded, records)))

    def _encoded(self, record: Record) -> bytes:
        kept = self._kept.get(record.id)
        if kept is not None and kept[0] is record:
            return kept[1]
        encoded: bytes = self._single(record).SerializeToString()
        self._kept[record.id] = record, encoded
        return encoded

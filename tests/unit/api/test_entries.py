"""A list's entries are those of the records, however often they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from sandboxd.api.entries import MOST_GONE, Entries
from sandboxd.ledger import Ledger
from sandboxd.model import SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri


class Lists:
    """Lists of the pods' ids and failures, and for whom an entry was made."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.ledger = Ledger(":memory:")
        self.entries = Entries(cri.ListPodSandboxResponse, self._single)

    def _single(self, record: SandboxRecord) -> cri.ListPodSandboxResponse:
        self.made.append(record.id)
        entry = cri.PodSandbox(id=record.id, annotations={"failure": record.failure})
        return cri.ListPodSandboxResponse(items=[entry])

    def of(self, records: Iterable[SandboxRecord]) -> list[tuple[str, str]]:
        items = self.entries.of(records, self.ledger.sandboxes).items
        return [(item.id, item.annotations["failure"]) for item in items]

    def all(self) -> list[tuple[str, str]]:
        return self.of(self.ledger.sandboxes.values())


def record(id_: str) -> SandboxRecord:
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name=id_))
    return SandboxRecord(id=id_, config=config, runtime_handler="", netns_path="", created_at=1)


@pytest.fixture
def lists() -> Iterator[Lists]:
    """Two pods, "a" and "b"."""
    made = Lists()
    for id_ in ("a", "b"):
        made.ledger.add_sandbox(record(id_))
    yield made
    made.ledger.close()


def test_an_entry_is_made_once(lists: Lists) -> None:
    assert lists.all() == lists.all() == [("a", ""), ("b", "")]
    assert lists.made == ["a", "b"]


def test_a_changed_record_has_a_changed_entry_at_once(lists: Lists) -> None:
    lists.all()
    lists.ledger.update_sandbox("a", failure="it broke")

    assert lists.all() == [("a", "it broke"), ("b", "")]
    assert lists.made == ["a", "b", "a"]


def test_a_removed_record_is_in_no_list(lists: Lists) -> None:
    lists.all()
    lists.ledger.remove_sandbox("a")

    assert lists.all() == [("b", "")]


def test_a_new_record_with_the_id_of_one_that_is_gone_has_an_entry_of_its_own(lists: Lists) -> None:
    lists.all()
    lists.ledger.remove_sandbox("a")
    lists.ledger.add_sandbox(replace(record("a"), failure="another"))

    assert lists.all() == [("b", ""), ("a", "another")]


def test_a_list_has_what_it_is_asked_for_in_that_order(lists: Lists) -> None:
    lists.all()
    a, b = lists.ledger.sandboxes["a"], lists.ledger.sandboxes["b"]

    assert lists.of([b]) == [("b", "")]
    assert lists.of([b, a]) == [("b", ""), ("a", "")]
    assert lists.of([]) == []


def test_of_what_is_gone_little_is_kept(lists: Lists) -> None:
    for number in range(3 * MOST_GONE):
        lists.ledger.add_sandbox(record(f"{number}"))
        lists.all()
        lists.ledger.remove_sandbox(f"{number}")

    assert len(lists.entries) <= 2 + MOST_GONE + 1
    assert lists.all() == [("a", ""), ("b", "")]
    assert [lists.made.count(id_) for id_ in ("a", "b")] == [1, 1], "what is there stays"

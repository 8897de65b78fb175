"""Which records a request is about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sandboxd.api.lookup import Lookup, spec_if_known
from sandboxd.errors import InvalidRequest, NotFound, Unavailable
from sandboxd.ledger import Ledger
from sandboxd.model import ContainerRecord, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri

READY, CREATING = "a1" + "0" * 62, "a2" + "0" * 62


@pytest.fixture
def lookup() -> Iterator[Lookup]:
    """Two pods with a container each; the second pod and its container are still being created."""
    ledger = Ledger(":memory:")
    for identity, started_at in ((READY, 2), (CREATING, 0)):
        config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name=identity), labels={"app": "web", "x": "1"})
        ledger.add_sandbox(
            SandboxRecord(
                id=identity, config=config, runtime_handler="", netns_path="", created_at=1, started_at=started_at
            )
        )
        ledger.add_container(
            ContainerRecord(
                id=identity.replace("a", "c"),
                sandbox_id=identity,
                config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"), labels={"app": "web"}),
                sandbox_name=identity,
                image_ref="",
                image_id="",
                log_path="",
                created_at=int(identity == READY),
            )
        )
    yield Lookup(ledger)
    ledger.close()


def test_an_unambiguous_prefix_names_an_object(lookup: Lookup) -> None:
    assert lookup.sandbox("a1").id == lookup.sandbox(READY).id == READY
    assert lookup.container("c1").sandbox_id == READY


def test_what_is_unknown_or_ambiguous_is_refused(lookup: Lookup) -> None:
    for find in (lookup.sandbox, lookup.container):
        with pytest.raises(NotFound):
            find("b")
    with pytest.raises(InvalidRequest):
        lookup.sandbox("a")
    with pytest.raises(InvalidRequest):
        lookup.container("c")


def test_a_container_that_is_being_created_is_not_there_yet(lookup: Lookup) -> None:
    assert lookup.created_container("c1").sandbox_id == READY
    with pytest.raises(NotFound, match="container c2 does not exist"):
        lookup.created_container("c2")


def test_stopping_and_removing_take_the_unknown_for_done_but_not_the_ambiguous(lookup: Lookup) -> None:
    assert lookup.sandbox_id_if_known("a1") == READY
    assert lookup.sandbox_id_if_known("b") == lookup.container_id_if_known("b") == ""
    with pytest.raises(InvalidRequest):
        lookup.sandbox_id_if_known("a")
    with pytest.raises(InvalidRequest):
        lookup.container_id_if_known("c")


def test_a_list_leaves_out_what_is_being_created(lookup: Lookup) -> None:
    assert [record.id for record in lookup.sandboxes("", {})] == [READY]
    assert [record.sandbox_id for record in lookup.containers("", "", {})] == [READY]


def test_a_list_is_what_matches_all_of_the_filter(lookup: Lookup) -> None:
    assert lookup.sandboxes("a1", {"app": "web", "x": "1"})
    assert not lookup.sandboxes("a1", {"app": "web", "x": "2"})
    assert not lookup.sandboxes("b", {})
    assert lookup.containers("c1", "a1", {"app": "web"})
    assert not lookup.containers("c1", "b", {})
    assert not lookup.containers("b", "a1", {})
    assert not lookup.containers("c1", "a1", {"app": "db"})


async def test_a_spec_that_cannot_be_had_is_left_out() -> None:
    class Specs:
        async def spec(self, container_id: str) -> dict[str, Any]:
            if container_id == "lost":
                raise Unavailable("containerd does not answer")
            return {"id": container_id}

    assert await spec_if_known(Specs(), "c") == {"id": "c"}
    assert await spec_if_known(Specs(), "lost") is None

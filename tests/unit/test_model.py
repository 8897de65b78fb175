"""States follow from timestamps, names are unambiguous, ids can be abbreviated."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.model import (
    ID_LENGTH,
    ContainerRecord,
    ContainerState,
    SandboxRecord,
    SandboxState,
    find,
    is_id_prefix,
    sandbox_name,
)
from sandboxd.pb.cri.v1 import api_pb2 as cri

POD = cri.PodSandboxMetadata(name="web", namespace="shop", uid="u1", attempt=2)
SANDBOX = SandboxRecord(
    id="a" * 64, config=cri.PodSandboxConfig(metadata=POD), runtime_handler="", netns_path="/n", created_at=1
)
CONTAINER = ContainerRecord(
    id="b" * 64,
    sandbox_id=SANDBOX.id,
    config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name="nginx", attempt=3)),
    sandbox_name=SANDBOX.name,
    image_ref="r",
    image_id="sha256:x",
    log_path="",
)


PREPARED = {"prepared_of": "conf", "prepared_at": 2}


@pytest.mark.parametrize(
    ("changes", "state", "shown"),
    [
        ({"prepared_of": "conf"}, SandboxState.CREATING, False),
        (PREPARED, SandboxState.PREPARED, False),
        ({**PREPARED, "exited_at": 3}, SandboxState.CREATING, False),  # it is taken down
        ({**PREPARED, "failure": "the disk is full"}, SandboxState.NOTREADY, False),
        ({**PREPARED, "prepared_of": ""}, SandboxState.CREATING, False),  # it is handed out
        ({**PREPARED, "prepared_of": "", "started_at": 4}, SandboxState.READY, True),
    ],
)
def test_a_prepared_pod_is_shown_once_it_is_a_clients(
    changes: dict[str, object], state: SandboxState, shown: bool
) -> None:
    record = replace(SANDBOX, **changes)  # type: ignore[arg-type]

    assert (record.state, record.is_shown) == (state, shown)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, SandboxState.CREATING),
        ({"pid": 7}, SandboxState.CREATING),
        ({"started_at": 2, "pid": 7}, SandboxState.READY),
        ({"started_at": 2, "exited_at": 3}, SandboxState.NOTREADY),
        ({"started_at": 2, "stopped_at": 3}, SandboxState.NOTREADY),
        ({"started_at": 2, "exited_at": 3, "stopped_at": 4}, SandboxState.NOTREADY),
        ({"failure": "bridge: no"}, SandboxState.NOTREADY),
        ({"started_at": 2, "failure": "DEL failed"}, SandboxState.NOTREADY),
        # What never came to be is undone unseen.
        ({"exited_at": 3, "stopped_at": 3}, SandboxState.CREATING),
    ],
)
def test_a_sandbox_is_ready_exactly_while_its_pause_container_runs(
    changes: dict[str, object], state: SandboxState
) -> None:
    assert replace(SANDBOX, **changes).state is state  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, ContainerState.CREATING),
        ({"finished_at": 3}, ContainerState.CREATING),
        ({"created_at": 1}, ContainerState.CREATED),
        ({"created_at": 1, "pid": 7}, ContainerState.CREATED),
        ({"created_at": 1, "started_at": 2}, ContainerState.RUNNING),
        ({"created_at": 1, "started_at": 2, "finished_at": 3}, ContainerState.EXITED),
        ({"created_at": 1, "finished_at": 3, "reason": "StartError"}, ContainerState.EXITED),
    ],
)
def test_a_containers_state_follows_from_its_times(changes: dict[str, object], state: ContainerState) -> None:
    assert replace(CONTAINER, **changes).state is state  # type: ignore[arg-type]


def test_records_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        SANDBOX.pid = 1  # type: ignore[misc]


def test_names_hold_everything_that_makes_an_object_another_one() -> None:
    assert SANDBOX.name == "shop/web/u1/2"
    assert CONTAINER.name == "shop/web/u1/2/nginx/3"


_PART = st.text(alphabet=st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=4)
_META = st.builds(cri.PodSandboxMetadata, name=_PART, namespace=_PART, uid=_PART, attempt=st.integers(0, 2**32 - 1))


@given(one=_META, other=_META)
def test_two_pods_share_a_name_only_if_their_metadata_is_the_same(
    one: cri.PodSandboxMetadata, other: cri.PodSandboxMetadata
) -> None:
    assert (sandbox_name(one) == sandbox_name(other)) is (one == other)


@given(one=_PART, other=_PART, attempts=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_two_containers_of_a_pod_share_a_name_only_if_their_metadata_is_the_same(
    one: str, other: str, attempts: tuple[int, int]
) -> None:
    first, second = (
        replace(CONTAINER, config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name=name, attempt=attempt)))
        for name, attempt in zip((one, other), attempts, strict=True)
    )

    assert (first.name == second.name) is ((one, attempts[0]) == (other, attempts[1]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", True),
        ("f" * ID_LENGTH, True),
        ("", False),
        ("f" * (ID_LENGTH + 1), False),
        ("F", False),
        ("g", False),
        ("ab\n", False),
        ("../x", False),
        ("٣", False),
    ],
)
def test_only_lower_case_hex_can_begin_an_id(text: str, expected: bool) -> None:
    assert is_id_prefix(text) is expected


KNOWN = {"abc1": 0, "abc2": 0, "ab": 0, "f": 0, "Not Hex": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("abc1", "abc1"), ("ab", "ab"), ("f", "f"), ("Not Hex", "Not Hex")],
)
def test_a_whole_id_is_found_even_if_it_begins_others(text: str, expected: str) -> None:
    assert find(KNOWN, text, "pod") == expected


def test_an_unambiguous_beginning_is_enough() -> None:
    assert find({"abc1", "bbc2"}, "a", "pod") == "abc1"


@pytest.mark.parametrize("text", ["e", "", "abc12", "Not", "no such id", "../../etc"])
def test_an_unknown_id_is_not_found_and_named(text: str) -> None:
    with pytest.raises(NotFound, match=r"container .* does not exist"):
        find(KNOWN, text, "container")


def test_an_ambiguous_beginning_is_refused_and_counted() -> None:
    with pytest.raises(InvalidRequest, match="pod id abc is ambiguous: 2 ids begin with it"):
        find(KNOWN, "abc", "pod")


@given(known=st.sets(st.text("0123456789abcdef", min_size=1, max_size=6)), text=st.text("0123456789abcdef"))
def test_what_is_found_begins_with_what_was_asked_for(known: set[str], text: str) -> None:
    try:
        found = find(known, text, "pod")
    except NotFound:
        assert not text or not any(id_.startswith(text) for id_ in known)
    except InvalidRequest:
        assert len([id_ for id_ in known if id_.startswith(text)]) > 1
    else:
        assert found in known
        assert found.startswith(text)

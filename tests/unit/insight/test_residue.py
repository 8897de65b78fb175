"""What is nobody's and what is missing, decided from what was seen and the records."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandboxd.insight.residue import Finding, Kind, Known, There, Thing, missing, residue
from sandboxd.model import ContainerRecord, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri

POD, CONTAINER, OTHER = "ab" * 32, "cd" * 32, "ef" * 32
WITHOUT_ID = (Kind.DRAFT, Kind.LEASE, Kind.TRANSFER, Kind.UPLOAD)
SEEN = [kind for kind in Kind if kind not in (*WITHOUT_ID, Kind.FILES)]


def thing(kind: Kind, id_: str = POD, *, marked: bool = False, pod_id: str = "", pod: str = "") -> Thing:
    return Thing(kind=kind, name=f"{kind} {id_}", id=id_, marked=marked, pod_id=pod_id, pod=pod)


def sandbox(**changes: object) -> SandboxRecord:
    record = SandboxRecord(
        id=POD,
        config=cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web", namespace="shop")),
        runtime_handler="",
        netns_path="/run/netns/x",
        created_at=1,
        started_at=2,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def container(**changes: object) -> ContainerRecord:
    record = ContainerRecord(
        id=CONTAINER,
        sandbox_id=POD,
        config=cri.ContainerConfig(),
        sandbox_name="",
        image_ref="",
        image_id="",
        log_path="",
        created_at=1,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def summary(findings: list[Finding]) -> list[tuple[Kind, str, bool]]:
    return [(each.kind, each.owner, each.certain) for each in findings]


@pytest.mark.parametrize("kind", SEEN)
def test_what_is_marked_and_has_no_record_is_ours_and_nobodys(kind: Kind) -> None:
    (found,) = residue([thing(kind, marked=True)], Known())
    assert (found.kind, found.owner, found.certain, found.missing) == (kind, POD, True, False)
    assert found.why and found.remedy


@pytest.mark.parametrize("kind", SEEN)
def test_what_is_not_marked_is_ours_when_something_marked_has_its_id(kind: Kind) -> None:
    marked = thing(Kind.DIRECTORY, marked=True)
    assert summary(residue([thing(kind), marked], Known())) == [(kind, POD, True), (Kind.DIRECTORY, POD, True)]
    assert summary(residue([thing(kind)], Known(quarantined={POD}))) == [(kind, POD, True)]


@pytest.mark.parametrize("kind", SEEN)
def test_what_nothing_says_to_be_ours_is_shown_and_left_alone(kind: Kind) -> None:
    (found,) = residue([thing(kind), thing(Kind.DIRECTORY, OTHER, marked=True)][:1], Known())
    assert (found.certain, found.remedy) == (False, "leave it alone")
    assert "another" in found.why


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    "known",
    [
        Known(sandboxes={POD: sandbox()}),
        Known(containers={POD: container()}),
        Known(owing={POD}),
        Known(busy={POD}),
        Known(strangers={POD}),
    ],
    ids=["pod", "container", "debt", "busy", "stranger's"],
)
def test_what_somebody_knows_is_no_finding(kind: Kind, marked: bool, known: Known) -> None:
    assert residue([thing(kind, marked=marked)], known) == []


def test_a_container_is_its_pods_and_has_the_pods_name() -> None:
    things = [
        thing(Kind.SNAPSHOT, CONTAINER),
        thing(Kind.CONTAINER, CONTAINER, marked=True, pod_id=POD),
        thing(Kind.CONTAINER, POD, marked=True, pod_id=POD, pod="shop/web"),
        thing(Kind.NAMESPACE, POD, pod_id=POD),
    ]
    found = residue(things, Known())
    assert {(each.owner, each.pod, each.certain) for each in found} == {(POD, "shop/web", True)}
    assert residue(things, Known(busy={POD})) == []
    assert residue(things, Known(sandboxes={POD: sandbox()}, containers={CONTAINER: container()})) == []


def test_a_container_of_a_known_pod_without_a_record_is_a_finding_with_all_that_is_its_own() -> None:
    things = [
        thing(Kind.SNAPSHOT, CONTAINER),
        thing(Kind.CONTAINER, CONTAINER, marked=True, pod_id=POD),
        thing(Kind.CONTAINER, POD, marked=True, pod_id=POD, pod="shop/web"),
        thing(Kind.NAMESPACE, POD, pod_id=POD),
        thing(Kind.DIRECTORY, CONTAINER, marked=True),
    ]
    known = Known(sandboxes={POD: sandbox()})
    assert summary(residue(things, known)) == [
        (Kind.SNAPSHOT, CONTAINER, True),
        (Kind.CONTAINER, CONTAINER, True),
        (Kind.DIRECTORY, CONTAINER, True),
    ]
    # While something is done to the pod, the container may be what is being removed.
    assert residue(things, replace(known, busy={POD})) == []


def test_the_head_of_an_id_is_that_of_the_thing_that_has_the_whole() -> None:
    stage = thing(Kind.DIRECTORY, CONTAINER[:16], marked=True)
    assert summary(residue([stage], Known())) == [(Kind.DIRECTORY, CONTAINER[:16], True)]
    whole = thing(Kind.CONTAINER, CONTAINER, marked=True, pod_id=POD)
    assert [each.owner for each in residue([stage, whole], Known())] == [POD, POD]
    assert residue([stage], Known(containers={CONTAINER: container()})) == []
    assert residue([stage], Known(busy={CONTAINER})) == []


@pytest.mark.parametrize("kind", WITHOUT_ID)
def test_what_has_no_id_is_ours_by_its_mark(kind: Kind) -> None:
    (found,) = residue([Thing(kind=kind, name="x", marked=True)], Known(sandboxes={POD: sandbox()}))
    assert (found.owner, found.certain, found.name) == ("", True, "x")
    assert found.why and found.remedy


def test_one_look_says_the_same_of_a_thing_as_another() -> None:
    once, again = (residue([replace(thing(Kind.TASK), since=since)], Known()) for since in (1, 2))
    assert once[0].key == again[0].key


# --- the other direction


ALL = There(containers={POD, CONTAINER}, snapshots={POD, CONTAINER}, tasks={POD, CONTAINER})
RECORDS = Known(sandboxes={POD: sandbox()}, containers={CONTAINER: container(started_at=2)})


@pytest.mark.parametrize(
    ("there", "lacking"),
    [
        (ALL, []),
        (replace(ALL, containers={POD}), [(Kind.CONTAINER, CONTAINER)]),
        (replace(ALL, snapshots={CONTAINER}), [(Kind.SNAPSHOT, POD)]),
        (replace(ALL, tasks=frozenset()), [(Kind.TASK, POD), (Kind.TASK, CONTAINER)]),
        (replace(ALL, unpinned={POD}), [(Kind.NAMESPACE, "/run/netns/x")]),
        (replace(ALL, bare={POD}), [(Kind.FILES, POD)]),
    ],
    ids=["nothing", "container", "snapshot", "task", "namespace", "files"],
)
def test_what_a_record_says_and_was_not_seen_is_missing(there: There, lacking: list[tuple[Kind, str]]) -> None:
    found = missing(RECORDS, there)
    assert [each.key for each in found] == lacking
    assert all(each.missing and (each.owner, each.pod) == (POD, "shop/web") for each in found)
    assert all(each.why and each.remedy for each in found)


@pytest.mark.parametrize(
    "known",
    [
        replace(RECORDS, busy={POD}),
        Known(sandboxes={POD: sandbox(started_at=0)}),
        Known(sandboxes={POD: sandbox(exited_at=3)}),
        Known(sandboxes={POD: sandbox(stopped_at=3)}),
        Known(containers={CONTAINER: container()}),
    ],
    ids=["busy", "being made", "ended", "stopped", "without its pod"],
)
def test_of_what_is_being_made_or_has_ended_nothing_is_missing(known: Known) -> None:
    assert missing(known, There(containers=frozenset(), snapshots=frozenset(), tasks=frozenset())) == []


@pytest.mark.parametrize(
    ("record", "lacking"),
    [
        (container(created_at=0), []),
        (container(), [Kind.CONTAINER, Kind.SNAPSHOT]),
        (container(started_at=2), [Kind.CONTAINER, Kind.SNAPSHOT, Kind.TASK]),
        (container(started_at=2, finished_at=3), []),
    ],
    ids=["creating", "created", "running", "exited"],
)
def test_a_container_needs_what_its_state_needs(record: ContainerRecord, lacking: list[Kind]) -> None:
    known = Known(sandboxes={POD: sandbox()}, containers={CONTAINER: record})
    found = missing(known, replace(ALL, containers={POD}, snapshots={POD}, tasks={POD}))
    assert [each.kind for each in found] == lacking


def test_a_pod_without_a_pause_container_needs_neither_a_task_nor_a_root_file_system() -> None:
    known = Known(sandboxes={POD: sandbox(pinned=True)})
    assert missing(known, replace(ALL, snapshots=frozenset(), tasks=frozenset())) == []
    (found,) = missing(known, There(containers=frozenset(), snapshots=frozenset(), tasks=frozenset()))
    assert found.kind is Kind.CONTAINER


def test_a_container_whose_end_is_being_recorded_lacks_nothing() -> None:
    known = replace(RECORDS, busy={f"settle:{CONTAINER}"})
    assert missing(known, replace(ALL, tasks={POD})) == []

"""From records and what containerd knows to the repairs: every row of the table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.model import (
    Attachment,
    AttachmentState,
    ContainerRecord,
    ContainerState,
    SandboxRecord,
    SandboxState,
)
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods.reconcile import Action, Repair, Seen, reconcile

_TIMES: dict[SandboxState, dict[str, Any]] = {
    SandboxState.CREATING: {},
    SandboxState.PREPARED: {"prepared_of": "conf", "prepared_at": 2},
    SandboxState.READY: {"started_at": 2},
    SandboxState.NOTREADY: {"started_at": 2, "exited_at": 3},
}
_CONTAINER_TIMES: dict[ContainerState, dict[str, Any]] = {
    ContainerState.CREATING: {},
    ContainerState.CREATED: {"created_at": 1},
    ContainerState.RUNNING: {"created_at": 1, "started_at": 2},
    ContainerState.EXITED: {"created_at": 1, "started_at": 2, "finished_at": 3},
}


def sandbox(state: SandboxState, id_: str = "s") -> SandboxRecord:
    record = SandboxRecord(
        id=id_,
        config=cri.PodSandboxConfig(),
        runtime_handler="",
        netns_path="",
        created_at=1,
        **_TIMES[state],
    )
    assert record.state is state
    return record


def container(state: ContainerState, id_: str = "c", sandbox_id: str = "s") -> ContainerRecord:
    record = ContainerRecord(
        id=id_,
        sandbox_id=sandbox_id,
        config=cri.ContainerConfig(),
        sandbox_name="",
        image_ref="",
        image_id="",
        log_path="",
        **_CONTAINER_TIMES[state],
    )
    assert record.state is state
    return record


def debt(sandbox_id: str, network: str = "net", state: AttachmentState = AttachmentState.OWED) -> Attachment:
    return Attachment(
        sandbox_id=sandbox_id,
        network=network,
        ifname="eth0",
        netns_path="",
        state=state,
        conf_file="",
        config=b"",
        plugin_path="",
        args="",
        capability_args=b"",
    )


def repairs(
    *records: SandboxRecord | ContainerRecord | Attachment,
    tasks: dict[str, Seen] | None = None,
    busy: frozenset[str] = frozenset(),
    starting_up: bool = True,
) -> list[tuple[Action, str]]:
    """What is to be done, as (action, id)."""
    found = reconcile(
        {r.id: r for r in records if isinstance(r, SandboxRecord)},
        {r.id: r for r in records if isinstance(r, ContainerRecord)},
        tuple(r for r in records if isinstance(r, Attachment)),
        tasks or {},
        busy=busy,
        starting_up=starting_up,
    )
    return [(repair.action, repair.id) for repair in found]


ANY = (None, Seen.CREATED, Seen.RUNNING, Seen.STOPPED)


@pytest.mark.parametrize("starting_up", [True, False])
@pytest.mark.parametrize("task", ANY)
@pytest.mark.parametrize("state", list(SandboxState))
def test_what_is_done_about_a_sandbox(state: SandboxState, task: Seen | None, starting_up: bool) -> None:
    expected = None
    if state is SandboxState.CREATING or (state is SandboxState.PREPARED and task is not Seen.RUNNING):
        expected = Action.REMOVE_SANDBOX
    if state is SandboxState.READY and task is not Seen.RUNNING:
        expected = Action.SETTLE_SANDBOX
    if state is SandboxState.NOTREADY and task is Seen.STOPPED:
        expected = Action.FREE_PAUSE

    found = repairs(sandbox(state), tasks={"s": task} if task else {}, starting_up=starting_up)

    assert found == ([(expected, "s")] if expected else [])


def test_a_pod_that_failed_before_its_pause_container_ended_is_settled_as_well() -> None:
    lost = replace(sandbox(SandboxState.READY), failure="its namespaces are gone")

    assert repairs(lost, tasks={"s": Seen.RUNNING}) == []
    assert repairs(lost, tasks={"s": Seen.STOPPED}) == [(Action.SETTLE_SANDBOX, "s")]


@pytest.mark.parametrize(
    ("state", "task", "at_start", "later"),
    [
        (ContainerState.CREATING, None, Action.REMOVE_CONTAINER, Action.REMOVE_CONTAINER),
        (ContainerState.CREATING, Seen.CREATED, Action.REMOVE_CONTAINER, Action.REMOVE_CONTAINER),
        (ContainerState.CREATING, Seen.RUNNING, Action.REMOVE_CONTAINER, Action.REMOVE_CONTAINER),
        (ContainerState.CREATING, Seen.STOPPED, Action.REMOVE_CONTAINER, Action.REMOVE_CONTAINER),
        (ContainerState.CREATED, None, None, None),
        (ContainerState.CREATED, Seen.CREATED, Action.UNDO_START, Action.UNDO_START),
        (ContainerState.CREATED, Seen.RUNNING, Action.CONFIRM_RUNNING, Action.CONFIRM_RUNNING),
        (ContainerState.CREATED, Seen.STOPPED, Action.CONFIRM_RUNNING, Action.CONFIRM_RUNNING),
        (ContainerState.RUNNING, None, Action.SETTLE_CONTAINER, Action.SETTLE_CONTAINER),
        (ContainerState.RUNNING, Seen.CREATED, Action.SETTLE_CONTAINER, Action.SETTLE_CONTAINER),
        (ContainerState.RUNNING, Seen.RUNNING, Action.REOPEN_LOG, None),
        (ContainerState.RUNNING, Seen.STOPPED, Action.SETTLE_CONTAINER, Action.SETTLE_CONTAINER),
        (ContainerState.EXITED, None, None, None),
        (ContainerState.EXITED, Seen.CREATED, Action.FREE_TASK, Action.FREE_TASK),
        (ContainerState.EXITED, Seen.RUNNING, Action.FREE_TASK, Action.FREE_TASK),
        (ContainerState.EXITED, Seen.STOPPED, Action.FREE_TASK, Action.FREE_TASK),
    ],
)
def test_what_is_done_about_a_container(
    state: ContainerState, task: Seen | None, at_start: Action | None, later: Action | None
) -> None:
    records = (sandbox(SandboxState.READY), container(state))
    tasks = {"s": Seen.RUNNING, **({"c": task} if task else {})}

    assert repairs(*records, tasks=tasks, starting_up=True) == ([(at_start, "c")] if at_start else [])
    assert repairs(*records, tasks=tasks, starting_up=False) == ([(later, "c")] if later else [])


def test_a_busy_sandbox_and_all_that_is_its_own_are_left_alone() -> None:
    records = (
        sandbox(SandboxState.READY, "busy"),
        container(ContainerState.RUNNING, "c1", "busy"),
        debt("busy-and-gone"),
        sandbox(SandboxState.READY, "idle"),
        container(ContainerState.RUNNING, "c2", "idle"),
    )

    assert repairs(*records, busy=frozenset({"busy", "busy-and-gone"}), starting_up=False) == [
        (Action.SETTLE_SANDBOX, "idle"),
        (Action.SETTLE_CONTAINER, "c2"),
    ]


def test_containers_of_a_sandbox_that_is_removed_go_with_it() -> None:
    records = (
        sandbox(SandboxState.CREATING),
        container(ContainerState.CREATING, "c1"),
        container(ContainerState.RUNNING, "c2"),
        container(ContainerState.RUNNING, "c3", "elsewhere"),
    )

    assert repairs(*records) == [(Action.REMOVE_SANDBOX, "s"), (Action.SETTLE_CONTAINER, "c3")]


def test_sandboxes_come_before_containers_and_both_before_debts() -> None:
    records = (
        debt("gone2"),
        debt("gone1"),
        container(ContainerState.RUNNING, "c1", "s2"),
        sandbox(SandboxState.CREATING, "s1"),
        sandbox(SandboxState.READY, "s2"),
    )

    assert repairs(*records) == [
        (Action.REMOVE_SANDBOX, "s1"),
        (Action.SETTLE_SANDBOX, "s2"),
        (Action.SETTLE_CONTAINER, "c1"),
        (Action.PAY_DEBT, "gone1"),
        (Action.PAY_DEBT, "gone2"),
    ]


@pytest.mark.parametrize("state", list(AttachmentState))
def test_what_a_stopped_pod_owes_is_tried_again_and_what_a_pod_uses_is_left(state: AttachmentState) -> None:
    owes = state in (AttachmentState.OWED, AttachmentState.DELETING)

    found = repairs(sandbox(SandboxState.NOTREADY), debt("s", state=state), starting_up=False)

    assert found == ([(Action.PAY_DEBT, "s")] if owes else [])


@pytest.mark.parametrize("state", list(AttachmentState))
def test_whatever_is_left_of_a_removed_pod_is_owed(state: AttachmentState) -> None:
    assert repairs(debt("gone", state=state), starting_up=False) == [(Action.PAY_DEBT, "gone")]


@pytest.mark.parametrize(("boot", "owes"), [("now", False), ("", False), ("earlier", True)])
@pytest.mark.parametrize("state", [SandboxState.READY, SandboxState.NOTREADY])
def test_a_pod_of_an_earlier_boot_owes_its_addresses(boot: str, owes: bool, state: SandboxState) -> None:
    pod, attachment = sandbox(state), replace(debt("s", state=AttachmentState.ADDED), boot=boot)

    found = reconcile({pod.id: pod}, {}, (attachment,), {"s": Seen.RUNNING}, boot="now", starting_up=True)

    assert (Repair(action=Action.PAY_DEBT, id="s") in found) is owes


@pytest.mark.parametrize(("boot", "owes"), [("now", False), ("before", True)])
def test_what_a_replay_kept_is_left_until_the_machine_is_restarted(boot: str, owes: bool) -> None:
    kept = replace(debt("r", state=AttachmentState.ADDED), kept=True, boot=boot)
    found = reconcile({}, {}, (kept,), {}, boot="now", starting_up=True)
    assert [repair.id for repair in found] == (["r"] if owes else [])


def test_the_debt_of_a_pod_that_never_came_to_be_goes_with_it() -> None:
    assert repairs(sandbox(SandboxState.CREATING), debt("s")) == [(Action.REMOVE_SANDBOX, "s")]


@pytest.mark.parametrize("starting_up", [True, False])
def test_a_pod_whose_creation_could_not_be_undone_is_removed(starting_up: bool) -> None:
    """No client was given its id, and its name must not stay taken."""
    failed = replace(sandbox(SandboxState.CREATING), failure="no address; cleaning up: containerd does not answer")
    assert failed.state is SandboxState.NOTREADY

    assert repairs(failed, starting_up=starting_up) == [(Action.REMOVE_SANDBOX, "s")]


def test_two_debts_of_a_sandbox_are_one_repair() -> None:
    assert repairs(debt("gone", "a"), debt("gone", "b")) == [(Action.PAY_DEBT, "gone")]


@pytest.mark.parametrize("action", list(Action))
def test_every_repair_describes_itself_with_its_object(action: Action) -> None:
    assert Repair(action=action, id="abc").describe() == f"{action.value}: abc"


@given(
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from(list(SandboxState))),
    st.dictionaries(
        st.sampled_from("wxyz"), st.tuples(st.sampled_from(list(ContainerState)), st.sampled_from("abcd"))
    ),
    st.dictionaries(st.sampled_from("abcdwxyz"), st.sampled_from([Seen.CREATED, Seen.RUNNING, Seen.STOPPED])),
    st.frozensets(st.sampled_from("abcd")),
    st.booleans(),
)
def test_no_object_gets_two_repairs_and_none_that_is_busy_gets_one(
    sandboxes: dict[str, SandboxState],
    containers: dict[str, tuple[ContainerState, str]],
    tasks: dict[str, Seen],
    busy: frozenset[str],
    starting_up: bool,
) -> None:
    found = repairs(
        *(sandbox(state, id_) for id_, state in sandboxes.items()),
        *(container(state, id_, owner) for id_, (state, owner) in containers.items()),
        tasks=tasks,
        busy=busy,
        starting_up=starting_up,
    )

    ids = [id_ for _, id_ in found]
    assert len(set(ids)) == len(ids)
    assert not busy & set(ids)
    assert not {id_ for id_ in ids if id_ in containers and containers[id_][1] in busy}


def test_a_pod_without_a_pause_container_does_not_end_for_want_of_one() -> None:
    pinned = replace(sandbox(SandboxState.READY), pinned=True)

    assert reconcile({"s": pinned}, {}, (), {}, starting_up=True) == []
    half_made = replace(sandbox(SandboxState.CREATING), pinned=True)
    (repair,) = reconcile({"s": half_made}, {}, (), {}, starting_up=True)
    assert repair.action is Action.REMOVE_SANDBOX

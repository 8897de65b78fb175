"""Whatever fails in a teardown, and however: the record stays with the reason, and a retry leaves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from sandboxd import trees
from sandboxd.containerd import shims
from sandboxd.containers import image_mounts
from sandboxd.errors import CleanupIncomplete, NotReady, Unavailable
from sandboxd.machine import pod_files
from sandboxd.model import AttachmentState, SandboxState
from sandboxd.node import Node
from sandboxd.pods import files
from sandboxd.pods.teardown import remove_sandbox, stop_sandbox
from tests.fakes.bundle import CONTAINER, POD, Bundle
from tests.fakes.points import Points

ERRORS = [
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    ValueError("embedded null byte"),
    KeyError("x"),
    OSError(5, "Input/output error"),
    UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
    Exception("a name \udcff"),
    NotReady("not now"),
    Unavailable("containerd does not answer"),
]
STOPPING = [
    "runtime.kill",
    "runtime.wait",
    "runtime.delete",
    "runtime.get",
    "netns.remove",
    "pod_files.unmount",
    "image_mounts.remove",
]
REMOVING = [
    "logs.drain",
    "runtime.delete_container",
    "images.remove_rootfs",
    "trees.remove",
    "files.remove_cgroup",
    "shims.remove_dead_socket",
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without a configuration structlog shows each variable of a traceback, which takes longer than all else."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def points(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> Points:
    """What can fail of a node, and of the functions that a teardown uses besides."""
    found = fakes.points

    def spy(module: Any, name: str, *, waits: bool, real: bool = False) -> None:
        original = getattr(module, name)
        full = f"{module.__name__.rpartition('.')[2]}.{name}"

        def call(*args: Any) -> Any:
            with found.on(full):
                return original(*args) if real else None

        async def waiting(*args: Any) -> Any:
            async with found.at(full):
                return await original(*args) if real else None

        monkeypatch.setattr(module, name, waiting if waits else call)

    spy(pod_files, "unmount", waits=False)
    spy(files, "remove_cgroup", waits=True)
    spy(trees, "remove", waits=False, real=True)
    spy(image_mounts, "remove", waits=True)
    spy(shims, "remove_dead_socket", waits=False)
    return found


@pytest.fixture
def node(fakes: Bundle, points: Points) -> Node:
    return fakes.with_records()


def nothing_left(node: Node) -> bool:
    directories = (node.places.sandbox(POD), node.places.container(CONTAINER))
    return not (node.ledger.sandboxes or node.ledger.containers or any(Path(path).exists() for path in directories))


async def test_a_removed_pod_leaves_nothing_and_every_step_was_made(node: Node, points: Points) -> None:
    node.ledger.update_container(CONTAINER, started_at=4)
    await remove_sandbox(node, POD)
    assert nothing_left(node)
    assert not node.ledger.attachments
    assert not [step for step in (*STOPPING, *REMOVING) if not points.count(step)]
    await remove_sandbox(node, POD)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", [*STOPPING, *REMOVING])
async def test_a_step_that_fails_keeps_the_record_with_the_reason_and_a_retry_leaves_nothing(
    node: Node, points: Points, step: str, error: Exception
) -> None:
    points.fail_always(step, error)
    if step == "runtime.get":
        node.ledger.update_container(CONTAINER, started_at=4)  # else there is nothing to settle
    with pytest.raises((CleanupIncomplete, Unavailable)) as caught:
        await remove_sandbox(node, POD)
    record = node.ledger.sandboxes[POD]
    assert record.failure
    assert record.state is SandboxState.NOTREADY
    assert type(error).__name__ in record.failure or str(error) in record.failure
    assert record.failure in str(caught.value)
    points.reset()
    await remove_sandbox(node, POD)
    assert nothing_left(node)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", STOPPING)
async def test_the_same_for_a_stop(node: Node, points: Points, step: str, error: Exception) -> None:
    points.fail_always(step, error)
    if step == "runtime.get":
        node.ledger.update_container(CONTAINER, started_at=4)
    with pytest.raises((CleanupIncomplete, Unavailable)):
        await stop_sandbox(node, POD)
    assert node.ledger.sandboxes[POD].failure
    points.reset()
    await stop_sandbox(node, POD)
    assert not node.ledger.sandboxes[POD].failure
    assert node.ledger.sandboxes[POD].stopped_at


@pytest.mark.parametrize("error", ERRORS[:3], ids=lambda error: type(error).__name__)
async def test_the_cause_is_kept(node: Node, points: Points, error: Exception) -> None:
    points.fail_always("images.remove_rootfs", error)
    with pytest.raises(CleanupIncomplete) as caught:
        await remove_sandbox(node, POD)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_however_a_del_fails_the_pod_goes_and_owes_it(node: Node, points: Points, error: Exception) -> None:
    points.fail_always("cni.delete", error)
    await remove_sandbox(node, POD)
    assert nothing_left(node)
    (debt,) = node.ledger.attachments
    assert (debt.state, bool(debt.error)) == (AttachmentState.OWED, True)
    assert not points.count("netns.remove"), "it is kept for the next attempt"


@pytest.mark.parametrize("stopping", [stop_sandbox, remove_sandbox])
async def test_an_error_of_one_container_does_not_keep_the_others_from_being_stopped(
    node: Node, points: Points, stopping: Callable[..., Any]
) -> None:
    points.fail_always("runtime.kill", MemoryError())
    with pytest.raises(CleanupIncomplete, match="unexpected MemoryError"):
        await stopping(node, POD)


# What a stopped pod owes


@pytest.mark.parametrize("again", [stop_sandbox, remove_sandbox])
async def test_asked_again_it_tries_what_the_pod_owes(node: Node, points: Points, again: Callable[..., Any]) -> None:
    points.fail_always("cni.delete", NotReady("not now"))
    await stop_sandbox(node, POD)
    assert node.ledger.attachments_of(POD)
    points.reset()

    await again(node, POD)

    assert not node.ledger.attachments
    assert points.count("netns.remove")


async def test_a_pod_that_is_removed_at_once_is_asked_for_its_del_once(node: Node, points: Points) -> None:
    points.fail_always("cni.delete", NotReady("not now"))
    await remove_sandbox(node, POD)
    assert points.count("cni.delete") == 1


@pytest.fixture
def strict(fakes: Bundle, node: Node) -> Node:
    """A daemon with `network.teardown = "strict"`."""
    network = replace(fakes.config.network, teardown="strict")
    return replace(node, config=replace(fakes.config, network=network))


@pytest.mark.parametrize("stopping", [stop_sandbox, remove_sandbox])
async def test_a_strict_teardown_fails_as_long_as_a_del_does(
    strict: Node, points: Points, stopping: Callable[..., Any]
) -> None:
    points.fail_always("cni.delete", NotReady("not now"))
    for attempts in (1, 2):
        with pytest.raises(CleanupIncomplete, match=r"not now; network\.teardown is strict"):
            await stopping(strict, POD)
        (debt,) = strict.ledger.attachments_of(POD)
        assert (debt.state, debt.attempts) == (AttachmentState.OWED, attempts)
    record = strict.ledger.sandboxes[POD]
    assert (record.state, record.stopped_at) == (SandboxState.NOTREADY, 0)
    assert "not now" in record.failure
    assert not points.count("netns.remove")
    points.reset()

    await stopping(strict, POD)

    assert not strict.ledger.attachments


@pytest.mark.parametrize("verb", [stop_sandbox, remove_sandbox])
async def test_while_containerd_is_known_to_be_away_it_is_refused_and_the_pod_is_as_it_was(
    fakes: Bundle, verb: Callable[[Node, str], Any]
) -> None:
    node = fakes.with_records()
    before = node.ledger.sandboxes[POD]
    fakes.runtime.away = "containerd at x does not answer"
    with pytest.raises(Unavailable, match="containerd at x does not answer; repeat the request once it does"):
        await verb(node, POD)
    assert node.ledger.sandboxes[POD] == before and before.state is SandboxState.READY

    fakes.runtime.away = ""
    await verb(node, POD)
    await fakes.settled()
    assert not node.ledger.attachments


async def test_a_stopped_pod_needs_no_containerd_to_release_what_it_owes(fakes: Bundle) -> None:
    node = fakes.with_records()
    fakes.points.fail_always("cni.delete", NotReady("not now"))
    await stop_sandbox(node, POD)
    fakes.points.reset()
    fakes.runtime.away = "containerd at x does not answer"
    await stop_sandbox(node, POD)
    assert not node.ledger.attachments

"""A pod's namespaces are pinned again from its own processes, and from nobody else's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxd.errors import NotReady, Unavailable
from sandboxd.machine import handlers, pins
from sandboxd.model import SandboxRecord
from tests.fakes.bundle import Bundle, container_config
from tests.fakes.points import Point
from tests.unit.pods.requests import on_host, run, with_user_namespace


@pytest.fixture(autouse=True)
def with_user_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which they work; only root can give files to others."""

    async def features(*_: object) -> handlers.Features:
        return handlers.Features(user_namespaces=True, recursive_read_only=True)

    monkeypatch.setattr(handlers, "features", features)
    monkeypatch.setattr(os, "chown", lambda *_: None)


def record(fakes: Bundle) -> SandboxRecord:
    (found,) = fakes.node.ledger.sandboxes.values()
    return found


def enter(fakes: Bundle, pid: int) -> None:
    """The process is in the pod's namespaces."""
    fakes.netns.inside[pid, "net"] = record(fakes).netns_inode
    fakes.netns.inside[pid, "user"] = record(fakes).userns_inode


async def test_the_record_says_which_namespaces_the_pod_has(fakes: Bundle) -> None:
    made = await run(fakes, with_user_namespace())

    assert made.netns_inode == fakes.netns.inode(made.netns_path) != 0
    assert made.userns_inode == fakes.netns.inode(fakes.places.user_namespace(made.id)) != 0


async def test_what_is_where_it_was_pinned_is_left_alone_and_nobody_is_asked(fakes: Bundle) -> None:
    made = await run(fakes)
    asked = fakes.points.count("runtime.get")

    assert pins.intact(fakes.node, made)
    assert await pins.restore(fakes.node, made)

    assert not fakes.points.count("netns.restore")
    assert fakes.points.count("runtime.get") == asked


async def test_a_pod_in_the_hosts_network_has_nothing_to_lose(fakes: Bundle) -> None:
    made = await run(fakes, on_host())

    assert (made.netns_inode, made.userns_inode) == (0, 0)
    assert pins.intact(fakes.node, made) and await pins.restore(fakes.node, made)


def unmounted(fakes: Bundle, path: str) -> None:
    del fakes.netns.pinned[path]


def removed(fakes: Bundle, path: str) -> None:
    Path(path).unlink()


def replaced(fakes: Bundle, path: str) -> None:
    fakes.netns.pinned[path] = 7


@pytest.mark.parametrize("kind", ["net", "user"])
@pytest.mark.parametrize("lose", [unmounted, removed, replaced])
async def test_what_was_lost_is_taken_from_the_pause_process(
    fakes: Bundle, kind: str, lose: Callable[[Bundle, str], None]
) -> None:
    made = await run(fakes, with_user_namespace())
    enter(fakes, made.pid)
    path = made.netns_path if kind == "net" else fakes.places.user_namespace(made.id)
    lose(fakes, path)
    assert not pins.intact(fakes.node, made)

    assert await pins.restore(fakes.node, made)

    assert pins.intact(fakes.node, made)


async def test_where_pause_has_ended_another_container_of_the_pod_will_do(fakes: Bundle) -> None:
    container_id = await fakes.running_container(container_config())
    made = record(fakes)
    enter(fakes, fakes.node.ledger.containers[container_id].pid)
    fakes.runtime.tasks[made.id].init.end(0)
    fakes.netns.pinned.pop(made.netns_path)

    assert await pins.restore(fakes.node, made)


async def test_a_process_that_got_the_pid_of_pause_is_not_the_pods(fakes: Bundle) -> None:
    made = await run(fakes)
    enter(fakes, made.pid)
    fakes.runtime.tasks[made.id].init.end(0)
    fakes.netns.pinned.pop(made.netns_path)

    assert not await pins.restore(fakes.node, made)

    assert not fakes.netns.exists(made.netns_path)


async def test_for_a_pod_of_an_earlier_version_only_pause_is_believed(fakes: Bundle) -> None:
    container_id = await fakes.running_container(container_config())
    made = fakes.node.ledger.update_sandbox(record(fakes).id, netns_inode=0)
    assert pins.intact(fakes.node, made)
    fakes.netns.inside[fakes.node.ledger.containers[container_id].pid, "net"] = 7
    fakes.netns.pinned.pop(made.netns_path)
    assert not await pins.restore(fakes.node, made)
    fakes.netns.inside[made.pid, "net"] = 8

    assert await pins.restore(fakes.node, made)

    assert fakes.netns.inode(made.netns_path) == 8


async def test_a_containerd_that_does_not_answer_is_no_proof_that_the_pod_is_lost(fakes: Bundle) -> None:
    made = await run(fakes)
    fakes.netns.pinned.pop(made.netns_path)
    fakes.points.fail(Point("runtime.get", fakes.points.count("runtime.get")), Unavailable("containerd is away"))

    with pytest.raises(Unavailable):
        await pins.restore(fakes.node, made)


async def test_a_kernel_that_refuses_is_not_a_loss(fakes: Bundle) -> None:
    made = await run(fakes)
    fakes.netns.pinned.pop(made.netns_path)
    fakes.points.fail(Point("netns.restore", 0), NotReady("no space"))

    with pytest.raises(NotReady, match="no space"):
        await pins.restore(fakes.node, made)


async def test_what_the_pod_lacks_is_named(fakes: Bundle) -> None:
    made = await run(fakes, with_user_namespace())
    fakes.netns.pinned.clear()

    words = pins.complaint(fakes.node, made)

    assert f"no network namespace to join: {made.netns_path} is gone" in words
    assert f"no user namespace to join: {fakes.places.user_namespace(made.id)} is gone" in words

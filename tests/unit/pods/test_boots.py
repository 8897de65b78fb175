"""Pods of an earlier boot have ended, and give back their addresses before a new pod needs one."""

from __future__ import annotations

import asyncio
import fcntl
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.cni import reservations
from sandboxd.containers.create import create_container
from sandboxd.containers.start import start_container
from sandboxd.errors import AlreadyExists, NotReady
from sandboxd.model import AttachmentState, ContainerState, SandboxState, of_earlier_boot
from sandboxd.node import Node
from sandboxd.pods import boots, debts, recover
from sandboxd.pods.teardown import remove_abandoned, remove_sandbox, stop_sandbox
from tests.fakes.bundle import Bundle, container_config, pod_config
from tests.fakes.points import Point
from tests.unit.pods.conftest import LogLines
from tests.unit.pods.requests import turns


@pytest.fixture
def booted(fakes: Bundle) -> Callable[[str], Node]:
    """Make it another boot of the machine: nothing runs, and no namespace is there; the ledger is."""

    def boot(name: str) -> Node:
        fakes.runtime.tasks.clear()
        fakes.netns.pinned.clear()
        fakes.node = replace(fakes.node, machine=replace(fakes.node.machine, boot=name))
        return fakes.node

    boot("first")
    return boot


@pytest.mark.parametrize(("made", "now", "earlier"), [("a", "b", True), ("a", "a", False), ("", "b", False)])
def test_what_is_not_known_to_be_of_another_boot_is_of_this_one(
    fakes: Bundle, made: str, now: str, earlier: bool
) -> None:
    fakes.with_records()
    (record,), (attachment,) = fakes.node.ledger.sandboxes.values(), fakes.node.ledger.attachments
    assert of_earlier_boot(replace(record, boot=made), now) is earlier
    assert of_earlier_boot(replace(attachment, boot=made), now) is earlier
    assert not of_earlier_boot(replace(record, boot=made), "")


async def test_its_pods_are_not_ready_have_no_address_and_can_be_removed(
    fakes: Bundle, booted: Callable[[str], Node]
) -> None:
    container_id = await create_container(fakes.node, await fakes.ready_pod(), container_config())
    await start_container(fakes.node, container_id)
    (pod,) = fakes.node.ledger.sandboxes.values()
    assert pod.ips
    await fakes.settled()
    node = booted("second")

    await recover.recover(node)
    now = node.ledger.sandboxes[pod.id]
    assert (now.state, now.ips, now.pid, now.failure) == (SandboxState.NOTREADY, (), 0, boots.ENDED)
    assert node.ledger.containers[container_id].state is ContainerState.EXITED
    await fakes.repaired()
    assert not node.ledger.attachments and not fakes.cni.left()
    with pytest.raises(NotReady, match="the machine was restarted"):
        await create_container(node, pod.id, container_config("another"))

    await remove_sandbox(node, pod.id)
    await fakes.settled()
    assert not fakes.left() and not fakes.records()


async def test_a_daemon_that_is_restarted_in_the_same_boot_changes_nothing(
    fakes: Bundle, booted: Callable[[str], Node]
) -> None:
    pod_id = await fakes.ready_pod()
    await fakes.settled()
    before = fakes.node.ledger.sandboxes[pod_id]
    await recover.recover(fakes.node)
    await fakes.repaired()
    assert fakes.node.ledger.sandboxes[pod_id] == before
    assert not fakes.points.count("cni.delete")


async def test_a_new_pod_waits_for_the_first_attempt_at_each_of_their_dels(
    fakes: Bundle, booted: Callable[[str], Node]
) -> None:
    old = [await fakes.ready_pod(pod_config(name)) for name in ("a", "b", "c")]
    await fakes.settled()
    await stop_sandbox(fakes.node, old[0])  # what it owed was released in its own boot
    fakes.node.ledger.remove_sandbox(old[2])  # what it owes is the debt of a removed pod
    node = booted("second")
    fakes.points.reset()
    fakes.points.fail(Point("cni.delete", 0), NotReady("not now"))
    fakes.points.hang(Point("cni.delete", 1))
    await recover.recover(node)
    await fakes.points.hangs.wait()

    new = asyncio.ensure_future(fakes.ready_pod(pod_config("new")))
    await turns()
    assert fakes.points.count("cni.add") == 0 and not new.done()
    fakes.points.release()

    assert node.ledger.sandboxes[await new].state is SandboxState.READY
    await fakes.repaired()
    (debt,) = debts.listed(node)
    assert debt.attachment.state is AttachmentState.OWED and debt.attachment.boot == "second"
    assert fakes.points.count("cni.delete") == 2


async def test_a_new_pod_does_not_wait_for_ever_for_one_that_hangs(
    fakes: Bundle, booted: Callable[[str], Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boots, "PATIENCE_SECONDS", 0.05)
    await fakes.ready_pod(pod_config("old"))
    await fakes.settled()
    node = booted("second")
    fakes.points.hang(Point("cni.delete", 0))
    await recover.recover(node)
    assert node.ledger.sandboxes[await fakes.ready_pod(pod_config("new"))].state is SandboxState.READY
    fakes.points.release()
    await fakes.repaired()


async def test_a_debt_of_another_network_or_of_this_boot_holds_up_no_new_pod(
    fakes: Bundle, booted: Callable[[str], Node]
) -> None:
    await fakes.ready_pod(pod_config("old"))
    await fakes.settled()
    (attachment,) = fakes.node.ledger.attachments
    fakes.node.ledger.remove_attachment(attachment)
    fakes.node.ledger.put_attachment(replace(attachment, network="another"))
    fakes.node.ledger.put_attachment(replace(attachment, boot="second", attempts=1, state=AttachmentState.OWED))
    node = booted("second")
    fakes.points.hang(Point("cni.delete", 0))
    await recover.recover(node)
    await fakes.points.hangs.wait()
    assert await fakes.ready_pod(pod_config("new")) in node.ledger.sandboxes
    fakes.points.release()
    await fakes.repaired()


async def test_the_addresses_of_a_creation_that_the_restart_cut_off_are_waited_for_too(
    fakes: Bundle, booted: Callable[[str], Node]
) -> None:
    old = await fakes.ready_pod(pod_config("old"))
    await fakes.settled()
    fakes.node.ledger.update_sandbox(old, started_at=0, ips=())
    node = booted("second")
    fakes.points.hang(Point("cni.delete", 0))
    await recover.recover(node)
    await fakes.points.hangs.wait()
    new = asyncio.ensure_future(fakes.ready_pod(pod_config("new")))
    await turns()
    assert not new.done()
    fakes.points.release()
    await new
    assert old not in node.ledger.sandboxes


@pytest.mark.parametrize("stopped", [False, True])
async def test_asked_for_again_it_becomes_a_new_pod(
    fakes: Bundle, booted: Callable[[str], Node], stopped: bool
) -> None:
    old = await fakes.ready_pod()
    await create_container(fakes.node, old, container_config())
    if stopped:
        await stop_sandbox(fakes.node, old)
    await fakes.settled()
    node = booted("second")
    await recover.recover(node)

    new = await fakes.ready_pod()

    await fakes.repaired()
    assert set(node.ledger.sandboxes) == {new} and new != old
    assert node.ledger.sandboxes[new].state is SandboxState.READY
    assert not node.ledger.containers and set(fakes.runtime.containers) == {new}
    assert [each.sandbox_id for each in node.ledger.attachments] == [new]
    assert await fakes.ready_pod() == new


async def test_another_configuration_does_not_replace_it(fakes: Bundle, booted: Callable[[str], Node]) -> None:
    old = await fakes.ready_pod()
    await fakes.settled()
    node = booted("second")
    await recover.recover(node)
    await fakes.repaired()
    config = pod_config()
    config.labels["another"] = "label"
    with pytest.raises(AlreadyExists, match=r"the machine was restarted.*remove it first"):
        await fakes.ready_pod(config)
    assert old in node.ledger.sandboxes


async def test_a_pod_of_an_earlier_version_is_known_to_be_of_the_boot_in_which_its_namespace_is_there(
    fakes: Bundle, booted: Callable[[str], Node]
) -> None:
    booted("")
    here = await fakes.ready_pod(pod_config("here"))
    gone = await fakes.ready_pod(pod_config("gone"))
    await fakes.settled()
    del fakes.netns.pinned[fakes.places.network_namespace(gone)]
    fakes.node = replace(fakes.node, machine=replace(fakes.node.machine, boot="first"))

    boots.retire(fakes.node)

    boot_of = {record.id: record.boot for record in fakes.node.ledger.sandboxes.values()}
    assert boot_of == {here: "first", gone: ""}
    assert {each.sandbox_id: each.boot for each in fakes.node.ledger.attachments} == boot_of
    assert fakes.node.ledger.sandboxes[here].state is SandboxState.READY


# What the power's failing took with it: the ledger's last commits, and what plugins had not synced.


@pytest.fixture
async def cut_off(fakes: Bundle, booted: Callable[[str], Node]) -> Node:
    """The second boot, after a cut at which a pod was being made.

    Neither the ledger nor containerd has its attachment; what its plugins wrote is there.
    """
    booted("first")
    pod_id = await fakes.ready_pod()
    await fakes.settled()
    ledger = fakes.node.ledger
    ledger.remove_attachment(*ledger.attachments)
    ledger.update_sandbox(pod_id, started_at=0, pid=0, ips=())
    fakes.runtime.containers.clear()
    assert fakes.cni.left()
    return booted("second")


def conf_file(fakes: Bundle) -> Path:
    return Path(fakes.config.network.conf_dir, "10-pods.conflist")


async def test_a_pod_whose_attachment_was_lost_with_the_power_has_its_del(fakes: Bundle, cut_off: Node) -> None:
    await recover.recover(cut_off)
    await fakes.repaired()

    assert not cut_off.ledger.sandboxes and not cut_off.ledger.attachments
    assert not fakes.cni.left()


async def test_a_new_pod_of_its_network_waits_for_that_del(fakes: Bundle, cut_off: Node) -> None:
    await recover.recover(cut_off)

    new = await fakes.ready_pod(pod_config("new"))

    assert [key[0] for key in fakes.cni.attached] == [new]


async def test_it_is_kept_while_the_configuration_is_broken(fakes: Bundle, cut_off: Node) -> None:
    good = conf_file(fakes).read_text()
    conf_file(fakes).unlink()
    assert cut_off.network.conf.current().empty, "nothing that was good stays in force"
    conf_file(fakes).write_text("{")
    await recover.recover(cut_off)
    await fakes.repaired()
    (pod_id,) = cut_off.ledger.sandboxes
    conf_file(fakes).write_text(good)

    await remove_abandoned(cut_off, pod_id)

    assert not cut_off.ledger.sandboxes and not fakes.cni.left()


async def test_without_any_configuration_it_is_removed(fakes: Bundle, cut_off: Node) -> None:
    conf_file(fakes).unlink()

    await recover.recover(cut_off)
    await fakes.repaired()

    assert not cut_off.ledger.sandboxes and not cut_off.ledger.attachments


async def test_in_the_same_boot_a_pod_without_an_attachment_had_no_add(
    fakes: Bundle, cut_off: Node, booted: Callable[[str], Node]
) -> None:
    node = booted("first")

    await recover.recover(node)
    await fakes.repaired()

    assert not node.ledger.sandboxes
    assert "cni.delete" not in {point.name for point in fakes.points.passed}


async def test_addresses_that_are_reserved_for_nobody_are_released_at_a_start(fakes: Bundle, tmp_path: Path) -> None:
    use(fakes, tmp_path)
    (tmp_path / "pods").mkdir()
    (tmp_path / "pods" / "10.0.0.2").write_text(f"{'a' * 64}\r\neth0")
    (tmp_path / "pods" / "10.0.0.3").touch()

    await recover.recover(fakes.node)

    assert sorted(path.name for path in (tmp_path / "pods").iterdir()) == ["10.0.0.2", "lock"]


async def test_a_lock_that_is_kept_does_not_hold_up_a_start_for_long(
    fakes: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    monkeypatch.setattr(reservations, "LOCK_SECONDS", 0.01)
    use(fakes, tmp_path)
    (tmp_path / "pods").mkdir()
    for name in ("10.0.0.3", "10.0.0.4"):
        (tmp_path / "pods" / name).touch()
    with (tmp_path / "pods" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await recover.recover(fakes.node)

    (line,) = [line for line in log_lines if "reserved for nobody" in line["event"]]
    assert "another process keeps the lock" in line["error"]


def use(fakes: Bundle, data: Path) -> None:
    """The network's addresses are host-local's, recorded below `data`."""
    plugin = {"type": "bridge", "ipam": {"type": "host-local", "dataDir": str(data)}}
    conflist = {"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]}
    conf_file(fakes).write_text(json.dumps(conflist))

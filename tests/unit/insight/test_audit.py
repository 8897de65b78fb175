"""The audit on a node of fakes: two looks, repairs that fail alone, and what it says of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from sandboxd.containerd.snapshots import Kind as SnapshotKind
from sandboxd.containerd.snapshots import Snapshot
from sandboxd.errors import PluginFailed, Unavailable
from sandboxd.images.store import ImageStore
from sandboxd.insight import audit as subject
from sandboxd.insight.audit import Auditor, Outcome
from sandboxd.insight.residue import Finding, Kind
from sandboxd.machine import programs
from sandboxd.model import SandboxState
from sandboxd.pods import reclaim, recover
from tests.fakes.bundle import Bundle
from tests.fakes.points import Point

REFUSED = PluginFailed(plugin="bridge", command="DEL", code=7, msg="not today")


class Store:
    """As much of the image store as the audit asks."""

    def __init__(self, fakes: Bundle) -> None:
        self._fakes = fakes
        self.extra: list[str] = []  # a snapshot besides for each look, "" for none
        self.on_list: Callable[[], Awaitable[object]] | None = None  # called once, in the middle of a look
        self.lease_ids: set[str] = set()
        self.begun: dict[str, int] = {}
        self.snapshots = SimpleNamespace(list=self.list, idle_drafts=self.none, remove=self.remove)
        self.leases = SimpleNamespace(idle=self.idle, ids=self.idle, delete=self.delete, collect=self.none)
        self.content = SimpleNamespace(transfers=self.transfers, give_up=self.give_up)
        self.images = SimpleNamespace(list=self.none)

    async def list(self) -> list[Snapshot]:
        if self.on_list is not None:
            on_list, self.on_list = self.on_list, None
            await on_list()
        names = filter(None, [*self._fakes.images.snapshots, *([self.extra.pop(0)] if self.extra else [])])
        mark, kind = {"sandboxd.io/owner": self._fakes.places.owner}, SnapshotKind.ACTIVE
        return [Snapshot(name=name, parent="", kind=kind, created_at=1, labels=mark) for name in names]

    async def remove(self, key: str) -> None:
        self._fakes.images.snapshots.pop(key, None)

    async def none(self) -> tuple[str, ...]:
        return ()

    async def refresh(self) -> None:
        return

    async def idle(self) -> set[str]:
        return set(self.lease_ids)

    async def delete(self, lease: str) -> None:
        self.lease_ids.discard(lease)

    async def transfers(self) -> dict[str, int]:
        return dict(self.begun)

    async def give_up(self, ref: str) -> None:
        del self.begun[ref]


@pytest.fixture
def store(fakes: Bundle) -> Store:
    return Store(fakes)


@pytest.fixture
def auditor(fakes: Bundle, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Auditor:
    """An auditor that does not wait between its looks, on a machine without packet filter rules."""

    async def no_rules(*_: object, **_more: object) -> tuple[int, bytes, bytes]:
        raise FileNotFoundError("iptables-save")

    monkeypatch.setattr(subject, "LOOK_SECONDS", 0)
    monkeypatch.setattr(programs, "ask", no_rules)
    fakes.runtime.owner = fakes.places.owner
    return Auditor(fakes.node, cast(ImageStore, store), str(tmp_path / "bundles"))


async def lose(fakes: Bundle) -> str:
    """Run a pod with a container and lose its records; the id."""
    container_id = await fakes.running_container()
    ledger = fakes.node.ledger
    sandbox_id = ledger.containers[container_id].sandbox_id
    for attachment in ledger.attachments_of(sandbox_id):
        ledger.remove_attachment(attachment)
    ledger.remove_container(container_id)
    ledger.remove_sandbox(sandbox_id)
    fakes.points.reset()
    return sandbox_id


def orphan(fakes: Bundle, digit: str) -> str:
    """A directory that no record knows."""
    path = Path(fakes.places.volumes(digit * 64))
    path.mkdir()
    return str(path)


def certain(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings if finding.certain]


def by_name(outcomes: list[Outcome]) -> dict[str, str]:
    return {each.finding.name: "repaired" if each.repaired else each.error for each in outcomes}


async def test_nothing_is_found_of_a_pod_that_is_known(fakes: Bundle, auditor: Auditor) -> None:
    await fakes.running_container()
    assert certain(await auditor.audit()) == []
    assert await auditor.repair() == []


async def test_a_lost_pod_is_found_with_its_name_and_removed(fakes: Bundle, auditor: Auditor) -> None:
    pod_id = await lose(fakes)
    found = await auditor.audit()
    assert {(each.owner, each.pod) for each in found} == {(pod_id, "default/web")}
    assert {each.kind for each in found} >= {Kind.CONTAINER, Kind.TASK, Kind.SNAPSHOT, Kind.DIRECTORY, Kind.NAMESPACE}
    assert len(auditor.found) == len(found)

    outcomes = await auditor.repair()
    assert set(by_name(outcomes).values()) == {"repaired"}
    assert (fakes.left(), fakes.records(), auditor.found) == ([], [], ())


async def test_a_lost_container_is_found_and_removed_and_its_pod_is_not_touched(
    fakes: Bundle, auditor: Auditor
) -> None:
    container_id = await fakes.running_container()
    ledger = fakes.node.ledger
    pod_id = ledger.containers[container_id].sandbox_id
    ledger.remove_container(container_id)
    found = await auditor.audit()
    assert {each.owner for each in found} == {container_id}
    assert {each.kind for each in found} >= {Kind.CONTAINER, Kind.TASK, Kind.SNAPSHOT}
    assert set(by_name(await auditor.repair()).values()) == {"repaired"}
    assert auditor.found == ()
    assert ledger.sandboxes[pod_id].state is SandboxState.READY
    assert set(fakes.runtime.containers) == {pod_id}


async def test_what_could_only_not_be_put_back_for_the_moment_is_not_removed(fakes: Bundle, auditor: Auditor) -> None:
    pod_id = await lose(fakes)
    fakes.points.fail(Point("netns.interfaces", 0), OSError(24, "Too many open files"))
    await recover.recover(fakes.node)
    assert not fakes.node.ledger.sandboxes
    await auditor.repair()
    assert fakes.node.ledger.sandboxes[pod_id].state is SandboxState.READY


async def test_what_only_one_look_shows_is_no_finding(fakes: Bundle, auditor: Auditor, store: Store) -> None:
    """Something was just being removed, or made."""
    store.extra = ["a" * 64, ""]
    assert await auditor.audit() == []
    store.extra = ["", "a" * 64]
    assert await auditor.audit() == []
    assert store.extra == [], "it has looked twice"
    store.extra = ["a" * 64] * 2
    assert certain(await auditor.audit()) == ["a" * 64]


async def test_what_an_operation_holds_is_no_finding(fakes: Bundle, auditor: Auditor, store: Store) -> None:
    path = orphan(fakes, "a")
    async with fakes.node.jobs.exclusive("a" * 64):
        assert await auditor.audit() == []
    lock = fakes.node.jobs.exclusive("a" * 64)

    async def at_the_next() -> None:
        store.on_list = lock.__aenter__

    store.on_list = at_the_next  # it begins in the middle of the second look
    assert await auditor.audit() == []
    await lock.__aexit__(None, None, None)
    assert certain(await auditor.audit()) == [path]


async def test_a_repair_that_fails_stops_no_other_and_says_why(
    fakes: Bundle, auditor: Auditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [orphan(fakes, digit) for digit in "abc"]
    real = reclaim.reclaim_container

    async def failing(node: Any, id_: str, points: Any, **pod: str) -> None:
        if id_.startswith("b"):
            raise RuntimeError("a bug")
        await real(node, id_, points)

    monkeypatch.setattr(reclaim, "reclaim_container", failing)
    with structlog.testing.capture_logs() as lines:
        outcomes = by_name(await auditor.repair())
    assert (outcomes[paths[0]], outcomes[paths[2]]) == ("repaired", "repaired")
    assert "RuntimeError" in outcomes[paths[1]]
    assert any("could not repair" in line["event"] for line in lines)
    assert certain(await auditor.audit()) == [paths[1]]


async def test_a_pod_that_could_not_be_removed_whole_is_not_called_repaired(fakes: Bundle, auditor: Auditor) -> None:
    await lose(fakes)
    fakes.points.fail_always("runtime.delete_container", Unavailable("containerd is away"))
    with structlog.testing.capture_logs():
        outcomes = by_name(await auditor.repair())
    assert outcomes and all("containerd is away" in error for error in outcomes.values())


async def test_a_del_that_failed_is_told_as_the_debt_that_it_is(fakes: Bundle, auditor: Auditor) -> None:
    pod_id = await lose(fakes)
    fakes.points.fail_always("cni.delete", REFUSED)
    with structlog.testing.capture_logs():
        outcomes = by_name(await auditor.repair())
    namespace = fakes.places.network_namespace(pod_id)
    assert "sandboxctl debts" in outcomes.pop(namespace)
    assert set(outcomes.values()) == {"repaired"}


async def test_who_asks_while_a_repair_runs_gets_its_answer(fakes: Bundle, auditor: Auditor) -> None:
    orphan(fakes, "a")
    first, second = await asyncio.gather(auditor.repair(), auditor.repair())
    assert first is second


async def test_what_has_no_pod_is_repaired_too(fakes: Bundle, auditor: Auditor, store: Store) -> None:
    store.lease_ids = {"sandboxd-unpack-0123456789abcdef", "somebody's"}
    store.begun = {"sandboxd-pull-sha256:abc": 1, "theirs": 1}
    archive = Path(fakes.places.uploads, "archive-x")
    archive.write_text("half")
    address = fakes.directory / "networks" / "pods" / "10.0.0.2"
    address.parent.mkdir(parents=True)
    address.touch()
    plugin = {"type": "bridge", "ipam": {"type": "host-local", "dataDir": str(address.parents[1])}}
    conflist = {"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]}
    Path(fakes.config.network.conf_dir, "10-pods.conflist").write_text(json.dumps(conflist))
    assert (str(address), "repaired") in (done := by_name(await auditor.repair())).items()
    assert set(done.values()) == {"repaired"}
    assert (store.lease_ids, store.begun, archive.exists()) == ({"somebody's"}, {"theirs": 1}, False)
    assert not address.exists()


async def test_a_transfer_that_a_pull_goes_on_from_is_no_finding(auditor: Auditor, store: Store) -> None:
    store.lease_ids = {"sandboxd-pull-0123456789abcdef-ffffffff-0"}
    store.begun = {"sandboxd-pull-sha256:abc": 1}
    assert await auditor.audit() == []


async def test_an_archive_that_is_being_received_or_read_is_no_finding(fakes: Bundle, auditor: Auditor) -> None:
    archive = Path(fakes.places.uploads, "archive-x")
    with archive.open("wb"):
        assert await auditor.audit() == []
    reading = asyncio.Event()
    fakes.node.jobs.start(("LoadImage", str(archive)), reading.wait)
    assert await auditor.audit() == []
    reading.set()
    await fakes.repaired()
    assert certain(await auditor.audit()) == [str(archive)]


async def test_a_missing_namespace_is_found_and_put_back(fakes: Bundle, auditor: Auditor) -> None:
    pod_id = await fakes.ready_pod()
    path = fakes.places.network_namespace(pod_id)
    inode, pid = fakes.netns.pinned[path], fakes.node.ledger.sandboxes[pod_id].pid
    fakes.netns.inside[pid, "net"] = inode
    await fakes.netns.remove(path)
    (found,) = await auditor.audit()
    assert (found.kind, found.name, found.missing, found.pod) == (Kind.NAMESPACE, path, True, "default/web")
    assert by_name(await auditor.repair()) == {path: "repaired"}
    assert fakes.netns.inode(path) == inode


async def test_news_are_logged_once_and_nothing_is_repaired_by_itself(fakes: Bundle, auditor: Auditor) -> None:
    path = orphan(fakes, "a")
    with pytest.MonkeyPatch.context() as patch, structlog.testing.capture_logs() as lines:
        patch.setattr(subject, "EVERY_SECONDS", 0)
        fakes.node.jobs.watch("audit", auditor.watch)
        async with asyncio.timeout(60):
            while fakes.points.count("runtime.records.list") < 8:  # noqa: ASYNC110 - a fake has no event for it
                await asyncio.sleep(0)
        await fakes.settled()
    told = [line for line in lines if "no record knows" in line["event"]]
    assert [(line["count"], path in line["first"]) for line in told] == [(1, True)]
    assert Path(path).exists()


async def test_without_containerd_an_audit_fails_and_the_watch_goes_on(fakes: Bundle, auditor: Auditor) -> None:
    fakes.points.fail_always("runtime.records.list", Unavailable("containerd is away"))
    with pytest.raises(Unavailable):
        await auditor.audit()
    with pytest.raises(Unavailable):
        await auditor.repair()
    watching = asyncio.ensure_future(auditor.watch())
    await asyncio.sleep(0.05)
    assert not watching.done()
    watching.cancel()

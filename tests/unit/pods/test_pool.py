"""A prepared pod is handed out whole, to one client, or is removed; nobody sees it before."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd import record_format, steps
from sandboxd.api.lookup import Lookup
from sandboxd.config import Handler
from sandboxd.errors import AlreadyExists, Exhausted, NotReady, Unavailable
from sandboxd.machine import pod_files
from sandboxd.model import AttachmentState, SandboxState
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import eligible, pool, recover, refill
from sandboxd.pods.teardown import remove_sandbox
from tests.fakes.bundle import Bundle, pod_config
from tests.fakes.points import Point
from tests.processes import until
from tests.unit.pods.pooled import filled, with_pool
from tests.unit.pods.requests import asked, nothing_left, on_host, run, with_sysctl

ADDRESS = Exhausted("no addresses left")


def named(name: str = "web") -> cri.PodSandboxConfig:
    config = pod_config(name)
    config.hostname, config.labels["app"] = f"{name}-host", name
    return config


# Handed out


async def test_a_prepared_pod_becomes_the_one_that_is_asked_for(fakes: Bundle) -> None:
    (before,) = await filled(fakes)
    given = fakes.cni.attached[before.id, "pods", "eth0"]

    record = await run(fakes, named())

    assert (record.id, record.state, record.config) == (before.id, SandboxState.READY, named())
    assert (record.pid, record.ips, record.netns_path) == (before.pid, before.ips, before.netns_path)
    assert record.created_at >= record.prepared_at > 0
    assert fakes.node.ledger.sandbox_named(record.name) == record
    assert fakes.node.ledger.sandbox_named(before.name) is None
    assert fakes.netns.process_hostnames[record.pid] == "web-host"
    assert b"web-host" in Path(fakes.places.pod_files(record.id), "hosts").read_bytes()
    assert fakes.points.count("cni.add") == fakes.points.count("runtime.start") == 1
    (attachment,) = fakes.node.ledger.attachments
    assert (attachment.pod, attachment.state) == ("default/web", AttachmentState.ADDED)
    assert attachment.args == given.args
    assert "K8S_POD_NAME=prepared-" in attachment.args
    assert fakes.node.machine.stock.hits == 1


async def test_containerd_tells_of_the_pod_that_it_is_now(fakes: Bundle) -> None:
    (before,) = await filled(fakes)
    config = named()
    config.log_directory, config.linux.cgroup_parent = "/var/log/web", "/kube/pod1"

    record = await run(fakes, config)

    stored = fakes.runtime.containers[before.id]
    spec = json.loads(stored.spec)
    assert stored.labels["io.kubernetes.pod.name"] == "web"
    assert stored.labels["sandboxd.io/sandbox"] == before.id
    assert (spec["hostname"], spec["linux"]["cgroupsPath"]) == ("web-host", f"/kube/pod1/{before.id}")
    assert spec["annotations"]["io.kubernetes.cri.sandbox-name"] == "web"
    assert spec["annotations"]["io.kubernetes.cri.sandbox-log-directory"] == "/var/log/web"
    kept = record_format.kept_sandbox(record.id, stored.kept)
    assert (kept.record.config, kept.record.prepared_of) == (config, "")
    assert kept.attachment is not None
    assert kept.attachment.args == fakes.node.ledger.attachments[0].args


async def test_it_is_torn_down_like_any_other(fakes: Bundle) -> None:
    await filled(fakes)
    record = await run(fakes, named())

    await remove_sandbox(fakes.node, record.id)

    assert nothing_left(fakes)


async def test_a_pod_has_one_client_and_a_client_one_pod(fakes: Bundle) -> None:
    ready = {each.id for each in await filled(fakes, 2)}

    ids = await asyncio.gather(*(asked(fakes, named(name)) for name in ("a", "b", "c")), asked(fakes, named("a")))

    assert len(set(ids)) == 3
    assert ids[0] == ids[3]
    assert ready < set(ids)
    stock = fakes.node.machine.stock
    assert (stock.hits, stock.misses) == (2, {eligible.EMPTY: 1})


async def test_its_timeline_says_how_long_it_was_ready(fakes: Bundle) -> None:
    await filled(fakes)
    records: list[steps.StepRecord] = []
    stop = steps.subscribe(records.append)
    record = await run(fakes, named())
    stop()

    assert {(each.operation, each.sandbox_id) for each in records} == {("RunPodSandbox", record.id)}
    assert [each.name for each in records][-2:] == ["pod.pool.take", "pod.run"]
    assert records[-2].detail["ready_for"].endswith(" s")


async def test_there_is_its_name_in_the_ledger_before_anything_of_it_changes(fakes: Bundle) -> None:
    (before,) = await filled(fakes)
    fakes.points.hang(Point("runtime.set_spec", 0))
    running = asked(fakes, named())
    await fakes.points.hangs.wait()

    record = fakes.node.ledger.sandboxes[before.id]
    assert (record.state, record.config, record.prepared_of) == (SandboxState.CREATING, named(), "")
    assert not Lookup(fakes.node.ledger).sandboxes("", {})
    fakes.points.release()
    assert await running == before.id


async def test_a_name_that_is_taken_meanwhile_costs_no_prepared_pod(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = await filled(fakes)
    other = named()
    other.labels["app"] = "another"
    with_pool(fakes, 0)
    await run(fakes, other)
    with_pool(fakes, 1)
    monkeypatch.setattr(type(fakes.node.ledger), "sandbox_named", lambda ledger, name: None)

    with pytest.raises(AlreadyExists, match="in use"):
        await asked(fakes, named())

    assert fakes.node.ledger.sandboxes[before.id] == before


# Not handed out


@pytest.mark.parametrize(
    ("config", "reason"), [(on_host(), eligible.HOST_NETWORK), (with_sysctl("net.core.somaxconn"), eligible.SYSCTLS)]
)
async def test_who_asks_for_what_it_has_not_gets_another_pod(
    fakes: Bundle, config: cri.PodSandboxConfig, reason: str
) -> None:
    (before,) = await filled(fakes)

    record = await run(fakes, config)

    assert record.id != before.id
    assert fakes.node.machine.stock.misses == {reason: 1}


async def test_so_does_who_names_another_handler(fakes: Bundle) -> None:
    runtime = replace(fakes.config.runtime, handlers={**fakes.config.runtime.handlers, "other": Handler()})
    fakes.node = replace(fakes.node, config=replace(fakes.node.config, runtime=runtime))
    (before,) = await filled(fakes)

    assert (await run(fakes, named("other"), "other")).id != before.id
    assert fakes.node.machine.stock.misses == {eligible.HANDLER: 1}
    assert (await run(fakes, named("default"), "runc")).id == before.id


async def test_a_network_that_may_depend_on_the_pod_has_none(fakes: Bundle) -> None:
    await filled(fakes)
    fakes.cni.identity = 'plugin "calico" may depend on the pod\'s identity'

    await run(fakes, named())

    assert fakes.node.machine.stock.misses == {eligible.IDENTITY: 1}


async def test_what_it_is_made_of_is_what_is_in_force(fakes: Bundle) -> None:
    (before,) = await filled(fakes)
    conf = Path(fakes.config.network.conf_dir, "10-pods.conflist")
    conf.write_text(conf.read_text().replace('"bridge"', '"bridge", "mtu": 1400'))

    assert (await run(fakes, named())).id != before.id
    assert fakes.node.machine.stock.misses == {eligible.EMPTY: 1}


async def test_one_that_somebody_took_something_from_is_not_handed_out(fakes: Bundle) -> None:
    (unpinned, bare) = await filled(fakes, 2)
    os.unlink(unpinned.netns_path)
    os.unlink(pod_files.paths(fakes.node, bare.id)[0])

    assert (await run(fakes, named())).id not in (unpinned.id, bare.id)


async def test_without_a_pool_nothing_is_counted(fakes: Bundle) -> None:
    await run(fakes, named())

    stock = fakes.node.machine.stock
    assert (stock.hits, stock.misses) == (0, {})
    assert not await pool.give_way(fakes.node)


# Failures


@pytest.mark.parametrize(
    ("point", "error"),
    [
        (Point("netns.set_hostname", 0), NotReady("it has ended")),
        (Point("runtime.spec", 0), Unavailable("containerd does not answer")),
        (Point("runtime.set_spec", 0), Unavailable("containerd does not answer")),
    ],
)
@pytest.mark.parametrize("after", [False, True])
async def test_a_hand_out_that_fails_costs_time_only(
    fakes: Bundle, point: Point, error: Exception, after: bool
) -> None:
    (before,) = await filled(fakes)
    fakes.points.reset()
    fakes.points.fail(point, error, after=after)

    record = await run(fakes, named())

    assert (record.state, record.config) == (SandboxState.READY, named())
    assert record.id != before.id
    assert set(fakes.node.ledger.sandboxes) == set(fakes.runtime.containers) == {record.id}
    assert fakes.node.machine.stock.misses == {eligible.FAILED: 1}
    await remove_sandbox(fakes.node, record.id)
    assert nothing_left(fakes)


async def test_what_cannot_be_undone_is_told_and_keeps_its_record(fakes: Bundle) -> None:
    (before,) = await filled(fakes)
    fakes.points.reset()
    fakes.points.fail(Point("runtime.set_spec", 0), Unavailable("containerd does not answer"))
    fakes.points.fail(Point("runtime.delete_container", 0), Unavailable("containerd does not answer"))

    with pytest.raises(Unavailable):
        await asked(fakes, named())

    assert fakes.node.ledger.sandboxes[before.id].failure
    await fakes.settled()
    await recover.recover(fakes.node)
    await fakes.repaired()
    assert nothing_left(fakes)


@pytest.mark.parametrize("point", [Point("netns.set_hostname", 0), Point("runtime.set_spec", 0)])
async def test_a_hand_out_that_was_cut_off_leaves_nothing(fakes: Bundle, point: Point) -> None:
    """As the next daemon finds it."""
    await filled(fakes)
    fakes.points.reset()
    fakes.points.hang(point, after=True)
    running = asyncio.ensure_future(asked(fakes, named()))
    await fakes.points.hangs.wait()
    for task in fakes.node.jobs.tasks():
        task.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await fakes.repaired()

    await recover.recover(fakes.node)
    await fakes.repaired()

    assert nothing_left(fakes)


async def test_a_prepared_pod_whose_pause_container_ends_is_removed(fakes: Bundle) -> None:
    (before,) = await filled(fakes)

    await fakes.runtime.kill(before.id, 9)
    await fakes.repaired()

    assert nothing_left(fakes)


# Nobody's


async def test_clients_do_not_see_what_is_prepared(fakes: Bundle) -> None:
    (before,) = await filled(fakes)

    assert before.state is SandboxState.PREPARED
    assert not before.is_shown
    assert not Lookup(fakes.node.ledger).sandboxes("", {})
    assert Lookup(fakes.node.ledger).sandbox(before.id) == before  # for who looks at it by its id


async def test_the_comparison_leaves_it_alone_and_a_lost_ledger_gives_it_up(fakes: Bundle) -> None:
    (before,) = await filled(fakes)
    await recover.recover(fakes.node)
    await fakes.repaired()
    assert pool.prepared(fakes.node) == [before]

    fakes.node.ledger.remove_sandbox(before.id)
    for attachment in fakes.node.ledger.attachments:
        fakes.node.ledger.remove_attachment(attachment)
    await recover.recover(fakes.node)
    await fakes.repaired()

    assert nothing_left(fakes)


async def test_one_that_came_to_be_after_tasks_were_listed_stays(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = await filled(fakes)

    async def earlier() -> dict[str, object]:
        return {}

    monkeypatch.setattr(fakes.runtime, "list", earlier)
    await recover.compare(fakes.node)
    await fakes.repaired()

    assert pool.prepared(fakes.node) == ready


# Addresses


async def test_a_prepared_pod_gives_way_when_addresses_run_out(fakes: Bundle) -> None:
    (before,) = await filled(fakes)
    fakes.points.reset()
    fakes.points.fail(Point("cni.add", 0), ADDRESS)

    record = await run(fakes, with_sysctl("net.core.somaxconn"))

    assert record.state is SandboxState.READY
    assert set(fakes.node.ledger.sandboxes) == {record.id} != {before.id}
    assert fakes.node.jobs.retries.wait(pool.FILL) > 0
    assert not await refill.turn(fakes.node, fakes.pause_image)


async def test_one_that_is_being_prepared_gives_way_too(fakes: Bundle) -> None:
    await filled(fakes, 0)
    with_pool(fakes, 1)
    fakes.points.reset()
    fakes.points.hang(Point("runtime.start", 0))
    filling = asyncio.ensure_future(refill.turn(fakes.node, fakes.pause_image))
    await fakes.points.hangs.wait()
    fakes.points.fail(Point("cni.add", 1), ADDRESS)
    running = asked(fakes, with_sysctl("net.core.somaxconn"))
    await asyncio.to_thread(until, lambda: fakes.points.count("cni.delete"), what="the pod got no address")
    fakes.points.release()

    await filling
    record = fakes.node.ledger.sandboxes[await running]
    assert set(fakes.node.ledger.sandboxes) == {record.id}


async def test_who_can_be_served_takes_what_is_ready_meanwhile(fakes: Bundle) -> None:
    """Without a prepared pod that gives way the request fails, as it does without a pool."""
    await filled(fakes, 0)
    with_pool(fakes, 1)
    fakes.points.reset()
    fakes.points.fail(Point("cni.add", 0), ADDRESS)

    with pytest.raises(Exhausted):
        await asked(fakes, named())

    assert nothing_left(fakes)

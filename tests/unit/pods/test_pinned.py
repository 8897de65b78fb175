"""A pod without a pause container: decided per pod, made in an order that can be undone, kept through a restart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.containers.create import create_container
from sandboxd.containers.start import start_container
from sandboxd.errors import NotReady, PluginFailed, Unavailable
from sandboxd.model import SandboxRecord, SandboxState
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import pinned
from sandboxd.pods.recover import compare, recover
from sandboxd.pods.teardown import remove_sandbox, stop_sandbox
from tests.fakes.bundle import Bundle, container_config
from tests.fakes.points import Point
from tests.unit.pods.requests import asked, done, nothing_left, on_host, run, with_own_pids

HANDLER = "pinned"


@pytest.fixture(autouse=True)
def handler(fakes: Bundle) -> None:
    assert fakes.with_pinned() == HANDLER


async def pod(fakes: Bundle, config: cri.PodSandboxConfig | None = None) -> SandboxRecord:
    return await run(fakes, config or with_own_pids(), HANDLER)


async def with_container(fakes: Bundle) -> tuple[SandboxRecord, str]:
    record = await pod(fakes)
    config = container_config()
    config.linux.security_context.namespace_options.pid = cri.CONTAINER
    container_id = await create_container(fakes.node, record.id, config)
    await start_container(fakes.node, container_id)
    await fakes.settled()
    return record, container_id


async def test_the_handler_and_what_the_pod_asks_for_decide(fakes: Bundle) -> None:
    node = fakes.node

    assert pinned.is_for(node, with_own_pids(), HANDLER)
    assert not pinned.is_for(node, with_own_pids(), "")
    assert not pinned.is_for(node, on_host(), HANDLER), "its containers share a pid namespace"


async def test_it_is_ready_and_nothing_of_it_runs(fakes: Bundle) -> None:
    record = await pod(fakes)

    assert (record.state, record.pinned, record.pid, record.ips) == (SandboxState.READY, True, 0, ("10.88.0.2",))
    assert not fakes.runtime.tasks and not fakes.images.snapshots
    ipc, uts = fakes.places.ipc_namespace(record.id), fakes.places.uts_namespace(record.id)
    assert set(fakes.netns.pinned) == {record.netns_path, ipc, uts}
    assert (record.ipc_inode, record.uts_inode) == (fakes.netns.inode(ipc), fakes.netns.inode(uts))
    assert b"10.88.0.2" in Path(fakes.places.pod_files(record.id), "hosts").read_bytes()


async def test_a_pod_of_the_same_handler_that_needs_a_pause_container_has_one(fakes: Bundle) -> None:
    record = await run(fakes, None, HANDLER)

    assert not record.pinned and record.pid
    assert record.id in fakes.runtime.tasks


async def test_it_needs_no_pause_image(fakes: Bundle) -> None:
    fakes.points.fail(Point("images.pause", 0), Unavailable("the pause image cannot be pulled"))

    assert (await pod(fakes)).state is SandboxState.READY


async def test_its_uts_namespace_has_the_pods_name_and_all_have_its_sysctls(fakes: Bundle) -> None:
    config = with_own_pids()
    config.hostname = "web-0"
    config.linux.sysctls["kernel.shmmax"] = "1000"

    record = await pod(fakes, config)

    assert fakes.netns.hostnames == {fakes.places.uts_namespace(record.id): "web-0"}
    ((inside, values),) = fakes.netns.sysctls.items()
    assert set(inside) == set(fakes.netns.pinned)
    assert values["kernel.shmmax"] == "1000"
    assert values["net.ipv4.ip_unprivileged_port_start"] == "0"


async def test_sysctls_are_set_once_the_plugins_have_answered(fakes: Bundle) -> None:
    fakes.points.hang(Point("netns.set_sysctls", 0))
    running = asked(fakes, with_own_pids(), HANDLER)
    await fakes.points.hangs.wait()

    (record,) = fakes.node.ledger.sandboxes.values()
    assert fakes.node.ledger.attachments_of(record.id)[0].result
    assert fakes.node.ledger.sandboxes[record.id].state is SandboxState.CREATING
    await done(fakes, running)


async def test_a_pod_in_the_hosts_network_and_ipc_namespace_pins_nothing(fakes: Bundle) -> None:
    config = with_own_pids()
    config.linux.security_context.namespace_options.network = cri.NODE
    config.linux.security_context.namespace_options.ipc = cri.NODE

    record = await pod(fakes, config)

    assert (record.state, record.pinned) == (SandboxState.READY, True)
    assert not fakes.netns.pinned and not fakes.netns.sysctls
    await remove_sandbox(fakes.node, record.id)
    assert nothing_left(fakes)


@pytest.mark.parametrize(
    ("point", "error"),
    [
        (Point("netns.create_others", 0), NotReady("no space left")),
        (Point("netns.set_sysctls", 0), NotReady("sysctl kernel.sem cannot be set")),
        (Point("cni.add", 0), PluginFailed(plugin="bridge", command="ADD", code=11, msg="no addresses left")),
        (Point("runtime.create_container", 0), NotReady("no space left")),
    ],
    ids=lambda value: value.name if isinstance(value, Point) else "",
)
async def test_what_fails_leaves_nothing(fakes: Bundle, point: Point, error: Exception) -> None:
    fakes.points.fail(point, error)

    with pytest.raises(type(error)):
        await asked(fakes, with_own_pids(), HANDLER)

    assert nothing_left(fakes)


async def test_containerd_keeps_of_it_what_a_lost_ledger_is_rebuilt_from(fakes: Bundle) -> None:
    record = await pod(fakes)

    stored = fakes.runtime.containers[record.id]
    assert stored.labels["sandboxd.io/kind"] == "sandbox"
    assert stored.snapshot_key == "", "it has no root file system"
    kinds = {each["type"]: each["path"] for each in json.loads(stored.spec)["linux"]["namespaces"]}
    assert kinds["ipc"] == fakes.places.ipc_namespace(record.id)


async def test_its_containers_join_what_is_pinned(fakes: Bundle) -> None:
    record, container_id = await with_container(fakes)

    spec = json.loads(fakes.runtime.containers[container_id].spec)
    paths = {each["type"]: each.get("path") for each in spec["linux"]["namespaces"]}
    assert paths["uts"] == fakes.places.uts_namespace(record.id)
    assert paths["pid"] is None


async def test_stopping_it_frees_everything_and_says_when(fakes: Bundle) -> None:
    record, _ = await with_container(fakes)

    await stop_sandbox(fakes.node, record.id)

    ended = fakes.node.ledger.sandboxes[record.id]
    assert ended.state is SandboxState.NOTREADY
    assert record.started_at <= ended.exited_at <= ended.stopped_at
    assert not fakes.netns.pinned and not fakes.runtime.tasks
    await remove_sandbox(fakes.node, record.id)
    assert nothing_left(fakes)


async def test_the_comparison_and_a_restart_leave_it_alone(fakes: Bundle) -> None:
    record = await pod(fakes)

    await compare(fakes.node)
    await recover(fakes.node)
    await fakes.repaired()

    assert fakes.node.ledger.sandboxes[record.id] == record


async def test_another_configuration_does_not_change_it(fakes: Bundle) -> None:
    record = await pod(fakes)
    runtime = replace(fakes.node.config.runtime, handlers={"runc": fakes.node.config.runtime.handlers["runc"]})
    fakes.node = replace(fakes.node, config=replace(fakes.node.config, runtime=runtime))

    await recover(fakes.node)
    await fakes.repaired()
    assert fakes.node.ledger.sandboxes[record.id] == record

    await remove_sandbox(fakes.node, record.id)
    assert nothing_left(fakes)


async def test_without_its_namespaces_and_a_process_in_them_it_has_ended(fakes: Bundle) -> None:
    record = await pod(fakes)
    await fakes.netns.remove(fakes.places.uts_namespace(record.id))

    await compare(fakes.node)
    await fakes.repaired()

    ended = fakes.node.ledger.sandboxes[record.id]
    assert (ended.state, ended.ips) == (SandboxState.NOTREADY, ())
    assert "it has no uts namespace to join" in ended.failure
    assert ended.exited_at, "it is announced as ended"


async def test_its_namespaces_are_pinned_again_from_a_container(fakes: Bundle) -> None:
    record, container_id = await with_container(fakes)
    pid = fakes.node.ledger.containers[container_id].pid
    for path, inode, kind in (
        (fakes.places.ipc_namespace(record.id), record.ipc_inode, "ipc"),
        (record.netns_path, record.netns_inode, "net"),
    ):
        fakes.netns.inside[pid, kind] = inode
        await fakes.netns.remove(path)

    await compare(fakes.node)
    await fakes.repaired()

    assert fakes.node.ledger.sandboxes[record.id].state is SandboxState.READY
    assert fakes.netns.inode(fakes.places.ipc_namespace(record.id)) == record.ipc_inode
    assert fakes.netns.inode(record.netns_path) == record.netns_inode

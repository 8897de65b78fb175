"""What is left of a pod without a record is removed as a pod is, and nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxd import private
from sandboxd.errors import CleanupIncomplete, NotReady, PluginFailed, Unavailable
from sandboxd.model import ContainerState
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import recover
from sandboxd.pods.reclaim import Lost, reclaim, reclaim_container
from tests.fakes.bundle import Bundle, pod_config
from tests.unit.pods.conftest import LogLines

REFUSED = PluginFailed(plugin="bridge", command="DEL", code=7, msg="not today")


async def lost(fakes: Bundle, *, connected: bool = True) -> Lost:
    """A pod with a running container, whose records are lost."""
    container_id = await fakes.running_container()
    ledger = fakes.node.ledger
    sandbox_id = ledger.containers[container_id].sandbox_id
    forget(fakes, sandbox_id)
    fakes.points.reset()
    return Lost(id=sandbox_id, pod="default/web", uid="uid-web", containers=(container_id,), connected=connected)


def forget(fakes: Bundle, sandbox_id: str) -> None:
    ledger = fakes.node.ledger
    for attachment in ledger.attachments_of(sandbox_id):
        ledger.remove_attachment(attachment)
    for container in ledger.containers_of(sandbox_id):
        ledger.remove_container(container.id)
    ledger.remove_sandbox(sandbox_id)
    assert fakes.records() == []


async def test_a_lost_pod_is_removed_whole_with_its_dels(fakes: Bundle, log_lines: LogLines) -> None:
    pod = await lost(fakes)
    assert fakes.left()

    await reclaim(fakes.node, pod)
    assert (fakes.left(), fakes.records()) == ([], [])
    assert fakes.points.count("cni.delete") == 1
    assert any(line["log_level"] == "warning" and line.get("sandbox") == pod.id for line in log_lines)
    fakes.points.reset()
    await reclaim(fakes.node, pod)
    assert (fakes.left(), fakes.records()) == ([], [])


async def test_the_del_is_told_of_the_ports_that_are_still_forwarded(fakes: Bundle) -> None:
    """portmap leaves the rules of a pod that has no ports. The fake refuses a DEL that is given other ones."""
    config = pod_config()
    config.port_mappings.add(protocol=cri.UDP, container_port=53, host_port=53)
    pod_id = await fakes.ready_pod(config)
    await fakes.settled()
    (key,) = fakes.cni.attached
    assert b'"hostPort":53' in fakes.cni.attached[key].capability_args
    forget(fakes, pod_id)
    await reclaim(fakes.node, Lost(id=pod_id, pod="default/web", uid="uid-web", connected=True, ports=[("udp", 53)]))
    assert (fakes.left(), fakes.records()) == ([], [])


async def test_a_pod_that_the_ledger_knows_is_not_touched(fakes: Bundle) -> None:
    pod_id = await fakes.ready_pod()
    before = (fakes.left(), fakes.records())
    await reclaim(fakes.node, Lost(id=pod_id, connected=True))
    await reclaim_container(fakes.node, pod_id)
    assert (fakes.left(), fakes.records()) == before


async def test_a_running_pod_of_the_same_name_is_not_touched(fakes: Bundle) -> None:
    """It was asked for again after its record was lost."""
    pod = await lost(fakes)
    again = await fakes.ready_pod(pod_config())
    await reclaim(fakes.node, pod)
    assert list(fakes.node.ledger.sandboxes) == [again]


async def test_a_del_that_is_due_needs_a_network_and_nothing_is_done_without_one(fakes: Bundle) -> None:
    pod = await lost(fakes)
    before = fakes.left()
    (conf,) = Path(fakes.config.network.conf_dir).iterdir()
    conf.unlink()
    with pytest.raises(NotReady, match="no usable network configuration"):
        await reclaim(fakes.node, pod)
    assert (fakes.left(), fakes.records()) == (before, [])


async def test_a_pod_in_the_hosts_network_needs_none(fakes: Bundle) -> None:
    config = pod_config()
    config.linux.security_context.namespace_options.network = cri.NODE
    pod_id = await fakes.ready_pod(config)
    await fakes.settled()
    forget(fakes, pod_id)
    (conf,) = Path(fakes.config.network.conf_dir).iterdir()
    conf.unlink()
    await reclaim(fakes.node, Lost(id=pod_id))
    assert (fakes.left(), fakes.records()) == ([], [])


async def test_a_del_that_fails_is_a_debt_and_all_else_goes(fakes: Bundle) -> None:
    pod = await lost(fakes)
    fakes.points.fail_always("cni.delete", REFUSED)
    await reclaim(fakes.node, pod)
    assert fakes.records() == [f"record of attachment {pod.id}"]
    assert fakes.node.ledger.attachments[0].pod == "default/web"
    fakes.points.reset()
    await recover.compare(fakes.node)
    await fakes.repaired()
    assert (fakes.left(), fakes.records()) == ([], [])


@pytest.mark.parametrize("point", ["runtime.delete_container", "images.remove_rootfs", "runtime.kill"])
async def test_what_fails_keeps_a_record_which_the_comparison_ends(fakes: Bundle, point: str) -> None:
    pod = await lost(fakes)
    fakes.points.fail_always(point, Unavailable("containerd is away"))
    with pytest.raises((CleanupIncomplete, Unavailable)):
        await reclaim(fakes.node, pod)
    assert pod.id in fakes.node.ledger.sandboxes
    fakes.points.reset()
    await recover.compare(fakes.node)
    await fakes.repaired()
    assert (fakes.left(), fakes.records()) == ([], [])


async def test_no_client_sees_the_record_of_a_lost_pod(fakes: Bundle) -> None:
    pod = await lost(fakes)
    seen = []
    fakes.node.ledger.subscribe(lambda _, after: seen.append(after))
    await reclaim(fakes.node, pod)
    assert seen
    assert not [each for each in seen if each is not None and hasattr(each, "runtime_handler") and each.started_at]
    containers = [each for each in seen if each is not None and hasattr(each, "sandbox_name")]
    assert {each.state for each in containers} == {ContainerState.CREATING}


async def test_a_container_without_a_pod_is_removed_with_all_that_it_has(fakes: Bundle) -> None:
    pod = await lost(fakes)
    (container_id,) = pod.containers
    await reclaim_container(fakes.node, container_id)
    assert not [each for each in fakes.left() if container_id in each]
    assert fakes.left(), "the pod is another matter"
    await reclaim(fakes.node, pod)
    assert fakes.left() == []


async def test_mounts_in_the_directories_go_first_the_innermost_before_the_others(fakes: Bundle) -> None:
    container_id = "c" * 64
    outer = fakes.places.volumes(container_id)
    for path in (outer, f"{outer}/inner"):
        private.make(path, private.CLOSED)
        fakes.kernel.mount("planted", path, 0, "tmpfs")
    await reclaim_container(fakes.node, container_id, points=(outer, f"{outer}/inner"))
    assert fakes.left() == []
    assert not os.path.exists(outer)

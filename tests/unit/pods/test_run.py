"""A pod is made in an order that can be undone, and a request that fails leaves nothing.

What each call does when it fails or hangs is in `tests/unit/matrix`; this is the order, and what is answered.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sandboxd import steps
from sandboxd.cni.conf import NetworkConfig
from sandboxd.containerd.tasks import TaskState
from sandboxd.errors import AlreadyExists, CleanupIncomplete, NotReady, PluginFailed
from sandboxd.model import AttachmentState, SandboxState
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods.run import network_comes_first, run_sandbox
from sandboxd.pods.teardown import remove_sandbox
from tests.fakes.bundle import Bundle, pod_config
from tests.fakes.points import Point
from tests.fakes.runtime import Program
from tests.unit.pods.requests import (
    asked,
    done,
    nothing_left,
    on_host,
    run,
    turns,
    until,
    with_sysctl,
    with_user_namespace,
)

NETNS, ATTACH = Point("netns.create", 0), Point("cni.add", 0)
CREATE, START = Point("runtime.create", 0), Point("runtime.start", 0)
REFUSED = PluginFailed(plugin="bridge", command="ADD", code=11, msg="no addresses left")


# The pod that was made


async def test_a_pod_runs_and_its_record_says_how(fakes: Bundle) -> None:
    record = await run(fakes)

    pause = fakes.runtime.tasks[record.id].init
    assert (record.state, record.pid, record.ips) == (SandboxState.READY, pause.pid, ("10.88.0.2",))
    assert (record.config, record.runtime_handler, record.failure) == (pod_config(), "", "")
    assert record.netns_path == fakes.places.network_namespace(record.id)
    assert record.created_at <= record.started_at
    assert pause.state is TaskState.RUNNING
    assert b"10.88.0.2" in Path(fakes.places.pod_files(record.id), "hosts").read_bytes()


async def test_every_name_is_given_by_the_id(fakes: Bundle) -> None:
    record = await run(fakes)

    assert set(fakes.runtime.containers) == set(fakes.images.snapshots) == {record.id}
    assert set(fakes.netns.pinned) == {fakes.places.network_namespace(record.id)}
    container = fakes.runtime.containers[record.id]
    assert container.snapshot_key == record.id
    assert container.labels["sandboxd.io/kind"] == "sandbox"
    assert container.labels["sandboxd.io/sandbox"] == record.id
    spec = json.loads(container.spec)
    assert spec["process"]["args"] == ["/pause"]
    assert {"type": "network", "path": record.netns_path} in spec["linux"]["namespaces"]


async def test_a_pod_in_the_hosts_network_has_no_namespace_and_no_attachment(fakes: Bundle) -> None:
    Path(fakes.config.network.conf_dir, "10-pods.conflist").unlink()  # it needs none

    record = await run(fakes, on_host())

    assert (record.state, record.netns_path, record.ips) == (SandboxState.READY, "", ())
    assert not fakes.netns.pinned and not fakes.cni.left() and not fakes.node.ledger.attachments


async def test_two_pods_are_made_side_by_side(fakes: Bundle) -> None:
    waiting, _ = await until(fakes, NETNS)

    other = await run_sandbox(fakes.node, fakes.pause_image, pod_config("other"), "")

    assert fakes.node.ledger.sandboxes[other].state is SandboxState.READY
    await done(fakes, waiting)


async def test_a_pause_container_that_ends_at_once_makes_no_ready_pod(fakes: Bundle) -> None:
    """Its exit comes before it is known to run."""
    fakes.runtime.programs[("/pause",)] = Program(code=1)

    record = await run(fakes)

    assert (record.state, record.pid) == (SandboxState.NOTREADY, 0)
    assert record.exited_at


async def test_the_pod_is_made_in_named_steps_of_one_operation(fakes: Bundle) -> None:
    records: list[steps.StepRecord] = []
    stop = steps.subscribe(records.append)
    record = await run(fakes)
    stop()

    assert {(step.operation, step.sandbox_id, step.error) for step in records} == {("RunPodSandbox", record.id, "")}
    names = [step.name for step in records]
    assert (names[0], names[-1]) == ("pod.netns.create", "pod.run")
    assert set(names) == {
        "pod.run",
        "pod.netns.create",
        "pod.network.attach",
        "pod.files.mount",
        "pod.files.write",
        "pod.pause.rootfs",
        "pod.pause.record",
        "pod.pause.create",
        "pod.pause.start",
    }


# The order


async def test_there_is_a_record_before_there_is_anything_else(fakes: Bundle) -> None:
    running, record = await until(fakes, NETNS)

    assert record.state is SandboxState.CREATING
    assert record.netns_path == fakes.places.network_namespace(record.id)
    assert not fakes.left()
    await done(fakes, running)


async def test_the_network_and_the_pause_container_are_made_at_the_same_time(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = fakes.runtime.create

    async def releasing(*args: Any, **options: Any) -> int:
        fakes.points.release()  # the network, which waits for this
        return await create(*args, **options)

    monkeypatch.setattr(fakes.runtime, "create", releasing)
    fakes.points.hang(ATTACH)

    async with asyncio.timeout(60):  # one after the other, they would wait for ever
        assert (await run(fakes)).state is SandboxState.READY


async def test_the_pause_container_starts_only_after_both(fakes: Bundle) -> None:
    running, record = await until(fakes, START)

    (attachment,) = fakes.node.ledger.attachments
    assert attachment.state is AttachmentState.ADDED
    assert fakes.runtime.tasks[record.id].init.state is TaskState.CREATED
    hosts = Path(fakes.places.pod_files(record.id), "hosts")
    assert b"10.88.0.2" in hosts.read_bytes(), "its containers find the address from the beginning"
    assert fakes.node.ledger.sandboxes[record.id].state is SandboxState.CREATING
    await done(fakes, running)


async def test_it_is_not_ready_before_it_runs(fakes: Bundle) -> None:
    running, record = await until(fakes, START, after=True)

    assert fakes.runtime.tasks[record.id].init.state is TaskState.RUNNING
    assert fakes.node.ledger.sandboxes[record.id].state is SandboxState.CREATING
    await done(fakes, running)
    assert fakes.node.ledger.sandboxes[record.id].state is SandboxState.READY


@pytest.mark.parametrize(
    ("sysctl", "serial"),
    [
        ("net.ipv4.conf.eth0.forwarding", True),
        ("net.ipv6.conf.all.disable_ipv6", True),
        ("net.ipv4.ip_forward", True),
        ("net/ipv4/conf/all/rp_filter", True),
        ("net/ipv4/conf/eth0.100/forwarding", True),
        ("kernel.shmmax", False),
        ("kernel/domainname", False),
        ("fs.mqueue.msg_max", False),
    ],
)
async def test_sysctls_of_the_network_are_set_after_the_plugins_and_others_meanwhile(
    fakes: Bundle, sysctl: str, serial: bool
) -> None:
    fakes.points.fail(ATTACH, REFUSED)

    with pytest.raises(PluginFailed):
        await asked(fakes, with_sysctl(sysctl))

    assert bool(fakes.points.count("runtime.create")) is not serial
    assert nothing_left(fakes)


@pytest.mark.parametrize(
    ("plugins", "serial"),
    [
        ([{"type": "bridge"}], False),
        ([{"type": "bridge"}, {"type": "tuning", "sysctl": {"net.ipv4.ip_unprivileged_port_start": "1024"}}], True),
    ],
)
def test_a_plugin_that_sets_sysctls_sets_them_before_the_pod_does(
    plugins: list[dict[str, Any]], serial: bool
) -> None:
    network = NetworkConfig(name="pods", versions=("1.0.0",), plugins=tuple(plugins))

    assert network_comes_first(pod_config(), network) is serial


async def test_a_pod_whose_sysctl_names_the_interface_has_its_address(fakes: Bundle) -> None:
    record = await run(fakes, with_sysctl("net.ipv4.conf.eth0.forwarding"))

    assert record.ips == ("10.88.0.2",)


# Failure


async def test_when_the_network_fails_the_pause_container_is_waited_for_and_undone(fakes: Bundle) -> None:
    """Cut off, containerd would go on creating the task after it was looked for."""
    fakes.points.fail(ATTACH, REFUSED)
    running, _ = await until(fakes, CREATE)
    await turns()
    (attachment,) = fakes.node.ledger.attachments
    assert attachment.error == str(REFUSED)
    assert fakes.cni.undeleted, "nothing is undone before the other has ended"
    fakes.points.release()

    with pytest.raises(PluginFailed, match="no addresses left"):
        await running

    assert nothing_left(fakes)


async def test_when_the_pause_container_fails_the_network_is_waited_for_and_undone(fakes: Bundle) -> None:
    fakes.points.fail(CREATE, NotReady("OCI runtime create failed"))
    failed = asyncio.Event()
    stop = steps.subscribe(lambda step: failed.set() if step.error else None)
    running, record = await until(fakes, ATTACH, after=True)
    await failed.wait()
    stop()
    await turns()
    assert fakes.cni.undeleted, "nothing is undone before the other has ended"
    assert record.id in fakes.node.ledger.sandboxes
    fakes.points.release()

    with pytest.raises(NotReady, match="OCI runtime create failed"):
        await running

    assert nothing_left(fakes)


async def test_when_both_fail_the_networks_error_is_the_answer(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> int:
        raise NotReady("OCI runtime create failed")

    monkeypatch.setattr(fakes.runtime, "create", refuse)
    fakes.points.fail(ATTACH, REFUSED)

    with pytest.raises(PluginFailed) as caught:
        await asked(fakes)

    assert caught.value is REFUSED
    assert nothing_left(fakes)


async def test_after_a_failed_run_the_same_request_makes_the_pod(fakes: Bundle) -> None:
    fakes.points.fail(START, NotReady("OCI runtime start failed"))
    with pytest.raises(NotReady):
        await asked(fakes)

    assert (await run(fakes)).state is SandboxState.READY


async def test_what_cannot_be_undone_keeps_the_record_with_both_reasons(fakes: Bundle) -> None:
    error = NotReady("OCI runtime start failed")
    fakes.points.fail(START, error)

    async def stuck(path: str) -> None:
        raise CleanupIncomplete("the namespace is busy")

    fakes.netns.remove, remove = stuck, fakes.netns.remove  # type: ignore[method-assign]
    with pytest.raises(NotReady) as caught:
        await asked(fakes)

    (record,) = fakes.node.ledger.sandboxes.values()
    assert record.state is SandboxState.NOTREADY
    assert record.failure == "OCI runtime start failed; cleaning up: the namespace is busy"
    assert caught.value is error
    assert caught.value.__notes__ == ["cleaning up: the namespace is busy"]
    with pytest.raises(AlreadyExists, match=r"is notready \(OCI runtime start failed; .*\); remove it first$"):
        await asked(fakes)

    fakes.netns.remove = remove  # type: ignore[method-assign]
    await remove_sandbox(fakes.node, record.id)
    assert nothing_left(fakes)
    assert (await run(fakes)).state is SandboxState.READY


# What the pod's processes run as


async def test_a_pods_user_namespace_owns_its_network_namespace(
    fakes: Bundle, with_abilities: dict[str, tuple[int, int]]
) -> None:
    record = await run(fakes, with_user_namespace())

    assert set(fakes.netns.pinned) == {record.netns_path, fakes.places.user_namespace(record.id)}
    assert not fakes.points.count("netns.create"), "both are made at once"
    assert with_abilities[f"{fakes.places.pod_files(record.id)}/hosts"] == (100_000, 200_000)
    assert not os.path.exists(fakes.places.stage(record.id)), "what was staged is only for the creation"


async def test_a_pod_in_the_hosts_network_can_have_a_user_namespace(
    fakes: Bundle, with_abilities: dict[str, tuple[int, int]]
) -> None:
    config = with_user_namespace()
    config.linux.security_context.namespace_options.network = cri.NODE

    record = await run(fakes, config)

    assert set(fakes.netns.pinned) == {fakes.places.user_namespace(record.id)}

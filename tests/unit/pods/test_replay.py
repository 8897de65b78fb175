"""A replay is nobody's: it touches no pod, everything of it is undone, and what cannot be is a debt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.errors import InvalidRequest, NotReady
from sandboxd.model import AttachmentState
from sandboxd.node import Node
from sandboxd.pods import debts, recover, replay
from sandboxd.steps import PluginExecution, StepRecord
from tests.fakes.bundle import Bundle
from tests.fakes.points import Point
from tests.unit.pods.conftest import RunPod

POD = "a" * 64
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.2/16"}]}


def ran(command: str, type_: str, previous: object = None, *, at: int = 1, pod: str = POD, **conf: Any) -> StepRecord:
    document = {"cniVersion": "1.0.0", "name": "pods", "type": type_, **conf}
    if previous:
        document["prevResult"] = previous
    env = {"CNI_COMMAND": command, "CNI_CONTAINERID": pod, "CNI_NETNS": "/run/netns/pod", "CNI_IFNAME": "eth0"}
    execution = PluginExecution(
        command=command,
        binary=f"/opt/cni/bin/{type_}",
        env=env,
        stdin=json.dumps(document).encode(),
        stdout=b"",
        stderr=b"",
        exit_code=0,
        duration=1,
    )
    return StepRecord(
        operation="RunPodSandbox",
        name=f"cni.{command.lower()}",
        sandbox_id=pod,
        container_id="",
        started_at=at,
        duration=1,
        error="",
        plugin=execution,
    )


PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
CHAIN = [ran("ADD", "bridge", at=1), ran("ADD", "portmap", RESULT, at=2, runtimeConfig=PORTS)]
DELETED = [ran("DEL", "portmap", RESULT, at=3, runtimeConfig=PORTS), ran("DEL", "bridge", RESULT, at=4)]


@pytest.fixture
def node(fakes: Bundle) -> Node:
    fakes.cni.plugins["portmap"] = fakes.cni.plugins["bridge"]
    return fakes.node


def calls(steps: Sequence[StepRecord]) -> list[str]:
    return [f"{step.plugin.command} {step.detail['plugin']}" for step in steps if step.plugin]


def given(step: StepRecord | None) -> dict[str, Any]:
    assert step is not None and step.plugin is not None
    return dict(json.loads(step.plugin.stdin))


async def test_an_add_is_run_after_those_before_it_and_undone(fakes: Bundle, node: Node) -> None:
    outcome = await replay.replay(node, CHAIN, CHAIN[1], "default/web")

    assert calls(outcome.before) == ["ADD bridge"] and outcome.error == ""
    conf = given(outcome.replayed)
    assert conf["prevResult"]["ips"] == [{"address": "10.88.0.3/16"}], "the result of now"
    port = conf["runtimeConfig"]["portMappings"][0]["hostPort"]
    assert port != 8080 and f"host port 8080 is {port}, so that none of a pod's is touched" in outcome.changed
    assert outcome.netns_path == fakes.places.network_namespace(outcome.scratch_id)
    assert not fakes.left() and not fakes.records() and not outcome.left and not outcome.kept


async def test_how_the_plugin_fails_is_the_answer(fakes: Bundle, node: Node) -> None:
    fakes.cni.refusing = {"ADD": {"portmap"}}
    outcome = await replay.replay(node, CHAIN, CHAIN[1], "default/web")
    assert outcome.replayed is not None and "no luck again" in outcome.replayed.error
    assert not fakes.left() and not fakes.records()


async def test_a_plugin_before_it_that_fails_is_why_it_is_not_reached(fakes: Bundle, node: Node) -> None:
    fakes.cni.refusing = {"ADD": {"bridge"}}
    outcome = await replay.replay(node, CHAIN, CHAIN[1], "default/web")
    assert outcome.replayed is None and outcome.error.startswith("ADD bridge, which comes before it, failed: ")
    assert calls(outcome.before) == ["ADD bridge"] and not fakes.left() and not fakes.records()


async def test_a_del_is_run_after_what_it_undoes_also_when_its_add_fails_again(fakes: Bundle, node: Node) -> None:
    source = [*CHAIN, *DELETED]
    outcome = await replay.replay(node, source, DELETED[1], "default/web")
    assert calls(outcome.before) == ["ADD bridge", "ADD portmap", "DEL portmap"]
    assert given(outcome.replayed)["prevResult"]["ips"] == [{"address": "10.88.0.3/16"}]
    fakes.cni.refusing = {"ADD": {"bridge"}}
    outcome = await replay.replay(node, source, DELETED[0], "default/web")
    assert calls(outcome.before) == ["ADD bridge"] and calls([outcome.replayed or CHAIN[0]]) == ["DEL portmap"]
    assert not fakes.left() and not fakes.records()


async def test_a_check_is_run_on_what_was_added_or_in_place(fakes: Bundle, node: Node, run_pod: RunPod) -> None:
    pod_id = await run_pod()
    (attached,) = node.ledger.attachments
    check = ran("CHECK", "bridge", RESULT, pod=pod_id)
    assert check.plugin is not None
    env = {**check.plugin.env, "CNI_NETNS": attached.netns_path}
    check = replace(check, plugin=replace(check.plugin, env=env))
    before = fakes.left()

    outcome = await replay.replay(node, [check], check, "default/web")
    assert calls(outcome.before) == ["ADD bridge"] and calls([outcome.replayed or check]) == ["CHECK bridge"]
    outcome = await replay.replay(node, [check], check, "default/web", in_place=True)
    assert outcome.replayed is not None and outcome.replayed.plugin == check.plugin and not outcome.scratch_id
    assert fakes.left() == before
    node.ledger.put_attachment(replace(attached, state=AttachmentState.DELETING))
    with pytest.raises(NotReady, match="not attached any more"):
        await replay.replay(node, [check], check, "default/web", in_place=True)


@pytest.mark.parametrize("command", ["STATUS", "VERSION"])
async def test_what_needs_no_namespace_is_run_as_it_was(fakes: Bundle, node: Node, command: str) -> None:
    asked = ran(command, "bridge")
    outcome = await replay.replay(node, [asked], asked, "default/web")
    assert outcome.replayed is not None and outcome.replayed.plugin == asked.plugin
    assert not outcome.scratch_id and not fakes.netns.pinned


async def test_what_could_harm_a_pod_is_refused(fakes: Bundle, node: Node, run_pod: RunPod) -> None:
    for target in (CHAIN[0], DELETED[0]):
        with pytest.raises(InvalidRequest, match="not run in place"):
            await replay.replay(node, [*CHAIN, *DELETED], target, "default/web", in_place=True)
    collected = ran("GC", "bridge")
    with pytest.raises(InvalidRequest, match="GC is not replayed"):
        await replay.replay(node, [collected], collected, "default/web")
    with pytest.raises(InvalidRequest, match="did not run a plugin"):
        await replay.replay(node, CHAIN, replace(CHAIN[0], plugin=None), "default/web")
    await run_pod()
    fixed = ran("ADD", "bridge", ipam={"type": "static", "addresses": [{"address": "10.88.0.2/16"}]})
    with pytest.raises(NotReady, match=r"10\.88\.0\.2, which pod default/web has"):
        await replay.replay(node, [fixed], fixed, "default/other")
    assert len(fakes.netns.pinned) == 1


async def test_addresses_and_cgroups_of_pods_are_left_out(node: Node, run_pod: RunPod) -> None:
    await run_pod()
    asked = {"ips": ["10.88.0.2/16"], "cgroupPath": "/pods/web", "mac": "02:00:00:00:00:07"}
    target = ran("ADD", "bridge", runtimeConfig=asked)
    outcome = await replay.replay(node, [target], target, "default/other")
    assert given(outcome.replayed)["runtimeConfig"] == {"mac": "02:00:00:00:00:07"}, "which nobody has"
    assert "ips is left out: pod default/web has 10.88.0.2" in outcome.changed
    assert "cgroupPath is left out: nothing runs in the namespace" in outcome.changed


async def test_a_del_that_fails_is_a_debt_which_is_paid_as_any(fakes: Bundle, node: Node) -> None:
    fakes.points.fail_always("cni.delete", NotReady("the plugin is busy"))
    outcome = await replay.replay(node, CHAIN, CHAIN[0], "default/web")
    assert "the plugin is busy" in outcome.left
    (debt,) = debts.listed(node)
    assert (debt.attachment.sandbox_id, debt.attachment.pod) == (outcome.scratch_id, "replay of default/web")
    fakes.points.reset()
    await debts.retry(node, outcome.scratch_id)
    assert not fakes.left() and not fakes.records()


async def test_while_it_runs_it_is_no_debt_and_the_comparison_leaves_it_alone(fakes: Bundle, node: Node) -> None:
    fakes.points.hang(Point("cni.repeat", 0))
    running = asyncio.ensure_future(replay.replay(node, CHAIN, CHAIN[1], "default/web"))
    await fakes.points.hangs.wait()
    assert not debts.listed(node) and len(node.ledger.attachments) == 1
    await recover.compare(node)
    running.cancel()
    fakes.points.release()
    await fakes.settled()
    assert not fakes.left() and not fakes.records(), "it is undone, though its client has left"


async def test_what_a_killed_daemon_left_of_it_is_deleted_by_the_comparison(fakes: Bundle, node: Node) -> None:
    outcome = await replay.replay(node, CHAIN, CHAIN[1], "default/web", keep=True)
    (kept,) = node.ledger.attachments
    node.ledger.put_attachment(replace(kept, kept=False))  # as it is until the end
    await recover.recover(node)
    await fakes.repaired()
    assert not fakes.left() and not fakes.records() and outcome.kept


async def test_what_is_kept_is_deleted_when_that_is_asked_for_and_not_before(fakes: Bundle, node: Node) -> None:
    outcome = await replay.replay(node, CHAIN, CHAIN[1], "default/web", keep=True)
    await recover.compare(node)
    await fakes.repaired()
    assert list(fakes.netns.pinned) == [outcome.netns_path] and not outcome.after
    (debt,) = debts.listed(node)
    assert debt.attachment.kept
    await debts.retry(node, outcome.scratch_id)
    assert not fakes.left() and not fakes.records()

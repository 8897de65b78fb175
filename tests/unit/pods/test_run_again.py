"""A repeated request makes nothing, a name has one pod, and what cannot be is refused before anything is made."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd.errors import AlreadyExists, InvalidRequest, NotReady, SandboxdError, Unavailable, Unsupported
from sandboxd.model import SandboxState
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import recover
from tests.fakes.bundle import Bundle, pod_config
from tests.fakes.points import Point
from tests.unit.pods.requests import asked, done, nothing_left, run, until, with_user_namespace

NETNS = Point("netns.create", 0)


def with_another_label() -> cri.PodSandboxConfig:
    config = pod_config()
    config.labels["another"] = "label"
    return config


def another(differing: str) -> tuple[cri.PodSandboxConfig, str]:
    """A request for the same name that is not the same request."""
    return (with_another_label(), "") if differing == "configuration" else (pod_config(), "other")


def with_two_handlers(fakes: Bundle) -> None:
    (handler,) = fakes.config.runtime.handlers.values()
    runtime = replace(fakes.config.runtime, handlers={"runc": handler, "other": handler})
    fakes.node = replace(fakes.node, config=replace(fakes.config, runtime=runtime))


async def test_the_same_request_again_returns_the_same_pod(fakes: Bundle) -> None:
    record = await run(fakes)
    left, points = fakes.left(), list(fakes.points.passed)

    assert await run(fakes) == record

    assert fakes.left() == left
    assert fakes.points.passed == points, "nothing was asked for again"


async def test_the_same_request_meanwhile_joins_the_one_in_flight(fakes: Bundle) -> None:
    running, record = await until(fakes, NETNS)
    again = asked(fakes)
    await done(fakes, running)

    assert await again == record.id
    assert len(fakes.node.ledger.sandboxes) == 1


@pytest.mark.parametrize("differing", ["configuration", "handler"])
async def test_a_name_that_another_pod_has_is_refused(fakes: Bundle, differing: str) -> None:
    with_two_handlers(fakes)
    record = await run(fakes)
    left = fakes.left()

    words = f"^pod {record.name} exists with another configuration, as {record.id}$"
    with pytest.raises(AlreadyExists, match=words):
        await asked(fakes, *another(differing))

    assert fakes.left() == left


@pytest.mark.parametrize("differing", ["configuration", "handler"])
async def test_the_name_of_a_pod_in_creation_is_taken(fakes: Bundle, differing: str) -> None:
    with_two_handlers(fakes)
    running, record = await until(fakes, NETNS)

    async with asyncio.timeout(60):  # it would wait for ever, were it taken for the same request
        with pytest.raises(AlreadyExists, match=f"^pod {record.name} exists as {record.id} and is creating; remove"):
            await asked(fakes, *another(differing))

    await done(fakes, running)


async def test_of_two_pods_that_want_a_name_at_once_one_gets_it(fakes: Bundle) -> None:
    outcomes = await asyncio.gather(asked(fakes), asked(fakes, with_another_label()), return_exceptions=True)
    await fakes.settled()

    refused = [outcome for outcome in outcomes if isinstance(outcome, AlreadyExists)]
    assert len(refused) == 1
    (record,) = fakes.node.ledger.sandboxes.values()
    assert record.id in outcomes and record.state is SandboxState.READY
    assert set(fakes.runtime.tasks) == {record.id} and len(fakes.netns.pinned) == 1


async def test_the_same_request_does_not_revive_a_pod_that_has_ended(fakes: Bundle) -> None:
    record = await run(fakes)
    fakes.node.ledger.update_sandbox(record.id, exited_at=5)

    with pytest.raises(AlreadyExists, match=f"^pod {record.name} exists as {record.id} and is notready; remove it"):
        await asked(fakes)


async def test_another_attempt_is_another_pod(fakes: Bundle) -> None:
    first = await run(fakes)
    config = pod_config()
    config.metadata.attempt = 1

    assert (await run(fakes, config)).id != first.id


# What is refused before anything is made


def no_name(fakes: Bundle) -> tuple[cri.PodSandboxConfig, str]:
    config = pod_config()
    config.metadata.name = ""
    return config, ""


def no_such_handler(fakes: Bundle) -> tuple[cri.PodSandboxConfig, str]:
    return pod_config(), "kata"


def no_network(fakes: Bundle) -> tuple[cri.PodSandboxConfig, str]:
    Path(fakes.config.network.conf_dir, "10-pods.conflist").unlink()
    return pod_config(), ""


def no_plugin(fakes: Bundle) -> tuple[cri.PodSandboxConfig, str]:
    fakes.cni.plugins.clear()
    return pod_config(), ""


def no_pause_image(fakes: Bundle) -> tuple[cri.PodSandboxConfig, str]:
    fakes.points.fail(Point("images.pause", 0), Unavailable("the pause image cannot be pulled"))
    return pod_config(), ""


def no_user_namespaces(fakes: Bundle) -> tuple[cri.PodSandboxConfig, str]:
    return with_user_namespace(), ""


@pytest.mark.parametrize(
    ("lacking", "error", "words"),
    [
        (no_name, InvalidRequest, r"metadata\.name"),
        (no_such_handler, InvalidRequest, "unknown runtime handler 'kata'; known: runc"),
        (no_network, NotReady, "no usable network configuration"),
        (no_plugin, NotReady, 'CNI plugin "bridge" was not found'),
        (no_pause_image, Unavailable, "the pause image cannot be pulled"),
        (no_user_namespaces, Unsupported, r"userns_options: user namespaces do not work here: .* cannot be asked"),
    ],
)
async def test_what_cannot_be_is_refused_before_there_is_a_record(
    fakes: Bundle, lacking: Any, error: type[SandboxdError], words: str
) -> None:
    config, handler = lacking(fakes)
    seen: list[object] = []
    fakes.node.ledger.subscribe(lambda before, after: seen.append(after))

    with pytest.raises(error, match=words):
        await asked(fakes, config, handler)

    assert not seen and nothing_left(fakes)


# While containerd is away


async def test_while_containerd_is_known_to_be_away_a_new_pod_is_refused_before_there_is_a_record(
    fakes: Bundle,
) -> None:
    there = await run(fakes)
    fakes.runtime.away = "containerd at x does not answer"
    left = fakes.left()

    with pytest.raises(Unavailable, match="containerd at x does not answer; repeat the request once it does"):
        await asked(fakes, pod_config("another"))

    assert fakes.left() == left and set(fakes.node.ledger.sandboxes) == {there.id}
    assert await run(fakes) == there, "what is there is there"


async def test_a_pod_that_an_outage_cut_off_gives_its_name_back_when_containerd_is(fakes: Bundle) -> None:
    """Its creation could not be undone then, and is when it is asked for again, or by the comparison."""
    for name in ("asked", "compared"):
        fakes.points.fail_always("runtime.create", Unavailable("containerd does not answer"))
        fakes.points.fail_always("runtime.kill", Unavailable("containerd does not answer"))
        with pytest.raises(Unavailable, match="containerd does not answer"):
            await asked(fakes, pod_config(name))
        await fakes.repaired()
        (left,) = (record for record in fakes.node.ledger.sandboxes.values() if not record.started_at)
        fakes.runtime.away = "known by now"
        with pytest.raises(Unavailable, match="known by now"):
            await asked(fakes, pod_config(name))
        fakes.runtime.away = ""
        fakes.points.reset()  # it is back
        if name == "compared":
            await recover.compare(fakes.node)
            await fakes.repaired()
            assert left.id not in fakes.node.ledger.sandboxes
        record = fakes.node.ledger.sandboxes[await asked(fakes, pod_config(name))]
        assert record.state is SandboxState.READY and record.id != left.id

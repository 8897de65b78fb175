"""A DEL that may have missed the rules for masquerading is followed by their removal, and no other DEL is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.errors import CleanupIncomplete, NotReady, PluginFailed
from sandboxd.machine import rules
from sandboxd.model import AttachmentState, SandboxRecord
from sandboxd.operations import Held, hold
from sandboxd.pods import masquerading, network
from tests.fakes.bundle import Bundle, pod_config
from tests.fakes.points import Point

POD = "d" * 64
REFUSED = PluginFailed(plugin="bridge", command="DEL", code=11, msg="the IPAM plugin failed")
BRIDGE = {"type": "bridge", "ipMasq": True}
GIVEN = "10.88.0.2/16"  # by the plugins of the fake

Removals = list[tuple[str, str]]


@pytest.fixture
def removals(monkeypatch: pytest.MonkeyPatch) -> Removals:
    """Each network and pod whose rules were removed."""
    made: Removals = []

    async def remove(network: str, pod_id: str) -> int:
        made.append((network, pod_id))
        return 3

    monkeypatch.setattr(rules, "remove", remove)
    return made


@pytest.fixture
async def held(fakes: Bundle, removals: Removals) -> AsyncIterator[Held]:
    """The lock on a pod whose namespace is there, and whose network masquerades."""
    configure(fakes, BRIDGE)
    path = fakes.places.network_namespace(POD)
    await fakes.netns.create(path)
    fakes.node.ledger.add_sandbox(
        SandboxRecord(id=POD, config=pod_config(), runtime_handler="", netns_path=path, created_at=1)
    )
    async with hold(fakes.node, POD) as made:
        yield made


def configure(fakes: Bundle, *plugins: object) -> None:
    document = {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}
    Path(fakes.config.network.conf_dir, "10-pods.conflist").write_text(json.dumps(document))


async def attach(fakes: Bundle, held: Held, *addresses: str) -> None:
    """Add the pod; its interface then has these addresses, or what was given."""
    await network.attach(held, held.sandbox(), await network.choose(held.node))
    fakes.netns.addresses[held.sandbox().netns_path] = {"eth0": (*(addresses or (GIVEN,)), "fe80::1/64")}


async def test_a_first_del_that_finds_interface_and_addresses_removes_the_rules_itself(
    fakes: Bundle, held: Held, removals: Removals
) -> None:
    await attach(fakes, held)

    await network.detach(held)

    assert not fakes.node.ledger.attachments
    assert removals == []


async def test_a_del_after_one_that_failed_may_have_missed_them(
    fakes: Bundle, held: Held, removals: Removals
) -> None:
    await attach(fakes, held)
    fakes.points.fail(Point("cni.delete", 0), REFUSED)
    await network.detach(held)
    assert removals == [], "they may be somebody's: the DEL has not succeeded"

    await network.detach(held)

    assert not fakes.node.ledger.attachments
    assert removals == [("pods", POD)]


async def test_a_del_after_one_that_a_dead_daemon_began_may_have_missed_them(
    fakes: Bundle, held: Held, removals: Removals
) -> None:
    await attach(fakes, held)
    (added,) = fakes.node.ledger.attachments
    fakes.node.ledger.put_attachment(replace(added, state=AttachmentState.DELETING))

    await network.detach(held)

    assert removals == [("pods", POD)]


@pytest.mark.parametrize("what", ["the address", "one address of two", "the interface", "the namespace"])
async def test_a_del_that_cannot_find_what_somebody_took_away_may_have_missed_them(
    fakes: Bundle, held: Held, removals: Removals, what: str
) -> None:
    await attach(fakes, held)
    match what:
        case "the address":
            fakes.netns.addresses[held.sandbox().netns_path] = {"eth0": ()}
        case "one address of two":
            fakes.netns.addresses[held.sandbox().netns_path] = {"eth0": ("10.88.0.3/16",)}
        case "the interface":
            fakes.netns.addresses.clear()
        case "the namespace":
            await fakes.netns.remove(held.sandbox().netns_path)

    await network.detach(held)

    assert removals == [("pods", POD)]


async def test_of_an_add_that_failed_the_interface_tells(fakes: Bundle, held: Held, removals: Removals) -> None:
    for seen, expected in ((("10.88.0.9/16",), []), ((), [("pods", POD)])):
        fakes.points.fail(Point("cni.add", len(expected)), NotReady("the plugin crashed"))
        with pytest.raises(NotReady):
            await attach(fakes, held)
        fakes.netns.addresses[held.sandbox().netns_path] = {"eth0": seen}

        await network.detach(held)

        assert removals == expected


async def test_no_rule_outlives_a_boot(fakes: Bundle, held: Held) -> None:
    await attach(fakes, held)
    (added,) = fakes.node.ledger.attachments
    fakes.netns.addresses.clear()
    now = replace(fakes.node, machine=replace(fakes.node.machine, boot="second"))

    assert not await masquerading.is_doubtful(now, replace(added, boot="first"))
    assert await masquerading.is_doubtful(now, replace(added, boot="second"))


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        (BRIDGE, True),
        ({"type": "bridge", "ipmasq": True}, True),
        ({"type": "bridge", "delegate": {"ipMasq": True}}, True),
        ({"type": "bridge"}, False),
        ({"type": "bridge", "ipMasq": False}, False),
        ({"type": "bridge", "delegate": "ipMasq"}, False),
    ],
)
async def test_only_where_a_plugin_makes_such_rules_is_iptables_asked(
    fakes: Bundle, held: Held, removals: Removals, plugin: object, expected: bool
) -> None:
    configure(fakes, plugin)
    await attach(fakes, held)
    fakes.netns.addresses.clear()

    await network.detach(held)

    assert bool(removals) is expected


async def test_those_of_a_plugin_that_was_uninstalled_are_removed(
    fakes: Bundle, held: Held, removals: Removals
) -> None:
    configure(fakes, {"type": "dataplane", "ipMasq": True})
    fakes.cni.plugins["dataplane"] = fakes.cni.plugins["bridge"]
    await attach(fakes, held)
    del fakes.cni.plugins["dataplane"]
    configure(fakes, BRIDGE)

    await network.detach(held)

    assert not fakes.node.ledger.attachments
    assert removals == [("pods", POD)]


async def test_rules_that_cannot_be_removed_are_a_debt(
    fakes: Bundle, held: Held, removals: Removals, monkeypatch: pytest.MonkeyPatch
) -> None:
    await attach(fakes, held)
    fakes.netns.addresses.clear()

    async def refuse(network: str, pod_id: str) -> int:
        raise CleanupIncomplete("iptables-restore: the table is locked")

    with monkeypatch.context() as patch:
        patch.setattr(rules, "remove", refuse)
        (debt,) = await network.detach(held)
    assert (debt.state, debt.error) == (AttachmentState.OWED, "iptables-restore: the table is locked")

    await network.detach(held)

    assert not fakes.node.ledger.attachments
    assert removals == [("pods", POD)]

"""What is looked at, and what it is read as: names, marks, owners."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from sandboxd.images.store import ImageStore
from sandboxd.insight.residue import Kind, Thing
from sandboxd.insight.sightings import look
from sandboxd.machine import programs
from sandboxd.pods import holders
from tests.fakes.bundle import Bundle
from tests.unit.insight.test_audit import Store

ID, OTHER = "ab" * 32, "cd" * 32
RULES = f"""*nat
:CNI-DN-1 - [0:0]
-A POSTROUTING -s 10.0.10.3/32 -m comment --comment "name: \\"pods\\" id: \\"{ID}\\"" -j CNI-1
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat id: \\"{ID}\\"" -m multiport --dports 80,443 -j Y
-A CNI-HOSTPORT-DNAT -p udp -m comment --comment "dnat name: \\"pods\\" id: \\"{ID}\\"" -m multiport --dports 53 -j X
-A POSTROUTING -m comment --comment "kube: id: \\"short\\"" -j X
COMMIT
"""


async def seen(fakes: Bundle, *, thorough: bool = False) -> list[Thing]:
    sight = await look(
        fakes.node, cast(ImageStore, Store(fakes)), str(fakes.directory / "bundles"), thorough=thorough
    )
    return list(sight.things)


async def test_each_directory_says_whose_an_entry_is_and_other_names_are_strangers(fakes: Bundle) -> None:
    places = fakes.places
    for path in (places.sandbox(ID), places.pod_files(ID), places.image_mounts(ID)):
        os.mkdir(path)
    for path in (places.container(OTHER), places.volumes(OTHER), places.checkpoint(OTHER), places.stage(OTHER)):
        os.mkdir(path)
    for top in (*places.of_pods, *places.of_containers, places.stages):
        os.mkdir(f"{top}/lost+found")
    things = {thing.name: (thing.kind, thing.id, thing.pod_id, thing.marked) for thing in await seen(fakes)}
    assert things == {
        **dict.fromkeys(
            (places.sandbox(ID), places.pod_files(ID), places.image_mounts(ID)), (Kind.DIRECTORY, ID, ID, True)
        ),
        **dict.fromkeys(
            (places.container(OTHER), places.volumes(OTHER), places.checkpoint(OTHER)),
            (Kind.DIRECTORY, OTHER, "", True),
        ),
        places.stage(OTHER): (Kind.DIRECTORY, OTHER[:16], "", True),
    }


async def test_what_others_can_have_too_is_not_marked(fakes: Bundle) -> None:
    netns = fakes.places.network_namespace(ID)
    Path(netns).touch()
    Path(fakes.places.netns, "cni-1234").touch()
    (fakes.directory / "bundles" / OTHER).mkdir(parents=True)
    (fakes.directory / "bundles" / "theirs").mkdir()
    (fakes.directory / "cgroup" / "memory" / "sandboxd-unit-tests" / ID).mkdir(parents=True)
    (fakes.directory / "cgroup" / "pids" / "sandboxd-unit-tests" / f"sandboxd-{OTHER}.scope").mkdir(parents=True)
    things = {(thing.kind, thing.name): (thing.id, thing.marked) for thing in await seen(fakes)}
    assert things == {
        (Kind.NAMESPACE, netns): (ID, False),
        (Kind.BUNDLE, str(fakes.directory / "bundles" / OTHER)): (OTHER, False),
        (Kind.CGROUP, f"/sandboxd-unit-tests/{ID}"): (ID, False),
        (Kind.CGROUP, f"/sandboxd-unit-tests/sandboxd-{OTHER}.scope"): (OTHER, False),
    }


async def test_addresses_are_looked_for_in_the_networks_in_force_and_in_those_of_pods(fakes: Bundle) -> None:
    node, data = fakes.node, fakes.directory / "data"
    (conf,) = Path(fakes.config.network.conf_dir).iterdir()
    plugin = f'{{"type": "bridge", "ipam": {{"type": "host-local", "dataDir": "{data}"}}}}'
    conf.write_text(f'{{"cniVersion": "1.0.0", "name": "pods", "plugins": [{plugin}]}}')
    (data / "pods").mkdir(parents=True)
    (data / "pods" / "10.0.0.2").write_text(f"{ID}\r\neth0")
    (data / "pods" / "10.0.0.3").write_text("a person\r\neth0")
    (data / "pods" / "lock").touch()
    (data / "pods" / "10.0.0.4").touch()
    assert holders.directories(node) == [str(data / "pods")]
    assert await seen(fakes) == [
        Thing(kind=Kind.ADDRESS, name=str(data / "pods" / "10.0.0.2"), id=ID, pod_id=ID),
        Thing(kind=Kind.RESERVATION, name=str(data / "pods" / "10.0.0.4"), marked=True),
    ]

    pod_id = await fakes.ready_pod()
    conf.write_text('{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}')
    os.utime(conf, (1, 1))
    assert holders.directories(node) == [str(data / "pods")]
    assert pod_id


async def test_rules_name_their_pod_and_the_ports_that_they_forward(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(argv: tuple[str, ...], seconds: float, *, most: int) -> tuple[int, bytes, bytes]:
        assert argv[1:] == ("-t", "nat") and seconds > 0
        if argv[0] == "ip6tables-save":
            return 1, f'-A X --comment "id: \\"{OTHER}\\""'.encode(), b"no IPv6 here"
        return 0, RULES.encode(), b""

    monkeypatch.setattr(programs, "ask", ask)
    assert await seen(fakes) == [], "only who looks thoroughly asks"
    found = await seen(fakes, thorough=True)
    assert [(thing.kind, thing.name, thing.id, thing.ports) for thing in found] == [
        (Kind.RULE, f"iptables nat POSTROUTING {ID}", ID, ()),
        (Kind.RULE, f"iptables nat CNI-HOSTPORT-DNAT {ID}", ID, (("tcp", 80), ("tcp", 443), ("udp", 53))),
    ]


async def test_records_of_others_are_strangers_and_their_snapshots_too(fakes: Bundle) -> None:
    pod_id = await fakes.ready_pod()
    fakes.runtime.containers[pod_id].labels = {}  # as of a runtime that marks nothing
    sight = await look(fakes.node, cast(ImageStore, Store(fakes)), "/nowhere", thorough=False)
    assert sight.strangers == {pod_id}
    fakes.runtime.containers[pod_id].labels = {"sandboxd.io/kind": "sandbox", "sandboxd.io/owner": "another"}
    sight = await look(fakes.node, cast(ImageStore, Store(fakes)), "/nowhere", thorough=False)
    assert sight.strangers == {pod_id}
    fakes.runtime.containers[pod_id].labels = {"sandboxd.io/kind": "sandbox", "sandboxd.io/sandbox": pod_id}
    sight = await look(fakes.node, cast(ImageStore, Store(fakes)), "/nowhere", thorough=False)
    assert sight.strangers == frozenset()
    (record,) = [thing for thing in sight.things if thing.kind is Kind.CONTAINER]
    assert (record.marked, record.pod_id) == (False, pod_id), "an earlier version's, or another's"

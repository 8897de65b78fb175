"""A pause container that was prepared ends up below the cgroup that its client names."""

from __future__ import annotations

import json
from pathlib import Path

from sandboxd.pods import placing, recover
from tests.fakes.bundle import Bundle, pod_config
from tests.unit.pods.pooled import filled
from tests.unit.pods.requests import run


async def test_a_pause_container_is_moved_below_the_cgroup_that_is_asked_for(fakes: Bundle) -> None:
    (before,) = await filled(fakes)
    own = Path(fakes.node.machine.cgroups.root, "cpu", fakes.places.own_cgroup(before.id).lstrip("/"), before.id)
    own.mkdir(parents=True)
    (own / "cgroup.procs").write_text(f"{before.pid}\n")
    config = pod_config()
    config.linux.cgroup_parent = "/kube/pod1"

    record = await run(fakes, config)

    assert placing.misplaced(fakes.node) == [record.id]  # a plain file keeps it in both
    there = Path(fakes.node.machine.cgroups.root, "cpu/kube/pod1", record.id)
    assert (there / "cgroup.procs").read_text() == f"{record.pid}\n"
    (there / "cgroup.procs").unlink()
    await recover.recover(fakes.node)
    await fakes.repaired()
    assert (there / "cgroup.procs").read_text() == f"{record.pid}\n"


async def test_one_that_is_below_it_already_stays(fakes: Bundle) -> None:
    (before,) = await filled(fakes)
    config = pod_config()
    config.linux.cgroup_parent = fakes.places.cgroup_parent

    record = await run(fakes, config)

    spec = json.loads(fakes.runtime.containers[record.id].spec)
    assert spec["linux"]["cgroupsPath"] == f"{fakes.places.own_cgroup(record.id)}/{record.id}"
    assert placing.misplaced(fakes.node) == []
    assert record.id == before.id


async def test_where_its_cgroup_cannot_be_made_the_pod_is_made_in_the_ordinary_way(fakes: Bundle) -> None:
    (before,) = await filled(fakes)
    hierarchy = Path(fakes.node.machine.cgroups.root, "cpu")
    (hierarchy / fakes.places.own_cgroup(before.id).lstrip("/") / before.id).mkdir(parents=True)
    (hierarchy / "kube").write_text("not a cgroup")
    config = pod_config()
    config.linux.cgroup_parent = "/kube/pod1"

    record = await run(fakes, config)

    assert record.id != before.id
    assert set(fakes.node.ledger.sandboxes) == {record.id}

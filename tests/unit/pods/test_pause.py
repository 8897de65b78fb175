"""The pause container is made from its image, and sees and labels files as its pod's containers do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from sandboxd.errors import InvalidRequest, NotReady
from sandboxd.machine import facts
from sandboxd.oci.linux import SelinuxContexts
from sandboxd.pods import pause
from tests.fakes.bundle import PAUSE, Bundle
from tests.unit.pods.requests import nothing_left, run, with_user_namespace


async def test_its_root_file_system_is_shown_with_the_pods_own_ids(
    fakes: Bundle, with_abilities: dict[str, tuple[int, int]]
) -> None:
    record = await run(fakes, with_user_namespace())

    (given,), (plain,) = fakes.runtime.tasks[record.id].rootfs, fakes.images.snapshots[record.id]
    assert given != plain
    assert any(fakes.places.stage(record.id) in option for option in (given.source, *given.options))


async def test_with_selinux_the_pods_files_get_the_label_of_its_containers(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: dict[str, str] = {}

    def relabel(path: str, label: str) -> Iterator[None]:
        labels[path] = label
        yield

    monkeypatch.setattr(facts, "relabel", relabel)
    contexts = SelinuxContexts(
        process="system_u:system_r:container_t:s0", file="system_u:object_r:container_file_t:s0"
    )
    machine = replace(fakes.node.machine, facts=replace(fakes.node.machine.facts, selinux=contexts))
    fakes.node = replace(fakes.node, machine=machine)

    record = await run(fakes)

    spec = json.loads(fakes.runtime.containers[record.id].spec)
    assert set(labels.values()) == {spec["linux"]["mountLabel"]}
    assert {os.path.basename(path) for path in labels} == {"hosts", "hostname", "resolv.conf", "shm"}


async def test_without_selinux_nothing_is_labelled(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "relabel", lambda path, label: pytest.fail(f"{path} was labelled"))

    await run(fakes)


async def test_the_pause_container_is_made_from_its_image(fakes: Bundle) -> None:
    record = await run(fakes)

    assert fakes.images.snapshots[record.id]
    image = json.loads(fakes.runtime.containers[record.id].spec)["annotations"]
    assert PAUSE.name in image.values()


async def test_an_image_that_the_runtime_could_not_read_is_named_with_the_setting_that_chose_it(
    fakes: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InvalidRequest("etc/passwd is too long")

    monkeypatch.setattr(f"{pause.__name__}.runtime_reads.check", refuse)

    with pytest.raises(NotReady, match=r"too long; runtime\.pause_image names it"):
        await run(fakes)

    assert nothing_left(fakes)

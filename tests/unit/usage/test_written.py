"""Writable layers are measured in the background and remembered."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.containerd.snapshots import Usage
from sandboxd.errors import NotFound, Unavailable
from sandboxd.model import ContainerRecord
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.usage.written import Layers
from tests.fakes import images as fake
from tests.fakes.bundle import Bundle


class Images(fake.Images):
    """Answers with the number of the question as the size, or with an error that was put in."""

    def __init__(self, fakes: Bundle) -> None:
        super().__init__(fakes.points, fakes.directory)
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None

    async def rootfs_usage(self, key: str) -> Usage:
        self.asked.append(key)
        size = len(self.asked)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Usage(bytes=size, inodes=1)


def container(id_: str, **times: Any) -> ContainerRecord:
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name=id_))
    return ContainerRecord(
        id=id_, sandbox_id="s", config=config, sandbox_name="", image_ref="", image_id="", log_path="", **times
    )


@pytest.fixture
def images(fakes: Bundle) -> Images:
    return Images(fakes)


@pytest.fixture
def node(fakes: Bundle, images: Images) -> Node:
    return replace(fakes.node, images=images)


async def settled(node: Node) -> None:
    """Until no job is left, and a turn more: a job that ended is forgotten in the next."""
    await node.jobs.drain(5)
    await asyncio.sleep(0)


async def test_a_containers_first_figure_is_taken_when_it_starts(images: Images, node: Node) -> None:
    layers = Layers(node, first_seconds=0)
    node.ledger.add_container(container("c", created_at=1))
    assert images.asked == []
    node.ledger.update_container("c", started_at=2)
    async with asyncio.timeout(5):
        await asyncio.gather(*node.jobs.tasks())
    await settled(node)
    layer = layers.get("c")
    assert layer is not None and (layer.bytes, layer.inodes) == (1, 1)
    await settled(node)
    assert images.asked == ["c"], "it is fresh"


async def test_a_read_never_waits_and_has_a_stale_figure_measured_anew(images: Images, node: Node) -> None:
    layers = Layers(node, fresh_seconds=0)
    node.ledger.add_container(container("c", created_at=1))
    assert layers.get("c") is None
    await settled(node)
    first = layers.get("c")
    await settled(node)
    second = layers.get("c")
    assert first is not None and second is not None
    assert (first.bytes, second.bytes) == (1, 2)


async def test_one_layer_is_measured_at_a_time_and_asked_for_once(images: Images, node: Node) -> None:
    layers = Layers(node)
    images.gate = asyncio.Event()
    for id_ in ("a", "b"):
        node.ledger.add_container(container(id_, created_at=1))
    for _ in range(3):
        layers.get("a")
        layers.get("b")
    await asyncio.sleep(0)
    assert images.asked == ["a"]
    images.gate.set()
    await settled(node)
    assert images.asked[:2] == ["a", "b"]


async def test_a_failure_is_no_figure_and_the_next_question_tries_again(images: Images, node: Node) -> None:
    layers = Layers(node)
    node.ledger.add_container(container("c", created_at=1))
    for error in (Unavailable("containerd is away"), NotFound("no snapshot")):
        images.error = error
        assert layers.get("c") is None
        await settled(node)
    images.error = None
    assert layers.get("c") is None
    await settled(node)
    assert layers.get("c") is not None


async def test_a_removed_container_is_forgotten_also_when_it_was_just_being_measured(
    images: Images, node: Node
) -> None:
    layers = Layers(node)
    images.gate = asyncio.Event()
    node.ledger.add_container(container("c", created_at=1))
    layers.get("c")
    await asyncio.sleep(0)
    node.ledger.remove_container("c")
    images.gate.set()
    await settled(node)
    assert layers.get("c") is None

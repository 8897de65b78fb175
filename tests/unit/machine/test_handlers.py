"""What a handler offers is what its runtime says it knows, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd.config import Config, Handler, Runtime
from sandboxd.machine import handlers, programs, userns
from sandboxd.machine.handlers import Abilities
from sandboxd.node import Node
from sandboxd.remembered import Remembered
from tests.fakes.bundle import Bundle

ANSWER = '{"mountOptions": ["ro", "rro"], "linux": {"namespaces": ["mount", "user"]}}'


@pytest.fixture(autouse=True)
def capable_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    async def probe(node: Node) -> str:
        return ""

    monkeypatch.setattr(userns, "probe", probe)
    monkeypatch.setattr(handlers, "kernel_has_mount_setattr", lambda: True)
    monkeypatch.setattr(handlers, "kernel_maps_overlays", lambda release: True)


@pytest.fixture
def node(fakes: Bundle) -> Node:
    return fakes.node


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A runtime that counts how often it is asked."""
    return script(tmp_path / "runtime", f"echo asked >> {tmp_path}/asked; echo '{ANSWER}'")


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n[ $1 = features ] || exit 9\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (ANSWER.encode(), Abilities(mount_options=frozenset({"ro", "rro"}), namespaces=frozenset({"mount", "user"}))),
        (b"{}", Abilities()),
        (b'{"mountOptions": null, "linux": null}', Abilities()),
        (b'{"mountOptions": 3}', Abilities()),
        (b"[]", Abilities()),
        (b"", Abilities()),
        (b"\xff", Abilities()),
        (b"unknown command features", Abilities()),
    ],
)
def test_an_answer_that_is_none_means_that_nothing_is_known(output: bytes, expected: Abilities) -> None:
    assert handlers.parse(output) == expected


@pytest.mark.parametrize(
    ("release", "able"),
    [
        ("5.18.19", False),
        ("5.19.0-rc1", True),
        ("6.1.0-13-amd64", True),
        ("4.19", False),
        ("10.0", True),
        ("", False),
    ],
)
def test_overlays_of_mapped_layers_take_a_kernel(monkeypatch: pytest.MonkeyPatch, release: str, able: bool) -> None:
    monkeypatch.undo()
    assert handlers.kernel_maps_overlays(release) == able


async def test_a_runtime_is_asked_once_until_its_file_changes(node: Node, runtime: Path, tmp_path: Path) -> None:
    handler = Handler(binary=str(runtime))
    for _ in range(3):
        found = await handlers.features(node, handler)
        assert (found.recursive_read_only, found.user_namespaces) == (True, True)
    assert (tmp_path / "asked").read_text() == "asked\n"
    script(runtime, "echo '{\"mountOptions\": []}'")
    found = await handlers.features(node, handler)
    assert (found.recursive_read_only, found.user_namespaces) == (False, False)
    assert found.no_user_namespaces == f"{runtime} does not say that it knows user namespaces"


async def test_a_runtime_that_fails_at_it_knows_nothing(node: Node, tmp_path: Path) -> None:
    handler = Handler(binary=str(script(tmp_path / "runtime", f"echo '{ANSWER}'; exit 1")))
    found = await handlers.features(node, handler)
    assert (found.recursive_read_only, found.user_namespaces) == (False, False)


async def test_a_runtime_that_is_not_there_or_cannot_run_offers_nothing(node: Node, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    for binary in ("/no/such/runtime", str(broken)):
        found = await handlers.features(node, Handler(binary=binary))
        assert (found.recursive_read_only, found.user_namespaces) == (False, False)
        assert found.no_user_namespaces


async def test_a_runtime_that_does_not_answer_is_waited_for_once_and_asked_again_later(
    node: Node, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def silent(argv: Sequence[str], seconds: float) -> tuple[int, bytes, bytes]:
        waited.append(seconds)
        raise TimeoutError

    now = 0.0
    node = replace(node, machine=replace(node.machine, remembered=Remembered(lambda: now)))
    with monkeypatch.context() as patch:
        patch.setattr(programs, "ask", silent)
        for _ in range(3):
            assert (
                "cannot be asked" in (await handlers.features(node, Handler(binary=str(runtime)))).no_user_namespaces
            )
    assert waited == [handlers.ASK_SECONDS]
    now = handlers.AGAIN_SECONDS
    assert (await handlers.features(node, Handler(binary=str(runtime)))).user_namespaces


async def test_those_who_ask_at_once_share_the_answer(node: Node, runtime: Path, tmp_path: Path) -> None:
    handler = Handler(binary=str(runtime))
    found = await asyncio.gather(*(handlers.recursive_read_only(node, handler) for _ in range(5)))
    assert found == [True] * 5
    assert (tmp_path / "asked").read_text() == "asked\n"


async def test_all_handlers_are_known_before_anybody_asks(node: Node, runtime: Path, tmp_path: Path) -> None:
    config = Config(runtime=Runtime(default_handler="a", handlers={"a": Handler(binary=str(runtime))}))
    node = replace(node, config=config)
    await handlers.ask_all(node)
    await handlers.features(node, Handler(binary=str(runtime)))
    assert (tmp_path / "asked").read_text() == "asked\n"


async def test_a_shim_that_cannot_be_asked_offers_nothing(node: Node) -> None:
    found = await handlers.features(node, Handler(type="io.containerd.kata.v2"))
    assert not found.recursive_read_only
    assert found.no_user_namespaces == "the shim io.containerd.kata.v2 does not tell what it can do"


async def test_what_the_kernel_lacks_no_runtime_can_offer(
    node: Node, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Handler(binary=str(runtime))
    monkeypatch.setattr(handlers, "kernel_has_mount_setattr", lambda: False)
    assert not (await handlers.features(node, handler)).recursive_read_only
    monkeypatch.setattr(handlers, "kernel_maps_overlays", lambda release: False)
    assert "that takes 5.19" in (await handlers.features(node, handler)).no_user_namespaces


async def test_a_file_system_that_cannot_map_ids_is_the_reason(
    node: Node, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def probe(node: Node) -> str:
        return "the file system of /x does not support idmapped mounts"

    monkeypatch.setattr(userns, "probe", probe)
    found = await handlers.features(node, Handler(binary=str(runtime)))
    assert found.recursive_read_only
    assert (found.user_namespaces, found.no_user_namespaces) == (False, await probe(node))


@pytest.mark.parametrize("output", [b"[" * 100_000, b"{", b"[]", b'{"mountOptions": [[]]}'])
def test_an_answer_that_is_none_shows_no_abilities(output: bytes) -> None:
    assert handlers.parse(output) == Abilities()

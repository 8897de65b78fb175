"""Settling the version and the binaries before anything is created."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.cni.conf import NetworkConfig
from sandboxd.cni.invoker import Invoker
from sandboxd.errors import InvalidRequest, NotReady, PluginFailed
from tests.fakes import cni_plugin


def network(*types: str, **changes: Any) -> NetworkConfig:
    chain = tuple({"type": type_} for type_ in types)
    return replace(NetworkConfig(name="pods", versions=("1.1.0",), plugins=chain, source="/d/10.conflist"), **changes)


def called(directory: str) -> list[tuple[str, str]]:
    return [(call["command"], call["plugin"]) for call in cni_plugin.calls(directory)]


async def test_version_is_asked_once_for_as_long_as_the_binary_is_the_same(plugins: Callable[..., str]) -> None:
    directory = plugins(bridge={"versions": ["0.4.0", "1.0.0"]})
    invoker, binary = Invoker(30), f"{directory}/bridge"

    assert await invoker.version(binary) == await invoker.version(binary) == {"0.4.0", "1.0.0"}
    assert called(directory) == [("VERSION", "bridge")]

    os.utime(binary, ns=(1, 1))
    await invoker.version(binary)
    assert len(called(directory)) == 2


async def test_a_plugin_that_has_never_heard_of_version_speaks_the_first_one(plugins: Callable[..., str]) -> None:
    directory = plugins(bridge={"VERSION": [{"error": {"code": 4, "msg": "unknown CNI_COMMAND: VERSION"}}]})

    assert await Invoker(30).version(f"{directory}/bridge") == {"0.1.0"}


@pytest.mark.parametrize("action", [{"exit": 1, "stdout": ""}, {"stdout": "{}"}])
async def test_a_broken_answer_to_version_is_the_plugins_failure_and_not_remembered(
    plugins: Callable[..., str], action: dict[str, Any]
) -> None:
    directory = plugins(bridge={"VERSION": [action, {}]})
    invoker = Invoker(30)

    with pytest.raises(PluginFailed, match="VERSION"):
        await invoker.version(f"{directory}/bridge")
    assert await invoker.version(f"{directory}/bridge") == set(cni_plugin.DEFAULT_VERSIONS)


async def test_prepare_settles_on_the_highest_version_common_to_all_delegates_included(
    plugins: Callable[..., str],
) -> None:
    directory = plugins(bridge={}, portmap={}, **{"host-local": {"versions": ["0.3.1", "0.4.0", "1.0.0"]}})
    config = network(
        versions=("1.1.0", "1.0.0", "0.4.0"),
        plugins=({"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}),
    )

    prepared = await Invoker(30).prepare(config, [directory])

    assert prepared == replace(config, versions=("1.0.0", "0.4.0"))


async def test_prepare_names_the_plugin_that_speaks_no_common_version(plugins: Callable[..., str]) -> None:
    directory = plugins(bridge={}, old={"versions": ["0.1.0", "0.2.0"]})

    with pytest.raises(InvalidRequest) as caught:
        await Invoker(30).prepare(network("bridge", "old", versions=("1.1.0", "1.0.0")), [directory])

    assert str(caught.value) == (
        f'CNI plugin "old" ({directory}/old) speaks 0.1.0, 0.2.0; network "pods", from /d/10.conflist, can use '
        "1.0.0, 1.1.0; set its cniVersion to one that all its plugins speak, or update the plugin"
    )


async def test_prepare_finds_every_binary_before_it_runs_one(plugins: Callable[..., str]) -> None:
    directory = plugins(bridge={})

    with pytest.raises(NotReady, match=r'"portmap" .* was not found'):
        await Invoker(30).prepare(network("bridge", "portmap"), [directory])
    assert called(directory) == []

"""Settling the version and the binaries before anything is created."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd import steps
from sandboxd.cni import executions as module
from sandboxd.cni.conf import SUPPORTED, NetworkConfig
from sandboxd.cni.invoker import Invoker
from sandboxd.cni.request import plan
from sandboxd.errors import InvalidRequest, NotReady, PluginFailed
from sandboxd.pb.cri.v1 import api_pb2 as cri
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


SILENT = {
    "no such command": {"error": {"code": 4, "msg": "unknown CNI_COMMAND: VERSION"}},
    "fails": {"exit": 1, "stdout": ""},
    "dies": {"signal": 9, "stdout": ""},
    "nothing": {"stdout": ""},
    "words": {"stdout": "bridge 1.0"},
    "an empty object": {"stdout": "{}"},
    "no list": {"stdout": '{"cniVersion": "1.0.0", "supportedVersions": null}'},
    "an empty list": {"stdout": '{"cniVersion": "1.0.0", "supportedVersions": []}'},
    "a result": {"stdout": '{"cniVersion": "1.0.0", "ips": []}'},
    "a flood": {"stdout": "x" * (3 << 20)},
    "try again": {"error": {"code": 11, "msg": "starting"}},
    "hangs": {"hang": True},
}


@pytest.mark.parametrize("answer", SILENT.values(), ids=SILENT)
async def test_a_plugin_that_does_not_say_what_it_speaks_gets_what_the_configuration_says(
    plugins: Callable[..., str], records: list[steps.StepRecord], answer: dict[str, Any]
) -> None:
    directory = plugins(shell={"VERSION": [answer]}, bridge={"versions": ["0.4.0", "1.0.0"]})
    config = network("shell", "bridge", versions=("1.1.0", "1.0.0", "0.4.0"))
    invoker = Invoker(2 if "hang" in answer else 30)

    assert await invoker.prepare(config, [directory]) == replace(config, versions=("1.0.0", "0.4.0"))
    assert "unsaid" in records[0].detail
    await invoker.prepare(config, [directory])
    assert called(directory) == [("VERSION", "shell"), ("VERSION", "bridge")]  # it is not asked for each pod


async def test_a_plugin_that_did_not_say_what_it_speaks_is_asked_again_later(
    plugins: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNSAID_SECONDS", 0.0)
    directory = plugins(bridge={"VERSION": [{"stdout": ""}, {}]})
    invoker = Invoker(30)

    assert await invoker.version(f"{directory}/bridge") == set(SUPPORTED)
    assert await invoker.version(f"{directory}/bridge") == set(cni_plugin.DEFAULT_VERSIONS)


async def test_a_file_that_cannot_be_executed_is_told_before_anything_is_created(tmp_path: Path) -> None:
    (tmp_path / "bridge").write_text("#!/nowhere/sh\n")
    (tmp_path / "bridge").chmod(0o755)

    with pytest.raises(NotReady, match="bridge cannot be executed"):
        await Invoker(30).prepare(network("bridge"), [str(tmp_path)])


@pytest.mark.parametrize(
    ("delegate", "versions"),
    [
        (None, ("1.1.0", "1.0.0")),
        ({"versions": ["0.1.0"]}, ("1.1.0", "1.0.0")),
        ({"VERSION": [{"stdout": ""}]}, ("1.1.0", "1.0.0")),
        ({"versions": ["0.4.0", "1.0.0"]}, ("1.0.0",)),
    ],
    ids=["missing", "too old", "silent", "older"],
)
async def test_a_delegate_that_may_never_be_executed_refuses_nothing(
    plugins: Callable[..., str], delegate: dict[str, Any] | None, versions: tuple[str, ...]
) -> None:
    directory = plugins(calico={}, **({"calico-ipam": delegate} if delegate is not None else {}))
    config = network(
        plugins=({"type": "calico", "ipam": {"type": "calico-ipam"}},), versions=("1.1.0", "1.0.0", "0.2.0")
    )

    prepared = await Invoker(30).prepare(config, [directory])

    assert prepared.versions == versions


async def test_a_delegate_that_cannot_be_executed_refuses_nothing(
    plugins: Callable[..., str], tmp_path: Path
) -> None:
    directory = plugins(calico={})
    (tmp_path / "calico-ipam").write_text("#!/nowhere/sh\n")
    (tmp_path / "calico-ipam").chmod(0o755)
    config = network(plugins=({"type": "calico", "ipam": {"type": "calico-ipam"}},))

    assert await Invoker(30).prepare(config, [directory]) == config


async def test_an_add_that_fails_without_its_delegate_says_that_it_is_missing(plugins: Callable[..., str]) -> None:
    directory = plugins(bridge={"ADD": [{"error": {"code": 4, "msg": "no delegate"}}]})
    config = network(plugins=({"type": "bridge", "ipam": {"type": "host-local"}},))

    with pytest.raises(PluginFailed, match="no delegate") as caught:
        await Invoker(30).add(plan(config, cri.PodSandboxConfig(), "c1", "/proc/self/ns/uts", [directory]))

    (note,) = caught.value.__notes__
    assert note.startswith('CNI plugin "host-local" (network "pods", from /d/10.conflist) was not found; looked in')
    assert note.endswith("on Debian it is in the package containernetworking-plugins")


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

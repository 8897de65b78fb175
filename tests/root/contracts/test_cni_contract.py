"""What operations rely on of the plugins' invoker: the same with executed plugins and with the fake of it.

Neither needs root: the plugins are scripted, and the invoker only looks at what kind of file a namespace is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sandboxd.cni.conf import NetworkConfig
from sandboxd.cni.invoker import Invoker
from sandboxd.cni.recorded import Call
from sandboxd.cni.request import plan, plugin_env, plugin_stdin
from sandboxd.cni.result import parse_result, pod_ips
from sandboxd.errors import InvalidRequest, NotReady, PluginFailed, SandboxdError
from sandboxd.model import Attachment
from sandboxd.node import Cni
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.fakes import cni as fake
from tests.fakes import cni_plugin
from tests.fakes.points import Point, Points

NAMESPACE = "/proc/self/ns/uts"  # a live one that is not the host's network, without privileges
POD = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web", namespace="shop", uid="u"))
ID = f"c{os.getpid()}"  # a DEL ends what runs for this id on the whole machine, where other tests run
CONFIG = NetworkConfig(
    name="pods", versions=("1.1.0", "1.0.0"), plugins=({"type": "bridge"},), source="/d/10.conflist"
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The invoker, with the plugin `bridge`, which speaks 1.0.0 and before."""

    cni: Cni
    directory: str
    refuse: Callable[[str], None]  # make the plugin fail with its own error, once, on this command

    def attachment(self, **changes: object) -> Attachment:
        planned = plan(CONFIG, POD, ID, NAMESPACE, [self.directory], ifname="eth0", cgroup_path="/pods/c1")
        return replace(planned, **changes)  # type: ignore[arg-type]


class Contract:
    """The rules."""

    async def test_preparing_settles_the_version(self, bench: Bench) -> None:
        prepared = await bench.cni.prepare(CONFIG, [bench.directory])
        assert prepared == replace(CONFIG, versions=("1.0.0",))

    async def test_a_plugin_that_is_missing_is_named(self, bench: Bench) -> None:
        config = replace(CONFIG, plugins=({"type": "bridge"}, {"type": "nowhere"}))
        with pytest.raises(NotReady, match="nowhere"):
            await bench.cni.prepare(config, [bench.directory])

    async def test_without_a_common_version_there_is_no_network(self, bench: Bench) -> None:
        with pytest.raises(InvalidRequest, match="bridge"):
            await bench.cni.prepare(replace(CONFIG, versions=("1.1.0",)), [bench.directory])

    async def test_what_a_missing_plugin_needs_is_not_known(self, bench: Bench) -> None:
        with pytest.raises(NotReady, match="nowhere"):
            await bench.cni.needs_identity(replace(CONFIG, plugins=({"type": "nowhere"},)), [bench.directory])

    async def test_adding_gives_the_pod_an_address(self, bench: Bench) -> None:
        result = parse_result(await bench.cni.add(bench.attachment()), "bridge")
        assert pod_ips(result, "eth0") == ("10.88.0.2",)

    async def test_each_result_that_a_plugin_is_given_is_handed_on(self, bench: Bench) -> None:
        config = replace(CONFIG, versions=("1.0.0",), plugins=({"type": "bridge"}, {"type": "bridge"}))
        planned = plan(config, POD, ID, NAMESPACE, [bench.directory], ifname="eth0", cgroup_path="")
        handed_on: list[bytes] = []
        await bench.cni.add(planned, handed_on.append)
        (given,) = handed_on
        assert pod_ips(parse_result(given, "bridge"), "eth0") == ("10.88.0.2",)

    async def test_deleting_may_be_repeated_and_needs_no_namespace(self, bench: Bench) -> None:
        result = await bench.cni.add(bench.attachment())
        for _ in range(2):
            await bench.cni.delete(bench.attachment(result=result))
        await bench.cni.delete(bench.attachment(netns_path="/no/such/namespace"))

    async def test_checking_says_whether_plugins_were_asked(self, bench: Bench) -> None:
        result = await bench.cni.add(bench.attachment())
        assert not await bench.cni.check(bench.attachment())
        assert await bench.cni.check(bench.attachment(result=result))
        with pytest.raises(NotReady, match="/no/such/namespace"):
            await bench.cni.check(bench.attachment(result=result, netns_path="/no/such/namespace"))

    async def test_a_check_that_fails_is_quoted(self, bench: Bench) -> None:
        result = await bench.cni.add(bench.attachment())
        bench.refuse("CHECK")
        with pytest.raises(PluginFailed, match="no luck"):
            await bench.cni.check(bench.attachment(result=result))

    async def test_a_plugin_says_which_versions_it_speaks(self, bench: Bench) -> None:
        assert await bench.cni.version(f"{bench.directory}/bridge") == {"0.4.0", "1.0.0"}
        with pytest.raises(NotReady):
            await bench.cni.version(f"{bench.directory}/nowhere")

    async def test_adding_needs_a_live_namespace(self, bench: Bench) -> None:
        with pytest.raises(NotReady, match="/no/such/namespace"):
            await bench.cni.add(bench.attachment(netns_path="/no/such/namespace"))

    async def test_a_plugin_that_refuses_is_quoted(self, bench: Bench) -> None:
        bench.refuse("ADD")
        with pytest.raises(PluginFailed, match="no luck") as caught:
            await bench.cni.add(bench.attachment())
        assert (caught.value.plugin, caught.value.command, caught.value.code) == ("bridge", "ADD", 999)
        await bench.cni.delete(bench.attachment())
        await bench.cni.add(bench.attachment())

    async def test_one_execution_is_repeated_and_adds_like_any(self, bench: Bench) -> None:
        call = Call(
            command="ADD",
            plugin="bridge",
            network="pods",
            binary=f"{bench.directory}/bridge",
            env=plugin_env("ADD", bench.attachment()),
            stdin=plugin_stdin(CONFIG, {"type": "bridge"}, {}, None, "1.0.0"),
        )
        assert (await bench.cni.repeat(call))["ips"][0]["address"].startswith("10.88.0.")
        lost = {**call.env, "CNI_NETNS": "/no/such/namespace"}
        with pytest.raises(NotReady, match="/no/such/namespace"):
            await bench.cni.repeat(replace(call, env=lost))
        assert await bench.cni.repeat(replace(call, command="DEL", env={**lost, "CNI_COMMAND": "DEL"})) == {}

    async def test_a_del_that_fails_is_owed_and_can_be_tried_again(self, bench: Bench) -> None:
        await bench.cni.add(bench.attachment())
        bench.refuse("DEL")
        (owed,) = await bench.cni.delete(bench.attachment())
        assert (owed.plugin, owed.position, owed.attempts, owed.missing) == ("bridge", 0, 1, "")
        assert "no luck" in owed.error
        assert await bench.cni.delete(replace(bench.attachment(), owed=(owed,))) == ()

    @pytest.mark.parametrize("damage", [{"config": b"{"}, {"capability_args": b"["}, {"sandbox_id": "not/an/id"}])
    async def test_a_damaged_record_is_refused(self, bench: Bench, damage: dict[str, object]) -> None:
        for call in (bench.cni.add, bench.cni.delete):
            with pytest.raises(InvalidRequest):
                await call(bench.attachment(**damage))

    async def test_a_plugin_that_has_gone_is_missed_by_both(self, bench: Bench) -> None:
        config = replace(CONFIG, plugins=({"type": "nowhere"},))
        planned = plan(config, POD, ID, NAMESPACE, [bench.directory], ifname="eth0", cgroup_path="")
        with pytest.raises(SandboxdError, match="nowhere"):
            await bench.cni.add(planned)
        (owed,) = await bench.cni.delete(planned)
        assert owed.missing == "nowhere" and "nowhere" in owed.error


class TestFake(Contract):
    """The fake of it."""

    @pytest.fixture
    def bench(self) -> Bench:
        points = Points()
        cni = fake.Cni(points, lambda path: path == NAMESPACE, {"bridge": frozenset({"0.4.0", "1.0.0"})})

        def refuse(command: str) -> None:
            name = {"ADD": "cni.add", "DEL": "cni.delete", "CHECK": "cni.check"}[command]
            error = PluginFailed(plugin="bridge", command=command, code=999, msg="no luck")
            points.fail(Point(name, points.count(name)), error)

        return Bench(cni=cni, directory="/plugins", refuse=refuse)


class TestExecuted(Contract):
    """The real thing, with a scripted plugin."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        versions = ["0.4.0", "1.0.0"]
        directory = str(tmp_path)
        cni_plugin.install(directory, "bridge", {"versions": versions})

        def refuse(command: str) -> None:
            made = sum(call["command"] == command for call in cni_plugin.calls(directory))
            error = {"error": {"code": 999, "msg": "no luck"}}
            cni_plugin.install(directory, "bridge", {"versions": versions, command: [{}] * made + [error, {}]})

        return Bench(cni=Invoker(30), directory=directory, refuse=refuse)

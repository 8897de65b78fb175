"""The invoker with the real reference plugins, on a network of its own.

Each test is run by a child in new network and mount namespaces (`unshare`), with /run of its own, so that nothing
of the machine's network is touched and everything is gone when the child ends. Missing plugins are a failure: a
machine that cannot run them cannot tell whether the runtime side is right.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from sandboxd.cni.conf import NetworkConfig, parse
from sandboxd.cni.invoker import Invoker
from sandboxd.cni.request import IPS, MAC, plan
from sandboxd.cni.result import parse_result, pod_ips
from sandboxd.config import Network
from sandboxd.errors import Exhausted, PluginFailed
from sandboxd.model import Attachment
from sandboxd.pb.cri.v1 import api_pb2 as cri

pytestmark = pytest.mark.root

DIRS = Network().plugin_dirs


def network(data_dir: str, *more: dict[str, Any], subnet: str = "10.123.0.0/24", **bridge: Any) -> NetworkConfig:
    """A bridge network whose addresses are reserved below `data_dir`."""
    ipam = {
        "type": "host-local",
        "dataDir": data_dir,
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    first = {"type": "bridge", "bridge": "cnitest0", "isGateway": True, "ipam": ipam, **bridge}
    document = {
        "name": "test",
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "plugins": [first, *more],
    }
    return parse("/etc/cni/net.d/10-test.conflist", json.dumps(document).encode())


def pod(**fields: Any) -> cri.PodSandboxConfig:
    return cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web", namespace="shop", uid="u"), **fields)


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def netns(name: str) -> str:
    output("ip", "netns", "add", name)
    return f"/run/netns/{name}"


def links(*, inside: str = "") -> set[str]:
    within = ("-n", inside) if inside else ()
    return {link["ifname"] for link in json.loads(output("ip", *within, "-j", "link"))}


def reserved(data_dir: str) -> set[str]:
    """The addresses that host-local holds for the network."""
    directory = Path(data_dir, "test")
    return {entry.name for entry in directory.iterdir() if entry.name[:1].isdigit()} if directory.exists() else set()


def planned(config: NetworkConfig, name: str, sandbox: cri.PodSandboxConfig | None = None) -> Attachment:
    return plan(config, sandbox or pod(), name, netns(name), DIRS)


def added(attachment: Attachment, result: bytes) -> Attachment:
    return replace(attachment, result=result)


async def round_trip(data_dir: str) -> None:
    """ADD connects the pod, CHECK agrees, DEL undoes it and may be repeated."""
    invoker = Invoker(60)
    config = await invoker.prepare(network(data_dir), DIRS)
    attachment = planned(config, "pod1")

    result = await invoker.add(attachment)

    parsed = parse_result(result, "bridge")
    (address,) = pod_ips(parsed, "eth0")
    assert parsed.cni_version == config.cni_version
    assert address in output("ip", "-n", "pod1", "-4", "addr", "show", "dev", "eth0")
    assert reserved(data_dir) == {address}
    assert any(link.startswith("veth") for link in links())
    attachment = added(attachment, result)
    assert await invoker.check(attachment) is True

    output("ip", "-n", "pod1", "addr", "flush", "dev", "eth0")
    with pytest.raises(PluginFailed, match="bridge failed on CHECK"):
        await invoker.check(attachment)

    for _ in range(2):
        await invoker.delete(attachment)
        assert reserved(data_dir) == set()
        assert links(inside="pod1") == {"lo"}
        assert not any(link.startswith("veth") for link in links())


async def capabilities(data_dir: str) -> None:
    """What the pod asks for reaches the plugins that declare it."""
    invoker = Invoker(60)
    chain = network(
        data_dir,
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "tuning", "capabilities": {"mac": True}},
        capabilities={"ips": True},
    )
    config = await invoker.prepare(chain, DIRS)
    asked = pod(
        port_mappings=[cri.PortMapping(host_port=8080, container_port=80)],
        annotations={IPS: "10.123.0.77", MAC: "02:00:00:00:00:77"},
    )
    attachment = planned(config, "pod1", asked)

    attachment = added(attachment, await invoker.add(attachment))

    assert pod_ips(parse_result(attachment.result, "tuning"), "eth0") == ("10.123.0.77",)
    assert "02:00:00:00:00:77" in output("ip", "-n", "pod1", "link", "show", "dev", "eth0")
    assert "8080" in output("iptables-save", "-t", "nat")
    await invoker.delete(attachment)
    assert "8080" not in output("iptables-save", "-t", "nat")
    assert reserved(data_dir) == set()


async def netns_gone(data_dir: str) -> None:
    """DEL frees the address when the namespace is gone, and when a plain file was left in its place."""
    invoker = Invoker(60)
    config = await invoker.prepare(network(data_dir), DIRS)
    for name, leave_file in (("pod1", False), ("pod2", True)):
        attachment = planned(config, name)
        attachment = added(attachment, await invoker.add(attachment))
        output("ip", "netns", "del", name)
        if leave_file:
            Path(attachment.netns_path).touch()

        await invoker.delete(attachment)

        assert reserved(data_dir) == set()


async def exhausted(data_dir: str) -> None:
    """An empty pool is told as such, and the DEL that is due cleans up what the failed ADD left."""
    invoker = Invoker(60)
    config = await invoker.prepare(network(data_dir, subnet="10.123.0.0/30"), DIRS)  # room for one pod
    first, second = planned(config, "pod1"), planned(config, "pod2")
    await invoker.add(first)
    taken = reserved(data_dir)

    with pytest.raises(Exhausted, match="bridge failed on ADD"):
        await invoker.add(second)
    await invoker.delete(second)

    assert links(inside="pod2") == {"lo"}
    assert reserved(data_dir) == taken


async def later_plugin_fails(data_dir: str) -> None:
    """A chain whose last plugin fails leaves the first one's work, which the DEL that is due undoes."""
    invoker = Invoker(60)
    config = await invoker.prepare(network(data_dir, {"type": "tuning", "mtu": 5}), DIRS)
    attachment = planned(config, "pod1")

    with pytest.raises(PluginFailed, match="tuning failed on ADD"):
        await invoker.add(attachment)
    assert reserved(data_dir) != set()
    await invoker.delete(attachment)

    assert reserved(data_dir) == set()
    assert links(inside="pod1") == {"lo"}


async def many_at_once(data_dir: str) -> None:
    """Pods that are attached together get different addresses, and all of them are freed."""
    invoker = Invoker(60)
    config = await invoker.prepare(network(data_dir), DIRS)
    pods = [planned(config, f"pod{i}") for i in range(8)]

    results = await asyncio.gather(*(invoker.add(attachment) for attachment in pods))

    assert len({pod_ips(parse_result(result, "bridge"), "eth0") for result in results}) == len(pods)
    await asyncio.gather(
        *(invoker.delete(added(attachment, result)) for attachment, result in zip(pods, results, strict=True))
    )
    assert reserved(data_dir) == set()


# As people write them: no VERSION, an answer that is looser than the letter, output that goes to a log.
SHELL_PLUGIN = r"""#!/bin/sh
exec 3>&1 >>"$(dirname "$0")/shell.log" 2>&1
cat
case "$CNI_COMMAND" in
ADD)
    ip link add "$CNI_IFNAME" netns "${CNI_NETNS##*/}" type veth peer name vethshell
    ip -n "${CNI_NETNS##*/}" addr add 10.123.0.5/24 dev "$CNI_IFNAME"
    cat >&3 <<EOF

  {"Interfaces": [{"name": "$CNI_IFNAME", "sandbox": "$CNI_NETNS", "mac": null}], "routes": null, "dns": null,
   "ips": [{"address": "10.123.0.5/24", "gateway": "", "interface": 0, "interface": 0}], "ip6": null,
   "cniVersion": "0.3.1"}

EOF
    ;;
DEL) ip -n "${CNI_NETNS##*/}" link del "$CNI_IFNAME" || true ;;
*) echo "Unknown command: $CNI_COMMAND" >&3; exit 1 ;;
esac
"""


async def shell_plugin(data_dir: str) -> None:
    """A plugin that every runtime takes, though it keeps to little of the spec, works with a real one behind it."""
    directory = Path(data_dir, "bin")
    directory.mkdir()
    (directory / "shell").write_text(SHELL_PLUGIN)
    (directory / "shell").chmod(0o755)
    dirs = [str(directory), *DIRS]
    document = {
        "name": "test",
        "cniVersion": "1.0.0",
        "disableCheck": None,
        "plugins": [
            {"type": "shell", "capabilities": None, "dns": None, "ipam": {"type": "not-installed"}},
            {"type": "tuning", "capabilities": {"mac": True}, "sysctl": {}},
        ],
    }
    invoker = Invoker(60)
    config = await invoker.prepare(parse("/etc/cni/net.d/10-test.conflist", json.dumps(document).encode()), dirs)
    attachment = plan(config, pod(annotations={MAC: "02:00:00:00:00:77"}), "pod1", netns("pod1"), dirs)

    result = await invoker.add(attachment)

    assert pod_ips(parse_result(result, "tuning"), "eth0") == ("10.123.0.5",)
    assert "02:00:00:00:00:77" in output("ip", "-n", "pod1", "link", "show", "dev", "eth0")
    for _ in range(2):
        await invoker.delete(added(attachment, result))
        assert links(inside="pod1") == {"lo"}


SCENARIOS: Sequence[Callable[[str], Coroutine[Any, Any, None]]] = (
    round_trip,
    capabilities,
    netns_gone,
    exhausted,
    later_plugin_fails,
    many_at_once,
    shell_plugin,
)


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_real_plugins(name: str, tmp_path: Path) -> None:
    """Each scenario's docstring states its rule."""
    assert os.geteuid() == 0, "these tests make namespaces: run them as root"
    command = ("unshare", "--net", "--mount", sys.executable, "-X", "dev", "-m", "tests.root.test_cni_plugins", name)
    done = subprocess.run(
        (*command, str(tmp_path)),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def _child(name: str, data_dir: str) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    output("mount", "-t", "tmpfs", "tmpfs", "/run")
    output("ip", "link", "set", "lo", "up")
    scenario = next(scenario for scenario in SCENARIOS if scenario.__name__ == name)
    asyncio.run(scenario(data_dir))


if __name__ == "__main__":
    _child(*sys.argv[1:])

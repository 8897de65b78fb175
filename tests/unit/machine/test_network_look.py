"""A look takes what it can get and says what it cannot; it reads the values that plugins set, and no others."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sandboxd import netns, rtnetlink
from sandboxd.machine import network_look, programs
from sandboxd.machine.network_look import Subject
from sandboxd.model import Attachment
from sandboxd.network_state import HOST, POD, Marks, State, Thing

SAVED = "*nat\n:CNI-X - [0:0]\n-A CNI-X -j ACCEPT\nCOMMIT\n"
NFT = "table inet t {\n\tchain c {\n\t\taccept\n\t}\n}\n"


def attachment(*plugins: Any, config: bytes | None = None) -> Attachment:
    document = {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}
    return Attachment(
        sandbox_id="a" * 64, network="pods", ifname="eth0", netns_path="", conf_file="/c",
        config=json.dumps(document).encode() if config is None else config, plugin_path="/p", args="",
        capability_args=b"{}",
    )  # fmt: skip


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What programs answer: (status, stdout, stderr), or what is raised."""
    given: dict[str, Any] = {
        "iptables-save": (0, SAVED.encode(), b""),
        "ip6tables-save": FileNotFoundError(2, "No such file or directory"),
        "nft --stateless list ruleset": (0, NFT.encode(), b""),
    }

    async def ask(
        argv: Sequence[str], seconds: float, *, stdin: bytes = b"", most: int = 0
    ) -> tuple[int, bytes, bytes]:
        answer = given[" ".join(argv)]
        if isinstance(answer, Exception):
            raise answer
        status, output, words = answer
        return status, output[:most], words

    monkeypatch.setattr(programs, "ask", ask)
    return given


@pytest.fixture
def sysctls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /proc/sys/net."""
    monkeypatch.setattr(network_look, "_SYSCTLS", str(tmp_path / "net"))
    for path, value in {
        "ipv4/ip_forward": "1\n",
        "ipv4/conf/default/arp_notify": "0\n",
        "ipv4/conf/lo/arp_notify": "0\n",
        "ipv4/conf/stranger/arp_notify": "0\n",
        "ipv4/ping_group_range": "0\t0\n",
        "ipv6/conf/lo/mtu": "65536\n",
        "netfilter/nf_conntrack_count": "17\n",
    }.items():
        (tmp_path / "net" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "net" / path).write_text(value)
    (tmp_path / "net" / "ipv4" / "tcp_fastopen_key").write_text("secret")
    return tmp_path / "net"


def named(state: State, *kinds: str) -> list[str]:
    return sorted(each.name for each in state.things.values() if each.kind in kinds)


async def test_rules_sysctls_files_and_links_are_seen(answers: dict[str, Any], sysctls: Path, tmp_path: Path) -> None:
    data = tmp_path / "ipam" / "pods"
    data.mkdir(parents=True)
    (data / "10.0.0.2").write_text("x\neth0")
    subject = Subject.of(attachment({"type": "ptp", "ipam": {"type": "host-local", "dataDir": str(data.parent)}}))

    seen = await network_look.look(subject)

    assert named(seen, "chain") == ["iptables nat CNI-X", "nft inet t c"]
    assert named(seen, "rule") == ["iptables nat CNI-X -j ACCEPT", "nft inet t c accept"]
    assert "lo" in named(seen, "link")
    assert named(seen, "file") == [f"{data}/10.0.0.2"]
    values = {each.name: each.fields["value"] for each in seen.things.values() if each.kind == "sysctl"}
    assert values == {
        "net.ipv4.ip_forward": "1",
        "net.ipv4.conf.default.arp_notify": "0",
        "net.ipv4.conf.lo.arp_notify": "0",
        "net.ipv4.ping_group_range": "0 0",
    }
    assert not seen.unseen


async def test_of_thousands_of_veths_only_the_pods_have_their_sysctls_read(
    answers: dict[str, Any], sysctls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("own", "uplink"):
        (sysctls / "ipv4" / "conf" / name).mkdir()
        (sysctls / "ipv4" / "conf" / name / "arp_notify").write_text("1")
    inside = {POD: [("eth0", 2, 7)], HOST: [("own", 7, 2), ("stranger", 8, 3)]}

    async def links(sock: socket.socket, place: str) -> list[Thing]:
        sock.close()
        veths = [
            Thing(place=place, kind="link", name=name, fields={"kind": "veth"}, index=index, peer=peer)
            for name, index, peer in inside[place]
        ]
        return [*veths, Thing(place=place, kind="link", name="uplink", index=20)]

    async def opened(path: str, *kind: int) -> socket.socket:
        return socket.socket(*kind)

    async def within(path: str, call: Callable[[], list[Thing]]) -> list[Thing]:
        return []

    monkeypatch.setattr(rtnetlink, "look", links)
    monkeypatch.setattr(netns, "exists", lambda path: True)
    monkeypatch.setattr(netns, "open_socket", opened)
    monkeypatch.setattr(netns, "inside", within)
    for program in ("iptables-save", "ip6tables-save", "nft --stateless list ruleset"):
        answers[f"nsenter --net=/x -- {program}"] = (127, b"", b"no such program")
    subject = Subject(pod_id="a", network="n", netns_path="/x", bridges=frozenset(), directories=())

    seen = await network_look.look(subject)

    of_links = [name for name in named(seen, "sysctl") if ".conf." in name]
    assert of_links == [f"net.ipv4.conf.{name}.arp_notify" for name in ("default", "own", "uplink")]
    assert not seen.unseen


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((4, b"", b"no permission\n"), "iptables-save: no permission"),
        ((0, b"x" * (1 << 26), b""), "iptables-save: it prints too much"),
        (TimeoutError(), "TimeoutError"),
        (PermissionError(13, "Permission denied"), "[Errno 13] Permission denied"),
    ],
    ids=["refused", "too much", "late", "not executable"],
)
async def test_what_cannot_be_read_is_told_and_the_rest_is_seen(
    answers: dict[str, Any], sysctls: Path, answer: Any, why: str
) -> None:
    answers["iptables-save"] = answer

    seen = await network_look.look(Subject.of(attachment({"type": "bridge"})))

    assert seen.unseen == {(HOST, "chain"): why, (HOST, "rule"): why}
    assert named(seen, "rule") == [] and "lo" in named(seen, "link")


async def test_a_namespace_that_is_gone_is_not_looked_into(
    answers: dict[str, Any], sysctls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netns, "exists", lambda path: False)
    seen = await network_look.look(
        Subject(pod_id="a", network="n", netns_path="/gone", bridges=frozenset(), directories=())
    )
    assert {each.place for each in seen.things.values()} == {HOST} and not seen.unseen


@pytest.mark.parametrize(
    ("plugins", "bridges"),
    [
        ([{"type": "bridge", "bridge": "sbx0"}, {"type": "portmap"}], {"sbx0"}),
        ([{"type": "bridge"}], {"cni0"}),
        ([{"type": "flannel", "delegate": {"Bridge": "cbr0"}}], {"cbr0"}),
        ([{"type": "ptp"}], set()),
        ([{"type": "bridge", "bridge": 7}], {"cni0"}),
    ],
)
def test_the_networks_bridge_is_the_one_that_the_configuration_names(plugins: list[Any], bridges: set[str]) -> None:
    assert Subject.of(attachment(*plugins)).bridges == bridges


def test_of_a_damaged_record_what_is_known_is_taken() -> None:
    subject = Subject.of(attachment(config=b"{"))
    assert (subject.pod_id, subject.bridges, subject.directories) == ("a" * 64, frozenset(), ())
    assert subject.marks() == Marks(pod_id="a" * 64, network="pods")


@pytest.mark.parametrize(
    ("path", "name"),
    [("ipv4/ip_forward", "net.ipv4.ip_forward"), ("ipv4/conf/eth0.5/x", "net.ipv4.conf.eth0/5.x")],
)
def test_a_sysctl_is_named_as_sysctl_names_it(path: str, name: str) -> None:
    assert network_look.sysctl_name(path) == name

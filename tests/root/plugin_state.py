"""What CNI plugins leave on a machine, in a form that two runs can be compared in: names and numbers that are drawn
by lot are replaced by where they are first seen. Runs within a network namespace of the test's own."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_LINK = ("ifname", "mtu", "flags", "operstate", "txqlen", "master", "address", "qdisc", "promiscuity", "allmulti")
_PORT = re.compile(r"timer|designated|root_|_id|topology|tcn|^id$")  # what depends on time and on random addresses
_MAC = re.compile(r"\b[0-9a-f]{2}(?::[0-9a-f]{2}){5}\b")
_OWN = re.compile(r"\bfe80::[0-9a-f:]+")
_EMPTY = re.compile(r"\*|COMMIT|:[A-Z]+ ACCEPT")
_PAIR = re.compile(r"\bveth[0-9a-f]{8}\b")


def output(*command: str) -> str:
    """What a command prints; it succeeds."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def settled(pods: Sequence[str]) -> None:
    """Wait until no address is tentative any more and every port forwards, here and in the pods."""
    for inside in ((), *(("-n", pod) for pod in pods)):
        for _ in range(100):
            links = json.loads(output("ip", *inside, "-j", "-d", "addr"))
            used = {link.get("master") for link in links} | {link["ifname"] for link in links if "link_index" in link}
            if all(_is_settled(link, link["ifname"] in used) for link in links):
                break
            subprocess.run(["sleep", "0.05"], check=True)


def _is_settled(link: dict[str, Any], used: bool) -> bool:
    port = link.get("linkinfo", {}).get("info_slave_data", {})
    as_expected = link["operstate"] in (("UP",) if used else ("DOWN", "UNKNOWN"))
    tentative = any(held.get("tentative") for held in link["addr_info"])
    # The kernel gives an interface its own address of IPv6 a moment after it has come up.
    own = any(held["family"] == "inet6" for held in link["addr_info"]) or link["operstate"] != "UP"
    return as_expected and own and not tentative and port.get("state", "forwarding") == "forwarding"


def of_machine(pods: Sequence[str]) -> dict[str, Any]:
    """Links, addresses, routes, rules, sysctls and files."""
    found: dict[str, Any] = {"host": _inside(()), "files": _files(Path("/var/lib/cni"))}
    for pod in pods:
        found[pod] = _inside(("-n", pod), f"/run/netns/{pod}")
    for program in ("iptables-save", "ip6tables-save"):
        found[program] = [
            re.sub(r"\[\d+:\d+\]", "", line)
            for line in output(program).splitlines()
            # A table that was looked at is there, and empty; no packet can tell.
            if not line.startswith("#") and not _EMPTY.match(line)
        ]
    # nft has a word for MASQUERADE in the family that it lists first only; iptables-save has told it already.
    listed = re.sub(r"(packets|bytes) \d+", "", output("nft", "list", "ruleset"))
    found["nft"] = _chains(re.sub(r"counter +masquerade$", "counter   ", listed, flags=re.MULTILINE))
    found = without_lots(found)
    for inside in ("host", *pods):
        found[inside]["routes"].sort()
        found[inside]["sysctls"].sort()
    return found


def _chains(ruleset: str) -> list[str]:
    """The chains that hold rules, in the order of their names: that of their making has no meaning."""
    blocks = re.findall(r"^\tchain .*?^\t}", ruleset, re.MULTILINE | re.DOTALL)
    return sorted(block for block in blocks if re.search(r"\bcounter\b|jump|goto", block))


def without_lots(found: Any) -> Any:
    """The same with names and addresses that are drawn by lot numbered."""
    text = json.dumps(found)
    for pattern, name in ((_PAIR, "pair"), (_OWN, "own"), (_MAC, "mac")):
        seen: dict[str, str] = {"00:00:00:00:00:00": "none", "ff:ff:ff:ff:ff:ff": "all"}
        for each in pattern.findall(text):
            seen.setdefault(each, f"{name}{len(seen)}")
        text = pattern.sub(lambda match, seen=seen: seen[match[0]], text)  # type: ignore[misc]
    return json.loads(text)


def _inside(inside: tuple[str, ...], netns: str = "/proc/self/ns/net") -> dict[str, Any]:
    links = json.loads(output("ip", *inside, "-d", "-j", "link"))
    addresses = json.loads(output("ip", *inside, "-j", "addr"))
    return {
        "links": [_link(link) for link in links],
        "addresses": [held for link in addresses for held in link["addr_info"] if held],
        "routes": [
            line
            for family in ("-4", "-6")
            for line in output("ip", *inside, family, "route", "show", "table", "all").splitlines()
        ],
        "sysctls": _sysctls(netns),
    }


def _link(link: dict[str, Any]) -> dict[str, Any]:
    found = {key: link.get(key) for key in _LINK}
    info = link.get("linkinfo", {})
    found["kind"] = info.get("info_kind")
    for part in ("info_data", "info_slave_data"):
        found[part] = {key: value for key, value in info.get(part, {}).items() if not _PORT.search(key)}
    return found


def _sysctls(netns: str) -> list[str]:
    script = "cd /proc/sys/net; grep -rs . ipv4/conf ipv6/conf ipv4/ip_forward | sort"
    return output("nsenter", f"--net={netns}", "sh", "-c", script).splitlines()


def _files(directory: Path) -> list[tuple[str, str, str]]:
    return sorted(
        (str(path), oct(path.stat().st_mode), "" if path.is_dir() else path.read_bytes().decode())
        for path in directory.rglob("*")
    )

"""Audits a host for leaks: every kind of resource that a pod could leave behind.

    before = observe(bed)          # after a first pod was run and removed
    ...
    assert_no_leaks(bed, before)

Some things are created once, by the first pod that needs them, and stay on purpose: the bridge, the static chains of
portmap, ip_forward, the sandboxd directories. So take `before` after a warm-up pod.

Excluded, because they change without a leak: IPv6 link-local addresses and routes (they come and go with a link's
carrier and DAD), counters and handles of packet filter rules, the host-local plugin's lock and its record of the last
address, the ledger, log files, and containerd's image data.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import LIMIT
from tests.testbed import Testbed

_SYSTEM = ("/dev", "/proc", "/sys")
_EMPTY = re.compile(
    r"ip6?tables \w+ chain [A-Z]+ ACCEPT"
    r'|nft table \{"family": "ip6?", "name": "(nat|mangle|filter|raw)"\}'
)
_LINK_LOCAL = ("fe80:", "ff00:", "multicast ff00:")
_OWN_CONTAINERD = "sandboxd/containerd"
# Below containerd's root: the contents of images and its database; `_containerd` lists what matters through ctr.
_IMAGE_STORE = (
    f"{_OWN_CONTAINERD}/io.containerd.content.",
    f"{_OWN_CONTAINERD}/io.containerd.grpc.v1.introspection",  # the uuid that 2.x gives itself when first asked
    f"{_OWN_CONTAINERD}/io.containerd.metadata.",
    f"{_OWN_CONTAINERD}/io.containerd.snapshotter.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything observed, one line each, like "link veth12ab (veth, master sbx0)". Duplicates count."""

    lines: tuple[str, ...]


def observe(bed: Testbed) -> Snapshot:
    """The current state of the bed. Raises BedFailed if a command in it fails."""
    sources = (_netns, _links, _addresses, _routes, _iptables, _nftables, _ipam, _mounts, _files)
    lines = [line for source in (*sources, _processes, _cgroups, _containerd) for line in source(bed)]
    return Snapshot(lines=tuple(sorted(lines)))


def network(bed: Testbed) -> Snapshot:
    """What of `observe` is the host's network: namespaces, links, addresses, routes, rules, reserved addresses."""
    sources = (_netns, _links, _addresses, _routes, _iptables, _nftables, _ipam)
    lines = sorted(line for source in sources for line in source(bed))
    # A table that a plugin has looked at is there, and empty; no packet can tell.
    return Snapshot(lines=tuple(line for line in lines if not _EMPTY.fullmatch(line)))


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """What was added ("+ link veth12ab …") and what was removed ("- …"); empty without a difference."""
    was, is_now = Counter(before.lines), Counter(after.lines)
    added = [f"+ {line}" for line in sorted((is_now - was).elements())]
    return added + [f"- {line}" for line in sorted((was - is_now).elements())]


def leaks(bed: Testbed, before: Snapshot, *, within: float = LIMIT) -> list[str]:
    """The difference to `before` that is still there after `within` seconds.

    The kernel removes a namespace's links, and shims exit, a moment after the request that caused it was answered;
    a leak remains.
    """
    deadline = time.monotonic() + within
    while lines := difference(before, observe(bed)):
        if time.monotonic() > deadline:
            return lines
        time.sleep(0.1)
    return []


def assert_no_leaks(bed: Testbed, before: Snapshot, *, within: float = LIMIT) -> None:
    """Fail with every difference to `before` that is still there after `within` seconds, a line each."""
    lines = leaks(bed, before, within=within)
    assert not lines, f"{bed.name} is not as it was before:\n" + "\n".join(lines)


def _netns(bed: Testbed) -> Iterator[str]:
    directory = bed.path("/run/netns")
    if directory.is_dir():
        yield from (f"netns {entry.name}" for entry in directory.iterdir())


def _ip(bed: Testbed, *words: str) -> list[dict[str, Any]]:
    text = bed.run(["ip", "-json", "-details", *words]).stdout
    return [item for item in json.loads(text or "[]") if item]  # iproute2 6.1 prints {} for what it filters out


def _links(bed: Testbed) -> Iterator[str]:
    for link in _ip(bed, "link"):
        kind = link.get("linkinfo", {}).get("info_kind", link["link_type"])
        master = f", master {link['master']}" if "master" in link else ""
        yield f"link {link['ifname']} ({kind}{master})"


def _addresses(bed: Testbed) -> Iterator[str]:
    for link in _ip(bed, "address"):
        for address in link.get("addr_info", []):
            if address.get("scope") != "link":
                yield f"address {address['local']}/{address['prefixlen']} on {link['ifname']}"


def _routes(bed: Testbed) -> Iterator[str]:
    for family in ("-4", "-6"):
        for route in _ip(bed, family, "route", "show", "table", "all"):
            if str(route["dst"]).startswith(_LINK_LOCAL):
                continue
            words = [str(route["dst"])]
            words += [f"{key} {route[key]}" for key in ("gateway", "dev", "table", "prefsrc") if key in route]
            yield f"route {' '.join(words)} ({route.get('type', 'unicast')})"


def _iptables(bed: Testbed) -> Iterator[str]:
    for program in ("iptables-save", "ip6tables-save"):
        table = ""
        for line in bed.run([program]).stdout.splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith(":"):
                yield f"{program[:-5]} {table} chain {line[1:].rpartition(' ')[0]}"  # the rest are counters
            elif line and not line.startswith("#") and line != "COMMIT":
                yield f"{program[:-5]} {table} {line}"


def _nftables(bed: Testbed) -> Iterator[str]:
    if shutil.which("nft", path=bed.env["PATH"]) is None:
        return
    for item in json.loads(bed.run(["nft", "-j", "list", "ruleset"]).stdout)["nftables"]:
        for kind, body in item.items():
            if kind != "metainfo":
                yield f"nft {kind} {json.dumps(_without_counts(body), sort_keys=True)}"


def _without_counts(body: Any) -> Any:
    if isinstance(body, dict):
        gone = ("handle", "index", "packets", "bytes")
        return {key: _without_counts(value) for key, value in body.items() if key not in gone}
    if isinstance(body, list):
        return [_without_counts(value) for value in body]
    return body


def _ipam(bed: Testbed) -> Iterator[str]:
    top = bed.path("/var/lib/cni")
    for path in sorted(top.rglob("*")):
        if path.is_file() and path.name != "lock" and not path.name.startswith("last_reserved_ip."):
            content = " ".join(path.read_text("utf-8", "replace").split())
            yield f"IPAM or CNI file /var/lib/cni/{path.relative_to(top)} = {content[:200]}"


def _mounts(bed: Testbed) -> Iterator[str]:
    inherited = set(bed.inherited_mountinfo.splitlines())
    for line in bed.mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        fstype, source = tail.split(" ")[:2]
        place = head.split(" ")[4]
        # What somebody else has mounted on the machine may go at any time, and goes from the bed with its directory.
        if line not in inherited or place == "/" or place.startswith(_SYSTEM):
            yield f"mount {place} ({fstype} {source})"


def _files(bed: Testbed) -> Iterator[str]:
    for top in ("/run", "/var/lib"):
        outside = bed.path(top)
        for directory, names, files in os.walk(outside):
            below = Path(directory).relative_to(outside)
            names[:] = [n for n in names if _belongs(str(below / n))]
            for name in (*names, *files):
                if _belongs(str(below / name)):
                    yield f"{_kind(Path(directory) / name)} {top}/{below / name}"


def _belongs(path: str) -> bool:
    """Whether to list a path below /run or /var/lib here; `_netns` and `_ipam` list theirs."""
    name = path.rpartition("/")[2]
    if path.split("/")[0] in ("netns", "cni") or path == "xtables.lock" or path.startswith(_IMAGE_STORE):
        return False
    return not (name.startswith("ledger.db") or name.endswith(".log"))


def _kind(path: Path) -> str:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return "vanishing file"
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFDIR: "directory", stat.S_IFLNK: "link file"}
    return kinds.get(stat.S_IFMT(mode), "file")


def _processes(bed: Testbed) -> Iterator[str]:
    for entry in bed.proc.iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip().decode("utf-8", "replace")
                name = (entry / "comm").read_text("utf-8", "replace").strip()
            except OSError:  # it has just ended
                continue
            if not argv.endswith(
                " features"
            ):  # an OCI runtime that is asked what it can do, behind the daemon's start
                yield f"process {argv}" if argv else f"zombie process [{name}]"


def _cgroups(bed: Testbed) -> Iterator[str]:
    yield from (f"cgroup {directory}" for directory in bed.cgroup_dirs())


def _containerd(bed: Testbed) -> Iterator[str]:
    settings = bed.config.get("containerd", {})
    state = bed.config.get("daemon", {}).get("state", "/run/sandboxd")
    socket = settings.get("socket") or f"{state}/containerd/containerd.sock"
    if not bed.path(socket).exists():
        return
    namespace = settings.get("namespace", "sandboxd")
    snapshotter = settings.get("snapshotter", "overlayfs")
    ctr = ["ctr", "--address", socket, "--namespace", namespace]
    for kind, words in {
        "container": ["containers", "list", "-q"],
        "task": ["tasks", "list", "-q"],
        "lease": ["leases", "list", "-q"],
        "snapshot": ["snapshots", "--snapshotter", snapshotter, "list"],
    }.items():
        listed = bed.run([*ctr, *words])
        rows = listed.stdout.splitlines()[1 if kind == "snapshot" else 0 :]
        yield from (f"containerd {kind} {row.split()[0]}" for row in rows if row.strip())

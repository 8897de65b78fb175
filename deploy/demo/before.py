"""The machine's state before the demo, and how to restore it.

Pods are removed by the daemon and leave nothing. The plugins, however, set up some things once and never remove them:
the bridge, portmap's static chains, ip_forward, host-local's directory. They are removed here, but only if they did
not exist before.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from deploy.demo import places
from sandboxd import mounts, syscalls

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
IPAM = Path("/var/lib/cni")
NETNS = Path("/run/netns")
SHIM_SOCKETS = Path("/run/containerd")  # shims and runc use it whatever containerd's own directories are
PORTMAP_CHAINS = ("CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK")


def look() -> dict[str, Any]:
    """The current state of the machine, as far as it is compared."""
    return {
        "ip_forward": FORWARD.read_text(encoding="ascii").strip(),
        "links": sorted(link["ifname"] for link in _json("ip", "-j", "link", "show")),
        "tables": sorted(f"{t['family']} {t['name']}" for t in _nft("table")),
        "chains": sorted(f"{c['family']} {c['table']} {c['name']}" for c in _nft("chain")),
        "netns": sorted(path.name for path in NETNS.iterdir()) if NETNS.is_dir() else [],
        "mounts": sorted(_mounts()),
        "directories": [str(path) for path in _watched() if path.exists()],
        "cgroups": sorted(map(str, _cgroups())),
        "processes": _processes(),
    }


def remember() -> None:
    """Record the machine's state, unless an earlier demo has."""
    if not places.BEFORE.exists():
        seen = json.dumps(look())
        places.BEFORE.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        places.BEFORE.write_text(seen, encoding="utf-8")


def recall() -> dict[str, Any] | None:
    """The state that `remember` recorded, None if there was no demo."""
    try:
        before: dict[str, Any] = json.loads(places.BEFORE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return before


def restore(before: dict[str, Any]) -> list[str]:
    """Remove what the plugins set up once; return the remaining differences to `before`."""
    bridge = places.network().bridge
    if bridge not in before["links"]:
        _quiet("ip", "link", "delete", bridge)
    _remove_portmap_chains(before)
    _remove_empty_tables(before)
    FORWARD.write_text(before["ip_forward"], encoding="ascii")
    shutil.rmtree(IPAM / "networks" / places.network().name, ignore_errors=True)
    _remove_cgroups(before)
    for directory in (places.STATE, places.ROOT):
        shutil.rmtree(directory, ignore_errors=True)
    # Another mount of it may be hidden below a later mount of /run, so ours is the additional one.
    if _mounts().count(str(NETNS)) > before["mounts"].count(str(NETNS)) and not list(NETNS.iterdir()):
        syscalls.umount2(str(NETNS), 0)  # umount(8) would leave /run/mount behind
    for path in sorted(_watched(), key=lambda p: len(p.parts), reverse=True):
        if str(path) not in before["directories"] and path.is_dir() and not list(path.iterdir()):
            path.rmdir()
    return difference(before, look())


def difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What was added or removed, a line for each."""
    lines = []
    for kind, was in before.items():
        now = after[kind]
        if isinstance(was, list):
            lines += [f"{kind}: {item} is left" for item in now if item not in was]
            if kind not in ("cgroups", "processes"):
                lines += [f"{kind}: {item} is gone" for item in was if item not in now]
        elif was != now:
            lines.append(f"{kind} was {was} and is {now}")
    return lines


def _watched() -> list[Path]:
    """Directories that the demo, containerd or the plugins create, parents before children."""
    return [
        places.ROOT,
        places.STATE,
        IPAM,
        IPAM / "networks",
        IPAM / "networks" / places.network().name,
        NETNS,
        SHIM_SOCKETS,
        SHIM_SOCKETS / "s",
        SHIM_SOCKETS / "runc",
        SHIM_SOCKETS / "runc" / "sandboxd",
        Path("/opt/containerd"),
        Path("/var/lib/containerd"),
    ]


def _remove_portmap_chains(before: dict[str, Any]) -> None:
    """The chains of portmap's iptables backend, and the jumps to them."""
    for family, command in (("ip", "iptables"), ("ip6", "ip6tables")):
        ours = [c for c in PORTMAP_CHAINS if f"{family} nat {c}" not in before["chains"]]
        rules = subprocess.run([command, "-t", "nat", "-S"], capture_output=True, text=True).stdout.splitlines()
        for rule in rules:
            words = rule.split()
            if words[:1] == ["-A"] and "-j" in words and words[words.index("-j") + 1] in ours:
                # The saved form quotes comments for a shell, so a shell parses them correctly.
                _quiet("sh", "-c", f"{command} -t nat -D {rule[3:]}")
        for chain in ours:
            _quiet(command, "-t", "nat", "-F", chain)
        for chain in ours:
            _quiet(command, "-t", "nat", "-X", chain)


def _remove_empty_tables(before: dict[str, Any]) -> None:
    """Empty tables that iptables-nft created."""
    ruled = {(rule["family"], rule["table"]) for rule in _nft("rule")}
    for table in _nft("table"):
        family, name = table["family"], table["name"]
        if f"{family} {name}" not in before["tables"] and (family, name) not in ruled:
            _quiet("nft", "delete", "table", family, name)


def _cgroups() -> list[Path]:
    """The demo's cgroups in every hierarchy, parents before children. Containers share them with the machine."""
    root = Path("/sys/fs/cgroup")
    found: list[Path] = []
    for parent in (root / places.CGROUP, *root.glob(f"*/{places.CGROUP}")):
        if parent.is_dir():
            found += [parent, *sorted(path for path in parent.rglob("*") if path.is_dir())]
    return found


def _remove_cgroups(before: dict[str, Any]) -> None:
    """Those that did not exist before; what is in use is told as left."""
    for directory in reversed(_cgroups()):
        if str(directory) not in before.get("cgroups", ()):
            try:
                directory.rmdir()
            except OSError:
                pass


def _processes() -> list[str]:
    """Processes that the demo could leave behind, each as "PID COMMAND"."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            line = b" ".join(argv).decode(errors="replace").strip()
            if str(places.STATE) in line or str(places.ROOT) in line:
                lines.append(f"{entry.name} {line}")
    return sorted(lines)


def _mounts() -> list[str]:
    return [mount.point for mount in mounts.listed()]


def _nft(kind: str) -> list[dict[str, Any]]:
    listed = _json("nft", "-j", "list", "ruleset")
    return [entry[kind] for entry in listed["nftables"] if kind in entry]


def _json(*argv: str) -> Any:
    finished = subprocess.run(argv, capture_output=True, text=True)
    if finished.returncode:
        raise places.DemoError(f"{' '.join(argv)} failed: {finished.stderr.strip()}")
    return json.loads(finished.stdout or "[]")


def _quiet(*argv: str) -> None:
    """Run a command; the comparison that follows shows whether it failed."""
    subprocess.run(argv, capture_output=True)

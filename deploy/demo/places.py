"""The demo's directories. It shares only the bridge's address range with a real installation."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxd.supervised import Supervised

PROJECT = Path(__file__).resolve().parents[2]
ROOT = Path("/var/lib/sandboxd-demo")
STATE = Path("/run/sandboxd-demo")
SOCKET = STATE / "sandboxd.sock"
CONF_DIR = STATE / "net.d"
DAEMON_LOG = STATE / "sandboxd.log"
DAEMON = Supervised(pid_file=str(STATE / "sandboxd.pid"), argument=f"--root={ROOT}")
BEFORE = ROOT / "before.json"
CGROUP = "sandboxd-demo"
CONFLIST = PROJECT / "deploy" / "cni" / "10-sandboxd.conflist"
NGINX = PROJECT / "build" / "images" / "nginx.tar"
POD = "demo"


class DemoError(Exception):
    """Why the demo cannot continue, as one sentence with the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The facts about the default network that the demo needs."""

    name: str
    bridge: str
    subnet: str
    conflist: dict[str, Any]


def network() -> Network:
    """Read the default network's configuration."""
    conflist = json.loads(CONFLIST.read_text(encoding="utf-8"))
    bridge = next(plugin for plugin in conflist["plugins"] if plugin["type"] == "bridge")
    return Network(
        name=conflist["name"],
        bridge=bridge["bridge"],
        subnet=bridge["ipam"]["ranges"][0][0]["subnet"],
        conflist=conflist,
    )


def daemon_command() -> list[str]:
    """The command line of the demo's daemon."""
    return [
        str(Path(sys.executable).parent / "sandboxd"),
        "serve",
        f"--root={ROOT}",
        f"--state={STATE}",
        "--log-level=debug",
        f"--set=network.conf_dir={CONF_DIR}",
        f"--set=runtime.cgroup_parent=/{CGROUP}",
    ]

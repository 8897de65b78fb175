"""`sandboxd check`: whether this machine can run pods, and what to do if it cannot.

It changes nothing, so it can run beside a serving daemon.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandboxd.cni.conf_dir import ConfDir
from sandboxd.cni.lookup import missing_delegates, preflight
from sandboxd.config import Config
from sandboxd.errors import SandboxdError
from sandboxd.machine import room


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    what: str
    ok: bool
    words: str
    remedy: str = ""


def examine(config: Config) -> list[Finding]:
    """Run every check. A failed check is a finding, not an exception."""
    return [*_process(), *_kernel(), *_disk(config), *_containerd(config), *_pause(config), *_network(config)]


def _process() -> Iterator[Finding]:
    root = os.geteuid() == 0
    yield Finding(
        what="user",
        ok=root,
        words="root" if root else f"uid {os.geteuid()}",
        remedy="" if root else "run as root: network namespaces and mounts need it",
    )


def _kernel() -> Iterator[Finding]:
    filesystems = Path("/proc/filesystems").read_text(encoding="ascii").split()
    overlay = "overlay" in filesystems
    yield Finding(
        what="overlayfs",
        ok=overlay,
        words="in the kernel" if overlay else "not in the kernel",
        remedy="" if overlay else "modprobe overlay",
    )
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    v1 = Path("/sys/fs/cgroup/memory").is_dir()
    yield Finding(
        what="cgroups",
        ok=unified or v1,
        words="v2" if unified else "v1" if v1 else "no hierarchy under /sys/fs/cgroup",
        remedy="" if unified or v1 else "mount the cgroup hierarchies",
    )


def _disk(config: Config) -> Iterator[Finding]:
    for directory in (config.daemon.root, config.daemon.state):
        words = room.lack(directory)
        yield Finding(
            what="disk",
            ok=not words,
            words=words or f"{directory} has room",
            remedy="remove pods, images, or whatever else is there" if words else "",
        )


def _containerd(config: Config) -> Iterator[Finding]:
    if config.containerd.managed:
        for name, package in ((config.containerd.binary, "containerd"), ("containerd-shim-runc-v2", "containerd")):
            yield _binary(name, package)
    else:
        exists = Path(config.containerd_socket).is_socket()
        yield Finding(
            what="containerd",
            ok=exists,
            words=f"{config.containerd_socket} {'exists' if exists else 'does not exist'}",
            remedy="" if exists else "start containerd, or set containerd.managed = true",
        )
    for name, handler in sorted(config.runtime.handlers.items()):
        if handler.type == "io.containerd.runc.v2":
            yield _binary(handler.binary or "runc", name if handler.binary else "runc")


def _binary(name: str, package: str) -> Finding:
    path = shutil.which(name)
    return Finding(
        what=os.path.basename(name),
        ok=path is not None,
        words=path or f"{name} is not in PATH",
        remedy="" if path else f"on Debian: apt-get install {package}",
    )


def _pause(config: Config) -> Iterator[Finding]:
    if config.runtime.pause_image != "builtin":
        return
    path = Path(config.runtime.pause_binary)
    yield Finding(
        what="pause",
        ok=path.is_file(),
        words=str(path) if path.is_file() else f"{path} does not exist",
        remedy="" if path.is_file() else "on Debian: apt-get install catatonit",
    )


def _network(config: Config) -> Iterator[Finding]:
    choice = ConfDir(config.network.conf_dir).current()
    for problem in choice.problems:
        yield Finding(what="network configuration", ok=False, words=f"{problem.path}: {problem.text}")
    if choice.config is None:
        yield Finding(
            what="network",
            ok=False,
            words=f"no usable configuration in {config.network.conf_dir}",
            remedy="see deploy/cni/ for the default one",
        )
        return
    try:
        preflight(choice.config, config.network.plugin_dirs)
    except SandboxdError as exc:
        yield Finding(what="network", ok=False, words=str(exc))
    else:
        types = ", ".join(plugin["type"] for plugin in choice.config.plugins)
        yield Finding(what="network", ok=True, words=f"{choice.config.name} ({types}) from {choice.config.source}")
        for missing in missing_delegates(choice.config, config.network.plugin_dirs):
            yield Finding(what="ipam", ok=True, words=f"{missing}; pods fail if a plugin of the network executes it")

"""Pinned namespaces as plain files: `sandboxd.netns` without a kernel behind it.

Held to the real thing by `tests/root/contracts/test_netns.py`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandboxd.errors import CleanupIncomplete, NotReady
from sandboxd.links import Link
from tests.fakes.points import Points


class Netns:
    """Namespaces, each at its path."""

    def __init__(self, points: Points) -> None:
        self.pinned: dict[str, int] = {}
        self.inside: dict[tuple[int, str], int] = {}  # (pid, kind of namespace) -> the inode of the one it is in
        self.addresses: dict[str, dict[str, tuple[str, ...]]] = {}  # path -> interface -> its addresses
        self.hostnames: dict[str, str] = {}  # path of a uts namespace -> its host name
        self.sysctls: dict[tuple[str, ...], dict[str, str]] = {}  # the namespaces' paths, sorted -> what was set
        self.process_hostnames: dict[int, str] = {}  # of the process's uts namespace
        self._points = points
        self._inodes = itertools.count(4_026_531_840)

    def left(self) -> list[str]:
        """Everything that is pinned."""
        return [f"namespace {path}" for path in self.pinned]

    async def create(self, path: str) -> int:
        async with self._points.at("netns.create", NotReady):
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                return self._pin(path)
            except OSError as exc:
                raise NotReady(f"network namespace {path} cannot be created: {exc}") from exc

    async def create_user_namespace(self, path: str, *, uid_map: str, gid_map: str, netns_path: str = "") -> None:
        async with self._points.at("netns.create_user_namespace", NotReady):
            done: list[str] = []
            try:
                for target in (path, netns_path) if netns_path else (path,):
                    self._pin(target)
                    done.append(target)
            except OSError as exc:
                for target in done:
                    self._unpin(target)
                raise NotReady(f"user namespace {path} cannot be created: {exc}") from exc

    async def create_others(self, pins: Mapping[str, str], hostname: str = "") -> None:
        async with self._points.at("netns.create_others", NotReady):
            done: list[str] = []
            try:
                for path in pins.values():
                    self._pin(path)
                    done.append(path)
            except OSError as exc:
                for path in done:
                    self._unpin(path)
                raise NotReady(f"namespaces cannot be created: {exc}") from exc
            self.hostnames |= {path: hostname for kind, path in pins.items() if kind == "uts"}

    async def set_sysctls(self, paths: Sequence[str], values: Mapping[str, str]) -> None:
        async with self._points.at("netns.set_sysctls", NotReady):
            for path in paths:
                if not self.exists(path):
                    raise NotReady(f"namespaces cannot be entered: {path} does not exist")
            for name, value in values.items():
                if name != "kernel.domainname" and value.strip("0123456789 \t-"):
                    raise NotReady(f"sysctl {name} cannot be set to {value!r}")
            self.sysctls |= {tuple(sorted(paths)): dict(values)}

    async def restore(self, path: str, wanted: int, pids: Sequence[int], kind: str = "net") -> bool:
        async with self._points.at("netns.restore", NotReady):
            if wanted and self.inode(path) == wanted:
                return True
            self._unpin(path)
            for pid in pids:
                inode = self.inside.get((pid, kind), 0)
                if inode and wanted in (0, inode):
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    self._pin(path, inode)
                    return True
            return False

    async def set_hostname(self, pid: int, name: str, netns_inode: int) -> None:
        async with self._points.at("netns.set_hostname", NotReady):
            if netns_inode not in self.pinned.values() or self.inside.get((pid, "net"), netns_inode) != netns_inode:
                raise NotReady(f"the hostname of process {pid} cannot be set: it is not the pod's")
            self.process_hostnames[pid] = name

    async def remove(self, path: str) -> None:
        async with self._points.at("netns.remove", CleanupIncomplete):
            try:
                self._unpin(path)
            except OSError as exc:
                raise CleanupIncomplete(f"network namespace {path} cannot be removed: {exc}") from exc

    async def interfaces(self, path: str) -> list[Link]:
        async with self._points.at("netns.interfaces", NotReady):
            if not self.exists(path):
                raise NotReady(f"network namespace {path} cannot be entered: no such file")
            named = {"lo": ("127.0.0.1/8", "::1/128"), **self.addresses.get(path, {})}
            return [
                Link(
                    name=name,
                    index=index,
                    mac=f"00:00:00:00:00:{index - 1:02x}",
                    mtu=1500,
                    up=True,
                    addresses=addresses,
                )
                for index, (name, addresses) in enumerate(named.items(), 1)
            ]

    def exists(self, path: str) -> bool:
        return path in self.pinned and os.path.exists(path)

    def inode(self, path: str) -> int:
        return self.pinned[path] if self.exists(path) else 0

    def _pin(self, path: str, inode: int = 0) -> int:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
        self.pinned[path] = inode or next(self._inodes)
        return self.pinned[path]

    def _unpin(self, path: str) -> None:
        directory = Path(path).parent
        for beside in directory.iterdir() if directory.is_dir() else ():
            if beside.is_symlink() and Path(os.readlink(beside)).name == Path(path).name:
                beside.unlink()
        Path(path).unlink(missing_ok=True)
        self.pinned.pop(path, None)

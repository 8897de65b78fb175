"""Rules of table nat, made and removed by as few runs of iptables-restore(8) as possible."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from sandboxd.cni import execution
from sandboxd.cni.in_process import rules
from sandboxd.cni.in_process.ranges import Odd
from sandboxd.cni.in_process.rules import Rules
from sandboxd.cni.in_process.words import Failed


class Table:
    """Table nat of one family. Raises Odd when its programs are not in its PATH."""

    def __init__(self, version: int, env: Mapping[str, str]) -> None:
        """`version` is 4 or 6; `env` that of the plugin: by it a process that outlives the daemon is found."""
        name = rules.FAMILIES[version]
        found = shutil.which(f"{name}-restore", path=env.get("PATH", "")) or ""
        beside = f"{os.path.dirname(found)}/{name}-save"  # one package has both
        save = beside if os.access(beside, os.X_OK) else shutil.which(f"{name}-save", path=env.get("PATH", ""))
        if not found or not save:
            raise Odd(f"without {name}-restore and {name}-save in its PATH")
        self._restore, self._save = found, save
        self._env = env

    async def make(self, wanted: Rules) -> None:
        """Make the rules; those that are there already stay. Raises Failed."""
        if await self._write(wanted.quick()) and (script := wanted.thorough(await self._saved())):
            await self._demand(script)

    async def remove(self, chain: str, known: Rules | None) -> None:
        """Remove a chain with its rules, and what leads to it. Idempotent; raises Failed.

        `known` are the rules as they were made, which are removed without a look at the others.
        """
        if known is not None and not await self._write(known.quick_removal()):
            return
        if script := rules.removal(await self._saved(), chain):
            await self._demand(script)

    async def _saved(self) -> list[str]:
        done = await execution.run(self._save, self._env, b"", _SECONDS, arguments=("-t", "nat"))
        if done.exit_code:
            raise Failed(_words(self._save, done.exit_code, done.stderr))
        return done.stdout.decode("utf-8", "surrogateescape").splitlines()

    async def _demand(self, script: str) -> None:
        if words := await self._write(script):
            raise Failed(words)

    async def _write(self, script: str) -> str:
        """Why it was refused, "" if it was not. The script is carried out whole or not at all."""
        done = await execution.run(
            self._restore,
            self._env,
            script.encode("utf-8", "surrogateescape"),
            _SECONDS,
            arguments=("--noflush", "--wait"),
        )
        return _words(self._restore, done.exit_code, done.stderr) if done.exit_code else ""


_SECONDS = 300.0  # the execution that this is a part of ends sooner


def _words(program: str, code: int, stderr: bytes) -> str:
    said = stderr.decode("utf-8", "replace").strip()
    return f"running [{program}]: exit status {code}: {said}"

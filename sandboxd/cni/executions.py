"""Executions of plugins: each waits for its slot, has its limit, and is recorded on its step.

One is a process, or the same work done by the daemon itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import cast

import structlog

from sandboxd import remembered, spans, steps
from sandboxd.cni import execution
from sandboxd.cni.conf import SUPPORTED
from sandboxd.cni.failures import error_from
from sandboxd.cni.in_process import backend, dialects
from sandboxd.cni.in_process.ranges import Odd
from sandboxd.cni.request import version_stdin
from sandboxd.cni.result import supported_versions
from sandboxd.cni.slots import Slots
from sandboxd.errors import Exhausted, NotReady, PluginFailed, TimedOut, Unavailable
from sandboxd.remembered import Remembered
from sandboxd.steps import PluginExecution

log = structlog.get_logger(__name__)

VERSION_SECONDS = 10.0  # VERSION touches nothing, so a plugin that takes longer is broken
UNSAID_SECONDS = 300.0  # after which a plugin that did not answer VERSION is asked again
TEARDOWN_SECONDS = 120.0  # a kubelet waits for half as long for StopPodSandbox as for RunPodSandbox
SLOT_SECONDS = 2.0  # ten times what the slowest of the usual plugins takes
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")


class Executions:
    """For each network `concurrency` ADDs and as many DELs at a time, without those that hang.

    An ADD may take `timeout` seconds. Everything else may take two minutes, as far as an ADD may, or half of the
    time of an ADD if that is more.
    """

    def __init__(self, timeout: float, concurrency: int, path: str) -> None:
        """`path` is the PATH of the plugins. Besides they get the CNI_* variables, and the span when there is one."""
        self.timeout = timeout
        self.path = path
        self._teardown_timeout = max(min(timeout, TEARDOWN_SECONDS), timeout / 2)
        self._slots = Slots(concurrency, SLOT_SECONDS)
        self._remembered = Remembered()

    def full(self, queue: tuple[str, str]) -> bool:
        """Whether an execution would wait."""
        return self._slots.full(queue)

    def running(self) -> dict[str, tuple[int, int]]:
        """How many plugins run, and how many executions wait for a slot, by command."""
        commands = dict.fromkeys(COMMANDS, (0, 0))
        for key, (run, wait) in self._slots.use().items():
            command = str(cast(tuple[str, str], key)[1]).partition(" ")[0]
            before = commands[command]
            commands[command] = before[0] + run, before[1] + wait
        return commands

    async def run(
        self,
        step: steps.Step,
        binary: str,
        env: Mapping[str, str],
        stdin: bytes,
        queue: tuple[str, str],
        *,
        limit: float = 0.0,
        in_process: bool = False,
    ) -> PluginExecution:
        """One execution, or the same done in-process, recorded on `step`; raises the error that a failure means.

        `queue` is what it waits with: its network and command. `limit` is in seconds, 0 is that of a teardown.
        """

        def cut_off(execution: PluginExecution) -> None:
            step.plugin = execution

        limit = limit or self._teardown_timeout
        if self._slots.full(queue):
            step.note(queued="yes")
        env = {"PATH": self.path, **env}
        async with self._slots.slot(queue):
            whole = {**env, **spans.environment()}
            done = await self._in_process_or_none(step, binary, whole, stdin, limit, cut_off) if in_process else None
            if done is None:
                done = await execution.run(binary, whole, stdin, limit, cut_off)
        step.plugin = done
        if done.timed_out or done.exit_code != 0:
            raise error_from(
                done.stdout,
                done.stderr,
                done.exit_code,
                done.timed_out,
                plugin=os.path.basename(binary),
                command=done.command,
                seconds=limit,
            )
        return done

    async def _in_process_or_none(
        self,
        step: steps.Step,
        binary: str,
        env: Mapping[str, str],
        stdin: bytes,
        limit: float,
        cut_off: Callable[[PluginExecution], object],
    ) -> PluginExecution | None:
        """The same without executing the plugin; None when it is the plugin's after all."""
        # Which version it is tells only in what an ADD leaves; a DEL can do without the binary.
        speaks = await self.version(binary) if env["CNI_COMMAND"] == "ADD" else frozenset()
        try:
            return await backend.run(binary, env, stdin, limit, cut_off, dialect=dialects.of(speaks))
        except Odd as exc:
            step.note(executed=f"its input has {exc}")
            return None

    async def version(self, binary: str) -> frozenset[str]:
        """The spec versions that a plugin speaks, remembered for as long as its file stays the same.

        Plugins that do not answer VERSION are many, and do well: they are taken to speak every version, and are
        asked again later. Raises NotReady when the binary cannot be executed.
        """
        try:
            file = remembered.version(binary)
        except OSError as exc:
            raise NotReady(f"CNI plugin {binary} cannot be read: {exc.strerror}") from exc
        try:
            return await self._remembered.answer(
                binary, lambda: self._ask_version(binary), version=file, error_seconds=UNSAID_SECONDS
            )
        except _Unsaid:
            return frozenset(SUPPORTED)

    async def _ask_version(self, binary: str) -> frozenset[str]:
        type_ = os.path.basename(binary)
        limit = min(self.timeout, VERSION_SECONDS)
        with steps.step("cni.version", plugin=type_) as step:
            try:
                done = await self.run(
                    step, binary, {"CNI_COMMAND": "VERSION"}, version_stdin(), ("", "VERSION"), limit=limit
                )
                return supported_versions(done.stdout, type_)
            except (PluginFailed, TimedOut, Unavailable, Exhausted) as exc:
                step.note(unsaid=str(exc))
                unsaid = exc
        log.warning(
            "a CNI plugin does not say which versions it speaks; the configuration decides",
            plugin=binary,
            error=str(unsaid),
        )
        raise _Unsaid from unsaid


class _Unsaid(Exception):
    """The plugin does not say which versions it speaks."""

"""The execution of plugins: the only place of this package that starts a process.

Each execution runs in a session of its own, with the CNI_* variables and PATH as its whole environment, bounded
in time and in output, and is recorded in full in its step. On timeout and on cancellation its process group is
killed: delegates such as an IPAM plugin are children of the plugin, and would otherwise live on and hold the locks
that the next pod waits for.

The caller guarantees one operation at a time per container; see the package for the other assumptions.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from sandboxd import remembered, steps
from sandboxd.cni.conf import SUPPORTED, NetworkConfig, from_json
from sandboxd.cni.gate import Gates
from sandboxd.cni.lookup import find, preflight
from sandboxd.cni.request import check_container_id, check_ifname, plugin_env, plugin_stdin, version_stdin
from sandboxd.cni.result import (
    CONTAINER_UNKNOWN,
    OUTPUT_LIMIT,
    Result,
    error_from,
    parse_result,
    pod_ips,
    supported_versions,
)
from sandboxd.cni.strict_json import load_object
from sandboxd.errors import InvalidRequest, NotReady, PluginFailed, SandboxdError
from sandboxd.model import Attachment
from sandboxd.remembered import Remembered
from sandboxd.steps import PluginExecution

# Plugins look up iptables, nft and the like by name.
PLUGIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

VERSION_SECONDS = 10.0  # VERSION touches nothing, so a plugin that takes longer is broken
LINGER_SECONDS = 1.0  # for the rest of the output of a plugin that has exited
REAP_SECONDS = 5.0  # for a killed plugin to exit
BUSY_RETRIES = 5
BUSY_SECONDS = 0.1  # between two retries


class Invoker:
    """Runs plugins, at most `concurrency` at a time, each at most `timeout` seconds."""

    def __init__(self, timeout: float, concurrency: int = 8) -> None:
        self._timeout = timeout
        self._slots = asyncio.Semaphore(concurrency)
        self._gates = Gates()
        self._remembered = Remembered()

    async def prepare(self, config: NetworkConfig, plugin_dirs: Sequence[str]) -> NetworkConfig:
        """Find every binary and settle the version, before anything is created.

        The version is the highest that the configuration allows and all its plugins, IPAM delegates included,
        support. Raises NotReady when a binary is missing, InvalidRequest naming the plugin when no version is
        common to all.
        """
        common = frozenset(config.versions)
        for type_, binary in preflight(config, plugin_dirs).items():
            speaks = await self.version(binary)
            if not common & speaks:
                raise InvalidRequest(
                    f'CNI plugin "{type_}" ({binary}) speaks {_list(speaks)}; network "{config.name}"'
                    f"{f', from {config.source}' if config.source else ''}, can use {_list(common)}; set its "
                    "cniVersion to one that all its plugins speak, or update the plugin"
                )
            common &= speaks
        return config.limited_to(common)

    async def add(self, attachment: Attachment) -> bytes:
        """Attach the pod: run the chain in order and return the final result as JSON.

        Raises the first plugin's error, PluginFailed when the chain gave the pod no address, NotReady when a
        binary or the namespace is missing. Whatever it raises, a DEL must follow.
        """
        config = _config(attachment)
        capabilities = _capabilities(attachment)
        _check_netns(attachment.netns_path)
        binaries = [_find(plugin, attachment, config) for plugin in config.plugins]
        result: Result | None = None
        async with self._gates.shared(config.name):
            for position, (plugin, binary) in enumerate(zip(config.plugins, binaries, strict=True), start=1):
                previous = result.raw if result else None
                stdin = plugin_stdin(config, plugin, capabilities, previous, config.cni_version)
                with steps.step("cni.add", plugin=plugin["type"], network=config.name) as step:
                    done = await self._run(step, binary, plugin_env("ADD", attachment), stdin)
                    result = parse_result(done.stdout, plugin["type"], version=config.cni_version)
                    if position == len(binaries):
                        _demand_address(result, plugin["type"], attachment.ifname)
        assert result is not None  # a configuration has at least one plugin
        return json.dumps(result.raw, separators=(",", ":")).encode()

    async def delete(self, attachment: Attachment) -> None:
        """Detach the pod: run the chain in reverse, each plugin with the final result of ADD.

        Idempotent: plugins succeed for what is already gone. Stops at the first error and raises it: the same DEL
        is then still due.
        """
        config = _config(attachment)
        capabilities = _capabilities(attachment)
        previous = _previous(attachment, config)
        # The path may hold a plain file left by a broken mount, on which plugins would fail forever, or (under
        # /proc) the namespace of another process. The spec allows DEL without a namespace.
        netns = attachment.netns_path if _is_foreign_netns(attachment.netns_path) else ""
        env = plugin_env("DEL", attachment, netns)
        async with self._gates.shared(config.name):
            for plugin in reversed(config.plugins):
                stdin = plugin_stdin(config, plugin, capabilities, previous, config.cni_version)
                with steps.step("cni.del", plugin=plugin["type"], network=config.name) as step:
                    binary = _find(plugin, attachment, config)
                    try:
                        await self._run(step, binary, env, stdin)
                    except PluginFailed as exc:
                        if exc.code != CONTAINER_UNKNOWN:
                            raise
                        step.note(already_gone=exc.msg)

    async def check(self, attachment: Attachment) -> bool:
        """Ask the plugins whether the pod is still attached as ADD left it; raises the first error.

        Returns False without running any when the configuration rules CHECK out (`disableCheck`, or a version
        before 0.4.0) or ADD has no result yet.
        """
        config = _config(attachment)
        if config.disable_check or not config.speaks("0.4.0") or not attachment.result:
            return False
        capabilities = _capabilities(attachment)
        previous = _previous(attachment, config)
        _check_netns(attachment.netns_path)
        env = plugin_env("CHECK", attachment)
        async with self._gates.shared(config.name):
            for plugin in config.plugins:
                stdin = plugin_stdin(config, plugin, capabilities, previous, config.cni_version)
                with steps.step("cni.check", plugin=plugin["type"], network=config.name) as step:
                    binary = _find(plugin, attachment, config)
                    await self._run(step, binary, env, stdin)
        return True

    async def status(self, config: NetworkConfig, plugin_dirs: Sequence[str]) -> bool:
        """Ask the plugins whether they can take ADDs; raises the first error, NotReady for "not available".

        Returns False without running any before version 1.1.0.
        """
        if not config.speaks("1.1.0"):
            return False
        env = {"CNI_COMMAND": "STATUS", "CNI_PATH": ":".join(plugin_dirs)}
        for plugin in config.plugins:
            stdin = plugin_stdin(config, plugin, {}, None, config.cni_version)
            with steps.step("cni.status", plugin=plugin["type"], network=config.name) as step:
                binary = find(plugin["type"], plugin_dirs, network=config.name, source=config.source)
                await self._run(step, binary, env, stdin)
        return True

    async def gc(self, config: NetworkConfig, plugin_dirs: Sequence[str], valid: Iterable[tuple[str, str]]) -> bool:
        """Let the plugins free what belongs to none of the `valid` (container id, ifname) attachments.

        Every plugin runs even if one fails; the first error is raised at the end, with the others as its notes.
        Returns False without running any before version 1.1.0 and with `disableGC`.
        """
        if config.disable_gc or not config.speaks("1.1.0"):
            return False
        attachments = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        # The second key is the spec's older spelling, for plugins built before it was corrected.
        extra = {"cni.dev/valid-attachments": attachments, "cni.dev/attachments": attachments}
        env = {"CNI_COMMAND": "GC", "CNI_PATH": ":".join(plugin_dirs)}
        errors: list[SandboxdError] = []
        async with self._gates.exclusive(config.name):
            for plugin in config.plugins:
                try:
                    stdin = plugin_stdin(config, plugin, {}, None, config.cni_version, extra)
                    with steps.step("cni.gc", plugin=plugin["type"], network=config.name) as step:
                        binary = find(plugin["type"], plugin_dirs, network=config.name, source=config.source)
                        await self._run(step, binary, env, stdin)
                except SandboxdError as exc:
                    errors.append(exc)
        if errors:
            for other in errors[1:]:
                errors[0].add_note(str(other))
            raise errors[0]
        return True

    async def version(self, binary: str) -> frozenset[str]:
        """The spec versions that a plugin speaks, remembered for as long as its file stays the same."""
        try:
            file = remembered.version(binary)
        except OSError as exc:
            raise NotReady(f"CNI plugin {binary} cannot be read: {exc.strerror}") from exc
        return await self._remembered.answer(binary, lambda: self._ask_version(binary), version=file)

    async def _ask_version(self, binary: str) -> frozenset[str]:
        type_ = os.path.basename(binary)
        limit = min(self._timeout, VERSION_SECONDS)
        with steps.step("cni.version", plugin=type_) as step:
            try:
                done = await self._run(step, binary, {"CNI_COMMAND": "VERSION"}, version_stdin(), limit)
            except PluginFailed as exc:
                # 0.1.0 had no VERSION, and its plugins say so in these words.
                if "unknown CNI_COMMAND" in f"{exc.msg} {exc.details}":
                    return frozenset({SUPPORTED[0]})
                raise
            return supported_versions(done.stdout, type_)

    async def _run(
        self, step: steps.Step, binary: str, env: Mapping[str, str], stdin: bytes, timeout: float = 0.0
    ) -> PluginExecution:
        """One execution, recorded on `step`; raises the error that its failure stands for."""
        limit = timeout or self._timeout
        if self._slots.locked():
            step.note(queued="yes")
        async with self._slots:
            done = await self.exec(binary, env, stdin, limit)
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

    async def exec(self, binary: str, env: Mapping[str, str], stdin: bytes, timeout: float) -> PluginExecution:
        """Run one plugin until it exits, for at most `timeout` seconds; never raises for how it ended.

        Raises NotReady when it cannot be started at all.
        """
        began = time.perf_counter_ns()
        transport, output = await _spawn(binary, env)
        try:
            feed = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
            feed.write(stdin)
            feed.write_eof()
            timed_out = False
            try:
                async with asyncio.timeout(timeout):
                    await output.exited.wait()
            except TimeoutError:
                timed_out = True
                _kill(transport)
            with suppress(TimeoutError):
                async with asyncio.timeout(REAP_SECONDS if timed_out else LINGER_SECONDS):
                    await output.exited.wait()
                    await output.ended.wait()
        except BaseException:
            _kill(transport)
            with suppress(TimeoutError):
                async with asyncio.timeout(REAP_SECONDS):
                    await output.exited.wait()
            raise
        finally:
            # Stops reading from a child that the plugin left behind. The process itself is reaped by the loop.
            transport.close()
        code = transport.get_returncode()
        return PluginExecution(
            command=env.get("CNI_COMMAND", ""),
            binary=binary,
            env=dict(env),
            stdin=stdin,
            stdout=bytes(output.kept[1]),
            stderr=bytes(output.kept[2]),
            exit_code=-signal.SIGKILL if code is None else code,
            duration=time.perf_counter_ns() - began,
            timed_out=timed_out,
        )


class _Output(asyncio.SubprocessProtocol):
    """Keeps the first bytes of stdout and stderr, and signals when the process and its output have ended."""

    def __init__(self) -> None:
        self.kept = {1: bytearray(), 2: bytearray()}
        self.exited = asyncio.Event()
        self.ended = asyncio.Event()
        self._open = {1, 2}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        # The rest is read and dropped: a plugin that talks too much must not block on a full pipe.
        self.kept[fd] += data[: OUTPUT_LIMIT - len(self.kept[fd])]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.ended.set()

    def process_exited(self) -> None:
        self.exited.set()


async def _spawn(binary: str, env: Mapping[str, str]) -> tuple[asyncio.SubprocessTransport, _Output]:
    loop = asyncio.get_running_loop()
    for attempt in range(BUSY_RETRIES + 1):
        try:
            return await loop.subprocess_exec(
                _Output, binary, env={"PATH": PLUGIN_PATH, **env}, cwd="/", start_new_session=True
            )
        except OSError as exc:
            # An installer is still writing the binary and will be done in a moment.
            if exc.errno == errno.ETXTBSY and attempt < BUSY_RETRIES:
                await asyncio.sleep(BUSY_SECONDS)
                continue
            raise NotReady(f"CNI plugin {binary} cannot be executed: {exc.strerror or exc}") from exc
    raise AssertionError("the last attempt returns or raises")


def _kill(transport: asyncio.SubprocessTransport) -> None:
    """Kill the plugin's process group, unless the plugin was reaped: its pid may have been reused by then."""
    if transport.get_returncode() is None:
        with suppress(ProcessLookupError):
            os.killpg(transport.get_pid(), signal.SIGKILL)


def _config(attachment: Attachment) -> NetworkConfig:
    check_container_id(attachment.sandbox_id)
    check_ifname(attachment.ifname)
    return from_json(attachment.config, attachment.conf_file)


def _capabilities(attachment: Attachment) -> dict[str, Any]:
    try:
        return load_object(attachment.capability_args)
    except ValueError as exc:
        raise InvalidRequest(
            f"the record of {attachment.sandbox_id} on network {attachment.network} is damaged: its capability "
            f"arguments are {exc}"
        ) from exc


def _previous(attachment: Attachment, config: NetworkConfig) -> dict[str, Any] | None:
    """The final result, for the commands that take it: DEL and CHECK since 0.4.0."""
    if not attachment.result or not config.speaks("0.4.0"):
        return None
    try:
        return load_object(attachment.result)
    except ValueError:
        # A damaged result must not keep a pod forever: a DEL without one is still a DEL.
        return None


def _find(plugin: Mapping[str, Any], attachment: Attachment, config: NetworkConfig) -> str:
    dirs = attachment.plugin_path.split(":")
    return find(plugin["type"], dirs, network=config.name, source=config.source)


def _demand_address(result: Result, plugin: str, ifname: str) -> None:
    if not pod_ips(result, ifname):
        raise PluginFailed(plugin=plugin, command="ADD", code=0, msg=f"returned no address for {ifname}")


def _check_netns(path: str) -> None:
    if _is_foreign_netns(path):
        return
    if os.path.exists(path) and os.path.samefile(path, "/proc/self/ns/net"):
        raise InvalidRequest(f"{path} is the host's own network namespace; plugins would change the host")
    raise NotReady(f"{path} is not a live network namespace")


def _is_foreign_netns(path: str) -> bool:
    """Whether `path` is a namespace other than the daemon's own.

    All namespaces are files of the kernel's one nsfs, so they share its st_dev and differ in st_ino.
    """
    try:
        target, own = os.stat(path), os.stat("/proc/self/ns/net")
    except (OSError, ValueError):
        return False
    return target.st_dev == own.st_dev and target.st_ino != own.st_ino


def _list(versions: frozenset[str]) -> str:
    return ", ".join(sorted(versions)) or "none"

"""The verbs of CNI: a chain of plugins, in order or in reverse, each execution recorded in full in its step.

The caller guarantees one operation at a time per container; see the package for the other assumptions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, nullcontext
from typing import Any

import structlog

from sandboxd import disclosure, remembered, steps
from sandboxd.cni import backends, diagnosed, executions, identity, stand_ins
from sandboxd.cni.conf import SUPPORTED, NetworkConfig, delegate_type, from_json
from sandboxd.cni.convert import in_version, read
from sandboxd.cni.executions import Executions
from sandboxd.cni.failures import CONTAINER_UNKNOWN
from sandboxd.cni.gate import Gates
from sandboxd.cni.leftovers import Leftovers
from sandboxd.cni.lookup import find, is_missing, missing_delegates, preflight
from sandboxd.cni.recorded import Call
from sandboxd.cni.request import check_container_id, check_ifname, plugin_env, plugin_stdin
from sandboxd.cni.result import Result, parse_result, pod_ips
from sandboxd.cni.strict_json import load_object
from sandboxd.environment import DEFAULT_PATH
from sandboxd.errors import InvalidRequest, NotReady, PluginFailed, SandboxdError
from sandboxd.model import Attachment, Owed
from sandboxd.remembered import Remembered

log = structlog.get_logger(__name__)

GC_SECONDS = 30.0  # GC holds up the pods of its network

Around = Callable[[str], AbstractAsyncContextManager[None]]
"""What is entered before a plugin of the given type runs, and left after it, with the error if it failed."""


def unobserved(plugin: str) -> AbstractAsyncContextManager[None]:
    """The `Around` of a caller who does not look."""
    return nullcontext()


class Invoker:
    """Runs plugins, within the bounds of `Executions`; GC and VERSION, for which others wait, have less time."""

    def __init__(
        self,
        timeout: float,
        concurrency: int = 8,
        *,
        path: str = DEFAULT_PATH,
        in_process: Callable[[str], str] = lambda network: "never",
    ) -> None:
        """`path` is the PATH of the plugins. Besides they get the CNI_* variables, and the span when there is one.

        `in_process` says of a network which of `config.IN_PROCESS` it is.
        """
        self._timeout = timeout
        self._path = path
        self._in_process = in_process
        self._executions = Executions(timeout, concurrency, path)
        self._gates = Gates()
        self._remembered = Remembered()
        self._leftovers = Leftovers()

    def running(self) -> dict[str, tuple[int, int]]:
        """How many plugins run, and how many executions wait for a slot, by command."""
        return self._executions.running()

    async def prepare(self, config: NetworkConfig, plugin_dirs: Sequence[str]) -> NetworkConfig:
        """Find every binary of the chain and settle the version, before anything is created.

        The version is the highest that the configuration allows and all its plugins support. What nobody can know
        before ADD limits nothing: a plugin that does not answer VERSION, an IPAM delegate that is missing or too
        old, for its plugin may not execute it. Raises NotReady when a binary of the chain is missing, InvalidRequest
        naming the plugin when it says that it speaks none of the versions.

        The answer also says which plugins' work is done in-process. NotReady when all must be, and one cannot.
        """
        chain = {plugin["type"] for plugin in config.plugins}
        common = frozenset(config.versions)
        binaries = preflight(config, plugin_dirs)
        for type_, binary in binaries.items():
            try:
                speaks = await self.version(binary)
            except NotReady:
                if type_ in chain:
                    raise
                continue
            if common & speaks:
                common &= speaks
            elif type_ in chain:
                raise InvalidRequest(
                    f'CNI plugin "{type_}" ({binary}) speaks {_list(speaks)}; network "{config.name}"'
                    f"{f', from {config.source}' if config.source else ''}, can use {_list(common)}; set its "
                    "cniVersion to one that all its plugins speak, or update the plugin"
                )
        limited = config.limited_to(common)
        mode = self._in_process(config.name)
        if mode == "never":
            return limited
        return await self._remembered.answer(
            ("in-process", config.name),
            lambda: backends.chosen(limited, binaries, self._path, mode),
            version=(limited, tuple(map(remembered.version, binaries.values())), mode),
        )

    async def needs_identity(self, config: NetworkConfig, plugin_dirs: Sequence[str]) -> str:
        """Why its plugins may do something else for one pod than for another; "" when they cannot. See `identity`.

        Raises NotReady when a binary of the chain is missing.
        """
        binaries = preflight(config, plugin_dirs)
        return await self._remembered.answer(
            ("identity", config.name),
            lambda: identity.needed_by(config, binaries),
            version=(config.plugins, tuple(map(remembered.version, binaries.values()))),
        )

    async def add(
        self,
        attachment: Attachment,
        handed_on: Callable[[bytes], object] | None = None,
        around: Around = unobserved,
    ) -> bytes:
        """Attach the pod: run the chain in order and return the final result as JSON.

        `handed_on` gets each result, as JSON, before the next plugin is given it. When the chain ends early, the last
        one is the result to keep for DEL: some plugins find what they made, such as a firewall's rules, by it only.
        `around` is entered for each plugin, and left when it has run.

        Raises the first plugin's error, PluginFailed when the chain gave the pod no address, NotReady when a
        binary or the namespace is missing. Whatever it raises, a DEL must follow.
        """
        config = _config(attachment)
        capabilities = _capabilities(attachment)
        with diagnosed.before_plugins(config.name):
            _check_netns(attachment.netns_path)
            binaries = [_find(plugin, attachment, config) for plugin in config.plugins]
        result: Result | None = None
        async with self._gates.shared(config.name):
            for position, (plugin, binary) in enumerate(zip(config.plugins, binaries, strict=True)):
                previous = in_version(result, config.cni_version) if result else None
                if previous is not None and handed_on is not None:
                    handed_on(_as_json(previous))
                stdin = plugin_stdin(config, plugin, capabilities, previous, config.cni_version)
                async with around(plugin["type"]):
                    result = await self._add_one(attachment, config, position, binary, stdin)
        assert result is not None  # a configuration has at least one plugin
        return _as_json(in_version(result, config.cni_version))

    async def _add_one(
        self, attachment: Attachment, config: NetworkConfig, position: int, binary: str, stdin: bytes
    ) -> Result:
        plugin = config.plugins[position]
        with (
            steps.step("cni.add", plugin=plugin["type"], network=config.name) as step,
            diagnosed.noted(step, "ADD"),
        ):
            try:
                done = await self._executions.run(
                    step,
                    binary,
                    plugin_env("ADD", attachment),
                    stdin,
                    (config.name, "ADD"),
                    limit=self._timeout,
                    in_process=position in attachment.in_process,
                )
            except PluginFailed as exc:
                if f'"{delegate_type(plugin)}"' not in exc.msg:
                    for problem in missing_delegates(config, attachment.plugin_path.split(":"), [plugin]):
                        exc.add_note(str(problem))
                raise
            result = parse_result(done.stdout, plugin["type"], version=config.cni_version)
            if result.remarks:
                step.note(dubious="; ".join(result.remarks))
                log.warning("a CNI plugin's result is dubious", plugin=binary, remarks=result.remarks)
            if position == len(config.plugins) - 1:
                _demand_address(result, plugin["type"], attachment.ifname)
        return result

    async def delete(
        self, attachment: Attachment, *, without: frozenset[str] = frozenset(), around: Around = unobserved
    ) -> tuple[Owed, ...]:
        """Detach the pod: run the plugins that owe their DEL, in reverse, each with the last result of ADD.

        `without` are IPAM plugins that are gone for good: the plugins that run them go on as if they had succeeded.

        Idempotent: plugins succeed for what is already gone. One that fails does not keep the others from theirs;
        those that failed are returned, in the order of the chain. Raises InvalidRequest when the record is damaged;
        no plugin has run then.
        """
        await self._leftovers.end(attachment.sandbox_id)
        config = _config(attachment)
        capabilities = _capabilities(attachment)
        previous = _previous(attachment, config)
        # The path may hold a plain file left by a broken mount, on which plugins would fail forever, or (under
        # /proc) the namespace of another process. The spec allows DEL without a namespace.
        netns = attachment.netns_path if _is_foreign_netns(attachment.netns_path) else ""
        env = plugin_env("DEL", attachment, netns)
        # A DEL that failed before, and may fail again, is not in the way of the first DEL of another pod.
        queue = config.name, "DEL again" if attachment.attempts else "DEL"
        before = {owed.position: owed.attempts for owed in attachment.owed}
        failed: list[Owed] = []
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._gates.shared(config.name))
            if without:
                env["CNI_PATH"] += f":{stack.enter_context(stand_ins.directory(without, self._path))}"
            for position, plugin in reversed(tuple(enumerate(config.plugins))):
                if before and position not in before:
                    continue  # its DEL succeeded in an earlier attempt
                stdin = plugin_stdin(config, plugin, capabilities, previous, config.cni_version)
                try:
                    ours = position in attachment.in_process and self._in_process(config.name) != "never"
                    async with around(plugin["type"]):
                        await self._delete_one(attachment, config, plugin, env, stdin, queue, in_process=ours)
                except (SandboxdError, OSError) as exc:
                    failed.insert(
                        0,
                        Owed(
                            position=position,
                            plugin=plugin["type"],
                            error=disclosure.whole(exc),
                            attempts=before.get(position, 0) + 1,
                            missing=_missing(plugin, attachment, str(exc)),
                        ),
                    )
        return tuple(failed)

    def deletes_in_process(self, attachment: Attachment) -> bool:
        """Whether no plugin is executed for its DEL: what ADD made is then found by id, whatever else is gone."""
        chosen = bool(attachment.backends) and all(attachment.backends)
        return chosen and self._in_process(attachment.network) != "never"

    async def _delete_one(
        self,
        attachment: Attachment,
        config: NetworkConfig,
        plugin: Mapping[str, Any],
        env: Mapping[str, str],
        stdin: bytes,
        queue: tuple[str, str],
        *,
        in_process: bool,
    ) -> None:
        with steps.step("cni.del", plugin=plugin["type"], network=config.name) as step, diagnosed.noted(step, "DEL"):
            try:
                binary = _find(plugin, attachment, config)
            except NotReady:
                if not in_process:
                    raise
                binary = plugin["type"]
            try:
                await self._executions.run(step, binary, env, stdin, queue, in_process=in_process)
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
                with (
                    steps.step("cni.check", plugin=plugin["type"], network=config.name) as step,
                    diagnosed.noted(step, "CHECK"),
                ):
                    binary = _find(plugin, attachment, config)
                    await self._executions.run(step, binary, env, stdin, (config.name, "CHECK"))
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
            with (
                steps.step("cni.status", plugin=plugin["type"], network=config.name) as step,
                diagnosed.noted(step, "STATUS"),
            ):
                binary = find(plugin["type"], plugin_dirs, network=config.name, source=config.source)
                await self._executions.run(step, binary, env, stdin, (config.name, "STATUS"))
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
                    with (
                        steps.step("cni.gc", plugin=plugin["type"], network=config.name) as step,
                        diagnosed.noted(step, "GC"),
                    ):
                        binary = find(plugin["type"], plugin_dirs, network=config.name, source=config.source)
                        limit = min(self._timeout, GC_SECONDS)
                        await self._executions.run(step, binary, env, stdin, (config.name, "GC"), limit=limit)
                except SandboxdError as exc:
                    errors.append(exc)
        if errors:
            for other in errors[1:]:
                errors[0].add_note(str(other))
            raise errors[0]
        return True

    async def repeat(self, call: Call) -> Mapping[str, Any]:
        """Run one plugin with exactly this input; the result of an ADD, in the version of its configuration.

        Raises as the verb does whose execution it is. Whatever it raises, after an ADD a DEL must follow.
        """
        limits = {"ADD": self._timeout, "VERSION": min(self._timeout, executions.VERSION_SECONDS)}
        async with self._gates.shared(call.network):
            with _step_of(call) as step, diagnosed.noted(step, call.command):
                if call.command in ("ADD", "CHECK"):
                    _check_netns(call.env.get("CNI_NETNS", ""))
                limit = limits.get(call.command, 0.0)
                queue = call.network, f"{call.command} again"
                done = await self._executions.run(step, call.binary, call.env, call.stdin, queue, limit=limit)
                if call.command != "ADD":
                    return {}
                version = load_object(call.stdin).get("cniVersion") or SUPPORTED[0]
                result = parse_result(done.stdout, call.plugin, version=version)
                if call.last:
                    _demand_address(result, call.plugin, call.env.get("CNI_IFNAME", ""))
                return in_version(result, version)

    async def version(self, binary: str) -> frozenset[str]:
        """The spec versions that a plugin speaks; see `Executions.version`."""
        return await self._executions.version(binary)


def _step_of(call: Call) -> AbstractContextManager[steps.Step]:
    """The step of one execution that is repeated. Raises InvalidRequest for a command that is never repeated."""
    about = {"plugin": call.plugin, "network": call.network or None}
    match call.command:
        case "ADD":
            return steps.step("cni.add", **about)
        case "DEL":
            return steps.step("cni.del", **about)
        case "CHECK":
            return steps.step("cni.check", **about)
        case "STATUS":
            return steps.step("cni.status", **about)
        case "VERSION":
            return steps.step("cni.version", **about)
    raise InvalidRequest(f"{call.command} cannot be repeated")


def _as_json(result: Mapping[str, Any]) -> bytes:
    return json.dumps(result, separators=(",", ":")).encode()


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


def _previous(attachment: Attachment, config: NetworkConfig) -> Mapping[str, Any] | None:
    """The last result, for the commands that take it: DEL and CHECK since 0.4.0."""
    if not attachment.result or not config.speaks("0.4.0"):
        return None
    try:
        return read(attachment.result, config.cni_version)
    except PluginFailed:
        # A damaged result must not keep a pod forever: a DEL without one is still a DEL.
        return None


def _find(plugin: Mapping[str, Any], attachment: Attachment, config: NetworkConfig) -> str:
    dirs = attachment.plugin_path.split(":")
    return find(plugin["type"], dirs, network=config.name, source=config.source)


def _missing(plugin: Mapping[str, Any], attachment: Attachment, error: str) -> str:
    """The type whose missing binary is why the plugin failed: its own, or its IPAM plugin's; "" if neither is."""
    dirs, delegate = attachment.plugin_path.split(":"), delegate_type(plugin)
    if is_missing(plugin["type"], dirs):
        return str(plugin["type"])
    # Not every plugin runs the one that `ipam.type` names.
    return delegate if delegate and f'"{delegate}"' in error and is_missing(delegate, dirs) else ""


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

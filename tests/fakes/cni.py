"""Plugins in memory, as `sandboxd.cni.invoker.Invoker` runs them.

Held to the real thing by `tests/root/contracts/test_cni.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sandboxd import steps
from sandboxd.cni.conf import NetworkConfig, delegate_type, from_json
from sandboxd.cni.invoker import Around, unobserved
from sandboxd.cni.recorded import Call
from sandboxd.cni.request import check_container_id, check_ifname
from sandboxd.cni.strict_json import load_object
from sandboxd.errors import (
    Exhausted,
    InvalidRequest,
    NotReady,
    PluginFailed,
    SandboxdError,
    TimedOut,
    Unavailable,
)
from sandboxd.model import Attachment, Owed
from sandboxd.steps import PluginExecution
from tests.fakes.points import Points

VERSIONS = frozenset({"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"})


class Cni:
    """The plugins of `plugins`, by type, with the versions that they speak.

    What was added and not deleted is in `attached`, as its ADD was given it.
    """

    def __init__(
        self, points: Points, is_live: Callable[[str], bool], plugins: Mapping[str, frozenset[str]] | None = None
    ) -> None:
        """`is_live` says whether there is a network namespace at a path."""
        self.plugins = dict(plugins or {"bridge": VERSIONS})
        self.attached: dict[tuple[str, str, str], Attachment] = {}
        self.refusing: dict[str, set[str]] = {}  # command -> the types whose repetition fails
        self.undeleted: set[tuple[str, str, str]] = set()  # ADD was asked for, however it ended, and DEL was not
        self.identity = ""  # which plugin takes something from the pod's identity
        self._points = points
        self._is_live = is_live

    def left(self) -> list[str]:
        """Every attachment that is there, and every ADD without its DEL."""
        return [
            *(f"attachment {key}" for key in self.attached),
            *(f"ADD without DEL {key}" for key in self.undeleted),
        ]

    def deletes_in_process(self, attachment: Attachment) -> bool:
        return False

    async def prepare(self, config: NetworkConfig, plugin_dirs: Sequence[str]) -> NetworkConfig:
        async with self._points.at("cni.prepare", NotReady, InvalidRequest, Unavailable):
            common = frozenset(config.versions)
            for plugin in config.plugins:
                common &= self._speaks(plugin["type"])
                if not common:
                    raise InvalidRequest(f'CNI plugin "{plugin["type"]}" speaks none of {config.versions}')
            return config.limited_to(common)

    async def needs_identity(self, config: NetworkConfig, plugin_dirs: Sequence[str]) -> str:
        async with self._points.at("cni.needs_identity", NotReady):
            for plugin in config.plugins:
                self._speaks(plugin["type"])
            return self.identity

    async def add(
        self,
        attachment: Attachment,
        handed_on: Callable[[bytes], object] | None = None,
        around: Around = unobserved,
    ) -> bytes:
        key = (attachment.sandbox_id, attachment.network, attachment.ifname)
        self.undeleted.add(key)
        async with self._points.at("cni.add", _refusal, Exhausted, NotReady, TimedOut, Unavailable):
            config = self._config(attachment)
            if not self._is_live(attachment.netns_path):
                raise NotReady(f"{attachment.netns_path} is not a live network namespace")
            for plugin in config.plugins:
                async with around(plugin["type"]):
                    self._speaks(plugin["type"])
            self.attached[key] = attachment
            document = {
                "cniVersion": config.cni_version,
                "interfaces": [{"name": attachment.ifname, "sandbox": attachment.netns_path}],
                "ips": [{"address": "10.88.0.2/16", "interface": 0}],
            }
            result = json.dumps(document, separators=(",", ":")).encode()
            if handed_on is not None:
                for _ in config.plugins[1:]:
                    handed_on(result)
            return result

    async def delete(
        self, attachment: Attachment, *, without: frozenset[str] = frozenset(), around: Around = unobserved
    ) -> tuple[Owed, ...]:
        """A failure is the first plugin's; one that is not in `plugins` is missing, and so is its IPAM plugin."""
        config = self._config(attachment)
        try:
            async with self._points.at("cni.delete", _refusal, NotReady, TimedOut, Unavailable):
                for plugin in reversed(config.plugins):
                    async with around(plugin["type"]):
                        pass
                return self._deleted(attachment, config, without)
        except SandboxdError as exc:
            return (_owed(attachment, 0, config.plugins[0]["type"], str(exc)),)

    async def repeat(self, call: Call) -> Mapping[str, Any]:
        """One of a type in `refusing` fails; its step has what was executed, as with real ones."""
        key = (call.env.get("CNI_CONTAINERID", ""), call.network, call.env.get("CNI_IFNAME", ""))
        if call.command == "ADD":
            self.undeleted.add(key)
        with steps.step(f"cni.{call.command.lower()}", plugin=call.plugin, network=call.network) as step:
            failed = call.plugin in self.refusing.get(call.command, ())
            step.plugin = PluginExecution(
                command=call.command,
                binary=call.binary,
                env=call.env,
                stdin=call.stdin,
                stdout=b"",
                stderr=b"",
                exit_code=int(failed),
                duration=1,
            )
            async with self._points.at("cni.repeat", _refusal, NotReady, TimedOut, Unavailable):
                if call.command in ("ADD", "CHECK") and not self._is_live(call.env["CNI_NETNS"]):
                    raise NotReady(f"{call.env['CNI_NETNS']} is not a live network namespace")
                if failed:
                    raise _refusal("no luck again")
                if call.command != "ADD":
                    return {}
                conf = load_object(call.stdin)
                ips = [{"address": "10.88.0.3/16"}]
                return {**conf.get("prevResult", {"ips": ips}), "cniVersion": conf["cniVersion"]}

    async def check(self, attachment: Attachment) -> bool:
        async with self._points.at("cni.check", _refusal_of("CHECK"), NotReady, TimedOut, Unavailable):
            config = self._config(attachment)
            if not config.speaks("0.4.0") or config.disable_check or not attachment.result:
                return False
            if not self._is_live(attachment.netns_path):
                raise NotReady(f"{attachment.netns_path} is not a live network namespace")
            for plugin in config.plugins:
                self._speaks(plugin["type"])
            return True

    async def version(self, binary: str) -> frozenset[str]:
        async with self._points.at("cni.version", NotReady):
            return self._speaks(os.path.basename(binary))

    def _deleted(self, attachment: Attachment, config: NetworkConfig, without: frozenset[str]) -> tuple[Owed, ...]:
        key = (attachment.sandbox_id, attachment.network, attachment.ifname)
        owing = [each.position for each in attachment.owed] or range(len(config.plugins))
        failed = [
            _owed(attachment, position, plugin["type"], f'CNI plugin "{type_}" was not found', missing=type_)
            for position in owing
            for plugin in [config.plugins[position]]
            for type_ in (plugin["type"], delegate_type(plugin))
            if type_ and type_ not in self.plugins and type_ not in without
        ]
        added = self.attached.get(key)
        if added is not None:
            # What no plugin is given.
            names = ("state", "result", "error", "attempts", "tried_at", "failed_at", "owed", "boot", "pod")
            given = replace(attachment, **{name: getattr(added, name) for name in names})
            assert given == added, f"DEL was given something else than its ADD: {given} instead of {added}"
        if not failed:
            self.attached.pop(key, None)
            self.undeleted.discard(key)
        return tuple(failed)

    def _config(self, attachment: Attachment) -> NetworkConfig:
        check_container_id(attachment.sandbox_id)
        check_ifname(attachment.ifname)
        try:
            load_object(attachment.capability_args)
        except ValueError as exc:
            raise InvalidRequest(f"the record of {attachment.sandbox_id} is damaged: {exc}") from exc
        return from_json(attachment.config, attachment.conf_file)

    def _speaks(self, type_: str) -> frozenset[str]:
        if type_ not in self.plugins:
            raise NotReady(f'CNI plugin "{type_}" was not found')
        return self.plugins[type_]


def _owed(attachment: Attachment, position: int, plugin: str, error: str, *, missing: str = "") -> Owed:
    before = {each.position: each.attempts for each in attachment.owed}
    attempts = before.get(position, 0) + 1
    return Owed(position=position, plugin=plugin, error=error, attempts=attempts, missing=missing)


def _refusal(words: str) -> PluginFailed:
    return PluginFailed(plugin="bridge", command="ADD", code=999, msg=words)


def _refusal_of(command: str) -> Callable[[str], PluginFailed]:
    return lambda words: PluginFailed(plugin="bridge", command=command, code=999, msg=words)

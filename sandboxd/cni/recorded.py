"""Recorded executions of plugins → what runs the same again, in another namespace and for another pod.

The plugins of a chain are found again in what was recorded: an ADD run goes from the plugin without a previous result
to the one that failed, or to the last; the DELs of an attachment go the other way, through all plugins. Of each, what
the runtime had put into its standard input is put in anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sandboxd.cni.conf import SUPPORTED, NetworkConfig, config_json
from sandboxd.cni.strict_json import load_object
from sandboxd.errors import InvalidRequest
from sandboxd.model import Attachment
from sandboxd.steps import PluginExecution

_RUNTIME_KEYS = ("cniVersion", "name", "runtimeConfig", "prevResult")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One execution of a plugin, as it is to be. `last`: an ADD that ends the chain, so its result is the pod's."""

    command: str
    plugin: str  # its type
    network: str
    binary: str
    env: Mapping[str, str]
    stdin: bytes
    last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A plugin of a chain, and what it was given but for the previous result."""

    conf: Mapping[str, Any]
    binary: str
    env: Mapping[str, str]

    @property
    def version(self) -> str:
        """That of its requests."""
        return str(self.conf.get("cniVersion") or SUPPORTED[0])

    @property
    def type(self) -> str:
        """The plugin's type."""
        return str(self.conf.get("type") or os.path.basename(self.binary))

    @property
    def capabilities(self) -> frozenset[str]:
        """The names of those that it was given a value of."""
        return frozenset(_object(self.conf.get("runtimeConfig")))

    @property
    def ports(self) -> Sequence[Mapping[str, Any]]:
        """The host ports that it was asked to publish."""
        listed = _object(self.conf.get("runtimeConfig")).get("portMappings")
        return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """For whom a chain is run again: nobody that a plugin could take for the pod."""

    id: str
    netns_path: str
    ports: Mapping[int, int]  # a host port as recorded → the one in its place
    left_out: frozenset[str]  # capabilities that are not passed on


def chain(executions: Sequence[PluginExecution], target: PluginExecution) -> tuple[list[Link], int]:
    """The plugins of the target's network, as far as they are known, in the order of ADD, and the target's place.

    `executions` are those of one pod, oldest first; the target, an ADD, a DEL or a CHECK, is one of them. Raises
    InvalidRequest for one whose input is not what a plugin is given.
    """
    mine = [each for each in executions if _key(each) == _key(target)]
    wanted = _link(target)
    run = _run(mine, target)
    deleted = _distinct(_link(each) for each in mine if each.command == "DEL")[::-1]
    links = deleted if len(deleted) > len(run) and [each.conf for each in deleted[: len(run)]] == _confs(run) else run
    if wanted.conf not in _confs(links):
        links = deleted
    if wanted.conf not in _confs(links):  # a CHECK of which nothing else is known any more
        links = [wanted]
    place = _confs(links).index(wanted.conf)
    return [*links[:place], wanted, *links[place + 1 :]], place


def elsewhere(link: Link, where: Elsewhere) -> Link:
    """The same plugin, for a replay: another id, namespace, pod name, uid and host ports."""
    env = {**link.env, "CNI_CONTAINERID": where.id, "CNI_NETNS": where.netns_path}
    env["CNI_ARGS"] = ";".join(_argument(each, where.id) for each in link.env.get("CNI_ARGS", "").split(";"))
    conf = dict(link.conf)
    given = {key: value for key, value in _object(conf.get("runtimeConfig")).items() if key not in where.left_out}
    if link.ports:
        given["portMappings"] = [
            {**each, "hostPort": where.ports.get(each.get("hostPort", 0), each.get("hostPort"))}
            for each in link.ports
        ]
    conf.pop("runtimeConfig", None)
    if given:
        conf["runtimeConfig"] = given
    return replace(link, conf=conf, env=env)


def call(link: Link, command: str, previous: Mapping[str, Any] | None = None, *, last: bool = False) -> Call:
    """An execution of the plugin, with the last result where the command takes one."""
    takes = command == "ADD" or SUPPORTED.index(link.version) >= SUPPORTED.index("0.4.0")
    document = {**link.conf, **({"prevResult": previous} if previous is not None and takes else {})}
    return Call(
        command=command,
        plugin=link.type,
        network=str(link.conf.get("name", "")),
        binary=link.binary,
        env={**link.env, "CNI_COMMAND": command},
        stdin=json.dumps(document, separators=(",", ":")).encode(),
        last=last,
    )


def as_recorded(execution: PluginExecution) -> Call:
    """The same execution again, to the byte."""
    conf = _conf(execution)
    return Call(
        command=execution.command,
        plugin=str(conf.get("type") or os.path.basename(execution.binary)),
        network=str(conf.get("name") or ""),
        binary=execution.binary,
        env=execution.env,
        stdin=execution.stdin,
    )


def attachment(links: Sequence[Link], where: Elsewhere, *, pod: str, boot: str) -> Attachment:
    """The attachment to which these plugins, which are for a replay already, add: what their DELs are made from.

    `pod` says for people what it is. Raises InvalidRequest for a chain that no attachment can have.
    """
    first = links[0]
    if first.version not in SUPPORTED:
        raise InvalidRequest(f"the recorded input of {first.binary} is of version {first.version}")
    plugins: list[Mapping[str, Any]] = []
    given: dict[str, Any] = {}
    for link in links:
        own = _object(link.conf.get("runtimeConfig"))
        given |= own
        plugin = {key: value for key, value in link.conf.items() if key not in _RUNTIME_KEYS}
        plugins.append({**plugin, **({"capabilities": dict.fromkeys(own, True)} if own else {})})
    name = str(first.conf.get("name", ""))
    config = NetworkConfig(name=name, versions=(first.version,), plugins=tuple(plugins))
    return Attachment(
        sandbox_id=where.id,
        network=name,
        ifname=first.env.get("CNI_IFNAME", ""),
        netns_path=where.netns_path,
        conf_file="",
        config=config_json(config),
        plugin_path=first.env.get("CNI_PATH", ""),
        args=first.env.get("CNI_ARGS", ""),
        capability_args=json.dumps(given, separators=(",", ":")).encode(),
        pod=pod,
        boot=boot,
    )


def fixed_addresses(link: Link) -> list[str]:
    """The addresses that the configuration itself gives to whoever is attached, without prefix lengths."""
    ipam = _object(link.conf.get("ipam"))
    if ipam.get("type") != "static" or not isinstance(ipam.get("addresses"), list):
        return []
    return [str(each.get("address", "")).partition("/")[0] for each in ipam["addresses"] if isinstance(each, dict)]


def asked(link: Link, capability: str) -> list[str]:
    """What a pod asked of the plugin under this capability, "ips" without prefix lengths or "mac"; mostly nothing."""
    value = _object(link.conf.get("runtimeConfig")).get(capability)
    values = value if isinstance(value, list) else [value] if value else []
    return [str(each).partition("/")[0] for each in values]


def _run(mine: Sequence[PluginExecution], target: PluginExecution) -> list[Link]:
    """The ADD run that the target is in, or else the last one."""
    runs: list[list[PluginExecution]] = []
    for each in mine:
        if each.command == "ADD":
            if not runs or "prevResult" not in _conf(each):
                runs.append([])
            runs[-1].append(each)
    chosen = next((run for run in runs if any(each is target for each in run)), runs[-1] if runs else [])
    return [_link(each) for each in chosen]


def _distinct(links: Iterable[Link]) -> list[Link]:
    found: list[Link] = []
    for link in links:
        if link.conf not in _confs(found):
            found.append(link)
    return found


def _confs(links: Iterable[Link]) -> list[Mapping[str, Any]]:
    return [link.conf for link in links]


def _link(execution: PluginExecution) -> Link:
    conf = {key: value for key, value in _conf(execution).items() if key != "prevResult"}
    return Link(conf=conf, binary=execution.binary, env=execution.env)


def _key(execution: PluginExecution) -> tuple[str, str, str]:
    """What an attachment is known by."""
    if execution.command not in ("ADD", "CHECK", "DEL"):
        return "", "", ""
    name = str(_conf(execution).get("name", ""))
    return execution.env.get("CNI_CONTAINERID", ""), name, execution.env.get("CNI_IFNAME", "")


def _conf(execution: PluginExecution) -> dict[str, Any]:
    try:
        return load_object(execution.stdin)
    except ValueError as exc:
        raise InvalidRequest(f"the recorded input of {execution.binary} cannot be read: {exc}") from exc


def _argument(pair: str, id_: str) -> str:
    """One of CNI_ARGS, with which a plugin may look for the pod, or keep what it makes for it."""
    key, separator, _ = pair.partition("=")
    if key in ("K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"):
        return f"{key}{separator}{id_}"
    return f"{key}{separator}replay-{id_[:12]}" if key == "K8S_POD_NAME" else pair


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

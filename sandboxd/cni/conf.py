"""Network configuration files: from bytes to a `NetworkConfig` (CNI spec 1.1, section 1).

Strict about what the spec requires and libcni checks, and no stricter: null is an absent key, a plugin's keys may be
written in any case. Unknown keys belong to the plugins and reach them unchanged. Pure: `conf_dir` reads the files.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sandboxd.cni.strict_json import kind, load_object, shown
from sandboxd.errors import InvalidRequest

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The spec versions that this runtime speaks, oldest first."""

SUFFIXES = (".conf", ".conflist", ".json")
"""Suffixes of the files that are considered."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")

_TOLD, _TOLD_CHARACTERS = 10, 300  # of what was passed over: a directory may hold very many files


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """One network: its plugins in the order of ADD, and how to talk to them."""

    name: str
    versions: tuple[str, ...]  # that the file allows and we support, newest first; never empty
    plugins: tuple[Mapping[str, Any], ...]  # as written, never empty
    disable_check: bool = False
    disable_gc: bool = False
    source: str = ""  # path of the file, for people
    backends: tuple[str, ...] = ()  # of each plugin, `model.IN_PROCESS` or "" for a process; none: all are processes
    passed_over: str = ""  # the other files of the directory and why they are not in force, for people

    @property
    def cni_version(self) -> str:
        """The version of the requests to its plugins."""
        return self.versions[0]

    def speaks(self, version: str) -> bool:
        """Whether the negotiated version is `version` or newer."""
        return SUPPORTED.index(self.cni_version) >= SUPPORTED.index(version)

    def limited_to(self, common: frozenset[str]) -> NetworkConfig:
        """The same network with only the versions in `common`, at least one of which it must allow."""
        return replace(self, versions=tuple(v for v in self.versions if v in common))


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a file or directory."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The configuration in force, if any, and what is wrong with the others."""

    config: NetworkConfig | None
    problems: tuple[Problem, ...] = ()
    others: tuple[Problem, ...] = ()  # valid files that are not in force, each with the reason
    empty: bool = False  # there is no file at all: no network is configured, as opposed to a broken file

    def passed_over(self) -> str:
        """Why each file that is not in force is not, on one line, so many of them."""
        told = sorted({str(each) for each in (*self.problems, *self.others)})
        more = [f"and {len(told) - _TOLD} more"] if len(told) > _TOLD else []
        return "; ".join((*(each[:_TOLD_CHARACTERS] for each in told[:_TOLD]), *more))


DropIns = Mapping[str, Mapping[str, bytes | OSError]]
"""Network name → path → content of the files in `<configuration directory>/<network name>/`."""


def choose(files: Mapping[str, bytes | OSError], drop_ins: DropIns | None = None) -> Choice:
    """Pick the first valid file in lexicographic order; report every broken one.

    `files` maps a path to its content, or to the error met when reading it. Other suffixes are ignored.
    """
    chosen: NetworkConfig | None = None
    problems: list[Problem] = []
    others: list[Problem] = []
    for path in sorted(files):
        content = files[path]
        if not path.endswith(SUFFIXES):
            continue
        if isinstance(content, OSError):
            problems.append(Problem(path=path, text=f"cannot be read: {content.strerror or content}"))
            continue
        try:
            config = parse(path, content, drop_ins)
        except InvalidRequest as exc:
            problems.append(Problem(path=path, text=str(exc).removeprefix(f"{path}: ")))
            continue
        if chosen is not None:
            others.append(Problem(path=path, text=f"network {config.name!r} comes after {chosen.source}"))
        chosen = chosen or config
    return Choice(config=chosen, problems=tuple(problems), others=tuple(others))


def parse(file_name: str, data: bytes, drop_ins: DropIns | None = None) -> NetworkConfig:
    """Read one configuration file.

    A .conflist is a list; a .conf is one plugin and becomes a list of one; a .json is whichever it looks like.
    Unless the list sets `loadOnlyInlinedPlugins`, the plugins in `drop_ins[its name]` follow its own, in the
    order of their file names (spec 1.1).

    Raises InvalidRequest, naming the file and the key, when the file violates the spec or asks only for versions
    that we do not support.
    """
    document = _object(data, file_name)
    is_list = file_name.endswith(".conflist") or (file_name.endswith(".json") and "plugins" in document)
    name = document.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidRequest(
            f"{file_name}: name: expected letters, digits, '_', '.' and '-', beginning with a letter or digit, "
            f"got {shown(name)}"
        )
    versions = _versions(document, file_name, name)
    if not is_list:
        if "plugins" in document and "type" not in document:
            raise InvalidRequest(f"{file_name}: plugins: this is a list; name the file .conflist")
        plugin = _plugin(document, file_name, "")
        return NetworkConfig(name=name, versions=versions, plugins=(plugin,), source=file_name)

    inlined = document.get("plugins")
    if inlined is None:
        inlined = []
    if not isinstance(inlined, list):
        raise InvalidRequest(f"{file_name}: plugins: expected a list, got {kind(inlined)}")
    plugins = [_plugin(item, file_name, f"plugins[{i}].") for i, item in enumerate(inlined)]
    if not _flag(document, "loadOnlyInlinedPlugins", file_name):
        plugins += _dropped_in((drop_ins or {}).get(name, {}))
    if not plugins:
        raise InvalidRequest(f"{file_name}: plugins: network {name!r} needs at least one plugin")
    return NetworkConfig(
        name=name,
        versions=versions,
        plugins=tuple(plugins),
        disable_check=_flag(document, "disableCheck", file_name),
        disable_gc=_flag(document, "disableGC", file_name),
        source=file_name,
    )


def config_json(config: NetworkConfig) -> bytes:
    """The configuration as one canonical JSON object, itself a valid .conflist.

    `from_json(config_json(c), c.source) == c`. Drop-in plugins are inlined, so the object sets
    `loadOnlyInlinedPlugins`: reading it back must not append them a second time.
    """
    document = {
        "cniVersion": config.cni_version,
        "cniVersions": list(config.versions),
        "name": config.name,
        "disableCheck": config.disable_check,
        "disableGC": config.disable_gc,
        "loadOnlyInlinedPlugins": True,
        "plugins": list(config.plugins),
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def from_json(data: bytes, source: str = "") -> NetworkConfig:
    """Read what `config_json` wrote. Raises InvalidRequest when it is damaged."""
    return replace(_recorded(data), source=source)


@functools.lru_cache(maxsize=16)  # networks: the pods of one have the same, and read it at each step
def _recorded(data: bytes) -> NetworkConfig:
    return parse("recorded configuration.conflist", data)


def is_file_name(text: str) -> bool:
    """Whether `text` can name a file in a directory: not empty, printable, no separator, not "." or ".."."""
    return text.isprintable() and not set(text) & {"/", "\\"} and text not in ("", ".", "..")


def delegate_type(plugin: Mapping[str, Any]) -> str:
    """The IPAM plugin that `plugin` will execute, "" if none."""
    ipam = plugin.get("ipam")
    type_ = ipam.get("type", "") if isinstance(ipam, dict) else ""
    return type_ if isinstance(type_, str) else ""


def _object(data: bytes, file_name: str) -> dict[str, Any]:
    try:
        return load_object(data)
    except ValueError as exc:
        raise InvalidRequest(f"{file_name}: {exc}") from exc


def _versions(document: Mapping[str, Any], file_name: str, name: str) -> tuple[str, ...]:
    """The allowed versions that we support, newest first; 0.1.0, the spec's default, if neither key is given."""
    single = "" if document.get("cniVersion") is None else document["cniVersion"]
    several = [] if document.get("cniVersions") is None else document["cniVersions"]
    if not isinstance(single, str):
        raise InvalidRequest(f'{file_name}: cniVersion: expected a string such as "1.0.0", got {kind(single)}')
    if not isinstance(several, list) or not all(isinstance(item, str) for item in several):
        raise InvalidRequest(f"{file_name}: cniVersions: expected a list of strings")
    allowed = {*([single] if single else []), *several} or {SUPPORTED[0]}
    versions = tuple(version for version in reversed(SUPPORTED) if version in allowed)
    if not versions:
        raise InvalidRequest(
            f"{file_name}: cniVersion: network {name!r} asks for {', '.join(map(shown, sorted(allowed)))}; "
            f"supported: {', '.join(SUPPORTED)}"
        )
    return versions


def _plugin(item: object, file_name: str, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{file_name}: {where.rstrip('.')}: expected an object, got {kind(item)}")
    item = _canonical(item)
    type_ = item.get("type")
    if not isinstance(type_, str) or not is_file_name(type_):
        raise InvalidRequest(
            f"{file_name}: {where}type: expected the file name of a plugin without path separators, "
            f"got {shown(type_)}"
        )
    capabilities = item.get("capabilities")
    if capabilities is None:
        capabilities = {}
    if not isinstance(capabilities, dict) or not all(
        on is None or isinstance(on, bool) for on in capabilities.values()
    ):
        raise InvalidRequest(f"{file_name}: {where}capabilities: expected an object of booleans")
    ipam = item.get("ipam")
    if isinstance(ipam, dict) and "type" in ipam:
        delegate = ipam["type"]
        if delegate and (not isinstance(delegate, str) or not is_file_name(delegate)):
            raise InvalidRequest(
                f"{file_name}: {where}ipam.type: expected the file name of a plugin without path separators, "
                f"got {shown(delegate)}"
            )
    return item


def _canonical(plugin: Mapping[str, Any]) -> dict[str, Any]:
    """The plugin with the spec's spelling of the keys that we read, which Go reads in any case."""
    spelling = {key.lower(): key for key in ("type", "capabilities", "ipam") if key not in plugin}
    return {spelling.get(key.lower(), key): value for key, value in plugin.items()}


def _dropped_in(files: Mapping[str, bytes | OSError]) -> Sequence[dict[str, Any]]:
    plugins = []
    for path in sorted(files):
        content = files[path]
        if isinstance(content, OSError):
            # A chain without one of its plugins is a different network, so the whole list is refused.
            raise InvalidRequest(f"{path}: cannot be read: {content.strerror or content}") from content
        plugins.append(_plugin(_object(content, path), path, ""))
    return plugins


def _flag(document: Mapping[str, Any], key: str, file_name: str) -> bool:
    # The string forms are not in the spec, but libcni accepts them and files in the wild have them.
    value = document.get(key)
    if value is None:
        return False
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise InvalidRequest(f"{file_name}: {key}: expected true or false, got {shown(value)}")
    return value

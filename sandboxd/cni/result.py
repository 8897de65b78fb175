"""Answers of plugins: a result in any version of the spec, or an error and what it means to us.

A result is read as libcni reads it, which is what plugins are tested with: keys in any case, null for nothing, no
demand that a version states its own form. What libcni refuses breaks the plugin's contract, and the pod's network is
unknown: that is `PluginFailed`, naming the part that is wrong, never a guess.
"""

from __future__ import annotations

import ipaddress
import json
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandboxd.cni.conf import SUPPORTED
from sandboxd.cni.strict_json import load_object, shown
from sandboxd.errors import Exhausted, NotReady, PluginFailed, SandboxdError, TimedOut, Unavailable

OUTPUT_LIMIT = 1 << 20
"""Bytes of stdout and of stderr that are kept of one execution."""

# Error codes of the spec ("Error", table) that change what we do.
CONTAINER_UNKNOWN = 3
TRY_AGAIN = 11
NOT_AVAILABLE = (50, 51)

# The reference plugins report nearly everything as 999, so an exhausted pool is recognisable only by the message:
# of host-local, Calico, whereabouts and the AWS plugin, in this order.
_EXHAUSTED = re.compile(
    r"no ip addresses available|no ips? available|could not allocate ip in range|no available ip addresses?"
    r"|(?:address|ip) (?:range|pool) (?:is )?(?:exhausted|full)",
    re.IGNORECASE,
)
_KEYS = ("cniVersion", "interfaces", "ips", "routes", "dns", "ip4", "ip6")  # of a result, in any version
_STDERR_SHOWN = 2000  # characters of stderr in a message; the timeline has all of it
_MAX_OBJECTS = 64  # on stdout, tried in search of an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An interface that a plugin created. `sandbox` is "" for one in the host's namespace."""

    name: str
    mac: str = ""
    sandbox: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address with its prefix length, such as "10.88.0.2/16". `interface` is an index, None when not given."""

    address: str
    gateway: str = ""
    interface: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route; `gw` is "" for the default of the address family."""

    dst: str
    gw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """The network's settings for name resolution."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of ADD.

    `raw` is what is passed on: what the plugin printed, with its version and without nulls. `remarks` say what is
    dubious in it, for people.
    """

    cni_version: str
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)
    raw: Mapping[str, Any]
    remarks: tuple[str, ...] = ()


class _Malformed(Exception):
    """Says which part of a result is wrong."""


def parse_result(data: bytes, plugin: str, *, version: str = SUPPORTED[0], command: str = "ADD") -> Result:
    """Read the result that `plugin` printed.

    A result that does not name its version has `version`, that of the request. Raises PluginFailed saying what is
    wrong.
    """
    try:
        return _result(data, version)
    except _Malformed as exc:
        raise PluginFailed(plugin=plugin, command=command, code=0, msg=f"malformed result: {exc}") from exc


def pod_ips(result: Result, ifname: str) -> tuple[str, ...]:
    """The pod's own addresses without prefix lengths, in the plugin's order, each once.

    They are those of the interface `ifname` and those that name no interface. A host interface may have the same
    name, so one inside a sandbox takes precedence.
    """
    named = {i for i, interface in enumerate(result.interfaces) if interface.name == ifname}
    inside = {i for i in named if result.interfaces[i].sandbox}
    own = inside or named
    addresses = [ip.address for ip in result.ips if ip.interface is None or ip.interface in own]
    return tuple(dict.fromkeys(_plain(address) for address in addresses))


def _plain(address: str) -> str:
    """The address without its prefix length, as every runtime writes it: "FD00:0::2/64" is "fd00::2"."""
    ip = ipaddress.ip_interface(address).ip
    return str(ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else str(ip)


def supported_versions(data: bytes, plugin: str) -> frozenset[str]:
    """The answer to VERSION (spec section 5, "Version"). Raises PluginFailed when it says nothing."""
    try:
        document = _document(data)
        listed = _get(document, "supportedVersions")
        versions = frozenset(v for v in listed if isinstance(v, str)) if isinstance(listed, list) else frozenset()
        if not versions and _get(document, "cniVersion") == "0.2.0":
            # The first with VERSION, whose answer had no list yet.
            versions = frozenset({"0.1.0", "0.2.0"})
        if not versions:
            raise _Malformed("supportedVersions: expected a list of versions")
    except _Malformed as exc:
        raise PluginFailed(plugin=plugin, command="VERSION", code=0, msg=f"malformed answer: {exc}") from exc
    return versions


def error_from(
    stdout: bytes,
    stderr: bytes,
    exit_code: int,
    timed_out: bool,
    *,
    plugin: str,
    command: str,
    seconds: float,
) -> SandboxdError:
    """The error that a failed execution stands for, in the plugin's own words.

    `seconds` was its time limit. An exhausted address pool is Exhausted, "try again later" Unavailable, a STATUS of
    "not available" NotReady, a timeout TimedOut; these carry the PluginFailed as their cause. Everything else is
    the PluginFailed itself.
    """
    reported = error_object(stdout)
    last_words = stderr.decode(errors="replace").strip()[-_STDERR_SHOWN:]
    if not last_words and b"{" not in stdout:
        last_words = stdout.decode(errors="replace").strip()[-_STDERR_SHOWN:]  # of a shell script, for example
    if timed_out:
        failed = PluginFailed(
            plugin=plugin, command=command, code=0, msg=f"killed after {seconds:g} seconds", details=last_words
        )
        suffix = f"; its last words: {last_words}" if last_words else ""
        return _caused(
            TimedOut(
                f"CNI plugin {plugin} did not finish {command} within {seconds:g} seconds and was killed with its "
                f"children{suffix}"
            ),
            failed,
        )
    if reported is None:
        failed = PluginFailed(plugin=plugin, command=command, code=0, msg=last_words or _ending(exit_code))
    else:
        code, msg, details = reported
        failed = PluginFailed(
            plugin=plugin, command=command, code=code, msg=msg or last_words or _ending(exit_code), details=details
        )
    if failed.code == TRY_AGAIN:
        return _caused(Unavailable(f"{failed}; the plugin asks to try again later"), failed)
    if command == "STATUS" and failed.code in NOT_AVAILABLE:
        return _caused(NotReady(str(failed)), failed)
    if command == "ADD" and _EXHAUSTED.search(f"{failed.msg} {failed.details}"):
        return _caused(Exhausted(f"{failed}; remove pods of this network or widen its address range"), failed)
    return failed


def error_object(stdout: bytes) -> tuple[int, str, str] | None:
    """(code, msg, details) of the error object on stdout, None when there is none.

    Reference plugins that fail late print a result and then the error, so the last error object counts.
    """
    text, position = stdout.decode(errors="replace"), 0
    decoder, error = json.JSONDecoder(), None
    for _ in range(_MAX_OBJECTS):
        position = text.find("{", position)
        if position < 0:
            break
        try:
            document, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
            continue
        code, msg = _get(document, "code"), _words(_get(document, "msg"))
        if not isinstance(code, int) or isinstance(code, bool):
            if not msg or (error and error[0]):
                continue
            code = 0
        error = code, msg, _words(_get(document, "details"))
    return error


def _words(value: object) -> str:
    # JSON can escape half of a surrogate pair; a message must be text that can be encoded.
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def _ending(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exited with status {exit_code} and said nothing"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"killed by {name}"


def _caused(error: SandboxdError, cause: PluginFailed) -> SandboxdError:
    error.__cause__ = cause
    return error


def _document(data: bytes) -> dict[str, Any]:
    if len(data) >= OUTPUT_LIMIT:
        raise _Malformed(f"more than {OUTPUT_LIMIT} bytes on stdout")
    if data.strip() == b"null":
        return {}  # as libcni reads it
    try:
        return load_object(data)
    except ValueError as exc:
        seen = data[:200].decode(errors="replace").strip()
        raise _Malformed(f"{exc}: {seen}" if seen else "nothing was printed on stdout") from exc


def _result(data: bytes, version: str) -> Result:
    document = {key: value for key, value in _canonical(_document(data)).items() if value is not None}
    stated = document.get("cniVersion")
    if not isinstance(stated, str) or not stated:
        stated = version
    if stated not in SUPPORTED:
        raise _Malformed(f"cniVersion {shown(stated)} is not one of {', '.join(SUPPORTED)}")
    routes: list[Route] = []
    remarks: list[str] = []
    interfaces: tuple[Interface, ...] = ()
    if stated in ("0.1.0", "0.2.0"):
        ips = _old_ips(document, routes)
    else:
        interfaces = tuple(_interface(item, f"interfaces[{i}]") for i, item in _items(document, "interfaces"))
        ips = [_ip(item, f"ips[{i}]", len(interfaces), remarks) for i, item in _items(document, "ips")]
        routes += _routes(document, "")
    return Result(
        cni_version=stated,
        interfaces=interfaces,
        ips=tuple(ips),
        routes=tuple(routes),
        dns=_dns(document.get("dns")),
        raw={**document, "cniVersion": stated},
        remarks=tuple(remarks),
    )


def _get(item: Mapping[str, Any], key: str) -> Any:
    """The value of `key` in any case, as Go's JSON reads it; None when it is missing."""
    if key in item:
        return item[key]
    return next((value for other, value in item.items() if other.lower() == key.lower()), None)


def _canonical(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same document with the spec's spelling of its keys: a plugin in any language may get it as prevResult."""
    spelling = {key.lower(): key for key in _KEYS if key not in document}
    return {spelling.get(key.lower(), key): value for key, value in document.items()}


def _old_ips(document: Mapping[str, Any], routes: list[Route]) -> list[Address]:
    """ip4 and ip6 of versions 0.1.0 and 0.2.0, which include their routes."""
    ips = []
    for key in ("ip4", "ip6"):
        item = document.get(key)
        if item is None:
            continue
        if not isinstance(item, dict):
            raise _Malformed(f"{key}: not an object")
        gateway = _gateway(_get(item, "gateway"), f"{key}.gateway")
        ips.append(Address(address=_cidr(_get(item, "ip"), f"{key}.ip"), gateway=gateway))
        routes += _routes(item, f"{key}.")
    return ips


def _items(document: Mapping[str, Any], key: str, where: str = "") -> Sequence[tuple[int, dict[str, Any]]]:
    # Plugins written in Go print null for a list, or an entry of it, that they never filled.
    items = _get(document, key)
    if items is None:
        return ()
    if not isinstance(items, list) or not all(item is None or isinstance(item, dict) for item in items):
        raise _Malformed(f"{where}{key}: not a list of objects")
    return tuple((i, item or {}) for i, item in enumerate(items))


def _interface(item: Mapping[str, Any], where: str) -> Interface:
    return Interface(
        name=_text(item, "name", where), mac=_text(item, "mac", where), sandbox=_text(item, "sandbox", where)
    )


def _ip(item: Mapping[str, Any], where: str, interfaces: int, remarks: list[str]) -> Address:
    # Required from 0.3.0 to 0.4.0, `version` repeats what the address says; no runtime ever looked at it.
    index = _get(item, "interface")
    if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
        raise _Malformed(f"{where}.interface: expected an index into interfaces, got {shown(index)}")
    if index is not None and not 0 <= index < interfaces:
        # Into a list that the plugin, or the one after it, left out.
        remarks.append(f"{where}.interface: {index} points to none of the {interfaces} interfaces")
        index = None
    return Address(
        address=_cidr(_get(item, "address"), f"{where}.address"),
        gateway=_gateway(_get(item, "gateway"), f"{where}.gateway"),
        interface=index,
    )


def _routes(item: Mapping[str, Any], where: str) -> list[Route]:
    routes = []
    for i, route in _items(item, "routes", where):
        at = f"{where}routes[{i}]"
        gw = _gateway(_get(route, "gw"), f"{at}.gw")
        if "dst" in map(str.lower, route):
            routes.append(Route(dst=_cidr(_get(route, "dst"), f"{at}.dst"), gw=gw))
    return routes


def _cidr(value: object, where: str) -> str:
    if not isinstance(value, str) or "/" not in value:
        raise _Malformed(f"{where}: expected an address with its prefix length, got {shown(value)}")
    try:
        ipaddress.ip_interface(value)
    except ValueError as exc:
        raise _Malformed(f"{where}: {exc}") from exc
    return value


def _gateway(value: object, where: str) -> str:
    if value is None or value == "":
        return ""
    try:
        if not isinstance(value, str):
            raise ValueError
        ipaddress.ip_address(value)
    except ValueError as exc:
        raise _Malformed(f"{where}: expected an IP address, got {shown(value)}") from exc
    return value


def _dns(item: object) -> Dns:
    if item is None:
        return Dns()
    if not isinstance(item, dict):
        raise _Malformed("dns: not an object")
    lists = {key: _get(item, key) or [] for key in ("nameservers", "search", "options")}
    for key, values in lists.items():
        if not isinstance(values, list) or not all(value is None or isinstance(value, str) for value in values):
            raise _Malformed(f"dns.{key}: not a list of strings")
    return Dns(
        domain=_text(item, "domain", "dns"),
        **{key: tuple(value for value in values if value) for key, values in lists.items()},
    )


def _text(item: Mapping[str, Any], key: str, where: str) -> str:
    value = _get(item, key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Malformed(f"{where}.{key}: expected a string, got {shown(value)}")
    return value

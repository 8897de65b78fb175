"""The endpoints of a registry, from `certs.d/<host>/hosts.toml` files as containerd uses them.

Format: https://github.com/containerd/containerd/blob/main/docs/hosts.md. The directory for `host:port` is called
`host_port_` (`host:port` is also accepted); `_default` is for every registry without a directory of its own. A
directory without a hosts.toml may have docker's `*.crt`, `*.cert` and `*.key` files instead.

Mirrors come in the order of the file, the registry itself last. Our own rules:

1. Plain HTTP is used for loopback addresses, or where a URL in the file says `http://`; there is no fallback to it.
2. An unknown key is an error, because a misspelt `ca` or `skip_verify` must not be ignored silently.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from sandboxd.errors import InvalidRequest

DOCKER_DOMAIN = "docker.io"
DOCKER_HOST = "registry-1.docker.io"
DEFAULT_DIRECTORY = "_default"
FILE = "hosts.toml"
API = "/v2"
DIAL_SECONDS = 30.0

_KEYS = ("capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout")
_CAPABILITIES = ("pull", "resolve", "push", "referrers")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9.]+)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server of a registry's repositories."""

    scheme: str  # "https" or "http"
    host: str  # with the port if one is given
    path: str = API
    pull: bool = True  # may serve blobs, and manifests by digest
    resolve: bool = True  # may resolve tags
    upstream: bool = False  # the registry itself, not a mirror of it
    ca: tuple[str, ...] = ()  # PEM files trusted in addition to the system's
    client: tuple[tuple[str, str], ...] = ()  # (certificate, key) PEM files; key "" when both are in one
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may be secrets
    dial_seconds: float = DIAL_SECONDS

    @property
    def base(self) -> str:
        """The URL to which the paths of the registry API are appended."""
        return f"{self.scheme}://{self.host}{self.path}"


def directories(domain: str) -> tuple[str, ...]:
    """The names to look for below certs.d; the first that exists is used."""
    host, colon, port = domain.rpartition(":")
    names = (f"{host}_{port}_", domain) if colon and port.isdigit() else (domain,)
    return (*names, DEFAULT_DIRECTORY)


def upstream(domain: str) -> Endpoint:
    """The registry of `domain` itself, without any configuration."""
    host = DOCKER_HOST if domain == DOCKER_DOMAIN else domain
    scheme = "http" if is_loopback(host) and not host.endswith(":443") else "https"
    return Endpoint(scheme=scheme, host=host, upstream=True)


def is_loopback(host: str) -> bool:
    """Whether `host` (with or without a port) is this machine."""
    name = host.rpartition(":")[0] if re.search(r":[0-9]+\Z", host) and not host.endswith("]") else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def parse(text: str, domain: str, directory: str) -> tuple[Endpoint, ...]:
    """The endpoints to try for `domain`, in order, from the text of the hosts.toml in `directory`.

    Raises InvalidRequest that lists every problem.
    """
    origin = f"{directory}/{FILE}"
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # a number of thousands of digits, tables in tables in tables
        raise InvalidRequest(f"{origin}: not valid TOML: {exc}") from exc
    problems: list[str] = []
    mirrors = document.pop("host", {})
    server = document.pop("server", "")
    if not isinstance(server, str):
        problems.append("server must be a URL")
        server = ""
    if not isinstance(mirrors, dict):
        problems.append("host must hold one table per URL")
        mirrors = {}
    endpoints = []
    for url, table in mirrors.items():
        where = f'host."{_without_user(url)}"'
        if not isinstance(table, dict):
            problems.append(f"{where} must be a table")
            continue
        endpoint = _place(url, bool(table.get("override_path")), where, problems)
        endpoints.append(_settings(endpoint, table, directory, where, problems))
    last = upstream(domain)
    if server:
        last = replace(_place(server, bool(document.get("override_path")), "server", problems), upstream=True)
        if last.host == DOCKER_DOMAIN:
            last = replace(last, host=DOCKER_HOST)
    endpoints.append(_settings(last, document, directory, "", problems))
    if problems:
        raise InvalidRequest(f"{origin}: {'; '.join(problems)}")
    return tuple(endpoints)


def from_certificates(domain: str, directory: str, names: Iterable[str]) -> tuple[Endpoint, ...]:
    """The registry itself, with the certificates among the files `names` of `directory`, by docker's naming.

    Raises InvalidRequest for a certificate without its key.
    """
    present = sorted(names)
    clients = []
    for name in present:
        if name.endswith(".cert"):
            key = f"{name.removesuffix('.cert')}.key"
            if key not in present:
                raise InvalidRequest(f"{directory}/{name}: its key {key} is missing")
            clients.append((f"{directory}/{name}", f"{directory}/{key}"))
    authorities = tuple(f"{directory}/{name}" for name in present if name.endswith(".crt"))
    endpoint = replace(upstream(domain), ca=authorities, client=tuple(clients))
    # Certificates mean TLS, on loopback too.
    return (replace(endpoint, scheme="https") if authorities or clients else endpoint,)


def _place(url: str, override_path: bool, where: str, problems: list[str]) -> Endpoint:
    """The endpoint of a URL in the file; on a problem, which is appended to `problems`, one without a host."""
    nowhere = Endpoint(scheme="https", host="")
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        port = parts.port
    except ValueError:
        problems.append(f"{where}: {_without_user(url)!r} is not a URL")
        return nowhere
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        problems.append(f"{where}: {_without_user(url)!r} is not an http or https URL of a host and a path")
        return nowhere
    if parts.username is not None:
        problems.append(f"{where}: credentials do not belong in a URL; use docker's config.json")
        return nowhere
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    if not override_path and not path.endswith(API):
        path += API
    return Endpoint(scheme=parts.scheme, host=f"{name}:{port}" if port else name, path=path)


def _without_user(url: str) -> str:
    """The URL without what precedes the @, which may be a password."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"  # the password may contain a slash


def _settings(
    endpoint: Endpoint, table: Mapping[str, Any], directory: str, where: str, problems: list[str]
) -> Endpoint:
    """The endpoint with the settings of its table; problems are appended to `problems`."""

    def wrong(key: str, words: str) -> None:
        problems.append(f"{where}.{key} {words}" if where else f"{key} {words}")

    for key in table:
        if key not in _KEYS:
            wrong(key, f"is unknown; the known keys are {', '.join(_KEYS)}")
    for key in ("skip_verify", "override_path"):
        if not isinstance(table.get(key, False), bool):
            wrong(key, "must be true or false")
    capabilities = table.get("capabilities") or ["pull", "resolve"]
    if not isinstance(capabilities, list) or not all(item in _CAPABILITIES for item in capabilities):
        wrong("capabilities", f"must be a list of any of {', '.join(_CAPABILITIES)}")
        capabilities = []
    return replace(
        endpoint,
        pull="pull" in capabilities,
        resolve="resolve" in capabilities,
        ca=_authorities(table.get("ca", []), directory, wrong),
        client=_clients(table.get("client", []), directory, wrong),
        skip_verify=table.get("skip_verify") is True,
        headers=_headers(table.get("header", {}), wrong),
        dial_seconds=_duration(table.get("dial_timeout", ""), wrong),
    )


def _at(path: str, directory: str) -> str:
    return path if path.startswith("/") else f"{directory}/{path}"


def _authorities(value: object, directory: str, wrong: Any) -> tuple[str, ...]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        wrong("ca", "must be a file name or a list of them")
        return ()
    return tuple(_at(path, directory) for path in paths)


def _clients(value: object, directory: str, wrong: Any) -> tuple[tuple[str, str], ...]:
    """(certificate, key) pairs from one file with both, a list of such files, or a list of [certificate, key]."""
    pairs = []
    for item in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
        parts = [item] if isinstance(item, str) else item
        if not isinstance(parts, list) or not 1 <= len(parts) <= 2 or not all(isinstance(p, str) for p in parts):
            wrong("client", "must be a file name, a list of them, or a list of [certificate, key]")
            return ()
        pairs.append((_at(parts[0], directory), _at(parts[1], directory) if len(parts) == 2 and parts[1] else ""))
    return tuple(pairs)


def _headers(value: object, wrong: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        wrong("header", "must be a table")
        return ()
    headers = []
    for name, content in value.items():
        values = [content] if isinstance(content, str) else content
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            wrong(f"header.{name.partition(':')[0]}", "must be a string or a list of strings")
        elif not _HEADER_NAME.fullmatch(name) or any(c in item for item in values for c in "\r\n\0"):
            wrong(f"header.{name.partition(':')[0]}", "is not a header")  # the value may be in the name
        else:
            headers += [(name, item) for item in values]
    return tuple(headers)


def _duration(value: object, wrong: Any) -> float:
    """Seconds of a duration in Go's format ("1m30s")."""
    if value == "":
        return DIAL_SECONDS
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        wrong("dial_timeout", f"must be a duration like '5s', not {value!r}")
        return DIAL_SECONDS
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(value)) or DIAL_SECONDS

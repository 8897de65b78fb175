"""The text of one flag → a value.

Every function raises ValueError with a sentence that names the text and shows what is valid; session.py turns it
into a usage error.
"""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction

from sandboxd.pb.cri.v1 import api_pb2 as cri

CPU_PERIOD = 100_000  # microseconds: the kernel's and Kubernetes' default
_MIN_CPU_QUOTA = 1_000  # microseconds: the kernel refuses less
_MIN_CPU_SHARES = 2  # the kernel's minimum
_MAX_ID = 2**31 - 1

_PROTOCOLS = {"tcp": cri.TCP, "udp": cri.UDP, "sctp": cri.SCTP}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b?)", re.ASCII | re.IGNORECASE)
_SIZE_EXPONENT = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_UNIT_NS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

UNCONFINED = "unconfined"
_SECURITY_MODULES = ("seccomp", "apparmor")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountFlag:
    """A bind mount. `source` is as given, and may be relative to the caller's directory."""

    source: str
    target: str
    readonly: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFlag:
    """The user that the container runs as: a number or a name, and optionally a group number."""

    uid: int | None = None
    name: str = ""
    gid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFlag:
    """A CPU limit in the kernel's terms: `quota` microseconds in each period of CPU_PERIOD."""

    quota: int
    shares: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsFlag:
    """The user for a pull. `password` is None when it was left out and must be prompted for."""

    username: str
    password: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityFlag:
    """A profile, or UNCONFINED, for "seccomp" or "apparmor"."""

    module: str
    profile: str


def port(text: str) -> cri.PortMapping:
    """[HOSTIP:]HOST:CONTAINER[/tcp|udp|sctp] → a port mapping. An IPv6 HOSTIP needs brackets."""
    wrong = f"{text!r} is not a port mapping: write HOST:CONTAINER, like 8080:80, 127.0.0.1:8080:80 or 53:53/udp"
    ports, slash, protocol = text.partition("/")
    if slash and protocol.lower() not in _PROTOCOLS:
        raise ValueError(f"{text!r} names the protocol {protocol!r}: it must be tcp, udp or sctp")
    head, colon, container = ports.rpartition(":")
    if not colon:
        raise ValueError(wrong)
    host_ip, colon, host = head.rpartition(":")
    if host_ip.startswith("[") and host_ip.endswith("]"):
        host_ip = host_ip[1:-1]
    elif ":" in host_ip:
        raise ValueError(f"{text!r}: put the IPv6 address in brackets, like [::1]:8080:80")
    if colon:
        try:
            ipaddress.ip_address(host_ip)
        except ValueError:
            raise ValueError(f"{text!r}: {host_ip!r} is not an IP address of this host") from None
    numbers = []
    for number in (host, container):
        if not re.fullmatch(r"\d{1,5}", number, re.ASCII):
            raise ValueError(wrong)
        if not 1 <= int(number) <= 65535:
            raise ValueError(f"{text!r}: port {number} is not between 1 and 65535")
        numbers.append(int(number))
    return cri.PortMapping(
        protocol=_PROTOCOLS[protocol.lower() or "tcp"],
        host_port=numbers[0],
        container_port=numbers[1],
        host_ip=host_ip,
    )


def mount(text: str) -> MountFlag:
    """SRC:DST[:ro|:rw] → a bind mount. DST is absolute."""
    parts = text.split(":")
    mode = parts.pop() if len(parts) == 3 else "rw"
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"{text!r} is not a mount: write SRC:DST or SRC:DST:ro, like /srv/www:/var/www:ro")
    if mode not in ("ro", "rw"):
        raise ValueError(f"{text!r} ends in the mode {mode!r}: it must be ro or rw")
    source, target = parts
    if not target.startswith("/"):
        raise ValueError(f"{text!r}: the path in the container, {target!r}, must begin with /")
    return MountFlag(source=source, target=target, readonly=mode == "ro")


def security(text: str) -> SecurityFlag:
    """seccomp=unconfined|FILE or apparmor=unconfined|NAME, as in docker and podman."""
    module, equals, profile = text.partition("=")
    if module not in _SECURITY_MODULES or not equals or not profile:
        raise ValueError(
            f"{text!r} is not a security option: write seccomp=unconfined, seccomp=FILE, apparmor=unconfined"
            " or apparmor=PROFILE"
        )
    return SecurityFlag(module=module, profile=profile)


def pair(text: str) -> tuple[str, str]:
    """KEY=VALUE → (KEY, VALUE). The value may be empty and may contain further equals signs."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    return key, value


def credentials(text: str) -> CredentialsFlag:
    """USER[:PASSWORD]; the password may be empty and may contain colons. Errors do not repeat the text."""
    username, colon, password = text.partition(":")
    if not username:
        raise ValueError("credentials are USER:PASSWORD, or only USER to be prompted for the password")
    if not _is_utf8(text):
        raise ValueError("credentials must be UTF-8")
    return CredentialsFlag(username=username, password=password if colon else None)


def username(text: str) -> str:
    """USER. Errors do not repeat the text, which may include the password."""
    if not text or ":" in text:
        raise ValueError("a user name is not empty and has no colon; the password is prompted for or read from stdin")
    if not _is_utf8(text):
        raise ValueError("a user name must be UTF-8")
    return text


def _is_utf8(text: str) -> bool:
    """Whether an argument was UTF-8; otherwise it has surrogates, which protobuf cannot encode."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def cpu(text: str) -> CpuFlag:
    """A number of CPUs, at least 0.01, fractions allowed → quota and shares."""
    try:
        count = float(text)
    except ValueError:
        count = math.nan
    if not math.isfinite(count) or "_" in text:
        raise ValueError(f"{text!r} is not a number of CPUs: write one like 0.5 or 2")
    quota = round(count * CPU_PERIOD)
    if quota < _MIN_CPU_QUOTA:
        raise ValueError(f"{text!r} CPUs is too little: the kernel's minimum is 0.01")
    return CpuFlag(quota=quota, shares=max(_MIN_CPU_SHARES, int(count * 1024)))


def size(text: str) -> int:
    """256M, 1.5GiB, 1048576 → bytes. Units are powers of 1024, as in Docker."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size: write a number of bytes, or one like 256M or 1.5G")
    number = int(Fraction(match[1]) * 1024 ** _SIZE_EXPONENT[match[2].lower()])
    if not 0 < number < 2**63:
        raise ValueError(f"{text!r} is out of range: a size is more than 0 and less than 8 EiB")
    return number


def duration(text: str) -> int:
    """10s, 1h30m, 250ms; a bare number is seconds → nanoseconds, more than 0."""
    text = text.strip()
    whole = f"{text}s" if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else text
    if not _DURATION.fullmatch(whole):
        raise ValueError(f"{text!r} is not a duration: write one like 30s, 10m or 1h30m")
    total = sum(int(Fraction(number) * _UNIT_NS[unit]) for number, unit in _DURATION_PART.findall(whole))
    if not 0 < total < 2**63:
        raise ValueError(f"{text!r} is out of range: a duration is more than 0 and less than 292 years")
    return total


def since(text: str, now: int) -> int:
    """A duration before `now`, or an RFC 3339 time → unix nanoseconds, at least 1."""
    match = _RFC3339.fullmatch(text.strip())
    if match:
        day, time, fraction, zone = match.groups()
        try:
            moment = datetime.fromisoformat(f"{day}T{time}{zone.upper()}")
        except ValueError as error:
            raise ValueError(f"{text!r} is not a valid time: {error}") from None
        return max(1, int(moment.timestamp()) * 10**9 + int((fraction or "").ljust(9, "0")))
    try:
        return max(1, now - duration(text))
    except ValueError:
        raise ValueError(f"{text!r} is neither a duration like 10m nor a time like 2026-01-31T12:00:00Z") from None


def user(text: str) -> UserFlag:
    """UID, NAME, UID:GID or NAME:GID. CRI has no field for a group name."""
    who, colon, group = text.partition(":")
    if not who or (colon and not group):
        raise ValueError(f"{text!r} is not a user: write UID, NAME, UID:GID or NAME:GID")
    if colon and not re.fullmatch(r"\d+", group, re.ASCII):
        raise ValueError(f"{text!r}: the group {group!r} must be a number; CRI has no field for a group name")
    gid = _account(group, text) if colon else None
    if re.fullmatch(r"\d+", who, re.ASCII):
        return UserFlag(uid=_account(who, text), gid=gid)
    return UserFlag(name=who, gid=gid)


def _account(digits: str, text: str) -> int:
    if len(digits) > 10 or int(digits) > _MAX_ID:
        raise ValueError(f"{text!r}: {digits} is not between 0 and {_MAX_ID}")
    return int(digits)

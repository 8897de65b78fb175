"""Mandatory access control: which AppArmor profile and which SELinux labels a container gets.

A request for an AppArmor profile is honoured or refused, never ignored; it is refused on a machine without AppArmor
and for a profile that is not loaded. SELinux labels mean nothing to a kernel without SELinux: there they are ignored,
as by every other runtime, since clients send them without knowing the machine. Sources: OCI runtime spec
("apparmorProfile", "selinuxLabel", "mountLabel"), apparmor(7), selinux(8).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.oci.linux import HostFacts, SelinuxContexts
from sandboxd.pb.cri.v1 import api_pb2 as cri

SecurityContext = cri.LinuxSandboxSecurityContext | cri.LinuxContainerSecurityContext

_WHERE = "config.linux.security_context"
_CATEGORIES = 1024  # c0 to c1023, in every policy for containers
# "s0", "s0:c1,c2", "s0-s3:c0.c1023": one or two sensitivities, then categories after a colon.
_LEVEL = re.compile(r"s\d+(-s\d+)?(:c\d+(\.c\d+)?(,c\d+(\.c\d+)?)*)?\Z")
_PART = re.compile(r"[A-Za-z0-9_.-]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """SELinux labels; "" is none."""

    process: str = ""
    mount: str = ""


# --- AppArmor --------------------------------------------------------------------------------------------------


def apparmor_requested(context: SecurityContext) -> cri.SecurityProfile | None:
    """The AppArmor profile that a security context requests; None when it requests none.

    `apparmor_profile`, the older field, counts only when `apparmor` is unset. Raises InvalidRequest when it does
    not have one of its documented forms.
    """
    if context.HasField("apparmor"):
        return context.apparmor
    old = context.apparmor_profile if isinstance(context, cri.LinuxContainerSecurityContext) else ""
    match old.partition("/"):
        case ("", "", ""):
            return None
        case ("unconfined", "", ""):
            return cri.SecurityProfile(profile_type=cri.SecurityProfile.Unconfined)
        case ("runtime", "/", "default"):
            return cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)
        case ("localhost", "/", name) if name:
            return cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref=name)
    raise InvalidRequest(f"{_WHERE}.apparmor_profile: {old!r} is not unconfined, runtime/default or localhost/NAME")


def apparmor(context: SecurityContext, host: HostFacts) -> str:
    """`process.apparmorProfile`, "" for none.

    RuntimeDefault is the configured profile; it does not apply to privileged containers or on a machine without
    AppArmor. Raises Unsupported for a named profile on such a machine, InvalidRequest for one that is not loaded.
    """
    profile = apparmor_requested(context)
    kind = profile.profile_type if profile is not None else cri.SecurityProfile.RuntimeDefault
    if kind == cri.SecurityProfile.Unconfined:
        return "unconfined" if host.apparmor else ""
    if kind == cri.SecurityProfile.RuntimeDefault:
        if not host.apparmor or context.privileged or not host.apparmor_default:
            return ""
        return _loaded(host.apparmor_default, "runtime.apparmor_default", host)
    assert profile is not None
    name = profile.localhost_ref.removeprefix("localhost/")
    if not host.apparmor:
        raise Unsupported(f"{_WHERE}.apparmor: {name}: this machine's kernel does not run AppArmor")
    return _loaded(name, f"{_WHERE}.apparmor", host)


def _loaded(name: str, where: str, host: HostFacts) -> str:
    if name not in host.apparmor_loaded:
        raise InvalidRequest(
            f"{where}: the AppArmor profile {name!r} is not loaded: load it with apparmor_parser -r FILE"
        )
    return name


# --- SELinux ---------------------------------------------------------------------------------------------------


def check_options(options: cri.SELinuxOption) -> None:
    """Raise InvalidRequest for parts that are not valid in an SELinux label."""
    where = f"{_WHERE}.selinux_options"
    for name in ("user", "role", "type"):
        if not _PART.match(getattr(options, name)):
            raise InvalidRequest(f"{where}.{name}: {getattr(options, name)!r} is not made of letters, digits, _ . -")
    if options.level and not _LEVEL.match(options.level):
        raise InvalidRequest(f"{where}.level: {options.level!r} is not a level like s0 or s0:c1,c2")


def is_asked(options: cri.SELinuxOption) -> bool:
    """Whether any part of a label is requested."""
    return any((options.user, options.role, options.type, options.level))


def selinux(
    options: cri.SELinuxOption, pod: cri.SELinuxOption, sandbox_id: str, host: HostFacts, *, privileged: bool
) -> Labels:
    """The labels of a container, given its own `options` and its `pod`'s. The pause container has only the pod's.

    A part that is not requested is the pod's, or else the policy's for containers; such a level has two categories
    derived from the sandbox id, so that pods are kept apart. A privileged process has no label, but its files do.
    There are no labels on a machine without SELinux. Raises Unsupported when labels are requested where SELinux
    runs with a policy that has none for containers: they would be missed there.
    """
    if host.selinux is None:
        if host.selinux_runs and (is_asked(options) or is_asked(pod)):
            raise Unsupported(
                f"{_WHERE}.selinux_options: this machine's SELinux policy has no contexts for containers: install"
                " container-selinux, or leave the options out"
            )
        return Labels()
    level = options.level or pod.level or _own_level(sandbox_id)
    return Labels(
        process="" if privileged else _label(host.selinux, options, pod, level),
        mount=":".join((*host.selinux.file.split(":")[:3], level)),
    )


def _label(contexts: SelinuxContexts, options: cri.SELinuxOption, pod: cri.SELinuxOption, level: str) -> str:
    user, role, type_ = contexts.process.split(":")[:3]
    return ":".join(
        (
            options.user or pod.user or user,
            options.role or pod.role or role,
            options.type or pod.type or type_,
            level,
        )
    )


def _own_level(sandbox_id: str) -> str:
    number = int.from_bytes(hashlib.sha256(sandbox_id.encode()).digest()[:8], "big")
    first, step = number % _CATEGORIES, 1 + (number // _CATEGORIES) % (_CATEGORIES - 1)
    low, high = sorted((first, (first + step) % _CATEGORIES))
    return f"s0:c{low},c{high}"

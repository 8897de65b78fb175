"""Who a container runs as: the image's USER or the request's run_as_*, looked up in the image's own files.

Names are looked up in the image's /etc/passwd and /etc/group (passwd(5), group(5)), never in the host's.
Rules: 1. The request overrides the image. 2. A number needs no entry, a name does. 3. The first matching line
wins; lines that are not entries are skipped. 4. The primary group is always among the additional groups: without
it there, a process could get access to a file that denies that group (CVE-2023-25173).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sandboxd.errors import InvalidRequest
from sandboxd.pb.cri.v1 import api_pb2 as cri

MAX_ID = 2**31 - 1  # runtimes and passwd files agree on signed 32 bit
_NUMBER = re.compile(r"[0-9]+\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSpec:
    """The settings of the image and the request that determine the user."""

    image_user: str = ""  # USER: "", user, uid, user:group, uid:gid, uid:group, user:gid
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    supplemental_groups: tuple[int, ...] = ()
    strict: bool = False  # SupplementalGroupsPolicy Strict: ignore memberships in the image's /etc/group


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """The ids of a process."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]  # the primary one first
    username: str = ""  # "" when the image has no entry for the uid
    home: str = ""  # "" when the image has no entry for the uid


@dataclass(frozen=True, slots=True, kw_only=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


def for_container(context: cri.LinuxContainerSecurityContext, image_user: str) -> UserSpec:
    """The settings from a container's security context and its image."""
    return UserSpec(
        image_user=image_user,
        run_as_user=context.run_as_user.value if context.HasField("run_as_user") else None,
        run_as_group=context.run_as_group.value if context.HasField("run_as_group") else None,
        run_as_username=context.run_as_username,
        supplemental_groups=tuple(context.supplemental_groups),
        strict=context.supplemental_groups_policy == cri.Strict,
    )


def for_sandbox(context: cri.LinuxSandboxSecurityContext, image_user: str) -> UserSpec:
    """The settings from a pod's security context and the pause image."""
    return UserSpec(
        image_user=image_user,
        run_as_user=context.run_as_user.value if context.HasField("run_as_user") else None,
        run_as_group=context.run_as_group.value if context.HasField("run_as_group") else None,
        supplemental_groups=tuple(context.supplemental_groups),
        strict=context.supplemental_groups_policy == cri.Strict,
    )


def resolve(spec: UserSpec, passwd: bytes | None, group: bytes | None) -> User:
    """The ids for `spec`, given the image's /etc/passwd and /etc/group (None: the image has no such file).

    Raises InvalidRequest when a name has no entry, an id is out of range, or USER is malformed.
    """
    user_text, group_text = _user_and_group(spec)
    account = _account(user_text, passwd)
    gid = account.gid if group_text == "" else _gid(group_text, group)
    memberships = () if spec.strict or not account.name else _memberships(account.name, group)
    for extra in spec.supplemental_groups:
        _check_id("supplemental group", extra)
    return User(
        uid=account.uid,
        gid=gid,
        additional_gids=tuple(dict.fromkeys((gid, *memberships, *spec.supplemental_groups))),
        username=account.name,
        home=account.home,
    )


def _user_and_group(spec: UserSpec) -> tuple[str, str]:
    """(user, group), each a name or a number, or "" when not specified."""
    group = "" if spec.run_as_group is None else str(_check_id("run_as_group", spec.run_as_group))
    if spec.run_as_username:
        return _split(spec.run_as_username, "run_as_username", group)
    if spec.run_as_user is not None:
        return str(_check_id("run_as_user", spec.run_as_user)), group
    if group:
        raise InvalidRequest("run_as_group is set without run_as_user or run_as_username")
    return _split(spec.image_user, "the image's USER")


def _split(text: str, what: str, group: str = "") -> tuple[str, str]:
    """(user, group) of "user[:group]"; `group` is one that is specified elsewhere, and wins."""
    user, *rest = text.split(":")
    if len(rest) > 1:
        raise InvalidRequest(f"{what} {text!r} is not of the form user[:group]")
    return user, group or (rest[0] if rest else "")


def _account(wanted: str, passwd: bytes | None) -> _Account:
    if wanted == "" or _NUMBER.match(wanted):
        uid = _check_id("user", int(wanted or "0"))
        entry = next((account for account in _accounts(passwd) if account.uid == uid), None)
        return entry or _Account(name="", uid=uid, gid=0, home="")
    for account in _accounts(passwd):
        if account.name == wanted:
            return account
    raise InvalidRequest(f"user {wanted!r}: {_no_entry('/etc/passwd', passwd)}")


def _gid(wanted: str, group: bytes | None) -> int:
    if _NUMBER.match(wanted):
        return _check_id("group", int(wanted))
    for name, gid, _ in _groups(group):
        if name == wanted:
            return gid
    raise InvalidRequest(f"group {wanted!r}: {_no_entry('/etc/group', group)}")


def _memberships(username: str, group: bytes | None) -> tuple[int, ...]:
    return tuple(gid for _, gid, members in _groups(group) if username in members)


def _no_entry(file: str, content: bytes | None) -> str:
    return f"the image has no {file}" if content is None else f"the image's {file} has no such entry"


def _check_id(what: str, value: int) -> int:
    if not 0 <= value <= MAX_ID:
        raise InvalidRequest(f"{what} {value} is not between 0 and {MAX_ID}")
    return value


def _accounts(passwd: bytes | None) -> Iterator[_Account]:
    """name:password:uid:gid:comment:home:shell"""
    for fields in _lines(passwd, 4):
        uid, gid = _id(fields[2]), _id(fields[3])
        if fields[0] and uid is not None and gid is not None:
            yield _Account(name=fields[0], uid=uid, gid=gid, home=fields[5] if len(fields) > 5 else "")


def _groups(group: bytes | None) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """name:password:gid:member,member"""
    for fields in _lines(group, 3):
        gid = _id(fields[2])
        if fields[0] and gid is not None:
            yield fields[0], gid, tuple(fields[3].split(",")) if len(fields) > 3 else ()


def _lines(content: bytes | None, fewest: int) -> Iterator[list[str]]:
    """The fields of the lines that can be entries, not counting comments and NIS markers."""
    for line in (content or b"").split(b"\n"):
        fields = line.decode("utf-8", "replace").strip().split(":")
        if len(fields) >= fewest and not fields[0].startswith(("#", "+", "-")):
            yield fields


def _id(text: str) -> int | None:
    if not text.isascii() or not _NUMBER.match(text) or len(text) > 10:
        return None
    value = int(text)
    return value if value <= MAX_ID else None

"""Which filter a container gets, and what the default one lets through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.oci import linux, seccomp
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.oci.golden.cases import HOST

DEFAULT = cri.SecurityProfile()
UNCONFINED = cri.SecurityProfile(profile_type=cri.SecurityProfile.Unconfined)
LOCALHOST = cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref="/p.json")


def context(**members: Any) -> cri.LinuxContainerSecurityContext:
    return cri.LinuxContainerSecurityContext(**members)


@pytest.mark.parametrize(
    ("members", "filtered"),
    [
        ({}, False),
        ({"seccomp": UNCONFINED}, False),
        ({"seccomp": DEFAULT}, True),
        ({"seccomp": DEFAULT, "privileged": True}, False),
        ({"seccomp": LOCALHOST, "privileged": True}, False),
        ({"seccomp_profile_path": "runtime/default"}, True),
        ({"seccomp_profile_path": "docker/default"}, True),
        ({"seccomp_profile_path": "unconfined"}, False),
        ({"seccomp": UNCONFINED, "seccomp_profile_path": "runtime/default"}, False),
    ],
)
def test_who_is_filtered(members: dict[str, Any], filtered: bool) -> None:
    assert filtered == (seccomp.for_context(context(**members), [], HOST) is not None)


def test_a_localhost_profile_is_not_quietly_left_out() -> None:
    for members in ({"seccomp": LOCALHOST}, {"seccomp_profile_path": "localhost/p.json"}):
        with pytest.raises(Unsupported, match="Localhost"):
            seccomp.for_context(context(**members), [], HOST)


def test_a_kernel_without_filters_refuses_those_who_want_one() -> None:
    host = replace(HOST, seccomp=False)
    assert seccomp.for_context(context(), [], host) is None
    with pytest.raises(Unsupported, match="kernel"):
        seccomp.for_context(context(seccomp=DEFAULT), [], host)


@pytest.mark.parametrize("path", ["localhost/", "default", "runtime/", "/", "unconfined/"])
def test_an_unknown_profile_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match="seccomp_profile_path"):
        seccomp.requested(context(seccomp_profile_path=path))


def allowed(profile: dict[str, Any]) -> set[str]:
    """What is let through whatever the arguments."""
    rules = [rule for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule]
    return {name for rule in rules for name in rule["names"]}


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("CAP_SYS_ADMIN", "mount"),
        ("CAP_SYS_ADMIN", "sethostname"),
        ("CAP_SYS_ADMIN", "unshare"),
        ("CAP_SYS_CHROOT", "chroot"),
        ("CAP_SYS_MODULE", "init_module"),
        ("CAP_SYS_TIME", "clock_settime"),
        ("CAP_SYS_BOOT", "reboot"),
        ("CAP_BPF", "bpf"),
    ],
)
def test_a_capability_brings_its_calls(capability: str, name: str) -> None:
    assert name not in allowed(seccomp.default_profile([], "x86_64"))
    assert name in allowed(seccomp.default_profile([capability], "x86_64"))


@pytest.mark.parametrize("name", ["keyctl", "add_key", "kexec_load", "swapon", "io_uring_setup", "userfaultfd"])
def test_some_calls_are_for_nobody(name: str) -> None:
    assert name not in allowed(seccomp.default_profile(linux.ALL_CAPABILITIES, "x86_64"))


@pytest.mark.parametrize("name", ["read", "execve", "futex", "epoll_wait", "openat2", "statx", "ptrace", "rseq"])
def test_ordinary_calls_are_for_everybody(name: str) -> None:
    assert name in allowed(seccomp.default_profile([], "x86_64"))


def rules(profile: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [rule for rule in profile["syscalls"] if name in rule["names"]]


@pytest.mark.parametrize(("machine", "index"), [("x86_64", 0), ("aarch64", 0), ("s390x", 1)])
def test_clone_makes_no_namespace_without_sys_admin(machine: str, index: int) -> None:
    profile = seccomp.default_profile([], machine)
    [clone] = rules(profile, "clone")
    assert [{"index": index, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}] == clone["args"]
    [clone3] = rules(profile, "clone3")
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_clone_is_free_with_sys_admin() -> None:
    assert {"clone", "clone3"} <= allowed(seccomp.default_profile(["CAP_SYS_ADMIN"], "x86_64"))


@pytest.mark.parametrize(
    ("family", "lets"),
    [(1, True), (2, True), (10, True), (16, True), (38, False), (39, True), (40, False), (44, True)],
)
def test_sockets_past_the_namespaces_are_refused(family: int, lets: bool) -> None:
    compare = {"SCMP_CMP_LT": int.__lt__, "SCMP_CMP_EQ": int.__eq__, "SCMP_CMP_GT": int.__gt__}
    conditions = [rule["args"][0] for rule in rules(seccomp.default_profile([], "x86_64"), "socket")]
    assert lets == any(compare[condition["op"]](family, condition["value"]) for condition in conditions)


def test_no_rule_repeats_an_argument() -> None:
    """runc joins conditions on one argument of one rule by OR, which would undo them."""
    for rule in seccomp.default_profile([], "x86_64")["syscalls"]:
        indices = [arg["index"] for arg in rule.get("args", ())]
        assert len(set(indices)) == len(indices)


def test_each_machine_has_its_own_calls_and_an_unknown_one_none() -> None:
    assert "arch_prctl" in allowed(seccomp.default_profile([], "x86_64"))
    assert "arch_prctl" not in allowed(seccomp.default_profile([], "aarch64"))
    assert "architectures" not in seccomp.default_profile([], "vax")


def test_extras_belong_to_real_capabilities() -> None:
    assert set(seccomp._BY_CAPABILITY) <= set(linux.ALL_CAPABILITIES)

"""Which filter a container gets, and what the default one lets through."""

from __future__ import annotations

import json
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


def test_a_localhost_profile_is_the_one_that_was_read() -> None:
    host = replace(HOST, seccomp_profile={"defaultAction": "SCMP_ACT_ALLOW"})
    for members in ({"seccomp": LOCALHOST}, {"seccomp_profile_path": "localhost/p.json"}):
        assert seccomp.for_context(context(**members), [], host) == {"defaultAction": "SCMP_ACT_ALLOW"}


@pytest.mark.parametrize(
    ("members", "file"),
    [
        ({"seccomp": LOCALHOST}, "/p.json"),
        ({"seccomp_profile_path": "localhost//p.json"}, "/p.json"),
        ({"seccomp_profile_path": "localhost/a/./p.json"}, "/profiles/a/p.json"),
        ({"seccomp": LOCALHOST, "privileged": True}, ""),
        ({"seccomp": DEFAULT}, ""),
        ({}, ""),
    ],
)
def test_a_relative_profile_is_in_the_configured_directory(members: dict[str, Any], file: str) -> None:
    assert seccomp.localhost_file(context(**members), "/profiles") == file


@pytest.mark.parametrize(
    ("reference", "file"), [("localhost//a/p.json", "/a/p.json"), ("localhost/p", "/profiles/p")]
)
def test_the_prefix_of_the_older_field_is_no_part_of_a_name(reference: str, file: str) -> None:
    profile = cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref=reference)
    assert seccomp.localhost_file(context(seccomp=profile), "/profiles") == file


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "."])
def test_a_relative_profile_does_not_leave_the_directory(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a file in /profiles"):
        seccomp.localhost_file(context(seccomp_profile_path=f"localhost/{name}"), "/profiles")


WHOLE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "architectures": ["SCMP_ARCH_X86_64"],
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "listenerPath": "/run/agent.sock",
    "listenerMetadata": "m",
    "syscalls": [
        {
            "names": ["clone", "x"],
            "action": "SCMP_ACT_NOTIFY",
            "args": [{"index": 5, "value": 2**64 - 1, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
        },
        {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
    ],
}


def parse(profile: Any) -> dict[str, Any]:
    return seccomp.parse_profile(json.dumps(profile).encode(), "/p.json")


def test_a_profile_of_the_runtime_spec_is_taken_as_it_is() -> None:
    assert parse(WHOLE) == WHOLE


def test_comments_and_nulls_of_other_tools_are_left_out() -> None:
    rule = {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": None, "comment": "why"}
    assert parse({"defaultAction": "SCMP_ACT_ALLOW", "flags": None, "syscalls": [rule]}) == {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}],
    }


def rule(**changes: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", **changes}]}


def arg(**changes: Any) -> dict[str, Any]:
    return rule(args=[{"index": 0, "value": 1, "op": "SCMP_CMP_EQ", **changes}])


BAD_PROFILES: list[tuple[Any, str]] = [
    ([], "must be an object"),
    ({}, "defaultAction: None is not an action"),
    ({"defaultAction": "ALLOW"}, "defaultAction: 'ALLOW' is not an action"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "archMap": []}, "'archMap' is not in the OCI runtime spec's seccomp format"),
    ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}, "defaultErrnoRet: 4096 is not between"),
    ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": True}, "defaultErrnoRet: True is not between"),
    ({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["x86"]}, "architectures: must be a list of SCMP_ARCH_"),
    ({"defaultAction": "SCMP_ACT_ERRNO", "flags": "x"}, "flags: must be a list of SECCOMP_FILTER_FLAG_"),
    ({"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": 1}, "listenerPath: must be a string"),
    ({"defaultAction": "SCMP_ACT_NOTIFY"}, "listenerPath: is not set"),
    ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": {}}, "syscalls: must be a list"),
    (rule(name="a"), "syscalls[0]: 'name' is not in"),
    (rule(includes={"caps": ["CAP_SYS_ADMIN"]}), "syscalls[0]: 'includes' is not in"),
    (rule(names=[]), "syscalls[0].names: must name a system call"),
    (rule(names=[""]), "syscalls[0].names: must be a list of names"),
    (rule(names="a"), "syscalls[0].names: must be a list of names"),
    (rule(action=3), "syscalls[0].action: 3 is not an action"),
    (rule(errnoRet=-1), "syscalls[0].errnoRet: -1 is not between"),
    (rule(args={}), "syscalls[0].args: must be a list"),
    (arg(op="EQ"), "syscalls[0].args[0].op: 'EQ' is not a comparison"),
    (arg(index=6), "syscalls[0].args[0].index: 6 is not between 0 and 5"),
    (arg(value=2**64), "syscalls[0].args[0].value: 18446744073709551616 is not between"),
    (arg(valueTwo="1"), "syscalls[0].args[0].valueTwo: '1' is not between"),
]


@pytest.mark.parametrize(("profile", "words"), BAD_PROFILES, ids=[words for _, words in BAD_PROFILES])
def test_what_is_not_understood_of_a_profile_is_refused(profile: Any, words: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(profile)
    assert str(raised.value).startswith("seccomp profile /p.json: ")
    assert words in str(raised.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"name: yaml"])
def test_what_is_no_json_is_no_profile(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        seccomp.parse_profile(data, "/p.json")


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

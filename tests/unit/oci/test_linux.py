"""Linux sections: what is asked for, what the machine can give, and nothing in between."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.oci import linux
from sandboxd.oci.linux import DeviceNode
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.unit.oci.golden.cases import HOST, V2_HOST

ALL = frozenset(linux.ALL_CAPABILITIES)


def test_every_capability_of_linux_has_its_number() -> None:
    assert len(linux.ALL_CAPABILITIES) == 41
    assert linux.ALL_CAPABILITIES.index("CAP_SYS_ADMIN") == 21
    assert linux.ALL_CAPABILITIES[40] == "CAP_CHECKPOINT_RESTORE"
    assert linux.DEFAULT_CAPABILITIES < ALL


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ([], [], linux.DEFAULT_CAPABILITIES),
        (["net_admin"], [], linux.DEFAULT_CAPABILITIES | {"CAP_NET_ADMIN"}),
        (["CAP_NET_ADMIN"], ["KILL"], (linux.DEFAULT_CAPABILITIES | {"CAP_NET_ADMIN"}) - {"CAP_KILL"}),
        (["ALL"], [], ALL),
        (["all"], ["SYS_ADMIN"], ALL - {"CAP_SYS_ADMIN"}),
        ([], ["ALL"], frozenset()),
        (["CHOWN"], ["ALL"], frozenset({"CAP_CHOWN"})),
        (["ALL"], ["ALL"], frozenset()),
        (["CHOWN"], ["CHOWN"], linux.DEFAULT_CAPABILITIES - {"CAP_CHOWN"}),
    ],
)
def test_capabilities_follow_add_then_drop(add: list[str], drop: list[str], expected: frozenset[str]) -> None:
    names = linux.capability_names(add=add, drop=drop, own=ALL)
    assert expected == frozenset(names)
    assert sorted(names, key=linux.ALL_CAPABILITIES.index) == names


def test_no_capability_is_given_that_the_daemon_lacks() -> None:
    own = ALL - {"CAP_SYS_RESOURCE", "CAP_MKNOD"}
    assert own == frozenset(linux.capability_names(add=["ALL"], drop=[], own=own))
    assert "CAP_MKNOD" not in linux.capability_names(add=[], drop=[], own=own)
    with pytest.raises(Unsupported, match="CAP_SYS_RESOURCE"):
        linux.capability_names(add=["SYS_RESOURCE"], drop=[], own=own)


def test_a_misspelt_capability_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'NET_ADMN' is not"):
        linux.capability_names(add=[], drop=["NET_ADMN"], own=ALL)


def test_the_last_value_of_a_variable_wins_at_the_place_of_the_first() -> None:
    entries = ["PATH=/a", "HOME=/root", "PATH=/b", "EMPTY=", "=x", "bare", "EQ=a=b"]
    assert linux.environment(entries) == ["PATH=/b", "HOME=/root", "EMPTY=", "EQ=a=b"]


def test_a_name_without_a_value_removes_the_variable() -> None:
    assert linux.environment(["PATH=/a", "A=1", "PATH", "", "B=2", "A", "A=3"]) == ["B=2", "A=3"]


@given(st.lists(st.text(alphabet="ab=", max_size=6)))
def test_every_environment_entry_has_a_name_of_its_own(entries: list[str]) -> None:
    names = [entry.partition("=")[0] for entry in linux.environment(entries)]
    assert "" not in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("wanted", "own", "can_lower", "expected"),
    [(-998, 0, True, -998), (-998, 0, False, 0), (-998, -500, False, -500), (900, -500, False, 900)],
)
def test_oom_score_never_falls_below_what_the_daemon_may_set(
    wanted: int, own: int, can_lower: bool, expected: int
) -> None:
    host = replace(HOST, oom_score_adj=own, can_lower_oom_score_adj=can_lower)
    assert expected == linux.oom_score_adj(wanted, host)


def test_a_namespace_is_new_joined_or_left_out() -> None:
    wanted = {"mount": linux.NEW, "network": "/run/netns/x", "ipc": linux.HOST}
    assert linux.namespaces(wanted) == [{"type": "mount"}, {"type": "network", "path": "/run/netns/x"}]


def test_what_is_not_specified_is_not_in_the_resources() -> None:
    assert linux.resources(cri.LinuxContainerResources(), HOST) == {}


@pytest.mark.parametrize(
    ("controller", "limit", "swap", "expected"),
    [
        (True, 64, 0, {"limit": 64, "swap": 64}),
        (True, 64, 128, {"limit": 64, "swap": 128}),
        (True, 64, -1, {"limit": 64, "swap": -1}),
        (True, -1, 0, {"limit": -1, "swap": -1}),
        (True, -1, -1, {"limit": -1, "swap": -1}),
        (True, -1, 128, {"limit": -1, "swap": -1}),
        (False, -1, 0, {"limit": -1}),
        (False, 64, 0, {"limit": 64}),
        (False, 64, 128, {"limit": 64}),
    ],
)
def test_memory_does_not_move_to_swap_unless_asked(
    controller: bool, limit: int, swap: int, expected: dict[str, int]
) -> None:
    wanted = cri.LinuxContainerResources(memory_limit_in_bytes=limit, memory_swap_limit_in_bytes=swap)
    assert {"memory": expected} == linux.resources(wanted, replace(HOST, swap_controller=controller))


@pytest.mark.parametrize("quota", [-1, -2, -(2**63)])
def test_an_unlimited_quota_is_said(quota: int) -> None:
    assert linux.resources(cri.LinuxContainerResources(cpu_quota=quota), HOST) == {"cpu": {"quota": -1}}


def test_a_new_container_is_given_no_unlimited_quota() -> None:
    wanted = cri.LinuxContainerResources(cpu_quota=-1, cpu_period=50_000)
    assert linux.first_resources(wanted, HOST) == {"cpu": {"period": 50_000}}
    assert wanted.cpu_quota == -1
    assert linux.first_resources(cri.LinuxContainerResources(cpu_quota=5_000), HOST) == {"cpu": {"quota": 5_000}}


@pytest.mark.parametrize(
    ("asked", "given"),
    [(1, 2), (2, 2), (3, 3), (262_144, 262_144), (262_145, 262_144), (2**63 - 1, 262_144)],
)
def test_shares_are_within_the_kernels_bounds(asked: int, given: int) -> None:
    assert linux.resources(cri.LinuxContainerResources(cpu_shares=asked), HOST) == {"cpu": {"shares": given}}


def test_unified_settings_need_cgroup_v2() -> None:
    wanted = cri.LinuxContainerResources(unified={"memory.high": "1"})
    assert linux.resources(wanted, V2_HOST) == {"unified": {"memory.high": "1"}}
    with pytest.raises(Unsupported, match=r"memory\.high"):
        linux.resources(wanted, HOST)


def test_hugepage_limits_are_left_out_where_there_is_no_controller() -> None:
    none = cri.LinuxContainerResources(hugepage_limits=[cri.HugepageLimit(page_size="2MB", limit=0)])
    some = cri.LinuxContainerResources(hugepage_limits=[cri.HugepageLimit(page_size="2MB", limit=1 << 21)])
    assert linux.resources(none, HOST) == {}
    assert linux.resources(some, HOST) == {}
    able = replace(HOST, hugetlb_controller=True)
    assert linux.resources(some, able) == {"hugepageLimits": [{"pageSize": "2MB", "limit": 1 << 21}]}


def test_a_requested_device_is_made_and_allowed_and_nothing_else_is() -> None:
    host = replace(HOST, devices={"/dev/fuse": (DeviceNode(path="/dev/fuse", kind="c", major=10, minor=229),)})
    device = cri.Device(container_path="/dev/f", host_path="/dev/fuse", permissions="rw")
    nodes, rules = linux.devices([device], host, privileged=False)
    assert [(n["path"], n["type"], n["major"], n["minor"], n["fileMode"]) for n in nodes] == [
        ("/dev/f", "c", 10, 229, 0o660)
    ]
    assert rules == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
    ]


def test_a_directory_of_devices_keeps_its_shape() -> None:
    found = (
        DeviceNode(path="/dev/snd/seq", kind="c", major=116, minor=1, below="seq"),
        DeviceNode(path="/dev/snd/by-id/x", kind="c", major=116, minor=2, below="by-id/x"),
    )
    device = cri.Device(container_path="/audio", host_path="/dev/snd", permissions="r")
    nodes, rules = linux.devices([device], replace(HOST, devices={"/dev/snd": found}), privileged=False)
    assert [node["path"] for node in nodes] == ["/audio/seq", "/audio/by-id/x"]
    assert len(rules) == 3


def test_a_pipe_needs_no_numbers_and_no_rule() -> None:
    host = replace(HOST, devices={"/dev/p": (DeviceNode(path="/dev/p", kind="p", major=0, minor=0),)})
    device = cri.Device(container_path="/dev/p", host_path="/dev/p", permissions="r")
    nodes, rules = linux.devices([device], host, privileged=False)
    assert "major" not in nodes[0]
    assert linux.no_devices() == rules


def test_an_absent_device_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="/dev/nope"):
        linux.devices([cri.Device(host_path="/dev/nope")], HOST, privileged=False)


def test_privileged_gets_all_devices_of_the_host_and_the_requests_names_win() -> None:
    kvm = DeviceNode(path="/dev/kvm", kind="c", major=10, minor=232)
    other = DeviceNode(path="/dev/other", kind="b", major=8, minor=0)
    host = replace(HOST, host_devices=(kvm,), devices={"/dev/other": (other,)})
    device = cri.Device(container_path="/dev/kvm", host_path="/dev/other", permissions="r")
    nodes, rules = linux.devices([device], host, privileged=True)
    assert [(node["path"], node["type"]) for node in nodes] == [("/dev/kvm", "b")]
    assert rules == [{"allow": True, "access": "rwm"}]


@pytest.mark.parametrize(
    ("path", "expected", "depth"),
    [("/", "/", 0), ("//a//b/", "/a/b", 2), ("/a/../b", "/b", 1), ("/..", "/", 0), ("a", "/a", 1)],
)
def test_paths_have_one_spelling(path: str, expected: str, depth: int) -> None:
    assert expected == linux.clean(path)
    assert depth == linux.depth(expected)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], []),
        (["kill", "CAP_CHOWN"], ["CAP_CHOWN", "CAP_KILL"]),
        (["ALL"], ["CAP_CHOWN", "CAP_KILL"]),
        (["SYS_ADMIN"], []),
    ],
)
def test_only_what_is_held_can_be_ambient(wanted: list[str], expected: list[str]) -> None:
    assert linux.ambient_names(wanted, ["CAP_CHOWN", "CAP_KILL"]) == expected


def test_an_ambient_capability_is_inheritable() -> None:
    assert linux.capabilities(["CAP_KILL"]).keys() == {"bounding", "effective", "permitted"}
    sets = linux.capabilities(["CAP_CHOWN", "CAP_KILL"], ["CAP_KILL"])
    assert sets["ambient"] == sets["inheritable"] == ["CAP_KILL"]
    assert sets["permitted"] == ["CAP_CHOWN", "CAP_KILL"]


def test_annotations_are_passed_on_by_glob() -> None:
    annotations = {"b.example/x": "1", "a.example/y": "2", "c": "3"}
    assert linux.passed_on(annotations, []) == {}
    assert linux.passed_on(annotations, ["*.example/x", "c"]) == {"b.example/x": "1", "c": "3"}


@pytest.mark.parametrize(("groups", "named"), [(6, True), (5, False), (65536, True)])
def test_terminals_belong_to_the_tty_group_where_it_exists(groups: int, named: bool) -> None:
    assert ("gid=5" in linux.dev_pts(groups)["options"]) == named


@pytest.mark.parametrize(
    ("mount", "shows"),
    [
        (cri.Mount(host_path="/a"), False),
        (cri.Mount(host_path="/a", image=cri.ImageSpec()), False),
        (cri.Mount(image=cri.ImageSpec(image="i")), True),
    ],
)
def test_an_empty_image_is_none(mount: cri.Mount, shows: bool) -> None:
    assert linux.shows_image(mount) == shows

"""Who a container runs as: names from the image's files, numbers as they are, the request over the image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest
from sandboxd.oci import users
from sandboxd.oci.users import UserSpec, resolve
from sandboxd.pb.cri.v1 import api_pb2 as cri

PASSWD = b"""\
# a comment
root:x:0:0:root:/root:/bin/sh
broken line
web:x:101:102:Web server,,,:/srv:/sbin/nologin
twice:x:200:200::/a:
twice:x:201:201::/b:
short:x:300:300
bad:x:3OO:300::/:
minus:x:-5:300::/:
huge:x:4294967296:0::/:
+nis::0:0:::
"""
GROUP = b"""\
root:x:0:root
adm:x:4:root,web
junk
web:x:102:
extra:x:500:web,short
bad:x:x:web
nomembers:x:600
"""


@pytest.mark.parametrize(
    ("spec", "uid", "gid", "groups", "username"),
    [
        (UserSpec(), 0, 0, (0, 4), "root"),
        (UserSpec(image_user="web"), 101, 102, (102, 4, 500), "web"),
        (UserSpec(image_user="101"), 101, 102, (102, 4, 500), "web"),
        (UserSpec(image_user="web:adm"), 101, 4, (4, 500), "web"),
        (UserSpec(image_user="web:7"), 101, 7, (7, 4, 500), "web"),
        (UserSpec(image_user="9:adm"), 9, 4, (4,), ""),
        (UserSpec(image_user="9:9"), 9, 9, (9,), ""),
        (UserSpec(image_user="9"), 9, 0, (0,), ""),
        (UserSpec(image_user="web:"), 101, 102, (102, 4, 500), "web"),
        (UserSpec(image_user=":adm"), 0, 4, (4, 0), "root"),
        (UserSpec(image_user="twice"), 200, 200, (200,), "twice"),
        (UserSpec(image_user="short"), 300, 300, (300, 500), "short"),
        (UserSpec(image_user="web", run_as_user=0), 0, 0, (0, 4), "root"),
        (UserSpec(image_user="root", run_as_user=101), 101, 102, (102, 4, 500), "web"),
        (UserSpec(image_user="root:adm", run_as_user=101, run_as_group=3), 101, 3, (3, 4, 500), "web"),
        (UserSpec(run_as_username="web"), 101, 102, (102, 4, 500), "web"),
        (UserSpec(run_as_username="101"), 101, 102, (102, 4, 500), "web"),
        (UserSpec(run_as_username="web:adm"), 101, 4, (4, 500), "web"),
        (UserSpec(run_as_username="9:9"), 9, 9, (9,), ""),
        (UserSpec(run_as_username="web:adm", run_as_group=8), 101, 8, (8, 4, 500), "web"),
        (UserSpec(run_as_username="web", run_as_group=8), 101, 8, (8, 4, 500), "web"),
        (UserSpec(run_as_user=101, supplemental_groups=(4, 9)), 101, 102, (102, 4, 500, 9), "web"),
        (UserSpec(run_as_user=101, supplemental_groups=(9,), strict=True), 101, 102, (102, 9), "web"),
        (UserSpec(run_as_user=users.MAX_ID), users.MAX_ID, 0, (0,), ""),
    ],
)
def test_a_user_is_resolved(spec: UserSpec, uid: int, gid: int, groups: tuple[int, ...], username: str) -> None:
    user = resolve(spec, PASSWD, GROUP)
    assert (uid, gid, groups, username) == (user.uid, user.gid, user.additional_gids, user.username)


def test_home_is_the_entrys() -> None:
    assert resolve(UserSpec(image_user="web"), PASSWD, GROUP).home == "/srv"
    assert resolve(UserSpec(image_user="short"), PASSWD, GROUP).home == ""


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (UserSpec(image_user="nginx"), "user 'nginx': the image's /etc/passwd has no such entry"),
        (UserSpec(run_as_username="bad"), "user 'bad'"),
        (UserSpec(run_as_username="minus"), "user 'minus'"),
        (UserSpec(run_as_username="huge"), "user 'huge'"),
        (UserSpec(run_as_username="web:adm:x"), "run_as_username 'web:adm:x' is not of the form"),
        (UserSpec(run_as_username="web:nope"), "group 'nope'"),
        (UserSpec(image_user="web:nope"), "group 'nope': the image's /etc/group has no such entry"),
        (UserSpec(image_user="a:b:c"), "not of the form"),
        (UserSpec(run_as_group=1), "without run_as_user"),
        (UserSpec(run_as_user=-1), "run_as_user -1"),
        (UserSpec(run_as_user=1, run_as_group=2**31), "run_as_group 2147483648"),
        (UserSpec(image_user="2147483648"), "user 2147483648"),
        (UserSpec(supplemental_groups=(-1,)), "supplemental group -1"),
    ],
)
def test_what_cannot_be_resolved_is_named(spec: UserSpec, words: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        resolve(spec, PASSWD, GROUP)
    assert words in str(raised.value)


def test_numbers_need_no_files_and_names_say_that_there_are_none() -> None:
    user = resolve(UserSpec(run_as_user=5, supplemental_groups=(6,)), None, None)
    assert (user.uid, user.gid, user.additional_gids) == (5, 0, (0, 6))
    with pytest.raises(InvalidRequest, match="the image has no /etc/passwd"):
        resolve(UserSpec(image_user="web"), None, None)
    with pytest.raises(InvalidRequest, match="the image has no /etc/group"):
        resolve(UserSpec(image_user="0:web"), None, None)


def test_a_context_says_what_is_set_even_when_it_is_zero() -> None:
    zero = cri.Int64Value(value=0)
    context = cri.LinuxContainerSecurityContext(
        run_as_user=zero, run_as_group=zero, supplemental_groups=[7], supplemental_groups_policy=cri.Strict
    )
    assert UserSpec(
        image_user="web", run_as_user=0, run_as_group=0, supplemental_groups=(7,), strict=True
    ) == users.for_container(context, "web")
    assert UserSpec(image_user="web") == users.for_container(cri.LinuxContainerSecurityContext(), "web")
    assert UserSpec(run_as_user=0) == users.for_sandbox(cri.LinuxSandboxSecurityContext(run_as_user=zero), "")


LINES = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.builds(
            lambda *fields: ":".join(fields).encode(),
            st.sampled_from(["root", "web", "", "é", "#x"]),
            st.just("x"),
            st.sampled_from(["0", "101", "-1", "٣", "1_0", " 7", "99999999999999999999", ""]),
            st.sampled_from(["0", "102", "2147483648", "web,root"]),
        ),
    ),
    max_size=6,
).map(b"\n".join)
IDS = st.none() | st.integers(-2, 2**32)


@given(
    st.one_of(st.text(max_size=12), st.sampled_from(["web", "web:web", "0:0"])),
    IDS,
    IDS,
    st.sampled_from(["", "web", "root"]),
    st.none() | LINES,
    st.none() | LINES,
)
def test_any_files_give_a_user_within_range_or_one_refusal(
    image_user: str, uid: int | None, gid: int | None, name: str, passwd: bytes | None, group: bytes | None
) -> None:
    spec = UserSpec(image_user=image_user, run_as_user=uid, run_as_group=gid, run_as_username=name)
    try:
        user = resolve(spec, passwd, group)
    except InvalidRequest:
        return
    ids = (user.uid, user.gid, *user.additional_gids)
    assert all(0 <= value <= users.MAX_ID for value in ids)
    assert user.gid == user.additional_gids[0]
    assert len(set(user.additional_gids)) == len(user.additional_gids)

"""Each flag's text: what it means, and what is said when it means nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.cli import parse
from sandboxd.pb.cri.v1 import api_pb2 as cri

NOW = 1_800_000_000 * 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", (cri.TCP, "", 8080, 80)),
        ("53:53/udp", (cri.UDP, "", 53, 53)),
        ("1:65535/SCTP", (cri.SCTP, "", 1, 65535)),
        ("127.0.0.1:8080:80", (cri.TCP, "127.0.0.1", 8080, 80)),
        ("[::1]:8080:80/tcp", (cri.TCP, "::1", 8080, 80)),
    ],
)
def test_a_port_is_host_then_container(text: str, expected: tuple[int, str, int, int]) -> None:
    mapping = parse.port(text)
    assert (mapping.protocol, mapping.host_ip, mapping.host_port, mapping.container_port) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("80", "is not a port mapping"),
        ("", "is not a port mapping"),
        ("a:80", "is not a port mapping"),
        ("8080:80:", "is not an IP address"),
        (":8080:80", "is not an IP address"),
        ("0:80", "between 1 and 65535"),
        ("8080:65536", "between 1 and 65535"),
        ("8080:80/icmp", "tcp, udp or sctp"),
        ("8080:80/", "tcp, udp or sctp"),
        ("::1:8080:80", "in brackets"),
        ("nowhere:8080:80", "is not an IP address"),
        ("٨:80", "is not a port mapping"),
    ],
)
def test_a_wrong_port_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse.port(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a:/b", ("/a", "/b", False)),
        ("/a:/b:ro", ("/a", "/b", True)),
        ("./a:/b:rw", ("./a", "/b", False)),
    ],
)
def test_a_mount_is_source_target_and_mode(text: str, expected: tuple[str, str, bool]) -> None:
    mount = parse.mount(text)
    assert (mount.source, mount.target, mount.readonly) == expected


@pytest.mark.parametrize("text", ["/a", ":/b", "/a:", "/a:b", "/a:/b:rx", "/a:/b:ro:z", ""])
def test_a_wrong_mount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse.mount(text)


def test_a_pair_splits_at_the_first_equals_sign() -> None:
    assert parse.pair("A=b=c") == ("A", "b=c")
    assert parse.pair("A=") == ("A", "")


@pytest.mark.parametrize("text", ["A", "=b", ""])
def test_a_pair_needs_a_key_and_a_sign(text: str) -> None:
    with pytest.raises(ValueError, match="KEY=VALUE"):
        parse.pair(text)


@pytest.mark.parametrize(
    ("text", "username", "password"), [("me", "me", None), ("me:", "me", ""), ("me:a:b", "me", "a:b")]
)
def test_credentials_are_a_user_and_perhaps_a_password(text: str, username: str, password: str | None) -> None:
    assert parse.credentials(text) == parse.CredentialsFlag(username=username, password=password)


def test_credentials_need_a_user_and_a_wrong_one_is_not_printed() -> None:
    with pytest.raises(ValueError, match="USER:PASSWORD") as caught:
        parse.credentials(":secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fence", "profile"),
    [
        ("seccomp=unconfined", "seccomp", "unconfined"),
        ("seccomp=/etc/profiles/mine.json", "seccomp", "/etc/profiles/mine.json"),
        ("seccomp=mine=1.json", "seccomp", "mine=1.json"),
        ("apparmor=unconfined", "apparmor", "unconfined"),
        ("apparmor=docker-default", "apparmor", "docker-default"),
    ],
)
def test_a_security_option_is_a_fence_and_a_profile(text: str, fence: str, profile: str) -> None:
    assert parse.security(text) == parse.SecurityFlag(module=fence, profile=profile)


@pytest.mark.parametrize(
    "text", ["", "seccomp", "seccomp=", "=unconfined", "unconfined", "Seccomp=unconfined", "label=disable", "mask=x"]
)
def test_an_unknown_security_option_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="seccomp=unconfined"):
        parse.security(text)


@pytest.mark.parametrize(
    ("text", "quota", "shares"),
    [("0.5", 50_000, 512), ("2", 200_000, 2048), ("0.01", 1_000, 10), ("1.5", 150_000, 1536)],
)
def test_cpus_become_quota_and_shares(text: str, quota: int, shares: int) -> None:
    assert parse.cpu(text) == parse.CpuFlag(quota=quota, shares=shares)


@pytest.mark.parametrize("text", ["0", "-1", "0.001", "nan", "inf", "half", "", "1_0"])
def test_a_wrong_number_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="CPUs"):
        parse.cpu(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("256M", 256 * 2**20),
        ("256m", 256 * 2**20),
        ("256MiB", 256 * 2**20),
        ("256MB", 256 * 2**20),
        ("1.5G", 3 * 2**29),
        ("64k", 65536),
        ("100b", 100),
    ],
)
def test_sizes_are_in_powers_of_1024(text: str, expected: int) -> None:
    assert parse.size(text) == expected


@pytest.mark.parametrize("text", ["", "0", "M", "-1M", "1X", "99999999P", "1e9", "0.1"])
def test_a_wrong_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse.size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10), ("10s", 10), ("1.5", 1.5), ("250ms", 0.25), ("1h30m", 5400), ("2d", 172800)]
)
def test_durations_are_nanoseconds(text: str, seconds: float) -> None:
    assert parse.duration(text) == seconds * 10**9


@pytest.mark.parametrize("text", ["", "0", "0s", "-1s", "10 s", "10x", "s", "1h30", "999999999999d"])
def test_a_wrong_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse.duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", NOW - 600 * 10**9),
        ("1970-01-01T00:00:10Z", 10 * 10**9),
        ("1970-01-01t01:00:10.000000001+01:00", 10 * 10**9 + 1),
        ("1970-01-01 00:00:10.5z", 10_500_000_000),
        ("100000d", 1),  # longer ago than the epoch
    ],
)
def test_since_is_a_length_of_time_or_a_moment(text: str, expected: int) -> None:
    assert parse.since(text, NOW) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yesterday", "neither"),
        ("2026-01-31", "neither"),
        ("2026-02-30T00:00:00Z", "is not a valid time"),
        ("2026-01-31T00:00:00", "neither"),
    ],
)
def test_a_wrong_moment_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse.since(text, NOW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", parse.UserFlag(uid=0)),
        ("33:44", parse.UserFlag(uid=33, gid=44)),
        ("www-data", parse.UserFlag(name="www-data")),
        ("www-data:44", parse.UserFlag(name="www-data", gid=44)),
    ],
)
def test_a_user_is_a_number_or_a_name(text: str, expected: parse.UserFlag) -> None:
    assert parse.user(text) == expected


@pytest.mark.parametrize("text", ["", ":", "a:", ":1", "a:b", "99999999999", "1:2:3"])
def test_a_wrong_user_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse.user(text)


@given(
    st.sampled_from([parse.port, parse.mount, parse.pair, parse.cpu, parse.size, parse.duration, parse.user]),
    st.text(max_size=20) | st.text("0123456789.:/kmgKMG[]=-sh", max_size=12),
)
def test_whatever_is_typed_gives_a_value_or_a_sentence(read: Callable[[str], object], text: str) -> None:
    try:
        read(text)
    except ValueError as error:
        assert repr(text) in str(error) or "KEY=VALUE" in str(error) or "duration" in str(error)


@given(st.text(max_size=30) | st.text("0123456789-T:Z.+", max_size=30))
def test_whatever_since_is_told_gives_a_moment_or_a_sentence(text: str) -> None:
    try:
        assert parse.since(text, NOW) >= 1
    except ValueError as error:
        assert repr(text) in str(error)

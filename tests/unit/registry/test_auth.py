"""What a registry asks for is understood, and secrets go nowhere else."""

from __future__ import annotations

import base64
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import AccessDenied, InvalidRequest
from sandboxd.registry.auth import (
    Challenge,
    Credentials,
    applies,
    basic,
    choose,
    decode,
    host_of,
    parse_challenges,
    parse_token,
    token_request,
)

BEARER = 'Bearer realm="https://auth.test/token",service="registry.test",scope="repository:a/b:pull"'
ME = Credentials(username="me", password="sec:ret")
SCOPE = "repository:a/b:pull"


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["Basic realm=x"], [("basic", {"realm": "x"})]),
        (['Basic realm="a, b"'], [("basic", {"realm": "a, b"})]),
        (['Basic realm="a \\"b\\""'], [("basic", {"realm": 'a "b"'})]),
        (
            [BEARER],
            [("bearer", {"realm": "https://auth.test/token", "service": "registry.test", "scope": SCOPE})],
        ),
        (["Negotiate", "Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (["Negotiate, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (["Basic realm=x, Bearer realm=y , a=z"], [("basic", {"realm": "x"}), ("bearer", {"realm": "y", "a": "z"})]),
        (["Bearer realm = x"], [("bearer", {"realm": "x"})]),
        (["BEARER Realm=x"], [("bearer", {"realm": "x"})]),
        (["Other abc123==, Basic realm=x"], [("other", {}), ("basic", {"realm": "x"})]),
        ([""], []),
        (['"'], []),
    ],
)  # fmt: skip
def test_challenges_are_read_in_every_spelling(values: list[str], found: list[tuple[str, dict[str, str]]]) -> None:
    assert [(c.scheme, c.parameters) for c in parse_challenges(values)] == found


@given(st.lists(st.text(max_size=60) | st.text('Bearer realm="x",=\\ ', max_size=60), max_size=3))
def test_any_header_is_read_or_left_out(values: list[str]) -> None:
    for challenge in parse_challenges(values):
        assert challenge.scheme == challenge.scheme.lower()


def test_a_token_is_preferred_to_showing_the_password() -> None:
    chosen = choose(parse_challenges(["Basic realm=x, Bearer realm=y"]))

    assert chosen is not None and chosen.scheme == "bearer"
    assert choose(parse_challenges(["Negotiate"])) is None


def challenge(**parameters: str) -> Challenge:
    return Challenge(scheme="bearer", parameters=parameters)


def test_a_password_gets_a_token_by_basic_authentication() -> None:
    (found,) = parse_challenges([BEARER])

    request = token_request(found, ME, "other", plain_allowed=False)

    query = parse_qs(urlsplit(request.url).query)
    assert query == {"service": ["registry.test"], "scope": [SCOPE], "account": ["me"], "client_id": ["sandboxd"]}
    assert request.authorization == "Basic " + base64.b64encode(b"me:sec:ret").decode()
    assert not request.form


def test_nobody_asks_for_a_token_as_nobody() -> None:
    request = token_request(challenge(realm="https://auth.test/t?x=1"), Credentials(), SCOPE, plain_allowed=False)

    assert parse_qs(urlsplit(request.url).query) == {"x": ["1"], "scope": [SCOPE]}
    assert (request.authorization, request.form) == ("", b"")


def test_an_identity_token_is_posted_and_in_no_url() -> None:
    credentials = Credentials(identity_token="refresh me")

    request = token_request(challenge(realm="https://auth.test/t"), credentials, SCOPE, plain_allowed=False)

    assert parse_qs(request.form.decode())["refresh_token"] == ["refresh me"]
    assert "refresh" not in request.url


@pytest.mark.parametrize(
    "realm", ["", "ftp://auth.test", "auth.test/token", "https://u:p@auth.test/", "http://a.test"]
)
def test_a_realm_that_is_no_safe_place_gets_nothing(realm: str) -> None:
    with pytest.raises(AccessDenied):
        token_request(challenge(realm=realm), ME, SCOPE, plain_allowed=False)


def test_a_realm_without_tls_is_for_registries_without_tls() -> None:
    assert token_request(challenge(realm="http://a.test/t"), ME, SCOPE, plain_allowed=True).realm == "http://a.test/t"


@pytest.mark.parametrize(
    ("data", "token"), [(b'{"token": "a.b-c"}', "a.b-c"), (b'{"access_token": "x", "token": ""}', "x")]
)
def test_the_token_is_taken_under_either_name(data: bytes, token: str) -> None:
    assert parse_token(data, "realm") == token


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"token": 1}', b'{"token": "a b"}', b'{"token": "a\\r\\nX: y"}']
)
def test_what_is_no_token_is_refused(data: bytes) -> None:
    with pytest.raises(AccessDenied, match="realm"):
        parse_token(data, "realm")


def test_the_base64_form_is_decoded() -> None:
    assert decode(base64.b64encode(b"me:a:b\0\0").decode()) == ("me", "a:b")


@pytest.mark.parametrize(
    "auth", ["!", base64.b64encode(b"nocolon").decode(), base64.b64encode(b":x").decode(), "/w=="]
)
def test_what_cannot_be_decoded_is_refused_without_being_shown(auth: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(auth)

    assert auth not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("Registry.Test:5000", "registry.test:5000"),
        ("http://me@registry.test/path", "registry.test"),
    ],
)
def test_addresses_mean_hosts(address: str, host: str) -> None:
    assert host_of(address) == host


@pytest.mark.parametrize(
    ("server_address", "names", "own", "shown"),
    [
        ("", ("registry.test",), True, True),
        ("", ("mirror.test",), False, False),
        ("registry.test", ("registry.test", "host.test"), True, True),
        ("https://mirror.test/v2/", ("mirror.test",), False, True),
        ("other.test", ("registry.test",), True, False),
        ("registry.test:5000", ("registry.test",), True, False),
        ("docker.io", ("docker.io", "registry-1.docker.io"), True, True),
    ],
)
def test_credentials_are_shown_to_their_own_server_only(
    server_address: str, names: tuple[str, ...], own: bool, shown: bool
) -> None:
    assert applies(Credentials(username="me", server_address=server_address), names, own=own) is shown


def test_no_secret_is_in_a_repr() -> None:
    credentials = Credentials(username="me", password="one", identity_token="two", registry_token="three")
    request = token_request(challenge(realm="https://a.test/t"), credentials, SCOPE, plain_allowed=False)

    for secret in ("one", "two", "three", basic(credentials)):
        assert secret not in repr(credentials) + repr(request)


def test_all_empty_is_nobody() -> None:
    assert Credentials(server_address="registry.test").anonymous
    assert not Credentials(registry_token="x").anonymous


@pytest.mark.parametrize("text", ["dTpwü", "²", "dTpw\u202e"])
def test_an_auth_that_is_not_ascii_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="must be base64"):
        decode(text)


@pytest.mark.parametrize(
    "realm", ["https://[", "https://a:99999/token", "https://[::g]/t", "https://a:x/", "http://[[["]
)
def test_a_realm_that_is_no_url_is_no_place_to_get_a_token(realm: str) -> None:
    (challenge,) = parse_challenges([f'Bearer realm="{realm}"'])
    with pytest.raises(AccessDenied, match="no usable realm"):
        token_request(challenge, Credentials(), "s", plain_allowed=True)

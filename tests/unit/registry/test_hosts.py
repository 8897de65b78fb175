"""hosts.toml is read as containerd's users wrote it, and strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest
from sandboxd.registry.hosts import Endpoint, directories, from_certificates, is_loopback, parse, upstream

DIRECTORY = "/etc/certs.d/registry.test"


@pytest.mark.parametrize(
    ("domain", "names"),
    [
        ("registry.test", ("registry.test", "_default")),
        ("registry.test:5000", ("registry.test_5000_", "registry.test:5000", "_default")),
        ("[::1]:5000", ("[::1]_5000_", "[::1]:5000", "_default")),
        ("docker.io", ("docker.io", "_default")),
    ],
)
def test_a_port_is_spelled_with_underscores_in_a_directory(domain: str, names: tuple[str, ...]) -> None:
    assert directories(domain) == names


@pytest.mark.parametrize(
    ("domain", "base"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("registry.test", "https://registry.test/v2"),
        ("registry.test:80", "https://registry.test:80/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.9.9.9", "http://127.9.9.9/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("localhost:443", "https://localhost:443/v2"),
        ("localhost.registry.test", "https://localhost.registry.test/v2"),
    ],
)
def test_only_loopback_is_reached_without_tls_unless_configured(domain: str, base: str) -> None:
    endpoint = upstream(domain)

    assert endpoint.base == base
    assert endpoint.upstream


@pytest.mark.parametrize("host", ["10.0.0.1", "128.0.0.1:5000", "mylocalhost", "[fe80::1]:5000", ""])
def test_nothing_else_is_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_mirrors_keep_their_order_and_the_registry_comes_last() -> None:
    text = """
        server = "https://upstream.test"
        [host."https://b.test"]
          capabilities = ["pull", "resolve"]
        [host."http://a.test:5000"]
          capabilities = ["pull"]
        [host."https://c.test/prefix/v2"]
          override_path = true
        [host."https://d.test/prefix/"]
    """

    endpoints = parse(text, "registry.test", DIRECTORY)

    assert [endpoint.base for endpoint in endpoints] == [
        "https://b.test/v2",
        "http://a.test:5000/v2",
        "https://c.test/prefix/v2",
        "https://d.test/prefix/v2",
        "https://upstream.test/v2",
    ]
    assert [endpoint.resolve for endpoint in endpoints] == [True, False, True, True, True]
    assert [endpoint.upstream for endpoint in endpoints] == [False, False, False, False, True]


def test_every_setting_is_read() -> None:
    text = """
        [host."mirror.test"]
          capabilities = ["pull", "resolve", "push"]
          ca = ["own.pem", "/etc/other.pem"]
          client = [["c.cert", "c.key"], ["both.pem", ""]]
          skip_verify = true
          dial_timeout = "1m500ms"
          [host."mirror.test".header]
            x-one = "1"
            x-two = ["2", "3"]
    """

    mirror, registry = parse(text, "registry.test", DIRECTORY)

    assert mirror == Endpoint(
        scheme="https",
        host="mirror.test",
        ca=(f"{DIRECTORY}/own.pem", "/etc/other.pem"),
        client=((f"{DIRECTORY}/c.cert", f"{DIRECTORY}/c.key"), (f"{DIRECTORY}/both.pem", "")),
        skip_verify=True,
        headers=(("x-one", "1"), ("x-two", "2"), ("x-two", "3")),
        dial_seconds=60.5,
    )
    assert registry == upstream("registry.test")
    assert "2" not in repr(mirror.headers) or "x-one" not in repr(mirror)


@pytest.mark.parametrize(
    ("text", "ca", "client"),
    [
        ('ca = "a.pem"', (f"{DIRECTORY}/a.pem",), ()),
        ('client = "both.pem"', (), ((f"{DIRECTORY}/both.pem", ""),)),
        ('client = ["one.pem", "two.pem"]', (), ((f"{DIRECTORY}/one.pem", ""), (f"{DIRECTORY}/two.pem", ""))),
    ],
)
def test_settings_above_all_tables_are_the_registrys(
    text: str, ca: tuple[str, ...], client: tuple[tuple[str, str], ...]
) -> None:
    (endpoint,) = parse(text, "registry.test", DIRECTORY)

    assert (endpoint.ca, endpoint.client, endpoint.upstream) == (ca, client, True)


def test_docker_io_as_the_server_is_its_real_host() -> None:
    (endpoint,) = parse('server = "https://docker.io"', "docker.io", DIRECTORY)

    assert endpoint.host == "registry-1.docker.io"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server = ", "TOML"),
        ("server = 1", "server"),
        ("skip_verfy = true", "skip_verfy is unknown"),
        ('skip_verify = "yes"', "skip_verify must be true or false"),
        ('[host."https://m.test"]\ncapabilities = ["fetch"]', "capabilities"),
        ('[host."https://m.test"]\nca = 1', r'host."https://m.test".ca'),
        ('[host."ftp://m.test"]', "ftp://m.test"),
        ('[host."https://"]', "not an http or https URL"),
        ('[host."https://m.test:port"]', "not a URL"),
        ('[host."https://me:secret@m.test"]', "credentials do not belong"),
        ('[host."https://m.test"]\nclient = [["a", "b", "c"]]', "client"),
        ('[host."https://m.test".header]\nx = 1', "header.x"),
        ('[host."https://m.test".header]\nx = "a\\r\\nb"', "is not a header"),
        ('[host."https://me:se/secret@m.test"]', "m.test"),
        ('server = "ftp://me:se/secret@m.test"', "m.test"),
        ('[header]\n"Authorization: Basic secret" = "x"', "header.Authorization is not a header"),
        ('[header]\n"Authorization: Basic secret" = 1', "header.Authorization must"),
        ('dial_timeout = "soon"', "dial_timeout"),
        ("host = 1", "host must hold"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        parse(text, "registry.test", DIRECTORY)

    assert f"{DIRECTORY}/hosts.toml" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(InvalidRequest, match=r"one is unknown.*two is unknown"):
        parse("one = 1\ntwo = 2", "registry.test", DIRECTORY)


def test_dockers_certificate_files_are_found_by_their_endings() -> None:
    (endpoint,) = from_certificates("localhost:5000", "/d", ["ca.crt", "me.key", "me.cert", "notes.txt"])

    assert endpoint.base == "https://localhost:5000/v2"
    assert (endpoint.ca, endpoint.client) == (("/d/ca.crt",), (("/d/me.cert", "/d/me.key"),))


def test_a_certificate_without_its_key_is_an_error() -> None:
    with pytest.raises(InvalidRequest, match=r"me\.key"):
        from_certificates("registry.test", "/d", ["me.cert"])


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        endpoints = parse(text, "registry.test", DIRECTORY)
    except InvalidRequest:
        return
    assert endpoints[-1].upstream

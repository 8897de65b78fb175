"""HTTP as registries need it: redirects, bounds, and failures in words."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from yarl import URL

from sandboxd.errors import InvalidRequest, NotReady, SandboxdError, Unavailable
from sandboxd.registry.hosts import Endpoint
from sandboxd.registry.patience import Broken, Stalled
from sandboxd.registry.proxies import Proxies
from sandboxd.registry.request import Request
from sandboxd.registry.transport import Transport
from tests.fakes.http_server import Asked, Reply, serving

PRIVATE = (("Authorization", "secret"),)


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with Transport(Proxies(), "tests/1") as made:
        yield made


def endpoint(host: str, scheme: str = "http", **changes: object) -> Endpoint:
    return Endpoint(scheme=scheme, host=host, dial_seconds=5, **changes)  # type: ignore[arg-type]


async def test_a_request_says_who_asks_and_wants_bytes_as_they_are(transport: Transport) -> None:
    async with serving(lambda asked: Reply(body=b"x")) as server:
        request = Request(method="GET", url=f"http://{server.host}/a", private=PRIVATE)
        answer = await transport.send(endpoint(server.host), request, 5)
        assert await answer.read(10) == b"x"
        answer.close()

    (asked,) = server.asked
    assert asked.headers["user-agent"] == "tests/1"
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.headers["authorization"] == "secret"


async def test_a_redirect_on_the_same_host_keeps_the_credentials(transport: Transport) -> None:
    def script(asked: Asked) -> Reply:
        return Reply(status=302, headers={"Location": "/b"}) if asked.path == "/a" else Reply()

    async with serving(script) as server:
        request = Request(method="GET", url=f"http://{server.host}/a", private=PRIVATE)
        answer = await transport.send(endpoint(server.host), request, 5)
        answer.close()

    assert [(asked.path, asked.headers["authorization"]) for asked in server.asked] == [
        ("/a", "secret"),
        ("/b", "secret"),
    ]


async def test_a_posted_secret_is_not_redirected(transport: Transport) -> None:
    reply = Reply(status=307, headers={"Location": "/b"})
    async with serving(lambda asked: reply) as server:
        request = Request(method="POST", url=f"http://{server.host}/a", form=b"secret=1")
        answer = await transport.send(endpoint(server.host), request, 5)
        answer.close()

    assert answer.status == 307
    assert len(server.asked) == 1


@pytest.mark.parametrize("location", ["http://a:99999/", "http://[:::::]/", "", "ftp://other.test/", "http://", "/a"])
async def test_a_redirect_to_nowhere_or_in_circles_ends(transport: Transport, location: str) -> None:
    async with serving(lambda asked: Reply(status=302, headers={"Location": location})) as server:
        with pytest.raises(Unavailable, match="redirected"):
            await transport.send(endpoint(server.host), Request(method="GET", url=f"http://{server.host}/a"), 5)


async def test_an_answer_that_is_too_large_is_cut_off(transport: Transport) -> None:
    async with serving(lambda asked: Reply(body=b"x" * 100)) as server:
        answer = await transport.send(
            endpoint(server.host), Request(method="GET", url=f"http://{server.host}/a?key=secret"), 5
        )
        with pytest.raises(InvalidRequest, match="larger than the 10 bytes") as caught:
            await answer.read(10)
        answer.close()

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(body=b"x" * 10, cut=5), Broken),
        (Reply(body=b"x" * 10, cut=5, hang=True), Stalled),
    ],
)
async def test_a_body_that_does_not_end_is_told_apart(
    transport: Transport, reply: Reply, error: type[SandboxdError]
) -> None:
    async with serving(lambda asked: reply) as server:
        answer = await transport.send(
            endpoint(server.host), Request(method="GET", url=f"http://{server.host}/a"), 0.2
        )
        with pytest.raises(error, match=server.host):
            await answer.read(100)
        answer.close()


async def test_nobody_listening_is_said(transport: Transport) -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        await transport.send(endpoint("127.0.0.1:9"), Request(method="GET", url="http://127.0.0.1:9/?key=secret"), 5)


async def test_plain_http_where_tls_is_expected_is_said(transport: Transport) -> None:
    async with serving(lambda asked: Reply()) as server:
        with pytest.raises(SandboxdError, match=f"https://{server.host}"):
            await transport.send(
                endpoint(server.host, "https"), Request(method="GET", url=f"https://{server.host}/"), 5
            )


async def test_a_missing_authority_is_named(transport: Transport) -> None:
    place = endpoint("127.0.0.1:9", "https", ca=("/nowhere/ca.pem",))

    with pytest.raises(NotReady, match=r"/nowhere/ca\.pem"):
        await transport.send(place, Request(method="GET", url="https://127.0.0.1:9/"), 5)


def test_a_request_shows_neither_url_nor_secrets() -> None:
    request = Request(method="GET", url="https://r.test/?key=secret", private=PRIVATE, form=b"secret")

    assert "secret" not in repr(request)


@pytest.mark.parametrize(
    "location", ["http://registry.test/x", "//registry.test/x", "HTTP://other.test/", "ftp://x/y"]
)
def test_a_redirect_never_leaves_tls(transport: Transport, location: str) -> None:
    secure = URL("https://registry.test/v2/")

    if location.startswith("//"):
        assert transport._next(secure, location) == URL("https://registry.test/x")
    else:
        with pytest.raises(Unavailable, match=r"not encrypted|not a URL"):
            transport._next(secure, location)


@pytest.mark.parametrize("host", ["registry.example:99999", "[:::::]", "[::1]:65536"])
async def test_a_host_of_which_no_url_can_be_made_is_refused(transport: Transport, host: str) -> None:
    endpoint = Endpoint(scheme="https", host=host)
    with pytest.raises(InvalidRequest, match="not the address of a registry"):
        await transport.send(endpoint, Request(method="GET", url=endpoint.base), 1.0)

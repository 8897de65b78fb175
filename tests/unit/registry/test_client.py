"""A repository is read through mirrors, faults and challenges."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandboxd.errors import (
    AccessDenied,
    Exhausted,
    InvalidRequest,
    NotFound,
    SandboxdError,
    TimedOut,
    Unavailable,
)
from sandboxd.registry import reference
from sandboxd.registry.auth import Credentials
from sandboxd.registry.client import Registries, Repository, first_cause
from sandboxd.registry.docker_config import DockerConfig
from sandboxd.registry.hosts_dir import HostsDir
from sandboxd.registry.patience import Limits
from sandboxd.registry.ranges import Ranges
from tests.fakes.http_server import Asked, Reply, Script, Server, serving

KIND = "application/vnd.oci.image.manifest.v1+json"
LIMITS = Limits(progress_seconds=2, stall_seconds=0.1, attempts=3, first_delay=0.001, max_delay=0.002)
ME = Credentials(username="me", password="secret")
BLOB = bytes(range(256)) * 400


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@asynccontextmanager
async def opened(
    domain: str,
    *,
    certs: Path | str = "",
    credentials: Credentials | None = None,
    docker_config: str = "",
    ranges: Ranges | None = None,
) -> AsyncIterator[Repository]:
    registries = Registries(
        hosts=HostsDir(str(certs)), docker_config=DockerConfig(docker_config), limits=LIMITS, ranges=ranges
    )
    name = reference.parse(f"{domain}/some/image:v1")
    async with registries.open(name, credentials or Credentials(), (KIND,)) as repository:
        yield repository


async def read(repository: Repository, data: bytes = BLOB, offset: int = 0) -> bytes:
    """The blob, as far as it came."""
    came = bytearray(data[:offset])

    async def sink(piece: bytes) -> None:
        came.extend(piece)

    await repository.blob(digest(data), len(data), offset, sink)
    return bytes(came)


def blob(asked: Asked, data: bytes = BLOB) -> Reply:
    """An honest server's answer, ranges included."""
    wanted = asked.headers.get("range", "")
    if not wanted:
        return Reply(body=data)
    start, _, end = wanted.removeprefix("bytes=").partition("-")
    part = data[int(start) : int(end) + 1]
    return Reply(status=206, body=part, headers={"Content-Range": f"bytes {start}-{end}/{len(data)}"})


def in_turn(*replies: Reply) -> Script:
    """Each answer once, the last one forever."""
    left = list(replies)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


# Manifests.


async def test_a_manifest_is_asked_for_with_what_is_understood() -> None:
    data = b'{"schemaVersion": 2}'
    reply = Reply(
        body=data, headers={"Content-Type": f"{KIND}; charset=utf-8", "Docker-Content-Digest": digest(data)}
    )
    async with serving(lambda asked: reply) as server, opened(server.host) as repository:
        manifest = await repository.manifest("v1")

    assert (manifest.data, manifest.digest, manifest.media_type) == (data, digest(data), KIND)
    assert [(a.method, a.path, a.headers["accept"]) for a in server.asked] == [
        ("GET", "/v2/some/image/manifests/v1", KIND)
    ]


async def test_a_tag_is_resolved_without_fetching() -> None:
    reply = Reply(headers={"Docker-Content-Digest": digest(b"x")})
    async with serving(lambda asked: reply) as server, opened(server.host) as repository:
        assert await repository.resolve("v1") == digest(b"x")

    assert [asked.method for asked in server.asked] == ["HEAD"]


@pytest.mark.parametrize("name", ["v1", digest(b"other")])
async def test_a_manifest_with_another_digest_is_refused(name: str) -> None:
    reply = Reply(body=b"{}", headers={"Docker-Content-Digest": digest(b"other")})
    async with serving(lambda asked: reply) as server, opened(server.host) as repository:
        with pytest.raises(InvalidRequest, match="wrong digest"):
            await repository.manifest(name)


@pytest.mark.parametrize("kind", ["json", "prettyjws"])
async def test_a_manifest_of_the_first_schema_is_refused_by_its_name_whatever_its_digest(kind: str) -> None:
    """A signed one has the digest of the document without its signatures."""
    content_type = f"application/vnd.docker.distribution.manifest.v1+{kind}"
    headers = {"Docker-Content-Digest": digest(b"unsigned"), "Content-Type": content_type}
    reply = Reply(body=b'{"schemaVersion": 1, "signatures": []}', headers=headers)
    async with serving(lambda asked: reply) as server, opened(server.host) as repository:
        with pytest.raises(InvalidRequest, match="schema 1 is not supported"):
            await repository.manifest("v1")


async def test_a_manifest_that_is_too_large_is_refused() -> None:
    async with serving(lambda asked: Reply(body=b"x" * (5 << 20))) as server, opened(server.host) as repository:
        with pytest.raises(InvalidRequest, match="larger than"):
            await repository.manifest("v1")


IMAGE = b'{"schemaVersion": 2}'
DESCRIBED = {"Content-Type": KIND, "Docker-Content-Digest": digest(IMAGE)}


@pytest.mark.parametrize(
    "head",
    [
        *(Reply(status=status) for status in (400, 401, 403, 404, 405, 418, 429, 500, 501, 502, 503)),
        Reply(status=429, headers={"Retry-After": "1000"}),
        Reply(status=302, headers={"Location": "ftp://elsewhere"}),
        Reply(status=200),
        Reply(headers={"Docker-Content-Digest": "sha512:" + "0" * 128}),
        Reply(headers={"Docker-Content-Digest": "sha256:xyz"}),
    ],
    ids=lambda reply: f"{reply.status} {' '.join(reply.headers.values())[:20]}".strip(),
)
async def test_where_head_fails_get_decides_and_is_asked_once(head: Reply) -> None:
    """To resolve a tag without fetching it saves something; it never fails a pull."""

    def script(asked: Asked) -> Reply:
        return head if asked.method == "HEAD" else Reply(body=IMAGE, headers=DESCRIBED)

    async with serving(script) as server, opened(server.host) as repository:
        assert await repository.resolve("v1") == digest(IMAGE)
        assert (await repository.manifest("v1")).data == IMAGE

    assert [asked.method for asked in server.asked] == ["HEAD", "GET"]


@pytest.mark.parametrize("fault", ["silent", "closed", "body"])
async def test_a_server_that_cannot_do_head_at_all_is_asked_with_get(fault: str) -> None:
    """It says nothing, closes the connection, or sends the manifest after all."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                while (await reader.readline()).strip():
                    pass
                if line.startswith(b"HEAD") and fault == "silent":
                    await reader.read()
                if line.startswith(b"GET") or fault == "body":
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(IMAGE), IMAGE))
                else:
                    break
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener, opened(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}") as repository:
        assert await repository.resolve("v1") == digest(IMAGE)


async def test_who_may_not_have_an_image_is_refused_by_get_too() -> None:
    async with serving(lambda asked: Reply(status=403)) as server, opened(server.host) as repository:
        with pytest.raises(AccessDenied):
            await repository.resolve("v1")


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "text/plain; charset=utf-8",
        "application/json",
        "binary/octet-stream",
        "text/html",
        "application/vnd.x+json",
    ],
)
async def test_a_manifest_is_one_whatever_the_server_calls_it(media_type: str) -> None:
    reply = Reply(body=IMAGE, headers={"Content-Type": media_type} if media_type else {})
    async with serving(lambda asked: reply) as server, opened(server.host) as repository:
        assert (await repository.manifest("v1")).media_type == ""


async def test_a_manifest_that_a_proxy_compressed_is_unpacked_within_bounds() -> None:
    """Nobody asked for it, and the digest is that of the manifest."""
    packed = {**DESCRIBED, "Content-Encoding": "gzip"}
    replies = [Reply(body=gzip.compress(data), headers=packed) for data in (IMAGE, IMAGE + b" " * (5 << 20))]
    async with serving(in_turn(*replies)) as server, opened(server.host) as repository:
        assert (await repository.manifest("v1")).data == IMAGE
        with pytest.raises(InvalidRequest, match="larger than"):
            await repository.manifest("v1")


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b"{}", b'{"errors": []}'])
async def test_a_page_is_not_taken_for_a_manifest(body: bytes) -> None:
    reply = Reply(body=body, headers={"Content-Type": "text/html"})
    async with serving(lambda asked: reply) as server, opened(server.host) as repository:
        with pytest.raises(InvalidRequest, match="is this a registry"):
            await repository.manifest("v1")


# Blobs.


@pytest.mark.parametrize("offset", [0, 1, len(BLOB) - 1])
async def test_a_blob_is_read_from_where_it_was_left(offset: int) -> None:
    async with serving(blob) as server, opened(server.host) as repository:
        assert await read(repository, offset=offset) == BLOB

    assert len(server.asked) == 1


async def test_a_broken_connection_is_taken_up_with_a_range() -> None:
    def script(asked: Asked) -> Reply:
        whole = blob(asked)
        return whole if "range" in asked.headers else Reply(body=BLOB, cut=1000)

    async with serving(script) as server, opened(server.host) as repository:
        assert await read(repository) == BLOB
        assert repository.retries == 1

    assert [asked.headers.get("range") for asked in server.asked] == [None, f"bytes=1000-{len(BLOB) - 1}"]


async def test_a_server_that_ignores_ranges_is_read_from_the_beginning() -> None:
    script = in_turn(Reply(body=BLOB, cut=1000), Reply(body=BLOB))
    async with serving(script) as server, opened(server.host) as repository:
        assert await read(repository) == BLOB


async def test_silence_is_another_connection_and_then_an_error() -> None:
    silent = Reply(body=BLOB, cut=500, hang=True)
    async with serving(lambda asked: silent) as server, opened(server.host) as repository:
        with pytest.raises(TimedOut, match="nothing arrived"):
            await read(repository)

    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (Reply(body=BLOB[:-1]), InvalidRequest, "the manifest says"),
        (Reply(body=BLOB + b"x"), InvalidRequest, "the manifest says"),
        (Reply(body=BLOB, cut=0), Unavailable, "broke"),
        (Reply(status=404), NotFound, "404"),
        (Reply(status=403), AccessDenied, "403"),
        (Reply(status=401), AccessDenied, "401"),
        (Reply(status=500), Unavailable, "500"),
        (Reply(status=418), Unavailable, "418"),
        (Reply(status=429), Exhausted, "429"),
        (Reply(status=429, headers={"Retry-After": "1000"}), Exhausted, "1000 s"),
        (Reply(status=206, body=BLOB, headers={"Content-Range": "bytes 5-9/10"}), Unavailable, "another range"),
        (
            Reply(status=206, body=BLOB, headers={"Content-Range": f"bytes {'9' * 5000}-9/10"}),
            Unavailable,
            "another range",
        ),
    ],
)
async def test_each_fault_is_told_as_what_it_is(reply: Reply, error: type[SandboxdError], words: str) -> None:
    offset = 1 if reply.status == 206 else 0
    async with serving(lambda asked: reply) as server, opened(server.host) as repository:
        with pytest.raises(error, match=words):
            await read(repository, offset=offset)


async def test_a_busy_registry_is_asked_again() -> None:
    script = in_turn(Reply(status=503), Reply(status=429, headers={"Retry-After": "0"}), Reply(body=BLOB))
    async with serving(script) as server, opened(server.host) as repository:
        assert await read(repository) == BLOB


@pytest.mark.parametrize("count", [2, 5])
async def test_a_large_blob_comes_over_several_connections_in_order(count: int) -> None:
    ranges = Ranges(count=count, bytes=9000, least=10_000, probe=0)
    async with serving(blob) as server, opened(server.host, ranges=ranges) as repository:
        assert await read(repository) == BLOB

    assert len(server.asked) == -(-len(BLOB) // 9000)


async def test_ranges_are_given_up_when_they_are_ignored() -> None:
    ranges = Ranges(count=3, bytes=9000, least=10_000, probe=0)
    async with serving(lambda asked: Reply(body=BLOB)) as server, opened(server.host, ranges=ranges) as repository:
        assert await read(repository) == BLOB
        assert await read(repository) == BLOB

    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 403, 405, 416, 500, 501, 502, 503])
async def test_where_ranges_are_refused_a_blob_comes_whole(status: int) -> None:
    """Going on where an attempt stopped, or over several connections, never fails a pull."""

    def script(asked: Asked) -> Reply:
        return Reply(status=status) if "range" in asked.headers else Reply(body=BLOB)

    ranges = Ranges(count=3, bytes=9000, least=10_000, probe=0)
    async with serving(script) as server, opened(server.host) as repository:
        assert await read(repository, offset=5) == BLOB
    async with serving(script) as server, opened(server.host, ranges=ranges) as repository:
        assert await read(repository) == BLOB


async def test_where_another_range_comes_than_was_asked_for_a_blob_comes_whole() -> None:
    wrong = Reply(status=206, body=BLOB[:10], headers={"Content-Range": f"bytes 0-9/{len(BLOB)}"})

    def script(asked: Asked) -> Reply:
        return wrong if "range" in asked.headers else Reply(body=BLOB)

    async with serving(script) as server, opened(server.host) as repository:
        assert await read(repository, offset=5) == BLOB


@pytest.mark.parametrize("status", [403, 429, 503])
async def test_where_several_connections_are_refused_one_will_do(status: int) -> None:
    def script(asked: Asked) -> Reply:
        start, _, end = asked.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        several = int(start) >= 27000 and end != str(len(BLOB) - 1)
        return Reply(status=status) if several else blob(asked)

    ranges = Ranges(count=3, bytes=9000, least=10_000, probe=0)
    async with serving(script) as server, opened(server.host, ranges=ranges) as repository:
        assert await read(repository) == BLOB


async def test_a_range_that_is_ignored_in_the_middle_loses_nothing() -> None:
    def script(asked: Asked) -> Reply:
        return Reply(body=BLOB) if "bytes=27000" in asked.headers.get("range", "") else blob(asked)

    ranges = Ranges(count=2, bytes=9000, least=10_000, probe=0)
    async with serving(script) as server, opened(server.host, ranges=ranges) as repository:
        assert await read(repository) == BLOB


async def test_a_fault_in_one_of_several_ranges_is_the_error() -> None:
    def script(asked: Asked) -> Reply:
        return Reply(status=404) if "bytes=27000" in asked.headers.get("range", "") else blob(asked)

    ranges = Ranges(count=3, bytes=9000, least=10_000, probe=0)
    async with serving(script) as server, opened(server.host, ranges=ranges) as repository:
        with pytest.raises(NotFound):
            await read(repository)


async def test_more_connections_go_on_where_the_one_was() -> None:
    ranges = Ranges(count=3, bytes=200_000, least=10_000, probe=1000, waiting=0, fast=1 << 40)
    large = BLOB * 20  # more than comes in one piece
    async with serving(lambda asked: blob(asked, large)) as server, opened(server.host, ranges=ranges) as repository:
        assert await read(repository, large) == large

    assert "range" not in server.asked[0].headers
    assert len(server.asked) > 2
    assert all("range" in asked.headers for asked in server.asked[1:])


# Mirrors.


def certs(tmp_path: Path, text: str) -> Path:
    place = tmp_path / "registry.test"
    place.mkdir()
    (place / "hosts.toml").write_text(text, encoding="utf-8")
    return tmp_path


@asynccontextmanager
async def mirrored(
    tmp_path: Path, first: Script, second: Script, **options: Credentials | str
) -> AsyncIterator[tuple[Repository, Server, Server]]:
    """registry.test is `second`, and `first` a mirror of it."""
    async with serving(first) as mirror, serving(second) as upstream:
        text = f'server = "http://{upstream.host}"\n[host."http://{mirror.host}".header]\nx-mine = "yes"\n'
        credentials, config = options.get("credentials"), options.get("docker_config", "")
        assert isinstance(config, str) and not isinstance(credentials, str)
        async with opened(
            "registry.test", certs=certs(tmp_path, text), credentials=credentials, docker_config=config
        ) as repository:
            yield repository, mirror, upstream


async def test_what_a_mirror_lacks_comes_from_the_registry(tmp_path: Path) -> None:
    async with mirrored(tmp_path, lambda asked: Reply(status=404), blob) as (repository, mirror, upstream):
        assert await read(repository) == BLOB

    assert mirror.asked[0].path.endswith("?ns=registry.test")
    assert mirror.asked[0].headers["x-mine"] == "yes"
    assert "?" not in upstream.asked[0].path
    assert "x-mine" not in upstream.asked[0].headers


async def test_the_registry_goes_on_where_a_mirror_failed(tmp_path: Path) -> None:
    async with mirrored(tmp_path, lambda asked: Reply(body=BLOB, cut=700), blob) as (repository, _, upstream):
        assert await read(repository) == BLOB

    (asked,) = upstream.asked
    assert int(asked.headers["range"].removeprefix("bytes=").partition("-")[0]) >= 700


async def test_when_all_fail_the_registrys_error_counts_and_the_mirrors_is_noted(tmp_path: Path) -> None:
    missing, broken = Reply(status=404), Reply(status=500)
    async with mirrored(tmp_path, lambda asked: broken, lambda asked: missing) as (repository, _, _):
        with pytest.raises(NotFound) as caught:
            await repository.manifest("v1")

    assert "500" in caught.value.__notes__[0]


async def test_a_mirror_that_is_not_trusted_is_not_asked_again(tmp_path: Path) -> None:
    async with mirrored(tmp_path, blob, blob) as (repository, mirror, upstream):
        assert repository.distrust(await repository.blob(digest(BLOB), len(BLOB), 0, nothing))
        endpoints = await repository.blob(digest(BLOB), len(BLOB), 0, nothing)
        assert not repository.distrust(endpoints)

    assert (len(mirror.asked), len(upstream.asked)) == (1, 1)


async def nothing(data: bytes) -> None:
    await asyncio.sleep(0)


# Credentials.


def wants_basic(asked: Asked) -> Reply:
    if asked.headers.get("authorization") == "Basic " + base64.b64encode(b"me:secret").decode():
        return blob(asked)
    return Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})


async def test_a_password_is_shown_when_asked_for_and_then_kept() -> None:
    async with serving(wants_basic) as server, opened(server.host, credentials=ME) as repository:
        await read(repository)
        await read(repository)

    assert ["authorization" in asked.headers for asked in server.asked] == [False, True, True]


async def test_a_wrong_password_is_shown_once() -> None:
    wrong = Credentials(username="me", password="wr0ng")
    async with serving(wants_basic) as server, opened(server.host, credentials=wrong) as repository:
        with pytest.raises(AccessDenied) as caught:
            await read(repository)

    assert len(server.asked) == 2
    assert "wr0ng" not in str(caught.value)


async def test_a_mirror_never_sees_the_registrys_credentials(tmp_path: Path) -> None:
    async with mirrored(tmp_path, wants_basic, wants_basic, credentials=ME) as (repository, mirror, upstream):
        await read(repository)

    assert all("authorization" not in asked.headers for asked in mirror.asked)
    assert "authorization" in upstream.asked[-1].headers


async def test_a_mirror_has_the_machines_credentials_of_its_own(tmp_path: Path) -> None:
    async with serving(wants_basic) as mirror:
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"auths": {mirror.host: {"username": "me", "password": "secret"}}}))
        text = f'server = "http://127.0.0.1:9"\n[host."http://{mirror.host}"]\n'
        async with opened("registry.test", certs=certs(tmp_path, text), docker_config=str(config)) as repository:
            assert await read(repository) == BLOB


async def test_a_redirect_takes_no_credentials_to_another_host() -> None:
    async with serving(blob) as storage:

        def script(asked: Asked) -> Reply:
            if wants_basic(asked).status == 401:
                return wants_basic(asked)
            return Reply(status=307, headers={"Location": f"http://{storage.host}/signed?key=a%2Fb"})

        async with serving(script) as server, opened(server.host, credentials=ME) as repository:
            assert await read(repository) == BLOB

    assert storage.asked[0].path == "/signed?key=a%2Fb"
    assert "authorization" not in storage.asked[0].headers


@pytest.mark.parametrize("kind", ["password", "token", "identity", "registry token", "header"])
async def test_a_redirect_takes_nothing_that_was_shown_to_another_port(tmp_path: Path, kind: str) -> None:
    """Nor does anything come along in the URL, a cookie, or the body."""
    tokens: list[str] = []
    credentials = {
        "password": ME,
        "token": ME,
        "identity": Credentials(identity_token="secret"),
        "registry token": Credentials(registry_token="secret"),
    }.get(kind)
    async with serving(blob) as storage:

        def script(asked: Asked) -> Reply:
            shown = {**asked.headers}.get("authorization" if kind != "header" else "x-key")
            if asked.path.startswith("/token"):
                tokens.append("secret-token")
                return Reply(body=json.dumps({"token": tokens[-1]}).encode(), headers={"Set-Cookie": "a=secret"})
            if not shown:
                scheme = "Basic" if kind == "password" else "Bearer"
                realm = f'realm="http://{asked.headers["host"]}/token"'
                return Reply(status=401, headers={"WWW-Authenticate": f"{scheme} {realm}", "Set-Cookie": "a=secret"})
            return Reply(status=307, headers={"Location": f"http://{storage.host}/x", "Set-Cookie": "a=secret"})

        async with serving(script) as server:
            text = f'server = "http://{server.host}"\n[header]\nX-Key = "secret"\n'
            place = certs(tmp_path, text) if kind == "header" else ""
            name = "registry.test" if kind == "header" else server.host
            async with opened(name, credentials=credentials, certs=place) as repository:
                assert await read(repository) == BLOB

    (asked,) = storage.asked
    assert "secret" not in str(asked)
    assert not {"authorization", "cookie", "x-key", "referer"} & set(asked.headers)
    assert base64.b64encode(b"me:secret").decode() not in str(asked)


def token_script(tokens: list[str]) -> Script:
    """A registry and its token server in one: each token is good until the next is given."""

    def script(asked: Asked) -> Reply:
        realm = f"http://{asked.headers['host']}/token"
        if asked.path.startswith("/token"):
            tokens.append(f"token-{len(tokens)}")
            return Reply(body=json.dumps({"token": tokens[-1]}).encode())
        if tokens and asked.headers.get("authorization") == f"Bearer {tokens[-1]}":
            return blob(asked)
        return Reply(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'})

    return script


async def test_one_token_serves_all_requests_under_way() -> None:
    tokens: list[str] = []
    async with serving(token_script(tokens)) as server, opened(server.host, credentials=ME) as repository:
        await asyncio.gather(*(read(repository) for _ in range(5)))

    assert len(tokens) == 1
    (asked,) = [asked for asked in server.asked if asked.path.startswith("/token")]
    assert "scope=repository%3Asome%2Fimage%3Apull" in asked.path
    assert asked.headers["authorization"].startswith("Basic ")


async def test_a_token_that_expired_is_replaced() -> None:
    tokens: list[str] = []
    async with serving(token_script(tokens)) as server, opened(server.host) as repository:
        await read(repository)
        tokens.append("nobody has this one")
        assert await read(repository) == BLOB

    assert tokens == ["token-0", "nobody has this one", "token-2"]


async def test_an_identity_token_is_posted_to_the_token_server() -> None:
    tokens: list[str] = []
    credentials = Credentials(identity_token="refresh")
    async with serving(token_script(tokens)) as server, opened(server.host, credentials=credentials) as repository:
        await read(repository)

    (asked,) = [asked for asked in server.asked if asked.path.startswith("/token")]
    assert (asked.method, b"refresh_token=refresh" in asked.body) == ("POST", True)


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize(
    ("credentials", "method"), [(ME, "POST"), (Credentials(identity_token="refresh"), "GET")], ids=["GET", "POST"]
)
async def test_a_token_server_that_refuses_a_method_is_asked_with_the_other(
    credentials: Credentials, method: str, status: int
) -> None:
    tokens: list[str] = []
    inner = token_script(tokens)

    def script(asked: Asked) -> Reply:
        refused = asked.path.startswith("/token") and asked.method != method
        return Reply(status=status) if refused else inner(asked)

    async with serving(script) as server, opened(server.host, credentials=credentials) as repository:
        assert await read(repository) == BLOB

    assert len(tokens) == 1


async def test_nobody_asks_a_token_server_twice_as_nobody() -> None:
    def script(asked: Asked) -> Reply:
        realm = f'Bearer realm="http://{asked.headers["host"]}/token"'
        return Reply(status=404 if asked.path.startswith("/token") else 401, headers={"WWW-Authenticate": realm})

    async with serving(script) as server, opened(server.host) as repository:
        with pytest.raises(Unavailable, match="404 instead of a token"):
            await read(repository)

    assert len(server.asked) == 2


BROKEN_CONFIGS = [
    "",
    "{",
    "[]",
    "null",
    '{"auths": null, "credHelpers": null, "credsStore": null}',
    '{"auths": {"HOST": null}}',
    '{"auths": {"HOST": {"auth": null, "username": null}}}',
    '{"auths": {"HOST": {"auth": "!"}}}',
    '{"auths": {"HOST": 1, "other.example": {"auth": "!"}}}',
    '{"auths": []}',
    '{"credsStore": "absent"}',
    '{"credHelpers": {"HOST": 5}}',
]


@pytest.mark.parametrize("text", BROKEN_CONFIGS)
async def test_what_everybody_may_have_needs_no_good_docker_config(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    async with serving(lambda asked: Reply(body=IMAGE)) as server:
        file.write_text(text.replace("HOST", server.host))
        async with opened(server.host, docker_config=str(file)) as repository:
            assert (await repository.manifest("v1")).data == IMAGE


async def test_where_access_is_denied_a_broken_docker_config_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    async with serving(lambda asked: Reply(status=401)) as server:
        file.write_text(json.dumps({"auths": {server.host: {"auth": "secret!"}}}))
        async with opened(server.host, docker_config=str(file)) as repository:
            with pytest.raises(InvalidRequest, match=rf"{file}: auths.*base64.*401") as caught:
                await repository.manifest("v1")

    assert "secret" not in str(caught.value)


async def test_a_registry_token_is_shown_at_once_and_never_replaced() -> None:
    tokens: list[str] = []
    credentials = Credentials(registry_token="mine")
    async with serving(token_script(tokens)) as server, opened(server.host, credentials=credentials) as repository:
        with pytest.raises(AccessDenied):
            await read(repository)

    assert [asked.headers.get("authorization") for asked in server.asked] == ["Bearer mine"]


async def test_a_token_server_that_refuses_is_named_and_the_password_is_not() -> None:
    def script(asked: Asked) -> Reply:
        if asked.path.startswith("/token"):
            return Reply(status=401)
        return Reply(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{asked.headers["host"]}/token"'})

    async with serving(script) as server, opened(server.host, credentials=ME) as repository:
        with pytest.raises(AccessDenied, match=r"/token gives no token.*me") as caught:
            await read(repository)

    assert "secret" not in str(caught.value)


ECHOES = [
    Credentials(username="me", password="hunter2-secret"),
    Credentials(username="me", password='hunter2 "quoted" \\ ü'),
    Credentials(identity_token="hunter2-" + "i" * 1000),
    Credentials(registry_token="hunter2-" + "r" * 1000),
]


@pytest.mark.parametrize("where", ["body", "type", "digest", "redirect"])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize("credentials", ECHOES, ids=["password", "odd password", "identity", "token"])
async def test_a_server_that_echoes_what_it_was_shown_is_not_repeated(
    credentials: Credentials, status: int, where: str
) -> None:
    """Whatever the registry says in its own words: neither credentials, nor tokens that were got with them."""
    given = "hunter2-" + "t" * 1000

    def script(asked: Asked) -> Reply:
        if asked.path.startswith("/token"):
            return Reply(body=json.dumps({"token": given}).encode())
        shown = asked.headers.get("authorization")
        if not shown:
            scheme = "Basic" if credentials.username else "Bearer"
            challenge = f'{scheme} realm="http://{asked.headers["host"]}/token"'
            return Reply(status=401, headers={"WWW-Authenticate": challenge})
        scheme, _, secret = shown.partition(" ")
        if scheme == "Basic":
            secret += f" means {base64.b64decode(secret).decode()}"
        words = {"errors": [{"message": f"x {shown} is not welcome: {secret}"}]}
        match where:
            case "body":
                return Reply(status=status, body=json.dumps(words).encode())
            case "type":
                return Reply(headers={"Content-Type": f"text/{shown.partition(' ')[2]}"}, body=b"{}")
            case "digest":
                digest = f"sha256:{shown.partition(' ')[2]}"
                return Reply(headers={"Docker-Content-Digest": digest}, body=b"{}")
            case _:
                place = f"ftp://x/{shown.partition(' ')[2]}"
                return Reply(status=307, headers={"Location": place}, body=b"{}")

    async with serving(script) as server, opened(server.host, credentials=credentials) as repository:
        with pytest.raises(SandboxdError) as caught:
            await repository.manifest("v1")

    words = " ".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    basic = base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
    assert "hunter2" not in words
    assert basic not in words
    assert server.host in words


def test_the_cause_of_a_group_is_the_error_that_says_why() -> None:
    why = NotFound("why")
    group = BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [asyncio.CancelledError(), why])])

    assert first_cause(group) is why

"""Who pulls: credentials of every form, tokens, certificates."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.pods import refused
from tests.pulling import DOCKER_CONFIG, Code, Site, hosts_toml
from tests.registry_server import (
    FAKES,
    PASSWORD,
    USER,
    FaultProxy,
    RegistryServer,
    htpasswd,
    make_certificates,
    make_signing_key,
    start_program,
    start_proxy,
    start_registry,
)

pytestmark = [pytest.mark.e2e, pytest.mark.images]

IDENTITY_TOKEN = "a refresh token"
OWN = cri.AuthConfig(username=USER, password=PASSWORD)


@pytest.fixture(scope="module")
def basic(site: Site) -> tuple[RegistryServer, FaultProxy]:
    """The same storage behind basic authentication, and a proxy before that."""
    registry = start_registry(site.bed, 5003, storage=site.registry.storage, auth=htpasswd(site.bed))
    return registry, start_proxy(site.bed, 5008, registry.host)


def test_basic_authentication_takes_every_form_of_credentials(
    site: Site, basic: tuple[RegistryServer, FaultProxy]
) -> None:
    site.synthetic("basic/image")
    name = f"{basic[0].host}/basic/image:v1"
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    forms: list[dict[str, str]] = [
        {"username": USER, "password": PASSWORD},
        {"auth": encoded},
        {"auth": encoded, "server_address": f"https://{basic[0].host}/v2/"},
    ]
    for form in forms:
        site.pull(name, cri.AuthConfig(**form))
        site.remove(name)


@pytest.mark.parametrize(
    "auth",
    [
        {},
        {"username": USER, "password": "wrong"},
        {"username": USER, "password": PASSWORD, "server_address": "another.test"},
    ],
    ids=["none", "wrong", "for another server"],
)
def test_credentials_that_are_missing_wrong_or_not_for_this_server_are_refused(
    site: Site, basic: tuple[RegistryServer, FaultProxy], auth: dict[str, str]
) -> None:
    site.synthetic("basic/refused")

    said = site.refuses(f"{basic[0].host}/basic/refused:v1", Code.UNAUTHENTICATED, "401", auth=cri.AuthConfig(**auth))

    assert PASSWORD not in said and "wrong" not in said


def test_an_image_that_is_here_is_not_given_to_who_may_not_pull_it(
    site: Site, basic: tuple[RegistryServer, FaultProxy]
) -> None:
    site.synthetic("basic/here")
    name = f"{basic[0].host}/basic/here:v1"
    site.pull(name, OWN)

    with pytest.raises(grpc.RpcError) as caught:
        site.pull(name)

    assert refused(caught.value)[0] is Code.UNAUTHENTICATED


def test_the_machines_own_credentials_are_used_when_the_request_has_none(
    site: Site, basic: tuple[RegistryServer, FaultProxy]
) -> None:
    site.synthetic("basic/config")
    name = f"{basic[0].host}/basic/config:v1"
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    site.bed.write(DOCKER_CONFIG, json.dumps({"auths": {basic[0].host: {"auth": encoded}}}))
    site.pull(name)
    site.remove(name)

    site.bed.write(DOCKER_CONFIG, json.dumps({"credHelpers": {basic[0].host: "absent"}}))
    site.refuses(name, Code.FAILED_PRECONDITION, "docker-credential-absent")


def test_the_longest_path_that_fits_gives_the_credentials(
    site: Site, basic: tuple[RegistryServer, FaultProxy]
) -> None:
    site.synthetic("basic/team/image")
    host = basic[0].host
    good = {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
    bad = {"auth": base64.b64encode(b"nobody:wrong").decode()}
    entries = {host: bad, f"https://{host}/basic/": bad, f"{host}/basic/team": good, f"{host}/basic/team/other": bad}
    site.bed.write(DOCKER_CONFIG, json.dumps({"auths": entries}))
    name = f"{host}/basic/team/image:v1"

    site.pull(name)
    site.remove(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"auths": null}',
        '{"auths": {"HOST": null}}',
        '{"auths": {"HOST": {"auth": null}}}',
        '{"credsStore": "x"}',
    ],
)
def test_what_everybody_may_have_needs_no_good_config(site: Site, text: str) -> None:
    site.synthetic("plain/public")
    name = f"{site.registry.host}/plain/public:v1"
    site.bed.write(DOCKER_CONFIG, text.replace("HOST", site.registry.host))

    site.pull(name)
    site.remove(name)


def test_a_redirect_takes_no_credentials_along(site: Site, basic: tuple[RegistryServer, FaultProxy]) -> None:
    site.synthetic("basic/redirect")
    front = basic[1]
    front.rules({"path": "/blobs/", "do": "redirect", "to": f"http://{site.proxy.host}"})

    site.pull(f"{front.host}/basic/redirect:v1", OWN)

    assert {request["authorization"] for request in front.requests()} == {"", "Basic"}
    blobs = [request for request in site.proxy.requests() if "/blobs/" in request["path"]]
    assert len(blobs) == 2
    assert {request["authorization"] for request in blobs} == {""}


@pytest.fixture(scope="module")
def tokens(site: Site) -> RegistryServer:
    """The same storage behind token authentication."""
    certificate, key = make_signing_key(site.bed.base / "tokens")
    argv = [sys.executable, str(FAKES / "token_server.py"), "--listen", "127.0.0.1:5005", "--key", str(key)]
    argv += ["--certificate", str(certificate), "--user", f"{USER}:{PASSWORD}"]
    start_program(site.bed, [*argv, "--identity-token", IDENTITY_TOKEN, "--log", str(site.bed.base / "tokens.log")])
    auth = {
        "realm": "http://127.0.0.1:5005/token",
        "service": "test registry",
        "issuer": "test-issuer",
        "rootcertbundle": str(certificate),
    }
    return start_registry(site.bed, 5004, storage=site.registry.storage, auth={"token": auth})


@pytest.mark.parametrize(
    ("repository", "auth"),
    [
        ("public/image", {}),
        ("private/image", {"username": USER, "password": PASSWORD}),
        ("private/image", {"identity_token": IDENTITY_TOKEN}),
    ],
    ids=["anonymous", "password", "identity token"],
)
def test_a_token_is_fetched_for_everybody_who_may_have_one(
    site: Site, tokens: RegistryServer, repository: str, auth: dict[str, str]
) -> None:
    site.synthetic(repository)
    name = f"{tokens.host}/{repository}:v1"

    site.pull(name, cri.AuthConfig(**auth))

    site.remove(name)


@pytest.mark.parametrize(
    "auth",
    [{}, {"username": USER, "password": "wrong"}, {"identity_token": "wrong"}, {"registry_token": "wrong"}],
    ids=["anonymous", "password", "identity token", "registry token"],
)
def test_no_token_is_an_error_that_says_so(site: Site, tokens: RegistryServer, auth: dict[str, str]) -> None:
    site.synthetic("private/refused")

    site.refuses(f"{tokens.host}/private/refused:v1", Code.UNAUTHENTICATED, auth=cri.AuthConfig(**auth))


@pytest.fixture(scope="module")
def tls(site: Site) -> tuple[RegistryServer, Path]:
    """The same storage over TLS, and the private authority of its certificate."""
    ca, certificate, key = make_certificates(site.bed.base / "tls")
    registry = start_registry(site.bed, 5006, storage=site.registry.storage, certificate=(certificate, key))
    return registry, ca


def test_a_private_authority_is_trusted_where_it_is_configured(site: Site, tls: tuple[RegistryServer, Path]) -> None:
    site.synthetic("tls/image")
    registry, ca = tls
    hosts_toml(site, "127.0.0.1_5006_", f'server = "https://{registry.host}"\nca = "{ca}"\n')

    site.pull(f"{registry.host}/tls/image:v1")


def test_an_unknown_authority_is_refused_and_skip_verify_is_not(site: Site, tls: tuple[RegistryServer, Path]) -> None:
    site.synthetic("tls/unknown")
    registry, _ = tls
    name = f"{registry.host}/tls/unknown:v1"
    hosts_toml(site, "127.0.0.1_5006_", f'server = "https://{registry.host}"\n')
    site.refuses(name, Code.FAILED_PRECONDITION, "certificate", "hosts.toml")

    hosts_toml(site, "127.0.0.1_5006_", f'server = "https://{registry.host}"\nskip_verify = true\n')
    site.pull(name)


def test_an_expired_certificate_is_refused_in_so_many_words(site: Site) -> None:
    ca, certificate, key = make_certificates(site.bed.base / "expired", expired=True)
    registry = start_registry(site.bed, 5007, storage=site.registry.storage, certificate=(certificate, key))
    hosts_toml(site, "127.0.0.1_5007_", f'server = "https://{registry.host}"\nca = "{ca}"\n')

    site.refuses(f"{registry.host}/tls/image:v1", Code.FAILED_PRECONDITION, "expired")

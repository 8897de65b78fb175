"""docker's config.json and credential helpers give the machine's own credentials."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sandboxd.errors import InvalidRequest, NotReady
from sandboxd.registry.auth import Credentials
from sandboxd.registry.docker_config import NOT_FOUND, DockerConfig

AUTH = base64.b64encode(b"me:secret").decode()


def config(tmp_path: Path, document: object, helper: Any = None) -> DockerConfig:
    file = tmp_path / "config.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return DockerConfig(str(file), helper)


class Helper:
    """Stands for the programs; remembers what was asked."""

    def __init__(self, answers: dict[str, tuple[int, bytes]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, bytes]] = []

    async def __call__(self, argv: Sequence[str], stdin: bytes) -> tuple[int, bytes]:
        assert argv[1:] == ("get",)
        self.asked.append((argv[0], stdin))
        return self.answers[argv[0]]


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"auth": AUTH}, Credentials(username="me", password="secret")),
        ({"username": "me", "password": "secret"}, Credentials(username="me", password="secret")),
        ({"identitytoken": "refresh"}, Credentials(identity_token="refresh")),
        ({"registrytoken": "bearer"}, Credentials(registry_token="bearer")),
        ({}, None),
        ({"email": "me@test"}, None),
    ],
)
async def test_an_entry_has_one_of_several_forms(tmp_path: Path, entry: Any, found: Credentials | None) -> None:
    assert await config(tmp_path, {"auths": {"registry.test": entry}}).credentials(["registry.test"]) == found


@pytest.mark.parametrize("key", ["docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"])
async def test_docker_io_goes_by_all_its_names(tmp_path: Path, key: str) -> None:
    found = await config(tmp_path, {"auths": {key: {"auth": AUTH}}}).credentials(["docker.io"])

    assert found is not None


NULLS: list[Any] = [
    None,
    {"auths": None},
    {"auths": None, "credHelpers": None, "credsStore": None},
    {"auths": {"registry.test": None}},
    {"auths": {"registry.test": {"auth": None, "username": None, "password": None, "identitytoken": None}}},
    {"auths": {"registry.test": {"auth": ""}}},
    {"auths": {"registry.test": {"email": None, "other": 1}}},
    {"auths": {}, "credHelpers": {"registry.test": None}, "credsStore": ""},
    "",
    " \n",
]


@pytest.mark.parametrize("document", NULLS)
async def test_null_and_nothing_are_no_credentials(tmp_path: Path, document: Any) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    assert await config(tmp_path, text).credentials(["registry.test"]) is None


async def test_null_beside_credentials_changes_nothing(tmp_path: Path) -> None:
    entries = {"other.test": None, "registry.test": {"auth": AUTH, "identitytoken": None, "email": None}}
    document = {"auths": entries, "credHelpers": None, "credsStore": None, "HttpHeaders": None}

    assert await config(tmp_path, document).credentials(["registry.test"]) is not None


def entry(name: str) -> dict[str, str]:
    return {"username": name, "password": "secret"}


ENTRIES = {
    "registry.test": entry("host"),
    "https://registry.test/team/": entry("team"),
    "registry.test/team/project": entry("project"),
    "registry.test/team/project/deep": entry("deep"),
    "registry.test:5000/team": entry("port"),
}


@pytest.mark.parametrize(
    ("host", "repository", "user"),
    [
        ("registry.test", "team/project/deep/er", "deep"),
        ("registry.test", "team/project/deep", "deep"),
        ("registry.test", "team/project/deeper", "project"),
        ("registry.test", "team/projects", "team"),
        ("registry.test", "team", "team"),
        ("registry.test", "teams/project", "host"),
        ("registry.test", "", "host"),
        ("registry.test:5000", "team/project", "port"),
    ],
)
@pytest.mark.parametrize("order", [1, -1], ids=["as written", "reversed"])
async def test_the_longest_path_that_fits_wins(
    tmp_path: Path, host: str, repository: str, user: str, order: int
) -> None:
    entries = dict(list(ENTRIES.items())[::order])
    found = await config(tmp_path, {"auths": entries}).credentials([host], repository)

    assert found is not None and found.username == user


async def test_a_path_that_does_not_fit_gives_nothing(tmp_path: Path) -> None:
    settings = config(tmp_path, {"auths": {"registry.test/team": entry("team"), "registry.test:5000": entry("port")}})

    assert await settings.credentials(["registry.test"], "other/project") is None


@pytest.mark.parametrize(
    "key",
    [
        "https://registry.test/v1/",
        "https://registry.test/v2/",
        "registry.test/v2",
        "http://registry.test",
        "REGISTRY.test/",
        "https://registry.test/v2/team/",
    ],
)
async def test_a_host_is_written_in_many_ways(tmp_path: Path, key: str) -> None:
    assert (
        await config(tmp_path, {"auths": {key: {"auth": AUTH}}}).credentials(["registry.test"], "team/x") is not None
    )


async def test_docker_io_has_paths_too(tmp_path: Path) -> None:
    entries = {"https://index.docker.io/v1/": entry("hub"), "docker.io/team": entry("team")}
    settings = config(tmp_path, {"auths": entries})
    found = [await settings.credentials(["docker.io"], path) for path in ("team/x", "library/nginx")]

    assert [each.username for each in found if each] == ["team", "hub"]


@pytest.mark.parametrize("broken", [1, "secret", [], {"auth": "secret!"}, {"auth": 1}])
async def test_what_is_wrong_with_an_entry_spoils_only_that_entry(tmp_path: Path, broken: Any) -> None:
    entries = {"registry.test/team": broken, "other.test": broken, "registry.test": {"auth": AUTH}}
    settings = config(tmp_path, {"auths": entries})

    assert await settings.credentials(["registry.test"], "team/x") is not None
    assert await settings.credentials(["third.test"], "team/x") is None
    with pytest.raises(InvalidRequest):
        await settings.credentials(["other.test"], "team/x")


async def test_a_helper_that_fails_leaves_it_to_the_file(tmp_path: Path) -> None:
    """Docker Desktop's store is named in many files that were copied to other machines."""

    async def absent(argv: Sequence[str], stdin: bytes) -> tuple[int, bytes]:
        raise NotReady("the credential helper cannot be run")

    document = {"credsStore": "desktop", "auths": {"registry.test": {"auth": AUTH}, "other.test": {}}}
    settings = config(tmp_path, document, absent)

    assert await settings.credentials(["registry.test"]) is not None
    with pytest.raises(NotReady):
        await settings.credentials(["other.test"])


async def test_a_base64_text_may_be_wrapped(tmp_path: Path) -> None:
    wrapped = f"{AUTH[:5]}\n {AUTH[5:]}\n"
    assert await config(tmp_path, {"auths": {"registry.test": {"auth": wrapped}}}).credentials(["registry.test"])


async def test_another_server_gets_nothing(tmp_path: Path) -> None:
    settings = config(tmp_path, {"auths": {"registry.test": {"auth": AUTH}}})

    assert await settings.credentials(["registry.test:5000", "sub.registry.test"]) is None


async def test_no_file_is_no_credentials(tmp_path: Path) -> None:
    assert await DockerConfig(str(tmp_path / "absent.json")).credentials(["registry.test"]) is None
    assert await DockerConfig("").credentials(["registry.test"]) is None


async def test_a_servers_own_helper_comes_before_the_common_store(tmp_path: Path) -> None:
    helper = Helper(
        {
            "docker-credential-own": (0, b'{"Username": "me", "Secret": "one"}'),
            "docker-credential-store": (0, b'{"Username": "<token>", "Secret": "two"}'),
        }
    )
    settings = config(tmp_path, {"credHelpers": {"registry.test": "own"}, "credsStore": "store"}, helper)

    assert await settings.credentials(["registry.test"]) == Credentials(username="me", password="one")
    assert await settings.credentials(["docker.io"]) == Credentials(identity_token="two")
    assert helper.asked == [
        ("docker-credential-own", b"registry.test"),
        ("docker-credential-store", b"https://index.docker.io/v1/"),
    ]


async def test_a_helper_that_has_none_leaves_it_to_the_file(tmp_path: Path) -> None:
    helper = Helper({"docker-credential-store": (1, NOT_FOUND.encode())})
    document = {"credsStore": "store", "auths": {"registry.test": {"auth": AUTH}}}

    assert await config(tmp_path, document, helper).credentials(["registry.test"]) is not None


@pytest.mark.parametrize("answer", [(1, b"locked"), (0, b"not json"), (0, b'{"Username": 1, "Secret": "x"}')])
async def test_a_helper_that_fails_is_named(tmp_path: Path, answer: tuple[int, bytes]) -> None:
    settings = config(tmp_path, {"credsStore": "store"}, Helper({"docker-credential-store": answer}))

    with pytest.raises(NotReady, match="docker-credential-store"):
        await settings.credentials(["registry.test"])


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (b"the keychain is locked\nand more", ": the keychain is locked"),
        (b'{"Username": "me", "Secret": "hunter2"}', ""),
        (b'error:\n{"Username": "me", "Secret": "hunter2"}', ""),
        (b"Secret: hunter2", ""),
        (b"", ""),
    ],
)
async def test_a_helper_that_fails_explains_itself_without_its_answer(
    tmp_path: Path, output: bytes, words: str
) -> None:
    settings = config(tmp_path, {"credsStore": "store"}, Helper({"docker-credential-store": (1, output)}))

    with pytest.raises(NotReady) as caught:
        await settings.credentials(["registry.test"])

    assert str(caught.value) == f"docker-credential-store failed for registry.test with status 1{words}"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ('{"auths": "secret', "not valid JSON"),
        ("[]", "JSON object"),
        ({"auths": []}, "auths"),
        ({"auths": {"registry.test": "secret"}}, "auths"),
        ({"auths": {"registry.test": {"auth": "secret!"}}}, "base64"),
        ({"credsStore": "../../bin/sh"}, "not the name of a credential helper"),
        ({"credHelpers": {"registry.test": 1}}, "not the name"),
        ({"credHelpers": {"registry.test": {"auth": "secret"}}}, "not the name"),
        ({"credsStore": "Basic secret="}, "not the name"),
        ({"auths": {"https://me:secret@registry.test": 1}}, "registry.test"),
        ({"auths": {"https://me:secret@registry.test": {"auth": "!"}}}, "registry.test"),
    ],
)
async def test_a_file_that_is_wrong_is_refused_without_its_secrets(tmp_path: Path, document: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        await config(tmp_path, document, Helper({})).credentials(["registry.test"])

    assert "secret" not in str(caught.value)

"""The machine's own credentials: docker's config.json and the credential helpers that it names.

Of several entries for one host the one with the longest path that fits the repository counts:
`registry.example/team/project` before `registry.example/team` before `registry.example`. Null is the same as absent
everywhere. An entry of another host is not looked at, so what is wrong with it spoils nothing.

`DockerConfig` runs `docker-credential-NAME` through its `run_helper`. The program reads the server from stdin and
answers with JSON (https://github.com/docker/docker-credential-helpers).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from sandboxd import foreign_json
from sandboxd.errors import InvalidRequest, NotReady, SandboxdError
from sandboxd.registry.auth import Credentials, decode, host_of
from sandboxd.registry.hosts import DOCKER_DOMAIN

log = structlog.get_logger(__name__)

MAX_BYTES = 1 << 20
DOCKER_SERVER = "https://index.docker.io/v1/"  # docker.io's name in docker's own tools
NOT_FOUND = "credentials not found in native keychain"  # a helper's message for "none"

_FIELDS = ("identitytoken", "registrytoken", "auth", "username", "password")
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# (argv, stdin) to (exit status, stdout); raises NotReady when the program is missing or takes too long.
RunHelper = Callable[[Sequence[str], bytes], Awaitable[tuple[int, bytes]]]


class DockerConfig:
    """The file at `path`, read at each look-up. An empty `path` or a missing file means no credentials."""

    def __init__(self, path: str, run_helper: RunHelper | None = None) -> None:
        self._path = path
        self._run_helper = run_helper

    async def credentials(self, names: Sequence[str], repository: str = "") -> Credentials | None:
        """The machine's credentials for the server with any of these names, None without any.

        `repository` is the path of the repository on that server. Raises InvalidRequest for a malformed file or
        entry, NotReady for a helper that fails, both only when nothing else in the file has credentials.
        """
        document = self._read()
        failed: list[SandboxdError] = []
        for name in names:
            host = host_of(name)
            for ask in (self._from_helper, self._from_entries):
                try:
                    found = await ask(document, host, repository)
                except (InvalidRequest, NotReady) as exc:
                    failed.append(exc)
                    continue
                if found is not None:
                    for error in failed:
                        log.warning("a part of docker's config.json is passed over", error=str(error))
                    return found
        if failed:
            raise failed[0]
        return None

    def _read(self) -> dict[str, Any]:
        if not self._path:
            return {}
        try:
            data = Path(self._path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as exc:
            raise InvalidRequest(f"{self._path}: cannot be read: {exc.strerror}") from exc
        if len(data) > MAX_BYTES:
            raise InvalidRequest(f"{self._path}: larger than {MAX_BYTES} bytes")
        if not data.strip():
            return {}
        try:
            document = foreign_json.parse(data, self._path, repeated=True)
        except InvalidRequest:
            # Without the parser's message and traceback: they may quote the file.
            raise InvalidRequest(f"{self._path}: not valid JSON") from None
        if document is None:
            return {}
        if not isinstance(document, dict):
            raise InvalidRequest(f"{self._path}: must be a JSON object")
        return document

    def _table(self, document: Mapping[str, Any], name: str) -> dict[str, Any]:
        table = document.get(name)
        if table is None:
            return {}
        if not isinstance(table, dict):
            raise InvalidRequest(f"{self._path}: {name} must be an object")
        return table

    async def _from_helper(self, document: Mapping[str, Any], host: str, repository: str) -> Credentials | None:
        fitting = _fitting(self._table(document, "credHelpers"), host, repository)
        chosen = next((helper for _, helper in fitting if helper is not None), document.get("credsStore"))
        helper = self._checked(chosen or "")
        return await self._ask(helper, host) if helper else None

    async def _from_entries(self, document: Mapping[str, Any], host: str, repository: str) -> Credentials | None:
        failed: list[InvalidRequest] = []
        for server, entry in _fitting(self._table(document, "auths"), host, repository):
            try:
                found = self._entry(entry, server)
            except InvalidRequest as exc:
                failed.append(exc)
                continue
            if found is not None:
                return found
        if failed:
            raise failed[0]
        return None

    def _checked(self, helper: object) -> str:
        if helper == "":
            return ""
        if not isinstance(helper, str) or not _HELPER.fullmatch(helper):
            # The value is not shown: it may be a credential that was written to the wrong place.
            raise InvalidRequest(
                f"{self._path}: credsStore or one of credHelpers is not the name of a credential helper"
            )
        return helper

    async def _ask(self, helper: str, host: str) -> Credentials | None:
        program = f"docker-credential-{helper}"
        if self._run_helper is None:
            raise NotReady(f"{self._path} names {program}, but this daemon does not run credential helpers")
        server = DOCKER_SERVER if host == DOCKER_DOMAIN else host
        status, output = await self._run_helper((program, "get"), server.encode())
        if status:
            words = output.decode("utf-8", "replace").strip()
            if NOT_FOUND in words:
                return None
            raise NotReady(f"{program} failed for {host} with status {status}{_first_line(words)}")
        try:
            answer = foreign_json.parse(output, program, repeated=True)
            username, secret = answer["Username"], answer["Secret"]
            if not isinstance(username, str) or not isinstance(secret, str):
                raise TypeError
        except (InvalidRequest, KeyError, TypeError) as exc:
            raise NotReady(f"{program} did not answer with a user name and a secret for {host}") from exc
        if username == "<token>":
            return Credentials(identity_token=secret)
        return Credentials(username=username, password=secret) if username else None

    def _entry(self, entry: object, server: str) -> Credentials | None:
        if entry is None:
            return None
        where = f"{self._path}: auths[{host_of(server)!r}]"
        if not isinstance(entry, dict):
            raise InvalidRequest(f"{where} must be an object of strings")
        texts = {name: entry.get(name) or "" for name in _FIELDS}
        if not all(isinstance(value, str) for value in texts.values()):
            raise InvalidRequest(f"{where} must be an object of strings")
        if texts["identitytoken"]:
            return Credentials(identity_token=texts["identitytoken"])
        if texts["registrytoken"]:
            return Credentials(registry_token=texts["registrytoken"])
        if auth := "".join(texts["auth"].split()):  # some editors wrap it
            try:
                username, password = decode(auth)
            except InvalidRequest as exc:
                raise InvalidRequest(f"{where}: {exc}") from exc
            return Credentials(username=username, password=password)
        if texts["username"]:
            return Credentials(username=texts["username"], password=texts["password"])
        return None


def _fitting(table: Mapping[str, Any], host: str, repository: str) -> list[tuple[str, Any]]:
    """The entries of a table by server that are for this repository of `host`, the longest path first."""
    found = []
    for server, value in table.items():
        path = _path_of(server)
        if host_of(server) == host and f"{repository}/".startswith(f"{path}/" if path else ""):
            # Of two spellings of one place the plain one comes first, as with docker's own tools.
            found.append((-len(path), "://" in server, server, value))
    found.sort(key=lambda item: item[:2])
    return [(server, value) for *_, server, value in found]


def _path_of(server: str) -> str:
    """What follows the host in an entry's name, without the version of an API that old ones end in; "" for none."""
    path = server.strip().rpartition("://")[2].partition("/")[2].strip("/")
    first, _, rest = path.partition("/")
    return rest if first in ("v1", "v2") else path


def _first_line(words: str) -> str:
    """The first line of a helper's error, for a message; "" where the output may contain the credentials."""
    line = words.partition("\n")[0]
    return "" if not line or "{" in words or "secret" in words.lower() else f": {line[:200]}"

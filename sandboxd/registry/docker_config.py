"""The machine's own credentials: docker's config.json and the credential helpers that it names.

`DockerConfig` runs `docker-credential-NAME` through its `run_helper`. The program reads the server from stdin and
answers with JSON (https://github.com/docker/docker-credential-helpers).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandboxd import foreign_json
from sandboxd.errors import InvalidRequest, NotReady
from sandboxd.registry.auth import Credentials, decode, host_of
from sandboxd.registry.hosts import DOCKER_DOMAIN

MAX_BYTES = 1 << 20
DOCKER_SERVER = "https://index.docker.io/v1/"  # docker.io's name in docker's own tools
NOT_FOUND = "credentials not found in native keychain"  # a helper's message for "none"

_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# (argv, stdin) to (exit status, stdout); raises NotReady when the program is missing or takes too long.
RunHelper = Callable[[Sequence[str], bytes], Awaitable[tuple[int, bytes]]]


class DockerConfig:
    """The file at `path`, read at each look-up. An empty `path` or a missing file means no credentials."""

    def __init__(self, path: str, run_helper: RunHelper | None = None) -> None:
        self._path = path
        self._run_helper = run_helper

    async def credentials(self, names: Sequence[str]) -> Credentials | None:
        """The machine's credentials for the server with any of these names, None without any.

        Raises InvalidRequest for a malformed file, NotReady for a helper that fails.
        """
        document = self._read()
        for name in names:
            host = host_of(name)
            helper = self._helper_for(document, host)
            if helper and (credentials := await self._ask(helper, host)) is not None:
                return credentials
            for server, entry in self._table(document, "auths").items():
                if host_of(server) == host and (credentials := self._entry(entry, server)) is not None:
                    return credentials
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
        try:
            document = foreign_json.parse(data, self._path, repeated=True)
        except InvalidRequest:
            # Without the parser's message and traceback: they may quote the file.
            raise InvalidRequest(f"{self._path}: not valid JSON") from None
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

    def _helper_for(self, document: Mapping[str, Any], host: str) -> str:
        for server, helper in self._table(document, "credHelpers").items():
            if host_of(server) == host:
                return self._checked(helper)
        return self._checked(document.get("credsStore") or "")

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
        if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
            raise InvalidRequest(f"{self._path}: auths[{host_of(server)!r}] must be an object of strings")
        if entry.get("identitytoken"):
            return Credentials(identity_token=entry["identitytoken"])
        if entry.get("registrytoken"):
            return Credentials(registry_token=entry["registrytoken"])
        if entry.get("auth"):
            try:
                username, password = decode(entry["auth"])
            except InvalidRequest as exc:
                raise InvalidRequest(f"{self._path}: auths[{host_of(server)!r}]: {exc}") from exc
            return Credentials(username=username, password=password)
        if entry.get("username"):
            return Credentials(username=entry["username"], password=entry.get("password", ""))
        return None


def _first_line(words: str) -> str:
    """The first line of a helper's error, for a message; "" where the output may contain the credentials."""
    line = words.partition("\n")[0]
    return "" if not line or "{" in words or "secret" in words.lower() else f": {line[:200]}"

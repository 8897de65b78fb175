"""Credentials, and the challenges that registries send. No IO here.

    401 with WWW-Authenticate → challenge → Basic: the password itself
                                          → Bearer: a token, fetched from the realm with the password or the
                                                    identity token, or anonymously
(https://distribution.github.io/distribution/spec/auth/, RFC 9110 section 11, RFC 6749 section 6).

No `repr` shows a secret, and a secret belongs to exactly one host.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from sandboxd import foreign_json
from sandboxd.errors import AccessDenied, InvalidRequest
from sandboxd.registry.hosts import DOCKER_DOMAIN, DOCKER_HOST

CLIENT_ID = "sandboxd"

_DOCKER_NAMES = (DOCKER_DOMAIN, DOCKER_HOST, f"index.{DOCKER_DOMAIN}")
_CHALLENGE_START = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:\s+|\Z|(?=,))")
_PARAMETER = re.compile(r"""([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",=][^\s",]*))""")
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The credentials for one registry; all empty means anonymous."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)  # an OAuth 2 refresh token
    registry_token: str = field(default="", repr=False)  # a bearer token, sent as it is
    server_address: str = ""  # the only registry that these are for; "" is the image's own

    @property
    def anonymous(self) -> bool:
        """Whether there are no credentials."""
        return not (self.username or self.password or self.identity_token or self.registry_token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One way to authenticate that a server offers. `scheme` and the parameters' names are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """The HTTP request for a bearer token. Everything but `realm` may be secret."""

    realm: str  # scheme, host and path: safe to show in messages
    url: str = field(repr=False)
    authorization: str = field(default="", repr=False)
    form: bytes = field(default=b"", repr=False)  # POSTed when not empty


def decode(auth: str) -> tuple[str, str]:
    """(username, password) from docker's base64 "username:password". Raises InvalidRequest without the secret."""
    try:
        text = base64.b64decode(auth, validate=True).decode()
    except ValueError as exc:  # not ASCII, not base64, not UTF-8
        raise InvalidRequest("auth must be base64 of username:password") from exc
    username, colon, password = text.partition(":")
    if not colon or not username:
        raise InvalidRequest("auth must be base64 of username:password")
    # Some tools pad with NULs.
    return username, password.rstrip("\0")


def host_of(address: str) -> str:
    """The canonical name of the registry at an address: a host, or a URL as in docker's config.json."""
    host = address.strip().lower().partition("://")[2] or address.strip().lower()
    host = host.partition("/")[0].rpartition("@")[2]
    return DOCKER_DOMAIN if host in _DOCKER_NAMES else host


def applies(credentials: Credentials, names: Iterable[str], *, own: bool) -> bool:
    """Whether the credentials may be sent to a server with these names; `own`: it is the image's own registry."""
    if not credentials.server_address:
        return own
    return host_of(credentials.server_address) in {host_of(name) for name in names}


def parse_challenges(values: Iterable[str]) -> tuple[Challenge, ...]:
    """Every challenge of the WWW-Authenticate headers; malformed ones are skipped."""
    challenges = []
    for value in values:
        at = 0
        while at < len(value):
            if value[at] in ", \t":
                at += 1
                continue
            start = _CHALLENGE_START.match(value, at)
            if start is None:
                break
            at = start.end()
            parameters: dict[str, str] = {}
            while (match := _PARAMETER.match(value, at)) is not None:
                quoted, plain = match[2], match[3]
                text = re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL) if quoted is not None else plain
                parameters.setdefault(match[1].lower(), text)
                at = match.end()
                while at < len(value) and value[at] in " \t":
                    at += 1
                if at < len(value) and value[at] == ",":
                    at += 1
                while at < len(value) and value[at] in ", \t":
                    at += 1
            challenges.append(Challenge(scheme=start[1].lower(), parameters=parameters))
            if not parameters:
                # A token68 or something unknown: the next challenge follows a comma.
                comma = value.find(",", at)
                at = len(value) if comma < 0 else comma
    return tuple(challenges)


def choose(challenges: Iterable[Challenge]) -> Challenge | None:
    """The challenge to answer: Bearer before Basic, because a stolen token is worth less than a password."""
    by_scheme = {challenge.scheme: challenge for challenge in reversed(tuple(challenges))}
    return by_scheme.get("bearer") or by_scheme.get("basic")


def basic(credentials: Credentials) -> str:
    """The Authorization header for a Basic challenge (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()


def token_request(
    challenge: Challenge, credentials: Credentials, scope: str, *, plain_allowed: bool, other: bool = False
) -> TokenRequest:
    """The request for the token of a Bearer challenge. `scope` is the default for a challenge without one.

    A password goes with GET and an identity token with POST, or the `other` way around, for servers that offer only
    one of the two. `plain_allowed`: the registry itself is reached without TLS, so its realm may be too. Raises
    AccessDenied for a realm to which a password must not be sent.
    """
    parts = _url(challenge.parameters.get("realm", ""))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise AccessDenied("the registry requires a token, but does not say where to get one (no usable realm)")
    realm = f"{parts.scheme}://{parts.netloc}{parts.path}"
    if parts.scheme == "http" and not plain_allowed:
        raise AccessDenied(f"the registry requires sending credentials to {realm} without encryption")
    parameters = {"scope": challenge.parameters.get("scope") or scope}
    if service := challenge.parameters.get("service"):
        parameters["service"] = service
    if bool(credentials.identity_token) != other:
        if credentials.identity_token:
            grant = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token}
        else:
            grant = {"grant_type": "password", "username": credentials.username, "password": credentials.password}
        form = urlencode({"client_id": CLIENT_ID, **parameters, **grant}).encode()
        return TokenRequest(realm=realm, url=realm, form=form)
    if credentials.identity_token:
        credentials = Credentials(password=credentials.identity_token)
    scopes = [("scope", item) for item in parameters.pop("scope").split(" ") if item]
    query = [*parse_qsl(parts.query), *parameters.items(), *scopes]
    if credentials.username:
        query += [("account", credentials.username), ("client_id", CLIENT_ID)]
    return TokenRequest(
        realm=realm,
        url=urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), "")),
        authorization="" if credentials.anonymous else basic(credentials),
    )


def _url(text: str) -> SplitResult:
    """The parts of a URL, all empty for what is none: brackets without an address, or no port."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return SplitResult("", "", "", "", "")
    return parts


def parse_token(data: bytes, realm: str) -> str:
    """The bearer token in a token server's answer. Raises AccessDenied when there is none."""
    try:
        document = foreign_json.parse(data, realm, repeated=True)
    except InvalidRequest as exc:
        raise AccessDenied(f"{realm} did not answer with a token") from exc
    if isinstance(document, dict):
        for name in ("token", "access_token"):
            value = document.get(name)
            if isinstance(value, str) and _TOKEN.fullmatch(value):
                return value
    raise AccessDenied(f"{realm} did not answer with a token")

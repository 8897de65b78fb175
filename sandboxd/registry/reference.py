"""Image names: `[domain/]path[:tag][@digest]`, parsed and written out in full.

The grammar and the defaults are those of the distribution project's reference format, which every container tool
follows: a name without a domain belongs to `docker.io`, one without a slash to its `library/`, and one without a
tag or digest means `latest`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sandboxd.errors import InvalidRequest

DEFAULT_DOMAIN = "docker.io"
OFFICIAL_PREFIX = "library/"
DEFAULT_TAG = "latest"

MAX_NAME_CHARACTERS = 255  # of domain and path together
MAX_PORT = 65535
MAX_CHARACTERS = 1024  # of the whole reference; longer text is not matched at all

_DOMAIN = re.compile(
    r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
    r"(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
)
_PORT = re.compile(r":0*([0-9]+)\Z")
_PATH = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_LIKE_A_DIGEST = re.compile(r"sha[0-9]+:")
_HEX_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A full name. `tag` and `digest` are "" when the name has none; one of them is always set."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """The name without tag and digest."""
        return f"{self.domain}/{self.path}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def parse(text: str) -> Reference:
    """Parse a name as people write it and complete it.

    Raises InvalidRequest that names the invalid part. A bare id or digest is not a name.
    """

    def wrong(reason: str) -> InvalidRequest:
        return InvalidRequest(f"{shown(text)!r} is not an image name: {reason}")

    if not text:
        raise wrong("it is empty")
    if len(text) > MAX_CHARACTERS:
        raise wrong(f"it is longer than {MAX_CHARACTERS} characters")
    if _DIGEST.fullmatch(text):
        raise wrong("it is an image id or digest")
    name, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise wrong("@ must be followed by a digest like sha256:<64 hex digits>")
    first, slash, rest = name.partition("/")
    if slash and (any(c in first for c in ".:[") or first == "localhost" or first != first.lower()):
        domain, path = first, rest
    else:
        domain, path = DEFAULT_DOMAIN, name
    # The domain may contain a colon (its port), the path cannot: a tag follows it.
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise wrong("the tag must consist of at most 128 letters, digits, '_', '.' and '-'")
    if not _DOMAIN.fullmatch(domain):
        raise wrong("the part before the first slash is not a host name")
    if (port := _PORT.search(domain)) and (len(port[1]) > 5 or int(port[1]) > MAX_PORT):
        raise wrong(f"its port is larger than {MAX_PORT}")
    if not _PATH.fullmatch(path):
        hint = ", and only in lower case" if _PATH.fullmatch(path.lower()) else ""
        raise wrong(f"a path consists of letters, digits and single separators{hint}")
    if not slash and _HEX_ID.fullmatch(path):
        raise wrong("64 hex digits are an image id")
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = OFFICIAL_PREFIX + path
    if len(domain) + 1 + len(path) > MAX_NAME_CHARACTERS:
        raise wrong(f"host and path are longer than {MAX_NAME_CHARACTERS} characters")
    return Reference(domain=domain, path=path, tag=tag or ("" if digest else DEFAULT_TAG), digest=digest)


def shown(text: str) -> str:
    """The text given as a name, for messages: shortened, and without a URL's user, password and query."""
    name, at, digest = text.rpartition("@")
    if not (at and _LIKE_A_DIGEST.match(digest)):
        name, at, digest = text, "", ""
    user, sign, rest = name.rpartition("@")
    if sign:
        scheme, separator, _ = user.rpartition("://")
        text = f"{scheme}{separator}…@{rest}{at}{digest}"
    path, query, _ = text.partition("?")
    text = f"{path}?…" if query else text
    return text if len(text) <= 200 else f"{text[:200]}…"


def normalize(text: str) -> str:
    """The full name: `docker.io/library/nginx:latest` for `nginx`. Raises InvalidRequest."""
    return str(parse(text))

"""The registry API, the part that pulls (https://github.com/opencontainers/distribution-spec).

A `Repository` is open for one pull. Each request goes to the endpoints in order until one of them answers it.
Manifests are verified here against their digests; blobs are streamed, in order and without gaps, to a sink that
verifies them.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from sandboxd import foreign_json
from sandboxd.errors import AccessDenied, Exhausted, InvalidRequest, NotFound, SandboxdError, Unavailable
from sandboxd.registry import auth
from sandboxd.registry.auth import Credentials
from sandboxd.registry.docker_config import DockerConfig
from sandboxd.registry.hosts import Endpoint
from sandboxd.registry.hosts_dir import HostsDir
from sandboxd.registry.login import Login
from sandboxd.registry.patience import Broken, Limits, Patience, Stalled, retry_after
from sandboxd.registry.proxies import Proxies
from sandboxd.registry.reference import Reference
from sandboxd.registry.transport import Answer, Request, Transport

MAX_MANIFEST_BYTES = 4 << 20  # what registries accept
MAX_ERROR_BYTES = 64 << 10
MAX_EXPLANATION_CHARACTERS = 200  # of a registry's own error message

Sink = Callable[[bytes], Awaitable[None]]
T = TypeVar("T")

_TRY_AGAIN = (429, 500, 502, 503, 504)
# With a limit on the digits: Python refuses to convert thousands of them.
_LENGTH = re.compile(r"[0-9]{1,20}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,20})-([0-9]{1,20})/([0-9]{1,20}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Fetching one blob over several connections. `count` 1 turns it off; it takes `count` times `bytes` of memory.

    It starts where one connection proves too slow: where most of the time is spent waiting for it.
    """

    count: int = 1
    bytes: int = 4 << 20
    least: int = 64 << 20  # bytes; smaller blobs are not worth it
    probe: int = 8 << 20  # bytes of one connection after which to decide, again and again; 0: widen at once
    waiting: float = 0.6  # the share of time spent waiting that is too much
    fast: int = 64 << 20  # bytes a second at which one connection is enough in any case


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest or index as the registry serves it, with the `media_type` of its Content-Type."""

    data: bytes
    digest: str
    media_type: str


class _RangeIgnored(SandboxdError):
    """The server did not answer a range request with that range."""


class TooSlow(Exception):
    """Most of the time is spent waiting for a single connection."""


class Probe:
    """Wraps a sink and measures where the time goes; raises TooSlow when it is the connection."""

    def __init__(self, ranges: Ranges, sink: Sink, size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`size` is how many bytes are to come."""
        self._ranges = ranges
        self._sink = sink
        self._size = size
        self._clock = clock
        self.passed = 0
        self._begin()

    def _begin(self) -> None:
        self._since = self._left = self._clock()
        self._bytes = 0
        self._waited = 0.0

    async def take(self, data: bytes) -> None:
        """Pass the next bytes on, also when this raises TooSlow."""
        self._waited += self._clock() - self._left
        await self._sink(data)
        self._left = self._clock()
        self.passed += len(data)
        self._bytes += len(data)
        if self._bytes >= self._ranges.probe:
            seconds = self._left - self._since
            slow = self._waited >= self._ranges.waiting * seconds and self._bytes < self._ranges.fast * seconds
            if slow and self._size - self.passed >= self._ranges.least:
                raise TooSlow
            self._begin()


class Registries:
    """How this machine reaches registries; opens a `Repository` for each pull."""

    def __init__(
        self,
        *,
        hosts: HostsDir,
        docker_config: DockerConfig,
        proxies: Proxies | None = None,
        limits: Limits | None = None,
        ranges: Ranges | None = None,
        user_agent: str = "sandboxd",
    ) -> None:
        self._hosts = hosts
        self._docker_config = docker_config
        self._proxies = proxies or Proxies()
        self.limits = limits or Limits()
        self.ranges = ranges or Ranges()
        self._user_agent = user_agent

    @asynccontextmanager
    async def open(
        self, reference: Reference, credentials: Credentials, accept: Sequence[str]
    ) -> AsyncIterator[Repository]:
        """Open the reference's repository; `accept` lists the supported media types of manifests.

        Raises InvalidRequest for an invalid configuration file.
        """
        endpoints = self._hosts.endpoints(reference.domain)
        async with Transport(self._proxies, self._user_agent) as transport:
            logins = {}
            for endpoint in endpoints:
                logins[endpoint] = Login(
                    transport=transport,
                    endpoint=endpoint,
                    scope=f"repository:{reference.path}:pull",
                    credentials=await self._credentials(endpoint, reference.domain, credentials),
                )
            yield Repository(reference, logins, transport, accept, self.limits, self.ranges)

    async def _credentials(self, endpoint: Endpoint, domain: str, given: Credentials) -> Credentials:
        """The credentials for the endpoint: the request's if they apply to it, else the machine's."""
        names = (domain, endpoint.host) if endpoint.upstream else (endpoint.host,)
        if not given.anonymous and auth.applies(given, names, own=endpoint.upstream):
            return given
        return await self._docker_config.credentials(names) or Credentials()


class Repository:
    """One repository, on all of its endpoints. Open it with `Registries.open`."""

    def __init__(
        self,
        reference: Reference,
        logins: dict[Endpoint, Login],
        transport: Transport,
        accept: Sequence[str],
        limits: Limits,
        ranges: Ranges,
    ) -> None:
        self._reference = reference
        self._logins = logins
        self._transport = transport
        self._accept = ", ".join(accept)
        self._limits = limits
        self._ranges = ranges
        self._distrusted: set[Endpoint] = set()
        self._no_ranges: set[Endpoint] = set()
        self.retries = 0  # attempts beyond the first ones

    # --- manifests ---------------------------------------------------------------------------------------------

    async def resolve(self, name: str) -> str:
        """The digest that a tag (or digest) refers to now, without fetching it; "" when the server omits it.

        Raises NotFound, AccessDenied, Unavailable and so on when the request fails.
        """

        async def ask(endpoint: Endpoint) -> str:
            answer = await self._request(endpoint, "HEAD", f"manifests/{name}", self._patience())
            digest = answer.header("Docker-Content-Digest")
            answer.close()
            return digest

        return await self._first(self._manifest_endpoints(name), ask)

    async def manifest(self, name: str) -> Manifest:
        """The manifest or index with this tag or digest.

        Raises NotFound; AccessDenied; InvalidRequest when it is too large, is not a manifest or has a wrong digest.
        """

        async def fetch(endpoint: Endpoint) -> Manifest:
            patience = self._patience()
            while True:
                answer = await self._request(endpoint, "GET", f"manifests/{name}", patience)
                try:
                    data = await answer.read(MAX_MANIFEST_BYTES)
                except (Broken, Stalled) as exc:
                    await self._again(patience, exc)
                    continue
                finally:
                    answer.close()
                return self._verified(name, data, answer)

        return await self._first(self._manifest_endpoints(name), fetch)

    def _verified(self, name: str, data: bytes, answer: Answer) -> Manifest:
        computed = f"sha256:{hashlib.sha256(data).hexdigest()}"
        header = answer.header("Docker-Content-Digest")
        expected = name if ":" in name else header if header.startswith("sha256:") else computed
        if computed != expected:
            raise InvalidRequest(
                f"{answer.where}: the manifest has a wrong digest: expected {expected}, computed {computed}"
            )
        media_type = answer.header("Content-Type").partition(";")[0].strip().lower()
        if media_type in ("", "application/json", "application/octet-stream", "text/plain"):
            media_type = ""  # the server does not know; the document itself decides
        elif media_type not in self._accept.split(", ") and not media_type.startswith("application/vnd."):
            raise InvalidRequest(f"{answer.where}: {media_type!r} is not a manifest; is this a registry?")
        return Manifest(data=data, digest=computed, media_type=media_type)

    # --- blobs -------------------------------------------------------------------------------------------------

    async def blob(self, digest: str, size: int, offset: int, sink: Sink) -> tuple[Endpoint, ...]:
        """Stream a blob from `offset` to its end into `sink`, in order; return the endpoints that served it.

        After a broken connection it resumes where it stopped. Raises InvalidRequest for a blob of another size,
        Unavailable or TimedOut when no endpoint completes it; `sink` then has the bytes received so far.
        """
        at = offset
        served: list[Endpoint] = []

        async def pass_on(data: bytes) -> None:
            nonlocal at
            await sink(data)
            at += len(data)

        async def fetch(endpoint: Endpoint) -> None:
            before = at
            try:
                await self._fetch(endpoint, digest, size, at, pass_on)
            finally:
                if at > before:
                    served.append(endpoint)

        endpoints = [e for e in self._logins if e.pull and e not in self._distrusted]
        await self._first(endpoints, fetch)
        return tuple(served)

    def distrust(self, endpoints: Sequence[Endpoint]) -> bool:
        """Stop fetching blobs from these, since one of them served a wrong one; False when none would be left."""
        remaining = [e for e in self._logins if e.pull and e not in self._distrusted and e not in endpoints]
        if not remaining:
            return False
        self._distrusted.update(endpoints)
        return True

    async def _fetch(self, endpoint: Endpoint, digest: str, size: int, offset: int, sink: Sink) -> None:
        """The rest of a blob from one endpoint."""
        if self._ranges.count > 1 and size - offset >= self._ranges.least and endpoint not in self._no_ranges:
            probe = Probe(self._ranges, sink, size - offset)
            try:
                if self._ranges.probe:
                    return await self._fetch_part(endpoint, digest, size, offset, size, probe.take)
            except TooSlow:
                pass
            offset = await self._fetch_wide(endpoint, digest, size, offset + probe.passed, sink)
        return await self._fetch_part(endpoint, digest, size, offset, size, sink)

    async def _fetch_part(
        self, endpoint: Endpoint, digest: str, size: int, start: int, end: int, sink: Sink, *, strict: bool = False
    ) -> None:
        """Fetch bytes `start` to `end` (exclusive). `strict`: fail when the server ignores the range."""
        at = start
        patience = self._patience()
        while at < end:
            partial = at > 0 or end < size
            headers = {"Range": f"bytes={at}-{end - 1}"} if partial else {}
            answer = await self._request(endpoint, "GET", f"blobs/{digest}", patience, headers)
            try:
                skip = _body_start(answer, digest, size, at) if partial else _whole(answer, digest, size)
                if strict and answer.status != 206:
                    raise _RangeIgnored(f"{answer.where}: a range was ignored")
                while at < end:
                    data = await answer.chunk(patience.seconds)
                    if not data:
                        raise Broken(f"{answer.where}: the blob ended after {at} of {size} bytes")
                    patience.progressed(len(data))
                    if skip:
                        data, skip = data[skip:], max(0, skip - len(data))
                        if not data:
                            continue
                    # Bytes after `end` are discarded; if the blob is longer than announced, its digest shows it.
                    data = data[: end - at]
                    await sink(data)
                    at += len(data)
                if end == size and not partial and await answer.chunk(patience.seconds):
                    raise InvalidRequest(f"{answer.where}: the blob is larger than the {size} bytes announced")
            except (Broken, Stalled) as exc:
                if at < end:
                    await self._again(patience, exc)
            finally:
                answer.close()

    async def _fetch_wide(self, endpoint: Endpoint, digest: str, size: int, offset: int, sink: Sink) -> int:
        """Fetch several ranges at once, passed on in order; return the offset reached when a range was ignored."""
        starts = deque(range(offset, size, self._ranges.bytes))
        at = offset

        async def segment(start: int) -> list[bytes]:
            pieces: list[bytes] = []

            async def collect(piece: bytes) -> None:
                pieces.append(piece)

            end = min(size, start + self._ranges.bytes)
            await self._fetch_part(endpoint, digest, size, start, end, collect, strict=True)
            return pieces

        async def pass_on(pieces: list[bytes]) -> None:
            nonlocal at
            pieces.reverse()
            while pieces:
                piece = pieces.pop()
                await sink(piece)
                at += len(piece)

        try:
            # The first one alone: a server without range support would send the whole blob on each connection.
            first = await segment(starts.popleft())
            async with asyncio.TaskGroup() as group:
                ahead: deque[asyncio.Task[list[bytes]]] = deque()

                def fill() -> None:
                    while starts and len(ahead) < self._ranges.count:
                        ahead.append(group.create_task(segment(starts.popleft())))

                fill()
                await pass_on(first)
                while ahead:
                    pieces = await ahead.popleft()
                    fill()
                    await pass_on(pieces)
        except (_RangeIgnored, BaseExceptionGroup) as exc:
            cause = first_cause(exc) if isinstance(exc, BaseExceptionGroup) else exc
            if not isinstance(cause, _RangeIgnored):
                raise cause from exc
            self._no_ranges.add(endpoint)
        return at

    # --- requests ----------------------------------------------------------------------------------------------

    def _manifest_endpoints(self, name: str) -> list[Endpoint]:
        """The endpoints for a manifest: those with the capability pull for a digest, resolve for a tag."""
        return [e for e in self._logins if (e.pull if ":" in name else e.resolve)]

    async def _first(self, endpoints: Sequence[Endpoint], ask: Callable[[Endpoint], Awaitable[T]]) -> T:
        """The first answer, or the error of the last endpoint (the registry itself), with the others as notes."""
        failed: list[SandboxdError] = []
        for endpoint in endpoints:
            try:
                return await ask(endpoint)
            except SandboxdError as exc:
                self._logins[endpoint].conceal(exc)
                failed.append(exc)
        if not failed:
            raise InvalidRequest(
                f"no endpoint in hosts.toml for {self._reference.domain} has the capability for this"
            )
        error = failed.pop()
        for earlier in failed:
            error.add_note(f"earlier: {earlier}")
        raise error

    def _patience(self) -> Patience:
        return Patience(self._limits)

    async def _again(self, patience: Patience, error: SandboxdError, after: float | None = None) -> None:
        self.retries += 1
        await patience.again(error, after)

    async def _request(
        self, endpoint: Endpoint, method: str, path: str, patience: Patience, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send a request, authenticated and retried within `patience`, and return the successful answer."""
        url = f"{endpoint.base}/{self._reference.path}/{path}"
        if not endpoint.upstream:
            # This tells a mirror of several registries which one is meant.
            url += f"?ns={self._reference.domain}"
        if path.startswith("manifests/"):
            headers = {"Accept": self._accept, **(headers or {})}
        login = self._logins[endpoint]
        request = Request(method=method, url=url, headers=headers or {})
        while True:
            try:
                answer = await self._authorized(login, request, patience)
            except (Broken, Stalled) as exc:
                await self._again(patience, exc)
                continue
            if answer.status in (200, 206):
                return answer
            try:
                error = await refusal(answer, login.concealed)
                wait = retry_after(answer.header("Retry-After"), time.time())
            finally:
                answer.close()
            if answer.status not in _TRY_AGAIN:
                raise error
            await self._again(patience, error, wait)

    async def _authorized(self, login: Login, request: Request, patience: Patience) -> Answer:
        """The answer to the request; after a 401, to its repetition with the required credentials."""
        shown = login.authorization
        answer = await login.send(request, patience.seconds)
        if answer.status == 401:
            challenges = answer.headers("WWW-Authenticate")
            if await login.renew(challenges, shown, patience):
                answer.close()
                answer = await login.send(request, patience.seconds)
        return answer


async def refusal(answer: Answer, concealed: Callable[[str], str]) -> SandboxdError:
    """The error for an unsuccessful answer, with the registry's own message minus any secret it was sent."""
    try:
        words = explanation(await answer.read(MAX_ERROR_BYTES), concealed)
    except SandboxdError:
        words = ""
    status = f"{answer.where}: HTTP status {answer.status}{f' ({words})' if words else ''}"
    match answer.status:
        case 401:
            return AccessDenied(f"{status}: it does not exist, or these credentials do not give access to it")
        case 403:
            return AccessDenied(f"{status}: access is denied")
        case 404:
            return NotFound(f"{status}: it does not exist there")
        case 429:
            return Exhausted(f"{status}: too many requests")
        case 400:
            return InvalidRequest(status)
        case _:
            return Unavailable(status)


def explanation(body: bytes, concealed: Callable[[str], str] = str) -> str:
    """The messages of a registry's error document, printable and short; "" if `body` is not one."""
    try:
        errors = foreign_json.parse(body, "errors", repeated=True)["errors"]
        words = "; ".join(str(item.get("message") or item.get("code") or "") for item in errors)
    except (InvalidRequest, KeyError, TypeError, AttributeError):
        return ""
    # Concealed before it is cut off: half a token would not be recognized.
    return "".join(c if c.isprintable() else " " for c in concealed(words))[:MAX_EXPLANATION_CHARACTERS].strip()


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to report for a task group: one with a reason rather than a cancellation."""
    leaves: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        error = todo.pop(0)
        if isinstance(error, BaseExceptionGroup):
            todo += error.exceptions
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, SandboxdError)), leaves[0])


def _whole(answer: Answer, digest: str, size: int) -> int:
    length = answer.header("Content-Length")
    if _LENGTH.fullmatch(length) and int(length) != size:
        raise InvalidRequest(f"{answer.where}: blob {digest} has {length} bytes there, the manifest says {size}")
    return 0


def _body_start(answer: Answer, digest: str, size: int, at: int) -> int:
    """How many bytes of the answer to a range request precede `at`: `at` itself if the range was ignored."""
    if answer.status == 200:
        _whole(answer, digest, size)
        return at
    match = _CONTENT_RANGE.fullmatch(answer.header("Content-Range").strip())
    if match is None or int(match[1]) != at:
        raise Broken(f"{answer.where}: the answer has another range than the one requested")
    if match[3] != "*" and int(match[3]) != size:
        raise InvalidRequest(f"{answer.where}: blob {digest} has {match[3]} bytes there, the manifest says {size}")
    return 0

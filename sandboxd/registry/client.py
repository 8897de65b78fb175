"""The registry API, the part that pulls (https://github.com/opencontainers/distribution-spec).

A `Repository` is open for one pull. Each question goes to the endpoints in order until one answers; what a mirror
cannot do, the next one is asked for. What is fetched is verified here against its digest when it is small; blobs
are streamed on, in order and without gaps, and verified by whoever stores them.
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

MOST_MANIFEST_BYTES = 4 << 20  # what registries accept
MOST_ERROR_BYTES = 64 << 10
MOST_WORDS = 200  # of a registry's own explanation

Sink = Callable[[bytes], Awaitable[None]]
T = TypeVar("T")

_TRY_AGAIN = (429, 500, 502, 503, 504)
# With a bound on the digits: Python refuses to convert thousands of them.
_LENGTH = re.compile(r"[0-9]{1,20}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,20})-([0-9]{1,20})/([0-9]{1,20}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Fetching one blob over several connections. `count` 1 is off; memory holds `count` times `bytes`.

    It is begun where one connection turns out not to be enough: where most of the time is spent waiting for it.
    """

    count: int = 1
    bytes: int = 4 << 20
    least: int = 64 << 20  # smaller blobs are not worth it
    probe: int = (
        8 << 20
    )  # after so many bytes of one connection it is decided, and again after as many more; 0: never
    waiting: float = 0.6  # the share of the time from which on it is too much
    fast: int = 64 << 20  # bytes a second that are enough from one connection, whatever is waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest or index as the registry has it. `media_type` is what it was served as."""

    data: bytes
    digest: str
    media_type: str


class _RangeIgnored(SandboxdError):
    """The server answered a range with something else."""


class TooSlow(Exception):
    """Most of the time is spent waiting for the one connection."""


class Probe:
    """A sink before the sink that tells what the time goes to; raises TooSlow for the wrong thing."""

    def __init__(self, ranges: Ranges, sink: Sink, size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`size` is how much is to come."""
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
        """The next bytes, which are passed on in any case."""
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
    """How this machine reaches registries; makes a `Repository` for each pull."""

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
        """The reference's repository; `accept` are the media types of manifests that are understood.

        Raises InvalidRequest for a configuration file that is wrong.
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
        """What may be shown to the endpoint: the request's if they are for it, else the machine's."""
        names = (domain, endpoint.host) if endpoint.upstream else (endpoint.host,)
        if not given.anonymous and auth.applies(given, names, own=endpoint.upstream):
            return given
        return await self._docker_config.credentials(names) or Credentials()


class Repository:
    """One repository, wherever it is served. Use it through `Registries.open`."""

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

    # Manifests.

    async def resolve(self, name: str) -> str:
        """The digest that a tag (or digest) means now, without fetching it; "" when no endpoint tells.

        Raises NotFound, AccessDenied, Unavailable and so on when it cannot be asked.
        """

        async def ask(endpoint: Endpoint) -> str:
            answer = await self._request(endpoint, "HEAD", f"manifests/{name}", self._patience())
            digest = answer.header("Docker-Content-Digest")
            answer.close()
            return digest

        return await self._first(self._askable(name), ask)

    async def manifest(self, name: str) -> Manifest:
        """The manifest or index with this tag or digest.

        Raises NotFound; AccessDenied; InvalidRequest when it is too large, is no manifest, or its digest is wrong.
        """

        async def fetch(endpoint: Endpoint) -> Manifest:
            patience = self._patience()
            while True:
                answer = await self._request(endpoint, "GET", f"manifests/{name}", patience)
                try:
                    data = await answer.read(MOST_MANIFEST_BYTES)
                except (Broken, Stalled) as exc:
                    await self._again(patience, exc)
                    continue
                finally:
                    answer.close()
                return self._verified(name, data, answer)

        return await self._first(self._askable(name), fetch)

    def _verified(self, name: str, data: bytes, answer: Answer) -> Manifest:
        computed = f"sha256:{hashlib.sha256(data).hexdigest()}"
        said = answer.header("Docker-Content-Digest")
        expected = name if ":" in name else said if said.startswith("sha256:") else computed
        if computed != expected:
            raise InvalidRequest(
                f"{answer.where}: the manifest has a wrong digest: expected {expected}, computed {computed}"
            )
        media_type = answer.header("Content-Type").partition(";")[0].strip().lower()
        if media_type in ("", "application/json", "application/octet-stream", "text/plain"):
            media_type = ""  # said by servers that do not know; the document itself decides
        elif media_type not in self._accept.split(", ") and not media_type.startswith("application/vnd."):
            raise InvalidRequest(f"{answer.where}: {media_type!r} is not a manifest; is this a registry?")
        return Manifest(data=data, digest=computed, media_type=media_type)

    # Blobs.

    async def blob(self, digest: str, size: int, offset: int, sink: Sink) -> tuple[Endpoint, ...]:
        """Give the bytes of a blob from `offset` to its end to `sink`, in order; return who served them.

        A broken connection is taken up where it stopped. Raises InvalidRequest for a blob of another size,
        Unavailable or TimedOut when nobody brings it to its end; `sink` keeps what it has then.
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
        """Ask these no more for blobs, as one of them served wrong ones; False when nobody would be left."""
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
        """Bytes `start` to `end` (not included). `strict`: an ignored range is an error, not skipped over."""
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
                    # What follows `end` belongs to nobody; a blob that is longer than said shows in its digest.
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
        """Several ranges at once, passed on in order; returns how far it came before a range was ignored."""
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
            # Alone: a server that knows no ranges would send the whole blob on each connection.
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

    # Requests.

    def _askable(self, name: str) -> list[Endpoint]:
        """Who may be asked for a manifest: by digest everybody who has content, by tag who may say what it means."""
        return [e for e in self._logins if (e.pull if ":" in name else e.resolve)]

    async def _first(self, endpoints: Sequence[Endpoint], ask: Callable[[Endpoint], Awaitable[T]]) -> T:
        """The first answer; without one the error of the last, the registry itself, with notes on the others."""
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
            error.add_note(f"before that, {earlier}")
        raise error

    def _patience(self) -> Patience:
        return Patience(self._limits)

    async def _again(self, patience: Patience, error: SandboxdError, after: float | None = None) -> None:
        self.retries += 1
        await patience.again(error, after)

    async def _request(
        self, endpoint: Endpoint, method: str, path: str, patience: Patience, headers: dict[str, str] | None = None
    ) -> Answer:
        """The answer to a question, authenticated and tried again as far as `patience` goes; it was a success."""
        url = f"{endpoint.base}/{self._reference.path}/{path}"
        if not endpoint.upstream:
            # Mirrors of several registries learn from this which one is meant.
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
        """The answer with what the server wants to see, once it has said so."""
        shown = login.authorization
        answer = await login.send(request, patience.seconds)
        if answer.status == 401:
            challenges = answer.headers("WWW-Authenticate")
            if await login.renew(challenges, shown, patience):
                answer.close()
                answer = await login.send(request, patience.seconds)
        return answer


async def refusal(answer: Answer, concealed: Callable[[str], str]) -> SandboxdError:
    """What an answer that is no success means; the registry's own words are added, without what it was shown."""
    try:
        words = explanation(await answer.read(MOST_ERROR_BYTES), concealed)
    except SandboxdError:
        words = ""
    said = f"{answer.where}: HTTP status {answer.status}{f' ({words})' if words else ''}"
    match answer.status:
        case 401:
            return AccessDenied(f"{said}: it does not exist, or these credentials are not enough for it")
        case 403:
            return AccessDenied(f"{said}: access is denied")
        case 404:
            return NotFound(f"{said}: it does not exist there")
        case 429:
            return Exhausted(f"{said}: too many requests")
        case 400:
            return InvalidRequest(said)
        case _:
            return Unavailable(said)


def explanation(body: bytes, concealed: Callable[[str], str] = str) -> str:
    """The messages of a registry's error document, printable and short; "" when it is none."""
    try:
        errors = foreign_json.parse(body, "errors", repeated=True)["errors"]
        words = "; ".join(str(item.get("message") or item.get("code") or "") for item in errors)
    except (InvalidRequest, KeyError, TypeError, AttributeError):
        return ""
    # Before it is cut off: half a token is not recognized.
    return "".join(c if c.isprintable() else " " for c in concealed(words))[:MOST_WORDS].strip()


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to tell of those of a task group: one that says why, rather than that something was cancelled."""
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
    """How many bytes of the answer to a range request precede `at`: all of them if the range was ignored."""
    if answer.status == 200:
        _whole(answer, digest, size)
        return at
    match = _CONTENT_RANGE.fullmatch(answer.header("Content-Range").strip())
    if match is None or int(match[1]) != at:
        raise Broken(f"{answer.where}: another part came than the one asked for")
    if match[3] != "*" and int(match[3]) != size:
        raise InvalidRequest(f"{answer.where}: blob {digest} has {match[3]} bytes there, the manifest says {size}")
    return 0

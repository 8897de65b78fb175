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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import structlog

from sandboxd import foreign_json
from sandboxd.errors import (
    AccessDenied,
    Exhausted,
    InvalidRequest,
    NotFound,
    NotReady,
    SandboxdError,
    TimedOut,
    Unavailable,
    Unsupported,
)
from sandboxd.registry import auth
from sandboxd.registry.auth import Credentials
from sandboxd.registry.connections import connections
from sandboxd.registry.docker_config import DockerConfig
from sandboxd.registry.hosts import Endpoint
from sandboxd.registry.hosts_dir import HostsDir
from sandboxd.registry.login import Login
from sandboxd.registry.patience import Broken, Limits, Patience, Stalled, retry_after
from sandboxd.registry.proxies import Proxies
from sandboxd.registry.ranges import Probe, Ranges, Sink, TooSlow, WrongRange, body_start
from sandboxd.registry.reference import Reference
from sandboxd.registry.refusals import refusal
from sandboxd.registry.request import Request

if TYPE_CHECKING:
    from sandboxd.registry.transport import Answer, Transport

log = structlog.get_logger(__name__)

MAX_MANIFEST_BYTES = 4 << 20  # what registries accept
HEAD_SECONDS = 10.0  # after which GET is asked
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"  # the beginning of its media types

T = TypeVar("T")

_TRY_AGAIN = (429, 500, 502, 503, 504)
_UNSPECIFIC = ("", "application/json", "application/octet-stream", "text/plain")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest or index as the registry serves it; `media_type` is its Content-Type, "" for one of no use."""

    data: bytes
    digest: str
    media_type: str


class _RangeRefused(SandboxdError):
    """The server did not answer a range request with that range; without a range it may."""


# What may be wrong with a range, or with one of several connections, and not with the blob.
_OF_ONE_RANGE = (_RangeRefused, Unavailable, TimedOut, Exhausted, AccessDenied, NotFound)


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

        Raises InvalidRequest for an invalid hosts.toml. Credentials of the machine that cannot be read are missed
        only where the registry asks for some.
        """
        endpoints = self._hosts.endpoints(reference.domain)
        async with await connections(self._proxies, self._user_agent) as transport:
            logins = {}
            for endpoint in endpoints:
                found, missing = await self._credentials(endpoint, reference, credentials)
                logins[endpoint] = Login(
                    transport=transport,
                    endpoint=endpoint,
                    scope=f"repository:{reference.path}:pull",
                    credentials=found,
                    missing=missing,
                )
            yield Repository(reference, logins, transport, accept, self.limits, self.ranges)

    async def _credentials(
        self, endpoint: Endpoint, reference: Reference, given: Credentials
    ) -> tuple[Credentials, SandboxdError | None]:
        """The credentials for the endpoint, the request's if they apply to it, else the machine's; and why none."""
        names = (reference.domain, endpoint.host) if endpoint.upstream else (endpoint.host,)
        if not given.anonymous and auth.applies(given, names, own=endpoint.upstream):
            return given, None
        try:
            return await self._docker_config.credentials(names, reference.path) or Credentials(), None
        except (InvalidRequest, NotReady) as exc:
            log.warning("the machine's credentials cannot be used", registry=endpoint.host, error=str(exc))
            return Credentials(), exc


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
        self._narrow: set[Endpoint] = set()  # one connection for a blob, please
        self._no_ranges: set[Endpoint] = set()
        self._fetched: dict[str, Manifest] = {}  # while resolving
        self.retries = 0  # attempts beyond the first ones

    # --- manifests ---------------------------------------------------------------------------------------------

    async def resolve(self, name: str) -> str:
        """The digest that a tag (or digest) refers to now.

        HEAD saves fetching the manifest, and only that: where it fails or does not tell, GET decides, and `manifest`
        has its answer. Raises what `manifest` raises.
        """

        async def ask(endpoint: Endpoint) -> str:
            if digest := await self._headed(endpoint, name):
                return digest
            self._fetched[name] = await self._manifest(endpoint, name)
            return self._fetched[name].digest

        return await self._first(self._manifest_endpoints(name), ask)

    async def _headed(self, endpoint: Endpoint, name: str) -> str:
        """The digest in the answer to HEAD, "" without a usable one."""
        limits = replace(self._limits, attempts=1, stall_seconds=min(self._limits.stall_seconds, HEAD_SECONDS))
        try:
            answer = await self._request(endpoint, "HEAD", f"manifests/{name}", Patience(limits))
        except SandboxdError as exc:
            self._logins[endpoint].conceal(exc)
            log.info("a registry does not answer HEAD, GET is used", registry=endpoint.host, error=str(exc))
            return ""
        # Some servers send a body, which would be taken for the next answer.
        answer.close(reuse=False)
        digest = answer.header("Docker-Content-Digest").strip()
        return digest if _DIGEST.fullmatch(digest) else ""

    async def manifest(self, name: str) -> Manifest:
        """The manifest or index with this tag or digest.

        Raises NotFound; AccessDenied; InvalidRequest when it is too large, is not a manifest or has a wrong digest.
        """
        if name in self._fetched:
            return self._fetched[name]
        return await self._first(self._manifest_endpoints(name), lambda endpoint: self._manifest(endpoint, name))

    async def _manifest(self, endpoint: Endpoint, name: str) -> Manifest:
        patience = Patience(self._limits)
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

    def _verified(self, name: str, data: bytes, answer: Answer) -> Manifest:
        media_type = answer.header("Content-Type").partition(";")[0].strip().lower()
        if media_type.startswith(SCHEMA_1):  # a signed one has the digest of the document without its signatures
            raise Unsupported(f"{answer.where}: docker's schema 1 is not supported; push it with a newer tool")
        computed = f"sha256:{hashlib.sha256(data).hexdigest()}"
        header = answer.header("Docker-Content-Digest")
        expected = name if ":" in name else header if header.startswith("sha256:") else computed
        if computed != expected:
            raise InvalidRequest(
                f"{answer.where}: the manifest has a wrong digest: expected {expected}, computed {computed}"
            )
        if media_type not in self._accept.split(", "):
            # Registries and proxies call manifests all kinds of things; then the document itself decides.
            if media_type not in _UNSPECIFIC and not _like_a_manifest(data):
                raise InvalidRequest(f"{answer.where}: {media_type!r} is not a manifest; is this a registry?")
            media_type = ""
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
        if self._ranges.count > 1 and size - offset >= self._ranges.least and endpoint not in self._narrow:
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
        patience = Patience(self._limits)
        while at < end:
            partial = (at > 0 or end < size) and (strict or endpoint not in self._no_ranges)
            headers = {"Range": f"bytes={at}-{end - 1}"} if partial else {}
            try:
                answer = await self._request(endpoint, "GET", f"blobs/{digest}", patience, headers)
            except (_RangeRefused, Unavailable, TimedOut) as exc:
                if strict or not partial:
                    raise
                if not isinstance(exc, _RangeRefused):
                    patience = Patience(replace(self._limits, attempts=1))  # perhaps ranges are what fails
                self._no_ranges.add(endpoint)
                continue
            try:
                skip = body_start(answer, digest, size, at)
                if strict and answer.status != 206:
                    raise _RangeRefused(f"{answer.where}: a range was ignored")
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
                if isinstance(exc, WrongRange):
                    self._no_ranges.add(endpoint)
                if at < end:
                    await self._again(patience, exc)
            finally:
                answer.close()

    async def _fetch_wide(self, endpoint: Endpoint, digest: str, size: int, offset: int, sink: Sink) -> int:
        """Fetch several ranges at once, passed on in order; return the offset that was reached.

        That is not the end where ranges, or several connections, are refused: one connection has to do then.
        """
        starts = deque(range(offset, size, self._ranges.bytes))
        at = offset
        passing = False

        async def segment(start: int) -> list[bytes]:
            pieces: list[bytes] = []

            async def collect(piece: bytes) -> None:
                pieces.append(piece)

            end = min(size, start + self._ranges.bytes)
            await self._fetch_part(endpoint, digest, size, start, end, collect, strict=True)
            return pieces

        async def pass_on(pieces: list[bytes]) -> None:
            nonlocal at, passing
            pieces.reverse()
            passing = True
            while pieces:
                piece = pieces.pop()
                await sink(piece)
                at += len(piece)
            passing = False

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
        except (SandboxdError, BaseExceptionGroup) as exc:
            cause = first_cause(exc) if isinstance(exc, BaseExceptionGroup) else exc
            if not isinstance(cause, _OF_ONE_RANGE) or passing:
                raise cause from exc
            self._logins[endpoint].conceal(cause)
            log.info("a blob is fetched over one connection", registry=endpoint.host, error=str(cause))
            self._narrow.add(endpoint)
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
                failed.append(self._logins[endpoint].explained(exc))
        if not failed:
            raise InvalidRequest(
                f"no endpoint in hosts.toml for {self._reference.domain} has the capability for this"
            )
        error = failed.pop()
        for earlier in failed:
            error.add_note(f"earlier: {earlier}")
        raise error

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
                if "Range" in request.headers and answer.status not in (401, 404):
                    raise _RangeRefused(str(error)) from error
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


def _like_a_manifest(data: bytes) -> bool:
    try:
        document = foreign_json.parse_object(data, "manifest", repeated=True)
    except InvalidRequest:
        return False
    return not {"schemaVersion", "manifests", "config", "layers"}.isdisjoint(document)


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

"""HTTP to registries: the only module that imports aiohttp.

One `Transport` serves one pull, so that the next one reads certificates and keys on disk again. Rules:

1. Private data (Authorization, configured headers, a client certificate) goes only to the origin it is meant for.
   A redirect to another origin gets none of it, and never leaves TLS.
2. Every wait is limited by the caller's `seconds`; the length of a body is not.
3. Messages name host and path. Queries are omitted: those of signed URLs are secrets.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from sandboxd.errors import InvalidRequest, NotReady, SandboxdError, Unavailable
from sandboxd.registry.hosts import Endpoint
from sandboxd.registry.patience import Broken, Stalled
from sandboxd.registry.proxies import Proxies
from sandboxd.registry.request import Request

MAX_REDIRECTS = 10
BUFFER_BYTES = 2 << 20  # read ahead for each connection; aiohttp buffers up to twice that
HEADER_BYTES = 64 << 10  # signed URLs in redirects are long

_GZIP = b"\x1f\x8b"
_REDIRECTS = (301, 302, 303, 307, 308)


class Answer:
    """A response whose body has not been read yet. The caller must `close` it."""

    def __init__(self, response: aiohttp.ClientResponse, seconds: float) -> None:
        self._response = response
        self._seconds = seconds
        self.status = response.status
        self.where = _shown(response.url)  # scheme, host and path

    def header(self, name: str) -> str:
        """A header's value, "" when it is absent."""
        return self._response.headers.get(name, "")

    def headers(self, name: str) -> tuple[str, ...]:
        """Every value of a header."""
        return tuple(self._response.headers.getall(name, ()))

    async def chunk(self, seconds: float | None = None) -> bytes:
        """The next bytes, b"" at the end. Raises Broken, Stalled."""
        wait = self._seconds if seconds is None else seconds
        try:
            async with asyncio.timeout(wait):
                return await self._response.content.readany()
        except TimeoutError as exc:
            raise Stalled(f"{self.where}: nothing arrived for {wait:.3g} s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise Broken(f"{self.where}: the connection broke in the middle of the answer") from exc

    async def read(self, most: int) -> bytes:
        """The whole body, unpacked if a proxy compressed it although nobody asked for that.

        Raises InvalidRequest when it is larger than `most` bytes, Broken, Stalled.
        """
        data = bytearray()
        while chunk := await self.chunk():
            data += chunk
            if len(data) > most:
                raise InvalidRequest(f"{self.where}: the answer is larger than the {most} bytes allowed")
        if "gzip" in self.header("Content-Encoding").lower() and data.startswith(_GZIP):
            return self._unpacked(data, most)
        return bytes(data)

    def _unpacked(self, data: bytes | bytearray, most: int) -> bytes:
        unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            unpacked = unpacking.decompress(data, most + 1)
        except zlib.error as exc:
            raise Broken(f"{self.where}: the answer is damaged: it is not the gzip that it claims to be") from exc
        if len(unpacked) > most:
            raise InvalidRequest(f"{self.where}: the answer is larger than the {most} bytes allowed")
        return unpacked

    def close(self, *, reuse: bool = True) -> None:
        """Release the connection: it is reused if the whole body was read and `reuse` is set, and closed if not."""
        self._response.release() if reuse and self._response.content.at_eof() else self._response.close()


class Transport:
    """The connections of one pull; an async context manager."""

    def __init__(self, proxies: Proxies, user_agent: str) -> None:
        self._proxies = proxies
        self._user_agent = user_agent
        self._contexts: dict[tuple[object, ...], ssl.SSLContext] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=64, resolver=aiohttp.ThreadedResolver()),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._user_agent, "Accept-Encoding": "identity"},
            # Blobs are hashed as they are sent.
            auto_decompress=False,
            read_bufsize=BUFFER_BYTES,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, endpoint: Endpoint, request: Request, seconds: float) -> Answer:
        """Send the request, follow redirects and return the answer's head; `seconds` limits each wait.

        `endpoint` says how to trust its host. Raises Broken and Stalled where another attempt may work, Unavailable
        for a host that cannot be reached, NotReady for invalid certificates on either side.
        """
        try:
            url = _url(request.url)
        except ValueError as exc:
            raise InvalidRequest(f"{endpoint.host}: not the address of a registry") from exc
        origin = url.origin()
        for _ in range(MAX_REDIRECTS):
            home = url.origin() == origin
            answer = await self._send(endpoint, request, url, home=home, seconds=seconds)
            if answer.status not in _REDIRECTS or request.method not in ("GET", "HEAD"):
                return answer
            location = answer.header("Location")
            answer.close()
            url = self._next(url, location)
        raise Unavailable(f"{_shown(url)}: redirected more than {MAX_REDIRECTS} times")

    def _next(self, url: URL, location: str) -> URL:
        try:
            # The URL may be signed, so no character of it may be re-encoded.
            target = _url(str(url.join(URL(location, encoded=True))))
            if not location or target.scheme not in ("http", "https") or not target.host:
                raise ValueError
        except ValueError as exc:
            raise Unavailable(f"{_shown(url)}: redirected to something that is not a URL") from exc
        if url.scheme == "https" and target.scheme != "https":
            raise Unavailable(f"{_shown(url)}: redirected to {_shown(target)}, which is not encrypted")
        return target

    async def _send(self, endpoint: Endpoint, request: Request, url: URL, *, home: bool, seconds: float) -> Answer:
        assert self._session is not None, "used outside its context"
        headers = [*request.headers.items(), *(request.private if home else ())]
        if request.form:
            headers.append(("Content-Type", "application/x-www-form-urlencoded"))
        at_endpoint = url.authority.lower() == URL(endpoint.base).authority.lower()
        context = self._tls(endpoint, full=at_endpoint) if url.scheme == "https" else True
        proxy = self._proxies.of(str(url.origin()))
        try:
            async with asyncio.timeout(max(seconds, endpoint.dial_seconds)):
                response = await self._session.request(
                    request.method,
                    url,
                    headers=headers,
                    data=request.form or None,
                    allow_redirects=False,
                    ssl=context,
                    proxy=proxy or None,
                    timeout=aiohttp.ClientTimeout(
                        total=None, sock_connect=endpoint.dial_seconds, sock_read=seconds, connect=None
                    ),
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            raise _meaning(exc, url, seconds) from exc
        return Answer(response, seconds)

    def _tls(self, endpoint: Endpoint, *, full: bool) -> ssl.SSLContext:
        """The TLS settings for a host. Only the endpoint itself gets `skip_verify` and its client keys (`full`)."""
        key = (endpoint.ca, endpoint.client if full else (), endpoint.skip_verify and full)
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = _tls_context(*key)
        return context


def _tls_context(
    authorities: tuple[str, ...], clients: tuple[tuple[str, str], ...], skip_verify: bool
) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    path = ""
    try:
        for path in authorities:
            context.load_verify_locations(cafile=path)
        for certificate, key in clients:
            path = certificate
            context.load_cert_chain(certificate, key or None)
    except (OSError, ssl.SSLError) as exc:
        words = exc.strerror if isinstance(exc, FileNotFoundError) else "not a usable PEM file"
        raise NotReady(f"{path}: {words}; hosts.toml names it") from exc
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _url(text: str) -> URL:
    """The URL as it is, not re-encoded. Raises ValueError: yarl checks host and port only when they are asked for."""
    parts = urlsplit(text)
    _ = parts.hostname, parts.port
    return URL(text, encoded=True)


def _shown(url: URL) -> str:
    """The URL for messages: without user, password and query."""
    return f"{url.scheme}://{url.host_port_subcomponent or ''}{url.raw_path}"


def _meaning(exc: Exception, url: URL, seconds: float) -> SandboxdError:
    """Our error for a failure to send, without secrets in its message."""
    host = f"{url.scheme}://{url.host_port_subcomponent or ''}"
    match exc:
        case aiohttp.ClientConnectorCertificateError():
            reason = getattr(exc.certificate_error, "verify_message", "") or "it is not trusted"
            return NotReady(
                f"{host}: its certificate was refused: {reason}; name a private authority as ca in hosts.toml"
            )
        case aiohttp.ClientConnectorDNSError():
            return Unavailable(f"{host}: the host is unknown ({exc.os_error.strerror or 'no address'})")
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            return Unavailable(f"{host}: the proxy could not be used")
        case aiohttp.ClientSSLError():
            reason = getattr(exc.os_error, "reason", None) or "no secure connection"
            return NotReady(f"{host}: TLS failed ({reason})")
        case aiohttp.ClientConnectorError():
            return Unavailable(f"{host}: cannot connect ({exc.os_error.strerror or 'refused'})")
        case TimeoutError():
            return Stalled(f"{_shown(url)}: no answer within {seconds:.3g} s")
        case aiohttp.InvalidURL() | ValueError():
            return Unavailable(f"{host}: not a valid URL")
        case aiohttp.ClientResponseError():
            return Broken(f"{_shown(url)}: the answer is not HTTP")
        case _:
            return Broken(f"{_shown(url)}: the connection was closed without an answer")

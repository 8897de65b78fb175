"""Authentication to one endpoint: the Authorization header that it requires, determined after a 401.

Tokens may expire during the pull of a large image; the next 401 renews them, once for all requests in progress.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sandboxd import disclosure
from sandboxd.errors import AccessDenied, SandboxdError, Unavailable
from sandboxd.registry import auth
from sandboxd.registry.auth import Credentials
from sandboxd.registry.hosts import Endpoint
from sandboxd.registry.patience import Broken, Patience, Stalled
from sandboxd.registry.request import Request

if TYPE_CHECKING:
    from sandboxd.registry.transport import Answer, Transport

MAX_TOKEN_BYTES = 1 << 20


class Login:
    """One endpoint, one repository, one pull."""

    def __init__(
        self,
        *,
        transport: Transport,
        endpoint: Endpoint,
        scope: str,
        credentials: Credentials,
        missing: SandboxdError | None = None,
    ) -> None:
        """`missing` is why there are no credentials although the machine may have some."""
        self._transport = transport
        self._endpoint = endpoint
        self._scope = scope
        self._credentials = credentials
        self._missing = missing
        self._renewing = asyncio.Lock()
        token = credentials.registry_token
        self.authorization = f"Bearer {token}" if token else ""
        self._tokens: deque[str] = deque(maxlen=4)  # the latest; a server may still quote an expired one

    def conceal(self, error: SandboxdError) -> None:
        """Remove secrets from an error: it quotes the server, and servers echo what they were sent."""
        error.args = tuple(self.concealed(arg) if isinstance(arg, str) else arg for arg in error.args)

    def explained(self, error: SandboxdError) -> SandboxdError:
        """The error to report for `error`: where access is denied, why the machine's credentials were missing."""
        if self._missing is None or not isinstance(error, AccessDenied):
            return error
        return type(self._missing)(f"{self._missing}; without it: {error}")

    def concealed(self, text: str) -> str:
        """A server's message without the secrets that it was sent."""
        return disclosure.without(text, self._shown())

    def _shown(self) -> Iterator[str]:
        """Every secret that the endpoint and its token server may have been sent."""
        own = self._credentials
        yield from (own.password, own.identity_token, own.registry_token)
        if own.username and own.password:
            yield auth.basic(own).partition(" ")[2]
        if own.identity_token:
            yield auth.basic(Credentials(password=own.identity_token)).partition(" ")[2]
        yield from self._tokens
        yield from (value for _, value in self._endpoint.headers)
        # Also only the token of "Bearer TOKEN".
        yield from (value.partition(" ")[2] for _, value in self._endpoint.headers)

    async def send(self, request: Request, seconds: float) -> Answer:
        """Send a request to the endpoint with the private headers and credentials that it requires."""
        private = list(self._endpoint.headers)
        if self.authorization:
            private = [(name, value) for name, value in private if name.lower() != "authorization"]
            private.append(("Authorization", self.authorization))
        authorized = Request(method=request.method, url=request.url, headers=request.headers, private=tuple(private))
        return await self._transport.send(self._endpoint, authorized, seconds)

    async def renew(self, challenges: Sequence[str], shown: str, patience: Patience) -> bool:
        """Answer the challenges after the authorization `shown` was refused; False when there is nothing better.

        Raises AccessDenied when the token server refuses.
        """
        async with self._renewing:
            if self.authorization != shown:
                return True  # another request has renewed it
            if self._credentials.registry_token:
                return False
            challenge = auth.choose(auth.parse_challenges(challenges))
            if challenge is None:
                return False
            if challenge.scheme == "basic":
                if not self._credentials.username or shown:
                    return False
                self.authorization = auth.basic(self._credentials)
            else:
                token = await self._token(challenge, patience)
                self._tokens.append(token)
                self.authorization = f"Bearer {token}"
            return True

    async def _token(self, challenge: auth.Challenge, patience: Patience) -> str:
        other = False
        while True:
            token = auth.token_request(
                challenge,
                self._credentials,
                self._scope,
                plain_allowed=self._endpoint.scheme == "http",
                other=other,
            )
            request = Request(
                method="POST" if token.form else "GET",
                url=token.url,
                private=(("Authorization", token.authorization),) if token.authorization else (),
                form=token.form,
            )
            error: SandboxdError
            try:
                answer = await self._transport.send(self._endpoint, request, patience.seconds)
                try:
                    if answer.status == 200:
                        return auth.parse_token(await answer.read(MAX_TOKEN_BYTES), token.realm)
                    status = answer.status
                finally:
                    answer.close()
            except (Broken, Stalled) as exc:
                await patience.again(exc)
                continue
            if status in (404, 405) and not other and not self._credentials.anonymous:
                other = True
                continue
            if status in (400, 401, 403):
                who = self._credentials.username or (
                    "the identity token" if self._credentials.identity_token else "anonymous"
                )
                raise AccessDenied(f"{token.realm} gives no token for {self._scope} to {who} (HTTP status {status})")
            error = Unavailable(f"{token.realm}: HTTP status {status} instead of a token")
            if status not in (429, 500, 502, 503, 504):
                raise error
            await patience.again(error)

"""Being known to one endpoint: the Authorization header that it wants, found out when it says 401.

Tokens expire while a large image is pulled; the next 401 renews them, once for all requests under way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence

from sandboxd import disclosure
from sandboxd.errors import AccessDenied, SandboxdError, Unavailable
from sandboxd.registry import auth
from sandboxd.registry.auth import Credentials
from sandboxd.registry.hosts import Endpoint
from sandboxd.registry.patience import Broken, Patience, Stalled
from sandboxd.registry.transport import Answer, Request, Transport

MOST_TOKEN_BYTES = 1 << 20


class Login:
    """One endpoint, one repository, one pull."""

    def __init__(self, *, transport: Transport, endpoint: Endpoint, scope: str, credentials: Credentials) -> None:
        self._transport = transport
        self._endpoint = endpoint
        self._scope = scope
        self._credentials = credentials
        self._renewing = asyncio.Lock()
        token = credentials.registry_token
        self.authorization = f"Bearer {token}" if token else ""
        self._tokens: deque[str] = deque(maxlen=4)  # the last ones; a server may still talk of one that has expired

    def conceal(self, error: SandboxdError) -> None:
        """Take what the endpoint was shown out of an error: a server's words are in it, and servers echo requests."""
        error.args = tuple(self.concealed(arg) if isinstance(arg, str) else arg for arg in error.args)

    def concealed(self, text: str) -> str:
        """A server's words without what it was shown."""
        return disclosure.without(text, self._shown())

    def _shown(self) -> Iterator[str]:
        """Everything private that the endpoint and its token server may have got to see."""
        known = self._credentials
        yield from (known.password, known.identity_token, known.registry_token)
        if known.username and known.password:
            yield auth.basic(known).partition(" ")[2]
        yield from self._tokens
        yield from (value for _, value in self._endpoint.headers)
        # Of "Bearer TOKEN" the token alone, too.
        yield from (value.partition(" ")[2] for _, value in self._endpoint.headers)

    async def send(self, request: Request, seconds: float) -> Answer:
        """Send a request to the endpoint with what it wants to see."""
        private = list(self._endpoint.headers)
        if self.authorization:
            private = [(name, value) for name, value in private if name.lower() != "authorization"]
            private.append(("Authorization", self.authorization))
        whole = Request(method=request.method, url=request.url, headers=request.headers, private=tuple(private))
        return await self._transport.send(self._endpoint, whole, seconds)

    async def renew(self, challenges: Sequence[str], shown: str, patience: Patience) -> bool:
        """Get what the challenges ask for, after `shown` was refused; False when there is nothing better to show.

        Raises AccessDenied when the token server refuses, or credentials are wanted and there are none.
        """
        async with self._renewing:
            if self.authorization != shown:
                return True  # somebody else was faster
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
        wanted = auth.token_request(
            challenge, self._credentials, self._scope, plain_allowed=self._endpoint.scheme == "http"
        )
        request = Request(
            method="POST" if wanted.form else "GET",
            url=wanted.url,
            private=(("Authorization", wanted.authorization),) if wanted.authorization else (),
            form=wanted.form,
        )
        while True:
            error: SandboxdError
            try:
                answer = await self._transport.send(self._endpoint, request, patience.seconds)
                try:
                    if answer.status == 200:
                        return auth.parse_token(await answer.read(MOST_TOKEN_BYTES), wanted.realm)
                    status = answer.status
                finally:
                    answer.close()
            except (Broken, Stalled) as exc:
                await patience.again(exc)
                continue
            if status in (400, 401, 403):
                who = self._credentials.username or ("the identity token" if wanted.form else "anonymous")
                raise AccessDenied(f"{wanted.realm} gives no token for {self._scope} to {who} (HTTP status {status})")
            error = Unavailable(f"{wanted.realm}: HTTP status {status} instead of a token")
            if status not in (429, 500, 502, 503, 504):
                raise error
            await patience.again(error)

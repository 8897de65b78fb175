"""What the answers mean with which registries refuse."""

from __future__ import annotations

from typing import cast

import pytest

from sandboxd.errors import (
    AccessDenied,
    Exhausted,
    InvalidRequest,
    NotFound,
    SandboxdError,
    Unavailable,
)
from sandboxd.registry.refusals import explanation, refusal
from sandboxd.registry.transport import Answer


class _Refusing:
    """An answer with a status and a body, or with one that cannot be read."""

    where = "https://registry.test/v2/app/manifests/1"

    def __init__(self, status: int, body: bytes | SandboxdError) -> None:
        self.status = status
        self._body = body

    async def read(self, most: int) -> bytes:
        if isinstance(self._body, SandboxdError):
            raise self._body
        assert len(self._body) <= most
        return self._body


def _answer(status: int, body: bytes | SandboxdError = b"") -> Answer:
    return cast(Answer, _Refusing(status, body))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, AccessDenied),
        (403, AccessDenied),
        (404, NotFound),
        (429, Exhausted),
        (500, Unavailable),
        (418, Unavailable),
    ],
)
async def test_a_status_becomes_our_error_which_says_where(status: int, kind: type[SandboxdError]) -> None:
    error = await refusal(_answer(status), str)

    assert type(error) is kind
    assert f"{_Refusing.where}: HTTP status {status}" in str(error)


async def test_a_refusal_has_the_registrys_words_without_secrets() -> None:
    body = b'{"errors": [{"message": "token s3cret is too old"}]}'

    error = await refusal(_answer(403, body), lambda words: words.replace("s3cret", "***"))

    assert "(token *** is too old)" in str(error)


async def test_a_refusal_whose_body_cannot_be_read_is_told_by_its_status() -> None:
    error = await refusal(_answer(404, Unavailable("broke off")), str)

    assert str(error) == f"{_Refusing.where}: HTTP status 404: it does not exist there"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"errors": [{"code": "A", "message": "is so"}, {"code": "B"}]}', "is so; B"),
        (b'{"errors": [{"message": "a\\u001b[31m\\nb"}]}', "a [31m b"),
        (b'{"errors": [{"message": "' + b"x" * 500 + b'"}]}', "x" * 200),
        (b"<html>", ""),
        (b'{"errors": 1}', ""),
        (b'{"errors": ["a"]}', ""),
        (b"", ""),
    ],
)
def test_a_registrys_explanation_is_short_and_printable(body: bytes, words: str) -> None:
    assert explanation(body) == words

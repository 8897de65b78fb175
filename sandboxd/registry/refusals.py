"""What the answers mean with which registries refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sandboxd import foreign_json
from sandboxd.errors import AccessDenied, Exhausted, InvalidRequest, NotFound, SandboxdError, Unavailable

if TYPE_CHECKING:
    from sandboxd.registry.transport import Answer

MAX_ERROR_BYTES = 64 << 10
MAX_EXPLANATION_CHARACTERS = 200  # of a registry's own error message


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

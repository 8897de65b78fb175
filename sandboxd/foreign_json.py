"""JSON from untrusted sources: images, and registries and their proxies.

Python accepts more than JSON allows, and some of it only to fail later in unexpected places: nesting that overflows
the stack when it is written again, NaN, numbers with thousands of digits, strings that cannot be encoded. Here all of
that is refused with one clear error. Time and memory are linear in the document, whose size the caller must bound.
"""

from __future__ import annotations

import json
import math
from typing import Any

from sandboxd.errors import InvalidRequest

DEPTH = 100
DIGITS = 100  # of a number; those that we use fit into 64 bits
SHOWN = 80  # characters of an untrusted string that a message quotes


def parse(data: bytes, what: str, *, repeated: bool = False) -> Any:
    """Read a JSON document in UTF-8. A repeated member is refused; with `repeated` its last value counts.

    Raises InvalidRequest, whose message names `what` and is short for any document.
    """
    try:
        text = data.decode("utf-8-sig")
        document = json.loads(
            text,
            object_pairs_hook=None if repeated else _once,
            parse_constant=_refuse,
            parse_int=_whole,
            parse_float=_finite,
        )
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"{what}: not valid JSON: not UTF-8 text") from exc
    except RecursionError:
        # Without the cause: its traceback is as long as the document is deep.
        raise InvalidRequest(f"{what}: not valid JSON: nested deeper than {DEPTH} levels") from None
    except ValueError as exc:
        raise InvalidRequest(f"{what}: not valid JSON: {exc}") from exc
    # Few documents have so many brackets, or escape surrogates: the others need no check.
    if text.count("[") + text.count("{") > DEPTH and not _is_shallow(document):
        raise InvalidRequest(f"{what}: not valid JSON: nested deeper than {DEPTH} levels")
    if ("\\ud" in text or "\\uD" in text) and not _encodable(document):
        raise InvalidRequest(f"{what}: not valid JSON: text with half a character (a lone surrogate)")
    return document


def parse_object(data: bytes, what: str, *, repeated: bool = False) -> dict[str, Any]:
    """The same for a document that must be an object."""
    document = parse(data, what, repeated=repeated)
    if not isinstance(document, dict):
        raise InvalidRequest(f"{what}: must be a JSON object")
    return document


def shown(value: object) -> str:
    """An untrusted value for messages: the beginning of a string, the kind of anything else that may be long."""
    match value:
        case str():
            return repr(value) if len(value) <= SHOWN else f"{value[:SHOWN]!r}… ({len(value)} characters)"
        case dict():
            return "an object"
        case list():
            return "a list"
        case _:
            return repr(value)  # a number of at most `DIGITS`, true, false or null


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is given twice")
    return members


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    value = float(digits)
    if math.isinf(value):  # 1e999
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _inner(item: object) -> Any:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def _is_shallow(document: object) -> bool:
    level = [document]
    for _ in range(DEPTH):
        level = [inner for item in level for inner in _inner(item)]
        if not level:
            return True
    return False


def _encodable(document: object) -> bool:
    level = [document]
    while level:
        for item in level:
            texts = item if isinstance(item, dict) else (item,)
            for text in texts:
                if isinstance(text, str) and not text.isascii():
                    try:
                        text.encode()
                    except UnicodeEncodeError:
                        return False
        level = [inner for item in level for inner in _inner(item)]
    return True

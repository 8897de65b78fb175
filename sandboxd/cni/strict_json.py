"""JSON objects as other programs write them: strict where Python is lenient, lenient where Go is.

What `load_object` returns can be written again for any plugin: it holds no NaN or infinity, which JSON cannot
express, and does not nest so deeply that writing or showing it would overflow the stack. Bytes that are not UTF-8
become U+FFFD, so a comment in Latin-1 spoils no network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

DEPTH = 100


def load_object(data: bytes) -> dict[str, Any]:
    """Read one JSON object. Raises ValueError whose text says what is wrong."""
    if not data.strip():
        raise ValueError("empty")
    try:
        document = _DECODER.decode(data.decode(errors="replace"))
    except RecursionError as exc:
        raise ValueError(f"nested deeper than {DEPTH} levels") from exc
    except ValueError as exc:
        raise ValueError(f"not valid JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, got {kind(document)}")
    if data.count(b"{") + data.count(b"[") > DEPTH and not _is_shallow(document):
        raise ValueError(f"nested deeper than {DEPTH} levels")
    return document


def in_any_case(item: Mapping[str, Any], key: str) -> Any:
    """The value of `key` in any case, as Go reads it; None when it is missing."""
    if key in item:
        return item[key]
    return next((value for other, value in item.items() if other.lower() == key.lower()), None)


def kind(value: object) -> str:
    """The kind of a JSON value, for messages; safe where `repr` of something huge is not."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")


def shown(value: object) -> str:
    """A JSON value for messages: the start of a string, the kind of anything else."""
    return repr(value[:60]) if isinstance(value, str) else kind(value)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):  # 1e999
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def _is_shallow(document: object) -> bool:
    level: list[object] = [document]
    for _ in range(DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return True
    return False

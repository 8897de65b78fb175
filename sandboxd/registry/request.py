"""A request to a registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An HTTP request. `private` headers go only to the URL's own origin; `form` is the body of a POST."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    private: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    form: bytes = field(default=b"", repr=False)

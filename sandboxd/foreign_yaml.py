"""YAML that others wrote: PyYAML's safe loader, with one error for all that it stumbles over, and a bound on nesting.

Its constructors fail on tagged scalars with whatever their code happens to raise, and its scanner takes a time that
grows with the square of the nesting.
"""

from __future__ import annotations

from typing import Any

import yaml

from sandboxd.errors import InvalidRequest

DEPTH = 100


class _Loader(yaml.SafeLoader):
    """Refuses what nests more deeply than `DEPTH`."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        super().fetch_flow_collection_start(token)
        self._check(self.flow_level)

    def add_indent(self, column: int) -> bool:
        added = bool(super().add_indent(column))
        self._check(len(self.indents))
        return added

    def _check(self, depth: int) -> None:
        if depth > DEPTH:
            raise yaml.YAMLError(f"nested deeper than {DEPTH} levels")


def parse(data: bytes, what: str) -> Any:
    """Read one document. Raises InvalidRequest, whose message names `what`.

    By aliases a short document can stand for a huge one, or contain itself: neither show it nor walk all of it.
    """
    loader = None
    try:
        loader = _Loader(data)
        return loader.get_single_data()
    except Exception as exc:
        words = " ".join(str(exc).split()) if isinstance(exc, yaml.YAMLError) else "a value is not what its tag says"
        raise InvalidRequest(f"{what}: not valid YAML: {words[:300]}") from exc
    finally:
        if loader is not None:
            loader.dispose()

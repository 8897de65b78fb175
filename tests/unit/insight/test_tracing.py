"""Tracing is off unless a collector is configured, and says what it needs."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

import pytest

from sandboxd import spans, steps
from sandboxd.config import Tracing
from sandboxd.errors import InvalidRequest
from sandboxd.insight import tracing

NOBODY = Tracing(endpoint="http://127.0.0.1:1", sample_ratio=0.5)


async def test_without_a_collector_nothing_is_begun() -> None:
    async with AsyncExitStack() as stack:
        tracing.begin(Tracing(), "1", stack)
        assert spans.begin() is None


async def test_with_one_there_are_spans_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxd.insight.traces.LEAVE_SECONDS", 0.01)
    before = len(steps._subscribers), len(steps._operations), len(steps._rpcs)
    async with AsyncExitStack() as stack:
        tracing.begin(NOBODY, "1", stack)
        assert spans.begin() is not None
    assert spans.begin() is None
    assert (len(steps._subscribers), len(steps._operations), len(steps._rpcs)) == before


async def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sandboxd.insight.traces", raising=False)
    monkeypatch.delattr("sandboxd.insight.traces", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    async with AsyncExitStack() as stack:
        with pytest.raises(InvalidRequest, match=r"pip install 'sandboxd\[otel\]'"):
            tracing.begin(NOBODY, "1", stack)
    assert spans.begin() is None

"""Turns tracing on, where a collector is configured."""

from __future__ import annotations

from contextlib import AsyncExitStack

from sandboxd import disclosure, spans, steps
from sandboxd.config import Tracing
from sandboxd.errors import InvalidRequest


def begin(wanted: Tracing, version: str, stack: AsyncExitStack) -> None:
    """Send spans of everything until `stack` is closed, if `wanted` names a collector.

    Raises InvalidRequest when OpenTelemetry, which is an extra, is not installed.
    """
    if not wanted.endpoint:
        return
    try:
        from sandboxd.insight.traces import Traces
    except ImportError as exc:
        raise InvalidRequest(
            f"tracing.endpoint is set, and OpenTelemetry is not installed ({disclosure.words(exc)}): "
            "pip install 'sandboxd[otel]', or leave tracing.endpoint empty"
        ) from exc
    traces = Traces.to_collector(wanted.endpoint, version)
    stack.push_async_callback(traces.close)
    for stop in (
        steps.subscribe(traces.step),
        steps.subscribe_operations(traces.operation),
        steps.subscribe_rpcs(traces.rpc),
    ):
        stack.callback(stop)
    spans.turn_on(wanted.sample_ratio)
    stack.callback(spans.turn_off)

"""What has ended, as OpenTelemetry spans, sent to a collector over OTLP: RPCs, operations, steps.

A span is named like its RPC, operation or step. Its ids were chosen when it began (`spans`), since plugins and
containerd were given them; here it is made whole, from the record of its end. It says what the log says.

Sending never delays anything: spans wait in a queue of `QUEUE`, and a thread sends them, a batch again and again for
`SEND_SECONDS`. While nobody takes them, the oldest are lost.

Imported only when tracing is on: OpenTelemetry comes with the extra "otel".
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from typing import Self

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from sandboxd import spans
from sandboxd.spans import Span
from sandboxd.steps import OperationRecord, RpcRecord, StepRecord

QUEUE = 4096  # spans
BATCH = 512
BATCH_SECONDS = 1.0  # for which a span waits for others
SEND_SECONDS = 5.0  # for one batch
LEAVE_SECONDS = 2.0  # at shutdown, for what is still queued

# A client's mistake, or its leaving, is no failure of the server (OpenTelemetry's conventions for gRPC).
_FAILED = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Traces:
    """Observers for `steps`, each called within the span that has ended."""

    def __init__(self, exporter: SpanExporter, version: str) -> None:
        self._given = _Given()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # what is recorded has been decided
            resource=Resource.create({"service.name": "sandboxd", "service.version": version}),
            id_generator=self._given,
            shutdown_on_exit=False,  # it would wait for half a minute
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter, max_queue_size=QUEUE, schedule_delay_millis=BATCH_SECONDS * 1e3, max_export_batch_size=BATCH
            )
        )
        self._tracer = self._provider.get_tracer("sandboxd", version)

    @classmethod
    def to_collector(cls, endpoint: str, version: str) -> Self:
        """Spans for the collector at a URL; "https" is TLS, with the certificates that OTEL_EXPORTER_OTLP_… names."""
        insecure = endpoint.startswith("http://")
        return cls(OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=SEND_SECONDS), version)

    def rpc(self, record: RpcRecord) -> None:
        """A span for an RPC."""
        error = record.code if record.code in _FAILED else ""
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": record.method,
            "rpc.response.status_code": record.code,
        }
        self._make(record.method, record, error, attributes, SpanKind.SERVER)

    def operation(self, record: OperationRecord) -> None:
        """A span for an operation; for `steps.subscribe_operations`."""
        self._make(record.operation, record, record.error, {"sandboxd.subject": record.subject, **_ids(record)})

    def step(self, record: StepRecord) -> None:
        """A span for a step; for `steps.subscribe`. That of a plugin says how its process ended."""
        attributes: dict[str, str | int] = {f"sandboxd.{key}": value for key, value in record.detail.items()}
        attributes |= {"sandboxd.operation": record.operation, **_ids(record)}
        if (plugin := record.plugin) is not None:
            attributes |= {
                "process.executable.path": plugin.binary,
                "process.exit.code": plugin.exit_code,
                "cni.command": plugin.command,
                "cni.plugin.seconds": str(plugin.duration / 1e9),
            }
        self._make(record.name, record, record.error, attributes)

    async def close(self) -> None:
        """Send what is queued, for `LEAVE_SECONDS`; the rest is lost."""
        over, loop = asyncio.Event(), asyncio.get_running_loop()

        def leave() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(over.set)

        # While a collector hangs, this takes half a minute. Nobody waits for a thread that is a daemon.
        threading.Thread(target=leave, daemon=True, name="last spans").start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await over.wait()

    def _make(
        self,
        name: str,
        record: RpcRecord | OperationRecord | StepRecord,
        error: str,
        attributes: Mapping[str, str | int],
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        span = spans.current()
        if span is None or not span.sampled:
            return
        self._given.is_for(span)
        made = self._tracer.start_span(
            name,
            context=set_span_in_context(NonRecordingSpan(_parent(span))),
            kind=kind,
            attributes={key: value for key, value in attributes.items() if value != ""},
            start_time=record.started_at,
        )
        if error:
            made.set_status(Status(StatusCode.ERROR, error))
        made.end(record.started_at + record.duration)


class _Given(IdGenerator):
    """The ids of the span that is being made; only the event loop's thread makes any."""

    def __init__(self) -> None:
        self._trace = self._span = 0

    def is_for(self, span: Span) -> None:
        self._trace, self._span = int(span.trace_id, 16), int(span.span_id, 16)

    def generate_trace_id(self) -> int:
        return self._trace

    def generate_span_id(self) -> int:
        return self._span


def _parent(span: Span) -> SpanContext:
    """The span around it; without one an invalid context, with which a trace begins."""
    return SpanContext(
        trace_id=int(span.trace_id, 16) if span.parent_id else 0,
        span_id=int(span.parent_id or "0", 16),
        is_remote=span.is_remote_parent,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
        trace_state=TraceState.from_header([span.state]) if span.state else None,
    )


def _ids(record: OperationRecord | StepRecord) -> dict[str, str]:
    return {"sandboxd.pod.id": record.sandbox_id, "container.id": record.container_id}

"""A collector of spans: OTLP over gRPC, as OpenTelemetry's own messages define it; a program for inside a test bed.

    python otlp_collector.py PORT FILE

Each span becomes a line of FILE, as JSON; `spans` reads them.
"""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.processes import until
from tests.testbed import ROOT, Testbed


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A span that has arrived."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    kind: str
    start: int
    end: int
    error: str | None  # None when its status is not one
    attributes: dict[str, Any]
    service: str


class Collector(service_grpc.TraceServiceServicer):
    """Writes down what it is sent."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def Export(self, request: service.ExportTraceServiceRequest, context: Any) -> service.ExportTraceServiceResponse:
        lines = [
            json.dumps(_line(span, _attributes(each.resource.attributes)["service.name"]))
            for each in request.resource_spans
            for scope in each.scope_spans
            for span in scope.spans
        ]
        with self._lock, self._file.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
        return service.ExportTraceServiceResponse()


def _line(span: trace_pb2.Span, named: str) -> dict[str, Any]:
    failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return {
        "name": span.name,
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex(),
        "state": span.trace_state,
        "kind": trace_pb2.Span.SpanKind.Name(span.kind),
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "error": span.status.message if failed else None,
        "attributes": _attributes(span.attributes),
        "service": named,
    }


def _attributes(pairs: Any) -> dict[str, Any]:
    def value(of: common_pb2.AnyValue) -> Any:
        kind = of.WhichOneof("value")
        return getattr(of, kind) if kind else None

    return {pair.key: value(pair.value) for pair in pairs}


def start(bed: Testbed, port: int) -> Path:
    """Start one on the bed's loopback; the file of its spans."""
    file, log = bed.base / "spans", bed.base / "collector.log"
    file.touch()
    argv = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.fakes.otlp_collector", str(port), str(file)]
    with log.open("w") as output:
        process = bed.popen(argv, stdout=output, stderr=output)

    def listening() -> bool:
        assert process.poll() is None, log.read_text("utf-8")
        return "listening" in log.read_text("utf-8")

    until(listening, what="the collector listens")
    return file


def spans(file: Path) -> list[Received]:
    """What has arrived so far."""
    return [Received(**json.loads(line)) for line in file.read_text("utf-8").splitlines()]


def main(port: str, file: str) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    service_grpc.add_TraceServiceServicer_to_server(Collector(Path(file)), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print("listening", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])

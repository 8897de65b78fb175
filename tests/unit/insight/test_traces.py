"""What has ended becomes spans, and no collector delays anything. A real one is in tests/e2e/test_observing.py."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from sandboxd import spans, steps
from sandboxd.insight import traces as module
from sandboxd.insight.traces import Traces
from sandboxd.steps import PluginExecution, RpcRecord

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(autouse=True)
def on() -> Iterator[None]:
    spans.turn_on(1.0)
    yield
    spans.turn_off()


class Sent:
    """Spans that the test asks for."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.traces = Traces(self._exporter, "1.2.3")

    async def spans(self) -> list[ReadableSpan]:
        await self.traces.close()
        return list(self._exporter.get_finished_spans())


@pytest.fixture
async def sent() -> AsyncIterator[Sent]:
    made = Sent()
    stops = [
        steps.subscribe(made.traces.step),
        steps.subscribe_operations(made.traces.operation),
        steps.subscribe_rpcs(made.traces.rpc),
    ]
    yield made
    for stop in stops:
        stop()
    await made.traces.close()


def client(flags: str = "01") -> spans.Span | None:
    return spans.remote([("traceparent", f"00-{TRACE}-{CLIENT}-{flags}"), ("tracestate", "vendor=1")])


def rpc(code: str = "OK") -> RpcRecord:
    return RpcRecord(method="runtime.v1.RuntimeService/RunPodSandbox", code=code, started_at=10**18, duration=5)


async def test_an_operation_and_its_steps_are_spans_one_within_the_other(sent: Sent) -> None:
    execution = PluginExecution(
        command="ADD", binary="/cni/bridge", env={}, stdin=b"secret", stdout=b"", stderr=b"", exit_code=0, duration=5
    )
    with spans.within(spans.begin(client())):
        with (
            steps.operation("RunPodSandbox", sandbox_id="p", subject="default/web"),
            steps.step("pod.network.attach", network="net"),
            steps.step("cni.add", plugin="bridge") as step,
        ):
            step.plugin = execution
        steps.answered(rpc())

    add, attach, operation, answered = await sent.spans()
    assert [each.name for each in (add, attach, operation, answered)] == [
        "cni.add",
        "pod.network.attach",
        "RunPodSandbox",
        "runtime.v1.RuntimeService/RunPodSandbox",
    ]
    for inner, outer in ((add, attach), (attach, operation), (operation, answered)):
        assert inner.parent is not None and inner.context is not None and outer.context is not None
        assert (inner.parent.trace_id, inner.parent.span_id) == (outer.context.trace_id, outer.context.span_id)
    assert answered.parent is not None
    assert f"{answered.parent.trace_id:032x} {answered.parent.span_id:016x}" == f"{TRACE} {CLIENT}"
    assert answered.parent.is_remote
    assert answered.context is not None and answered.context.trace_state.get("vendor") == "1"
    assert (answered.kind, answered.start_time, answered.end_time) == (SpanKind.SERVER, 10**18, 10**18 + 5)
    assert dict(answered.attributes or {})["rpc.response.status_code"] == "OK"
    assert dict(operation.attributes or {}) == {"sandboxd.subject": "default/web", "sandboxd.pod.id": "p"}
    assert dict(add.attributes or {}) == {
        "sandboxd.operation": "RunPodSandbox",
        "sandboxd.pod.id": "p",
        "sandboxd.plugin": "bridge",
        "cni.command": "ADD",
        "cni.plugin.seconds": "5e-09",
        "process.executable.path": "/cni/bridge",
        "process.exit.code": 0,
    }, "what a plugin was given is in the timeline only"
    assert add.resource.attributes["service.name"] == "sandboxd"
    assert add.resource.attributes["service.version"] == "1.2.3"


async def test_an_operation_that_no_client_traces_begins_a_trace(sent: Sent) -> None:
    with steps.operation("recover"):
        pass
    (span,) = await sent.spans()
    assert span.parent is None


async def test_what_fails_says_so(sent: Sent) -> None:
    with pytest.raises(ValueError), steps.operation("RunPodSandbox"), steps.step("pod.run"):
        raise ValueError("not today")
    for code in ("INTERNAL", "NOT_FOUND"):
        with spans.within(spans.begin()):
            steps.answered(rpc(code))

    step, operation, broken, refused = await sent.spans()
    for span in (step, operation):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "not today")
    assert broken.status.status_code is StatusCode.ERROR
    assert refused.status.status_code is StatusCode.UNSET, "the client has asked for what is not there"


async def test_what_is_not_sampled_is_not_sent(sent: Sent) -> None:
    with spans.within(spans.begin(client("00"))), steps.operation("RunPodSandbox"), steps.step("pod.run"):
        pass
    assert await sent.spans() == []


class Stuck(SpanExporter):
    """A collector that does not answer."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.over = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.over.wait(60)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        pass


async def test_a_collector_that_hangs_delays_neither_work_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE", 8)
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(module, "LEAVE_SECONDS", 0.05)
    stuck = Stuck()
    traces = Traces(stuck, "1")
    stop = steps.subscribe(traces.step)
    try:
        for _ in range(100):
            with steps.step("pod.run"):
                pass
        assert stuck.asked.wait(20)
        await traces.close()
        assert not stuck.over.is_set(), "it still hangs"
    finally:
        stop()
        stuck.over.set()

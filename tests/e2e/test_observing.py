"""What a daemon exposes and sends about a pod's life: metrics as they are promised, spans from the client's on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.vocabulary import NAMES
from tests import observing
from tests.fakes import otlp_collector
from tests.fakes.cni_plugin import calls, install
from tests.fakes.otlp_collector import Received
from tests.pods import create_container, pod_config, pod_info, remove_pod, run_container, shell
from tests.processes import until
from tests.testbed import Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.insight]

METRICS_PORT, COLLECTOR_PORT = 9477, 4317
PLUGINS = "/opt/cni/bin"
CLIENT = "00f067aa0ba902b7"  # the client's span in each trace
WELL, FAILS, HANGS = (f"{number:032x}" for number in (0xA, 0xB, 0xC))  # traces
OUTPUT = 20_000  # bytes that the container writes


@dataclass(frozen=True, kw_only=True)
class Life:
    """What was to be seen of a pod that lived, of one whose ADD hung, and of one whose ADD failed."""

    bed: Testbed
    pod_id: str
    timeline: list[dict[str, Any]]  # of the pod that lived
    called: list[dict[str, Any]]  # the recording plugin's calls
    during: str  # the metrics while an ADD hung
    after: str  # at the end
    spans: list[Received]

    def trace(self, trace_id: str) -> dict[str, list[Received]]:
        """The spans of a trace by name."""
        found: dict[str, list[Received]] = {}
        for span in self.spans:
            if span.trace_id == trace_id:
                found.setdefault(span.name, []).append(span)
        return found

    def value(self, name: str, *, text: str = "", **labels: str) -> float:
        return observing.values(text or self.after)[name, frozenset(labels.items())]


def scrape(bed: Testbed) -> str:
    status, text = bed.http_get("127.0.0.1", METRICS_PORT, "/metrics")
    assert status == 200
    return text


def traced(bed: Testbed, trace_id: str, name: str) -> str:
    """RunPodSandbox within a client's span."""
    headers = (("traceparent", f"00-{trace_id}-{CLIENT}-01"), ("tracestate", "vendor=1"))
    request = cri.RunPodSandboxRequest(config=pod_config(name))
    return str(bed.runtime.RunPodSandbox(request, metadata=headers, timeout=120).pod_sandbox_id)


@pytest.fixture(scope="module")
def life(containerd_bin: Path | None) -> Iterator[Life]:
    with Testbed(containerd_bin=containerd_bin) as bed:
        network = bed.default_network()
        directory = bed.path(PLUGINS)
        directory.mkdir(parents=True, exist_ok=True)
        script = {"ADD": [{}, {"wait_for": "go"}, {"error": {"code": 7, "msg": "not today"}}]}
        install(str(directory), "recorder", script)
        conflist = {**network.conflist, "plugins": [*network.conflist["plugins"], {"type": "recorder"}]}
        bed.write(network.file, json.dumps(conflist))
        file = otlp_collector.start(bed, COLLECTOR_PORT)
        bed.start_daemon(
            metrics={"address": f"127.0.0.1:{METRICS_PORT}"},
            tracing={"endpoint": f"http://127.0.0.1:{COLLECTOR_PORT}", "sample_ratio": 0.0},
        )
        bed.load_image("busybox")
        pod_id = traced(bed, WELL, "well")
        run_container(bed, pod_id, shell(f"head -c {OUTPUT} /dev/zero | tr '\\0' x; sleep 600"))
        create_container(bed, pod_id, shell("true"))
        timeline = pod_info(bed, pod_id)["timeline"]

        def settled() -> bool:
            found = observing.values(scrape(bed))
            return found["sandboxd_log_read_bytes_total", frozenset()] >= OUTPUT and any(
                name == "sandboxd_network_addresses_used" and value == 2 for (name, _), value in found.items()
            )

        with ThreadPoolExecutor(1) as client:
            hanging = client.submit(traced, bed, HANGS, "hangs")
            until(settled, what="the figures that are looked at now and then")
            until(lambda: len(calls(str(directory))) >= 3, what="the second ADD")  # VERSION comes before the first
            during = scrape(bed)
            (directory / "go").touch()
            second = hanging.result(timeout=120)
        with pytest.raises(grpc.RpcError):
            traced(bed, FAILS, "fails")
        for each in (pod_id, second):
            remove_pod(bed, each)
        last = ("runtime.v1.RuntimeService/RunPodSandbox", FAILS)
        until(
            lambda: last in [(span.name, span.trace_id) for span in otlp_collector.spans(file)],
            what="the last of the spans has arrived",
        )
        yield Life(
            bed=bed,
            pod_id=pod_id,
            timeline=timeline,
            called=calls(str(directory)),
            during=during,
            after=scrape(bed),
            spans=otlp_collector.spans(file),
        )


def test_every_metric_is_documented_with_its_type_and_labels_and_nothing_else_is(life: Life) -> None:
    promised = observing.documented()
    for text in (life.during, life.after):
        assert set(observing.exposed(text)) == set(promised)
    seen = {
        name: observing.Metric(
            name=name, kind=metric.kind, labels=metric.labels | observing.exposed(life.during)[name].labels
        )
        for name, metric in observing.exposed(life.after).items()
    }
    assert seen == promised


def test_what_the_dashboard_and_the_alerts_ask_for_is_exposed(life: Life) -> None:
    promised, exposed = observing.documented(), observing.exposed(life.after)
    asked = [(where, *each) for where, text in observing.expressions().items() for each in observing.demanded(text)]
    assert len({where for where, _, _ in asked}) == len(observing.expressions()) - 1, "all but `up`"
    missing = [
        (where, name, labels)
        for where, name, labels in asked
        if name not in exposed or not labels <= promised[name].labels
    ]
    assert missing == []


def test_a_pods_life_is_counted(life: Life) -> None:
    runs = "runtime.v1.RuntimeService/RunPodSandbox"
    value = life.value
    assert value("sandboxd_rpcs_total", method=runs, code="OK") == 2
    assert value("sandboxd_rpc_seconds_count", method=runs, code="OK") == 2
    assert value("sandboxd_operation_seconds_count", operation="RunPodSandbox", outcome="ok") == 2
    assert value("sandboxd_operation_seconds_count", operation="RunPodSandbox", outcome="error") == 1
    assert value("sandboxd_plugin_seconds_count", plugin="bridge", command="ADD", outcome="ok") == 3
    assert value("sandboxd_plugin_seconds_count", plugin="recorder", command="ADD", outcome="error") == 1
    assert value("sandboxd_operations_failed_total", operation="RunPodSandbox") == 1
    assert value("sandboxd_network_failures_total", plugin="recorder", command="ADD", kind="other") == 1
    assert value("sandboxd_failures_kept") == 1
    assert value("sandboxd_pods", state="ready") == 0


def test_what_goes_on_is_shown_while_it_does(life: Life) -> None:
    def value(name: str, **labels: str) -> float:
        return life.value(name, text=life.during, **labels)

    assert value("sandboxd_pods", state="ready") == value("sandboxd_pods", state="creating") == 1
    assert value("sandboxd_containers", state="running") == value("sandboxd_containers", state="created") == 1
    assert value("sandboxd_operations_in_flight", operation="RunPodSandbox") == 1
    assert value("sandboxd_operation_oldest_seconds", operation="RunPodSandbox") > 0
    assert value("sandboxd_steps_in_flight", step="cni.add") == 1
    assert value("sandboxd_rpcs_in_flight", method="runtime.v1.RuntimeService/RunPodSandbox") == 1
    assert value("sandboxd_plugins_in_flight", command="ADD") == 1
    assert value("sandboxd_ready") == value("sandboxd_containerd_up") == value("sandboxd_logger_up") == 1


def test_the_addresses_of_a_range_are_counted(life: Life) -> None:
    found = observing.values(life.during)
    ((_, labels),) = (key for key in found if key[0] == "sandboxd_network_addresses_used")
    assert life.value("sandboxd_network_addresses_used", text=life.during, **dict(labels)) == 2
    assert life.value("sandboxd_network_addresses_left", text=life.during, **dict(labels)) == 251  # of a /24


def test_spans_lead_from_the_clients_through_rpc_operation_and_steps_to_each_plugin(life: Life) -> None:
    trace = life.trace(WELL)
    (rpc,) = trace["runtime.v1.RuntimeService/RunPodSandbox"]
    (operation,) = trace["RunPodSandbox"]
    (run,), (attach,) = trace["pod.run"], trace["pod.network.attach"]
    assert (rpc.parent_id, rpc.kind, rpc.service) == (CLIENT, "SPAN_KIND_SERVER", "sandboxd")
    assert operation.parent_id == rpc.span_id
    assert run.parent_id == operation.span_id
    assert attach.parent_id == run.span_id
    assert {span.parent_id for span in trace["cni.add"]} == {attach.span_id}
    assert {span.attributes["sandboxd.plugin"] for span in trace["cni.add"]} >= {"bridge", "recorder"}
    by_id = {span.span_id: span for each in trace.values() for span in each}
    for span in by_id.values():
        assert span.state == "vendor=1"
        assert span.error is None
        if span is not rpc:
            outer = by_id[span.parent_id]
            assert outer.start <= span.start, (outer.name, span.name)
    assert set(trace) - {rpc.name, operation.name} <= set(NAMES), "spans are named like steps"


def test_a_plugin_is_given_the_span_that_it_runs_in(life: Life) -> None:
    (add,) = (call for call in life.called if call["command"] == "ADD" and call["n"] == 0)
    (span,) = (each for each in life.trace(WELL)["cni.add"] if each.attributes["sandboxd.plugin"] == "recorder")
    assert add["env"]["TRACEPARENT"] == f"00-{WELL}-{span.span_id}-01"
    assert add["env"]["TRACESTATE"] == "vendor=1"
    assert span.attributes["cni.command"] == "ADD"
    assert span.attributes["process.exit.code"] == 0


def test_the_timeline_shows_a_plugins_span_and_its_del_is_given_its_own(life: Life) -> None:
    recorded = [each["plugin"]["env"] for each in life.timeline if each["step"] == "cni.add"]
    assert {env["TRACEPARENT"].split("-")[1] for env in recorded} == {WELL}
    (add,) = (call["env"] for call in life.called if call["command"] == "ADD" and call["n"] == 0)
    (gone,) = (
        call["env"]
        for call in life.called
        if call["command"] == "DEL" and call["env"]["CNI_CONTAINERID"] == add["CNI_CONTAINERID"]
    )
    assert gone["TRACEPARENT"].split("-")[1] != WELL
    spanless = {"CNI_COMMAND", "TRACEPARENT", "TRACESTATE"}
    assert {k: v for k, v in gone.items() if k not in spanless} == {k: v for k, v in add.items() if k not in spanless}


def test_what_fails_has_an_error_on_its_span_and_on_those_around_it(life: Life) -> None:
    trace = life.trace(FAILS)
    (plugin,) = (each for each in trace["cni.add"] if each.attributes["sandboxd.plugin"] == "recorder")
    assert plugin.error is not None and "not today" in plugin.error
    assert plugin.attributes["process.exit.code"] == 1
    for name in ("pod.network.attach", "pod.run", "RunPodSandbox"):
        (span,) = trace[name]
        assert span.error is not None and "not today" in span.error, name
    assert all(span.error is None for span in trace["cni.del"])


def test_what_no_client_traces_is_sent_as_often_as_configured_which_is_never_here(life: Life) -> None:
    assert {span.trace_id for span in life.spans} == {WELL, HANGS, FAILS}


def test_log_lines_name_their_trace(life: Life) -> None:
    lines = [line for line in life.bed.log_file.read_text("utf-8").splitlines() if FAILS in line]
    assert any("recorder" in line for line in lines)
    assert all(re.search(rf"trace_id\S*=\S*{FAILS}", line) for line in lines)

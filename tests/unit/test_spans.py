"""The current span and what hands it on, by the rules of https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from sandboxd import spans
from sandboxd.jobs import Jobs

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def on() -> Iterator[None]:
    spans.turn_on(1.0)
    yield
    spans.turn_off()


def test_nothing_is_begun_while_it_is_off() -> None:
    assert spans.remote([("traceparent", GIVEN)]) is None
    assert spans.begin() is None
    with spans.within(spans.begin()):
        assert spans.current() is None
        assert spans.environment() == {}


def test_a_span_below_the_clients_is_in_its_trace_and_hands_on_itself(on: None) -> None:
    client = spans.remote([("user-agent", "x"), ("traceparent", GIVEN), ("tracestate", "a=1,b=2")])
    span = spans.begin(client)
    assert span is not None
    assert (span.trace_id, span.parent_id, span.is_remote_parent, span.sampled) == (TRACE, SPAN, True, True)
    assert span.span_id != SPAN
    assert span.headers == (("traceparent", f"00-{TRACE}-{span.span_id}-01"), ("tracestate", "a=1,b=2"))


def test_a_span_is_below_the_one_that_it_is_begun_in(on: None) -> None:
    outer = spans.begin()
    with spans.within(outer):
        inner = spans.begin()
        assert outer is not None and inner is not None
        assert (inner.trace_id, inner.parent_id, inner.is_remote_parent) == (outer.trace_id, outer.span_id, False)
    assert spans.current() is None
    assert outer.parent_id == ""


@pytest.mark.parametrize(
    "header",
    [
        "",
        "junk",
        GIVEN.upper(),
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"{GIVEN}-more",
        f"00-{TRACE}-{SPAN}-1",
        f" {GIVEN}",
        f"00-{TRACE}-{SPAN}-zz",
    ],
)
def test_a_header_that_is_not_valid_is_as_good_as_none(on: None, header: str) -> None:
    assert spans.remote([("traceparent", header)]) is None


def test_fields_that_a_later_version_appends_are_passed_over(on: None) -> None:
    span = spans.remote([("traceparent", f"01-{TRACE}-{SPAN}-01-what"), ("tracestate", b"a=1")])
    assert span is not None
    assert (span.trace_id, span.state) == (TRACE, "a=1")
    assert spans.remote([("traceparent", f"01-{TRACE}-{SPAN}-01what")]) is None


@pytest.mark.parametrize("state", ["a=" + "x" * 600, "a=1\nb=2", "a=ü"])
def test_a_state_that_may_not_be_passed_on_is_left_out(on: None, state: str) -> None:
    span = spans.remote([("traceparent", GIVEN), ("tracestate", state)])
    assert span is not None
    assert span.state == ""


def test_the_client_decides_what_of_its_trace_is_recorded() -> None:
    for ratio, flag in ((0.0, "01"), (1.0, "00")):
        spans.turn_on(ratio)
        try:
            span = spans.begin(spans.remote([("traceparent", f"00-{TRACE}-{SPAN}-{flag}")]))
        finally:
            spans.turn_off()
        assert span is not None
        assert span.sampled == (flag == "01")
        assert span.headers[0][1].endswith(f"-{flag}")


@pytest.mark.parametrize(
    ("ratio", "trace_id", "taken"),
    [
        (0.0, "0" * 32, False),
        (1.0, "f" * 32, True),
        (0.5, "f" * 16 + "7" + "f" * 15, True),
        (0.5, "0" * 16 + "8" + "0" * 15, False),
    ],
)
def test_of_traces_that_begin_here_a_part_is_recorded_by_their_ids(
    monkeypatch: pytest.MonkeyPatch, ratio: float, trace_id: str, taken: bool
) -> None:
    monkeypatch.setattr("sandboxd.spans.secrets.token_hex", lambda count: trace_id if count == 16 else SPAN)
    spans.turn_on(ratio)
    try:
        span = spans.begin()
    finally:
        spans.turn_off()
    assert span is not None
    assert span.sampled == taken


async def test_it_follows_awaits_and_the_jobs_started_within_it_and_no_others(on: None) -> None:
    jobs = Jobs()

    async def seen() -> spans.Span | None:
        await asyncio.sleep(0)
        return spans.current()

    span = spans.begin()
    with spans.within(span):
        assert await seen() is span
        job = jobs.spawn("inside", seen)
    assert await job is span
    assert await jobs.run_to_end("outside", seen) is None


def test_a_program_is_told_by_variables(on: None) -> None:
    span = spans.begin(spans.remote([("traceparent", GIVEN), ("tracestate", "a=1")]))
    with spans.within(span):
        assert span is not None
        assert spans.environment() == {"TRACEPARENT": f"00-{TRACE}-{span.span_id}-01", "TRACESTATE": "a=1"}

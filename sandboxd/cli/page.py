"""Explain's answer → one HTML page: what failed, the network drawn, the story with its waterfall. Pure.

The page stands alone: it has no script, its policy forbids it to load anything, and the one stylesheet that may take
effect is its own, known by its digest. It holds what plugins were given, with the secrets of their configuration.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from sandboxd.cli import nesting
from sandboxd.cli.drawing import drawing, in_words
from sandboxd.cli.markup import NOTHING, Content, Markup, joined, tag
from sandboxd.cli.nesting import Node
from sandboxd.cli.render import span
from sandboxd.cli.stylesheet import STYLESHEET
from sandboxd.cli.topology import State, topology
from sandboxd.cli.waterfall import Scale, legend, waterfall
from sandboxd.pb.host.v1 import host_pb2 as host


def page(answer: host.ExplainResponse, title: str, now: int) -> str:
    """The whole document. `title` names what was asked about; `now` is the time, in unix nanoseconds."""
    digest = base64.b64encode(hashlib.sha256(STYLESHEET.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{title} · sandboxd explain"),
        tag("style", Markup(STYLESHEET)),
    )
    body = tag("body", tag("main", *_sections(answer, title, now)))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _sections(answer: host.ExplainResponse, title: str, now: int) -> Iterator[Markup]:
    failed = [each for each in answer.operations if each.duration]
    yield _header(answer, title)
    if failed and not _running(answer):
        yield _failure(failed[0])
    yield from _network(answer, title)
    yield from _debts(answer.attachments)
    yield _story(answer, now)
    made = f"Written by sandboxctl explain --html, {_clock(now)} UTC. "
    yield tag("footer", made, "It holds the plugins' configuration, and whatever secrets that has.")


def _header(answer: host.ExplainResponse, title: str) -> Markup:
    word, style = _state(answer)
    facts = []
    if answer.pod_sandbox_id:
        facts.append(("pod id", answer.pod_sandbox_id))
        gone = "" if answer.netns_inode else "  (gone)"
        inode = f"  inode {answer.netns_inode}" if answer.netns_inode else gone
        facts.append(("network namespace", f"{answer.netns_path}{inode}" if answer.netns_path else "the host's own"))
        pause = "none: the namespaces are pinned" if answer.pinned else "not running"
        facts.append(("pause container", f"pid {answer.pid}" if answer.pid else pause))
    listed = tag("dl", [joined(tag("dt", key), tag("dd", value)) for key, value in facts], class_="facts")
    name = tag("h1", title, tag("span", word, class_=f"state {style}"))
    return tag("header", name, listed if facts else NOTHING)


def _state(answer: host.ExplainResponse) -> tuple[str, str]:
    if answer.pid or (answer.pinned and answer.netns_inode):
        return "running", "good"
    if _running(answer):
        return "under way", "idle"
    if answer.pod_sandbox_id:
        return "not running", "idle"
    return ("✗ failed", "bad") if answer.operations else ("nothing is known", "idle")


def _failure(failed: host.Operation) -> Markup:
    """The newest failure in short: what it said, its cause and the next step; where it began is in the story."""
    times = f", {failed.times} times in a row" if failed.times > 1 else ""
    known = [each for each in failed.steps if each.error and (each.detail.get("cause") or each.detail.get("next"))]
    # The request's error has cause and next step at its end; the step's is what was said.
    said = next((each.error for each in known if each.detail.get("cause")), failed.error)
    told = [tag("p", said, class_="said")]
    for label in ("cause", "next"):
        words = [*dict.fromkeys(each.detail[label] for each in known if each.detail.get(label))]
        told += [tag("p", tag("b", label), " ", each, class_=f"note {label}") for each in words]
    head = f"✗ {failed.operation} {failed.subject} failed {_clock(failed.started_at + failed.duration)} UTC{times}"
    return tag("section", tag("h2", head), *told, class_="failure")


def _network(answer: host.ExplainResponse, title: str) -> Iterator[Markup]:
    drawn = topology(answer)
    if drawn is None:
        return
    words = tag("ul", [tag("li", each) for each in in_words(drawn, title)])
    undone = drawn.namespace is not State.THERE and not drawn.of_host
    caption = "As far as it got; what was made has been undone." if undone and not answer.pod_sandbox_id else ""
    yield tag(
        "section",
        tag("h2", "Network"),
        tag("figure", drawing(drawn, title), tag("figcaption", caption) if caption else NOTHING),
        tag("details", tag("summary", "The drawing in words"), words, class_="words"),
        class_="network",
    )


def _debts(attachments: Iterable[host.Attachment]) -> Iterator[Markup]:
    """The networks whose last ADD or DEL failed."""
    wrong = [each for each in attachments if each.error]
    if wrong:
        told = [
            tag("p", tag("b", f"{each.network} {each.ifname} {each.state}"), f" {each.error}"
                + (f" (DEL tried {each.attempts} times)" if each.attempts > 1 else ""), class_="said")
            for each in wrong
        ]  # fmt: skip
        yield tag("section", tag("h2", "✗ Networks in trouble"), *told, class_="failure")


def _story(answer: host.ExplainResponse, now: int) -> Markup:
    told: list[Content] = []
    running = [*_running(answer)]
    # A pod's own steps have those of what is under way for it: they are told there.
    elsewhere = {(step.name, step.started_at) for each in running for step in each.steps}
    steps = [each for each in answer.steps if (each.name, each.started_at) not in elsewhere]
    for name, nodes in nesting.operations(steps):
        told.append(_chapter(name, "", nodes))
    told += [_under_way(each, now) for each in running]
    failed = [each for each in answer.operations if each.duration]
    told += [_failed(each) for each in failed[:1]]
    if failed[1:]:
        head = tag("summary", f"{len(failed) - 1} earlier failures")
        told.append(tag("details", head, *(_failed(each) for each in failed[1:]), class_="earlier"))
    if not told:
        told.append(tag("p", "No step is recorded."))
    return tag("section", tag("h2", "What was done"), *told, legend(), class_="story")


def _chapter(name: str, subject: str, nodes: Sequence[Node]) -> Markup:
    every = [node.step for node, _ in nesting.walk(nodes)]
    scale = Scale(min(each.started_at for each in every), max(each.started_at + each.duration for each in every))
    millis = scale.begin // 10**6 % 1000
    when = f"{_clock(scale.begin)}.{millis:03} UTC, took {span(scale.end - scale.begin)}"
    return _operation(f"{name} {subject}".rstrip(), when, waterfall(nodes, scale))


def _under_way(running: host.Operation, now: int) -> Markup:
    """Its finished steps, and those that it is in, which last until now."""
    waiting = []
    for each in running.open:
        step = host.Step(started_at=running.started_at)
        step.MergeFrom(each)
        step.duration = max(0, now - step.started_at)
        waiting.append(step)
    nodes = nesting.tree([*running.steps, *waiting])
    when = f"under way for {span(max(0, now - running.started_at))}, since {_clock(running.started_at)} UTC"
    rows = waterfall(nodes, Scale(running.started_at, max(now, running.started_at)), waiting)
    return _operation(f"… {running.operation} {running.subject}", when, rows)


def _failed(failed: host.Operation) -> Markup:
    times = f", {failed.times} times in a row" if failed.times > 1 else ""
    end = failed.started_at + failed.duration
    nodes = nesting.tree(failed.steps)
    last = max((each.started_at + each.duration for each in failed.steps), default=end)
    rows = waterfall(nodes, Scale(failed.started_at, max(end, last)))
    when = f"failed {_clock(end)} UTC after {span(failed.duration)}{times}"
    error = NOTHING if failed.steps else tag("p", failed.error, class_="said")
    return _operation(f"✗ {failed.operation} {failed.subject}", when, joined(error, rows if nodes else NOTHING))


def _operation(name: str, when: str, content: Markup) -> Markup:
    return tag("div", tag("h3", name, tag("small", when)), content, class_="operation")


def _running(answer: host.ExplainResponse) -> list[host.Operation]:
    return [each for each in answer.operations if not each.duration]


def _clock(moment: int) -> str:
    return datetime.fromtimestamp(moment // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")

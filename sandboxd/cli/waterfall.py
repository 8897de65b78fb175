"""The steps of an operation as a waterfall: a row for each, with a bar from its start to its end. Pure.

Rows are nested lists, each step within what it was a part of, so the order and the nesting are read without the bars.
A row unfolds to all that is recorded of the step; what a person should not miss stands below it, unfolded.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sandboxd.cli import nesting, plugin_results
from sandboxd.cli.markup import NOTHING, Markup, joined, tag
from sandboxd.cli.names import SHORT_ID
from sandboxd.cli.nesting import Node
from sandboxd.cli.render import span
from sandboxd.cli.sentences import remarks, sentence
from sandboxd.pb.host.v1 import host_pb2 as host

_DEEPEST = 5  # levels that are indented further
_TICKS = 5  # at most, besides 0
_THIN = 0.4  # percent: a bar that is shorter could not be seen
# What a bar's colour says, by the beginning of the step's name; its class, and the word in the legend.
_KINDS = (
    (("cni.", "pod.netns", "pod.userns", "pod.network"), "network", "network"),
    (("pod.pause", "container", "pod.containers"), "container", "containers"),
    (("pod.files", "image"), "files", "files and images"),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """The time that the width of the bars stands for, in unix nanoseconds."""

    begin: int
    end: int

    def percent(self, moment: int) -> float:
        """Where the moment is, from 0 to 100."""
        return min(100.0, max(0.0, 100 * (moment - self.begin) / max(1, self.end - self.begin)))

    def ticks(self) -> list[int]:
        """Round distances from the beginning, in nanoseconds."""
        whole = max(1, self.end - self.begin)
        power = 1
        while True:
            for each in (power, 2 * power, 5 * power):
                if whole // each <= _TICKS:
                    return [number * each for number in range(whole // each + 1)]
            power *= 10


def waterfall(nodes: Sequence[Node], scale: Scale, open_steps: Iterable[host.Step] = ()) -> Markup:
    """The rows of one operation under their axis. `open_steps`, which are among the nodes, have not ended yet."""
    going = {(each.name, each.started_at) for each in open_steps}
    rows = tag("ol", [_row(node, 0, scale, going) for node in nodes])
    return tag("div", _axis(scale), rows, class_="waterfall")


def legend() -> Markup:
    """What the marks and the colours of the bars mean."""
    kinds = [tag("span", _swatch(kind), word) for _, kind, word in _KINDS]
    marks = (
        tag("span", _swatch("whole"), "made of the steps below it"),
        tag("span", _swatch("network failed"), "✗ failed"),
        tag("span", "∥ goes on beside the steps above it"),
    )
    return tag("p", *kinds, *marks, class_="legend")


def _axis(scale: Scale) -> Markup:
    marks = [
        tag("text", span(each) if each else "0", x=f"{scale.percent(scale.begin + each):.2f}%", y=11,
            text_anchor="start" if not each else "end" if scale.percent(scale.begin + each) > 95 else "middle")
        for each in scale.ticks()
    ]  # fmt: skip
    head = (
        tag("span", "start", class_="when"),
        tag("span", "took", class_="took"),
        tag("span", "step", class_="what"),
    )
    return tag("div", *head, tag("svg", *marks, class_="bar axis"), class_="row head", aria_hidden="true")


def _row(node: Node, depth: int, scale: Scale, going: set[tuple[str, int]]) -> Markup:
    step = node.step
    under_way = (step.name, step.started_at) in going
    row = tag(
        "summary",
        tag("span", f"+{span(max(0, step.started_at - scale.begin))}", class_="when"),
        tag("span", span(step.duration), *((tag("small", " so far"),) if under_way else ()), class_="took"),
        tag(
            "span",
            tag("b", "✗ ", class_="mark", role="img", aria_label="failed") if step.error else NOTHING,
            tag("b", "… ", class_="mark", role="img", aria_label="under way") if under_way else NOTHING,
            tag("span", "∥ ", class_="beside", role="img", aria_label="beside the one before") if node.beside else "",
            _told(step),
            class_=f"what d{min(depth, _DEEPEST)}",
        ),
        _bar(node, scale, under_way),
        class_="row",
    )
    whole = tag("details", row, tag("div", *_record(step), class_="record"))
    notes = [*_notes(node)]
    below = tag("div", notes, class_=f"notes d{min(depth, _DEEPEST)}") if notes else NOTHING
    parts = tag("ol", [_row(each, depth + 1, scale, going) for each in node.parts]) if node.parts else NOTHING
    names = " ".join(("step", *(["failed"] if step.error else []), *(["running"] if under_way else [])))
    return tag("li", whole, below, parts, class_=names, data_step=step.name)


def _told(step: host.Step) -> Markup:
    """The sentence; of a plugin's execution what it made, and its own time, which a wait can precede."""
    if not step.HasField("plugin") or step.name == "cni.version":
        return joined(sentence(step))
    said, _, own = plugin_results.line(step.plugin).rpartition("  ")
    return joined(said, tag("small", f" · {own}", class_="own"))


def _bar(node: Node, scale: Scale, under_way: bool) -> Markup:
    step = node.step
    left = min(scale.percent(step.started_at), 100 - _THIN)
    width = max(_THIN, scale.percent(step.started_at + step.duration) - left)
    kind = "whole" if node.parts else _kind(step.name)
    state = " failed" if step.error else " running" if under_way else ""
    lines = [
        tag("line", x1=f"{x:.2f}%", x2=f"{x:.2f}%", y1="0", y2="100%")
        for x in (scale.percent(scale.begin + each) for each in scale.ticks())
    ]
    bar = tag("rect", x=f"{left:.3f}%", width=f"{width:.3f}%", y=7, height=12, rx=2, class_=f"{kind}{state}")
    return tag("svg", *lines, bar, class_="bar", aria_hidden="true")


def _kind(name: str) -> str:
    return next((kind for starts, kind, _ in _KINDS if name.startswith(starts)), "whole")


def _swatch(kind: str) -> Markup:
    return tag(
        "svg", tag("rect", x=1, y=2, width=16, height=10, rx=2, class_=kind), class_="swatch", aria_hidden="true"
    )


def _notes(node: Node) -> Iterator[Markup]:
    """Remarks, and of a failure what it says, its cause and what comes next; told once, where it began."""
    step = node.step
    for remark in remarks(step):
        yield tag("p", remark, class_="remark")
    inner = [each.step.error for each, _ in nesting.walk(node.parts) if each.step.error]
    if step.error and not any(error in step.error for error in inner):
        yield _note("said" if step.detail.get("cause") else "cause", step.error)
    for label in ("cause", "next"):
        if step.error and step.detail.get(label):
            yield _note(label, step.detail[label])


def _note(label: str, text: str) -> Markup:
    return tag("p", tag("b", label), " ", text, class_=f"note {label}")


def _record(step: host.Step) -> Iterator[Markup]:
    """All that is recorded of the step; of a plugin's execution what it was given and what it said."""
    facts = [("step", step.name)]
    if step.container_id:
        facts.append(("container", step.container_id[:SHORT_ID]))
    facts += [(key, step.detail[key]) for key in sorted(step.detail)]
    yield tag("dl", [joined(tag("dt", key), tag("dd", value)) for key, value in facts], class_="facts")
    if step.HasField("plugin"):
        yield from _execution(step.plugin)
    if step.acts:
        acts = sorted(step.acts, key=lambda each: each.started_at)
        yield _block("calls to containerd, and files", "\n".join(_act(each) for each in acts))


def _act(act: host.Act) -> str:
    size = f"{act.size} bytes" if act.HasField("size") else ""
    took = span(act.duration) if act.duration else ""
    return "  ".join(each for each in (act.what, act.about, size, took, act.outcome) if each)


def _execution(plugin: host.PluginExecution) -> Iterator[Markup]:
    ended = f"{plugin_results.ending(plugin)}, after {span(plugin.duration)}"
    yield _block("executable", plugin.binary)
    yield _block("exit", ended)
    names = {"conf": "stdin: configuration", "prevResult": "stdin: prevResult", "result": "stdout: result"}
    for label, text in plugin_results.told(plugin):
        yield _block(names.get(label, label), text)
    if not plugin.stderr:
        yield _block("stderr", "(empty)")
    if not plugin.stdout:
        yield _block("stdout", "(empty)")
    if "prevResult" in plugin_results.json_object(plugin.stdin):
        program = posixpath.basename(plugin.binary)
        for stream, data in (("stdin", plugin.stdin), ("stdout", plugin.stdout)):
            text = tag("pre", data.decode(errors="replace"), tabindex=0)
            yield tag("details", tag("summary", f"all of {program}'s {stream}, as it was"), text, class_="raw")


def _block(label: str, text: str) -> Markup:
    return tag("div", tag("h4", label), tag("pre", text, tabindex=0), class_="block")

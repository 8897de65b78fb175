"""Explain's answer → the story of a pod: a line for each step, in order, and one for each plugin.

What is under way for it and what failed follow; of what could not be made there is only that. `verbose` adds what
each step and each plugin was told and said. Pure: the time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from rich.text import Text

from sandboxd.cli import nesting, plugin_results
from sandboxd.cli.names import SHORT_ID
from sandboxd.cli.nesting import Node
from sandboxd.cli.render import span, text_line
from sandboxd.cli.sentences import remarks, sentence
from sandboxd.pb.host.v1 import host_pb2 as host

_DEEP = 4 + 10 + 2 + 9 + 2  # column of a step's sentence: indent, offset, gap, duration, gap
_BESIDE = "∥ "


def story(answer: host.ExplainResponse, title: str, now: int, *, verbose: bool = False) -> Text:
    """The whole text. `title` names the pod; the steps of one operation are grouped under its name.

    `now` is the time, in unix nanoseconds.
    """
    lines = [*_pod(answer, title)] if answer.pod_sandbox_id else [text_line((title, "bold"), "  does not exist")]
    for operation, nodes in nesting.operations(answer.steps):
        lines += [Text(), *_operation(operation, nodes, verbose)]
    if answer.attachments:
        lines += [Text(), Text("Networks", style="bold")]
        for attachment in answer.attachments:
            lines += _attachment(attachment)
    lines += _operations(answer, now, verbose)
    if any(_BESIDE in line.plain for line in lines):
        lines += [Text(), text_line((f"{_BESIDE}goes on beside the steps above it", "dim"))]
    return Text("\n").join(lines)


def _pod(answer: host.ExplainResponse, title: str) -> Iterator[Text]:
    yield text_line(("Pod ", "bold"), title, f"  {answer.pod_sandbox_id[:SHORT_ID]}")
    if not answer.netns_path:
        yield text_line("    netns  the host's own")
    else:
        inode = f"  inode {answer.netns_inode}" if answer.netns_inode else "  (gone)"
        yield text_line("    netns  ", answer.netns_path, inode)
    if answer.pinned:
        yield text_line("    pause  none: the namespaces are pinned")
    else:
        yield text_line("    pause  ", f"pid {answer.pid}" if answer.pid else "not running")


def _operation(operation: str, nodes: Sequence[Node], verbose: bool) -> Iterator[Text]:
    every = [node.step for node, _ in nesting.walk(nodes)]
    begin = min(step.started_at for step in every)
    end = max(step.started_at + step.duration for step in every)
    millis = begin // 10**6 % 1000
    yield text_line((operation, "bold"), f"  {_clock(begin)}.{millis:03} UTC  took {span(end - begin)}")
    yield from _steps(nodes, begin, verbose)


def _operations(answer: host.ExplainResponse, now: int, verbose: bool) -> Iterator[Text]:
    """What is under way, and what failed: the last failure whole, a line for each other."""
    for each in answer.operations:
        if not each.duration:
            yield from _under_way(each, now, verbose, whole=not answer.pod_sandbox_id)
    failed = [each for each in answer.operations if each.duration]
    for number, each in enumerate(failed):
        times = f", {each.times} times in a row" if each.times > 1 else ""
        yield Text()
        yield text_line(
            (each.operation, "bold red"),
            f" {each.subject}  failed {_clock(each.started_at + each.duration)} UTC{times}",
        )
        yield text_line("    ", (each.error, "red"))
        if number == 0:
            yield from _steps(nesting.tree(each.steps), each.started_at, verbose)


def _under_way(running: host.Operation, now: int, verbose: bool, *, whole: bool) -> Iterator[Text]:
    yield Text()
    since = span(max(0, now - running.started_at))
    yield text_line((running.operation, "bold"), f" {running.subject}  is under way, for {since}")
    if whole:
        yield from _steps(nesting.tree(running.steps), running.started_at, verbose)
    for depth, step in enumerate(running.open):
        waited = span(max(0, now - step.started_at))
        yield text_line(
            f"    {'now in':>10}  {waited:>9}  {'  ' * depth}", (sentence(step), "bold"), (f"  {step.name}", "dim")
        )
        for act in step.acts if verbose else ():
            yield _act(act, _DEEP + 2 * depth + 2)


def _clock(moment: int) -> str:
    return datetime.fromtimestamp(moment // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _steps(nodes: Sequence[Node], begin: int, verbose: bool) -> Iterator[Text]:
    for node, depth in nesting.walk(nodes):
        yield from _step(node, depth, begin, verbose)


def _step(node: Node, depth: int, begin: int, verbose: bool) -> Iterator[Text]:
    step = node.step
    plugin = step.plugin if step.HasField("plugin") else None
    told = plugin_results.line(plugin) if plugin and step.name != "cni.version" else sentence(step)
    offset = f"+{span(max(0, step.started_at - begin))}"
    yield text_line(
        (f"{'✗' if step.error else ' ':>4}", "bold red"),
        f"{offset:>10}  {span(step.duration):>9}  {'  ' * depth}",
        (_BESIDE if node.beside else "", "dim"),
        (told, "bold red" if step.error else ""),
        (_particulars(step) if verbose else "", "dim"),
    )
    column = _DEEP + 2 * depth + 2
    for remark in () if verbose else remarks(step):
        yield text_line(" " * column, (remark, "yellow"))
    if plugin is not None and verbose:
        yield from _plugin(plugin, column)
    for act in sorted(step.acts, key=lambda each: each.started_at) if verbose else ():
        yield _act(act, column)
    # The steps around the one that failed have its error: it is told once, where it began.
    inner = [each.step.error for each, _ in nesting.walk(node.parts) if each.step.error]
    if step.error and not any(error in step.error for error in inner):
        yield from _block("said" if step.detail.get("cause") else "cause", step.error, column, style="red")
    for label in ("cause", "next"):
        if step.error and step.detail.get(label):
            yield from _block(label, step.detail[label], column)


def _particulars(step: host.Step) -> str:
    """All that is recorded of a step, by the names that logs and metrics have."""
    container = f"  container {step.container_id[:SHORT_ID]}" if step.container_id else ""
    return f"  {step.name}{container}" + "".join(f"  {key}={step.detail[key]}" for key in sorted(step.detail))


def _plugin(plugin: host.PluginExecution, column: int) -> Iterator[Text]:
    yield text_line(" " * column, (f"{plugin.command} ", "cyan"), plugin.binary, f"  {plugin_results.ending(plugin)}")
    for label, text in plugin_results.told(plugin):
        yield from _block(label, text, column)


def _act(act: host.Act, column: int) -> Text:
    """A call to containerd, or a file, below the step that made it."""
    size = f"  {act.size} bytes" if act.HasField("size") else ""
    took = f"  {span(act.duration)}" if act.duration else ""
    outcome = f"  {act.outcome}".rstrip()
    return text_line(" " * column, (act.what, "cyan"), f" {act.about}{size}{took}", (outcome, "red"))


def _attachment(attachment: host.Attachment) -> Iterator[Text]:
    where = f"{attachment.network}  {attachment.ifname}"
    ips = ", ".join(attachment.ips) or "no address"
    tries = f"  DEL tried {attachment.attempts} times" if attachment.attempts > 1 else ""
    yield text_line("    ", (where, "bold"), f"  {attachment.state}  {ips}  from {attachment.conf_file}{tries}")
    if attachment.error:
        yield text_line("        ", (attachment.error, "red"))


def _block(label: str, text: str, column: int, style: str = "") -> Iterator[Text]:
    """A label with the text beside it, or below it if it has several lines."""
    lines = text.split("\n")
    if len(lines) == 1:
        yield text_line(" " * column, (f"{label}  ", "dim"), (text, style))
        return
    yield text_line(" " * column, (label, "dim"))
    for line in lines:
        yield text_line(" " * (column + 2), (line, style))

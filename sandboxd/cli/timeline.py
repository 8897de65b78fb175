"""Explain's answer → the timeline of a pod: its steps in order, their durations, and the plugins' output.

What is under way for it and what failed follow; of what could not be made there is only that.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.text import Text

from sandboxd.cli.names import SHORT_ID
from sandboxd.cli.render import printable, span
from sandboxd.pb.host.v1 import host_pb2 as host

_DEEP = 4 + 10 + 2 + 9 + 2  # column of a step's name: indent, offset, gap, duration, gap


def story(answer: host.ExplainResponse, title: str, now: int) -> Text:
    """The whole text. `title` names the pod; the steps of one operation are grouped under its name.

    `now` is the time, in unix nanoseconds.
    """
    lines = [*_pod(answer, title)] if answer.pod_sandbox_id else [_line((title, "bold"), "  does not exist")]
    for operation, group in itertools.groupby(answer.steps, key=lambda step: step.operation):
        lines += [Text(), *_operation(operation, list(group))]
    if answer.attachments:
        lines += [Text(), Text("Networks", style="bold")]
        for attachment in answer.attachments:
            lines += _attachment(attachment)
    lines += _operations(answer, now)
    return Text("\n").join(lines)


def _pod(answer: host.ExplainResponse, title: str) -> Iterator[Text]:
    yield _line(("Pod ", "bold"), title, f"  {answer.pod_sandbox_id[:SHORT_ID]}")
    if not answer.netns_path:
        yield _line("    netns  the host's own")
    else:
        inode = f"  inode {answer.netns_inode}" if answer.netns_inode else "  (gone)"
        yield _line("    netns  ", answer.netns_path, inode)
    yield _line("    pause  ", f"pid {answer.pid}" if answer.pid else "not running")


def _operation(operation: str, steps: list[host.Step]) -> Iterator[Text]:
    begin = min(step.started_at for step in steps)
    end = max(step.started_at + step.duration for step in steps)
    millis = begin // 10**6 % 1000
    yield _line((operation, "bold"), f"  {_clock(begin)}.{millis:03} UTC  took {span(end - begin)}")
    for step in steps:
        yield from _step(step, begin)


def _operations(answer: host.ExplainResponse, now: int) -> Iterator[Text]:
    """What is under way, and what failed: the last failure whole, a line for each other."""
    for each in answer.operations:
        if not each.duration:
            yield from _under_way(each, now, whole=not answer.pod_sandbox_id)
    failed = [each for each in answer.operations if each.duration]
    for number, each in enumerate(failed):
        times = f", {each.times} times in a row" if each.times > 1 else ""
        yield Text()
        yield _line(
            (each.operation, "bold red"),
            f" {each.subject}  failed {_clock(each.started_at + each.duration)} UTC{times}",
        )
        yield _line("    ", (each.error, "red"))
        if number == 0:
            for step in sorted(each.steps, key=lambda step: step.started_at):
                yield from _step(step, each.started_at)


def _under_way(running: host.Operation, now: int, *, whole: bool) -> Iterator[Text]:
    yield Text()
    since = span(max(0, now - running.started_at))
    yield _line((running.operation, "bold"), f" {running.subject}  is under way, for {since}")
    for step in sorted(running.steps, key=lambda step: step.started_at) if whole else ():
        yield from _step(step, running.started_at)
    for step in running.open:
        detail = "".join(f"  {key}={step.detail[key]}" for key in sorted(step.detail))
        waited = span(max(0, now - step.started_at))
        yield _line(f"    {'now in':>10}  {waited:>9}  ", (step.name, "bold"), (detail, "dim"))


def _clock(moment: int) -> str:
    return datetime.fromtimestamp(moment // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _step(step: host.Step, begin: int) -> Iterator[Text]:
    offset = f"+{span(step.started_at - begin)}"
    detail = "".join(f"  {key}={step.detail[key]}" for key in sorted(step.detail))
    container = f"  container {step.container_id[:SHORT_ID]}" if step.container_id else ""
    yield _line(
        f"    {offset:>10}  {span(step.duration):>9}  ",
        (step.name, "bold red" if step.error else "bold"),
        container,
        (detail, "dim"),
    )
    if step.HasField("plugin"):
        yield from _plugin(step.plugin)
    if step.error:
        yield from _block("failed", step.error, style="red")


def _plugin(plugin: host.PluginExecution) -> Iterator[Text]:
    if plugin.timed_out:
        ending = "timed out and was killed"
    elif plugin.exit_code < 0:
        ending = f"killed by signal {-plugin.exit_code}"
    else:
        ending = f"exit {plugin.exit_code}"
    yield _line(" " * _DEEP, (f"{plugin.command} ", "cyan"), plugin.binary, f"  {ending}  {span(plugin.duration)}")
    yield from _block("conf", _pretty(plugin.stdin))
    if plugin.stdout:
        yield from _block("result", _pretty(plugin.stdout))
    if plugin.stderr:
        yield from _block("stderr", plugin.stderr.decode(errors="replace").rstrip("\n"))


def _attachment(attachment: host.Attachment) -> Iterator[Text]:
    where = f"{attachment.network}  {attachment.ifname}"
    ips = ", ".join(attachment.ips) or "no address"
    tries = f"  DEL tried {attachment.attempts} times" if attachment.attempts > 1 else ""
    yield _line("    ", (where, "bold"), f"  {attachment.state}  {ips}  from {attachment.conf_file}{tries}")
    if attachment.error:
        yield _line("        ", (attachment.error, "red"))


def _block(label: str, text: str, style: str = "") -> Iterator[Text]:
    """A label with the text beside it, or below it if it has several lines."""
    lines = text.split("\n")
    if len(lines) == 1:
        yield _line(" " * _DEEP, (f"{label}  ", "dim"), (text, style))
        return
    yield _line(" " * _DEEP, (label, "dim"))
    for line in lines:
        yield _line(" " * (_DEEP + 2), (line, style))


def _pretty(data: bytes) -> str:
    text = data.decode(errors="replace").strip()
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text


def _line(*parts: str | tuple[str, str]) -> Text:
    """One line, in which text from the daemon has neither control characters nor markup."""
    made = Text()
    for part in parts:
        text, style = part if isinstance(part, tuple) else (part, "")
        made.append(printable(text, keep="\t"), style=style)
    return made

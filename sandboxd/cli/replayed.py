"""Replay's answer → what was run, how it ended, and what differs from what was recorded. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from sandboxd.cli import plugin_results, render
from sandboxd.cli.names import SHORT_ID
from sandboxd.cli.render import text_line
from sandboxd.pb.host.v1 import host_pb2 as host

_ANEW = re.compile(r"veth[0-9a-f]+\Z")


def again(answer: host.ReplayResponse) -> str:
    """The verdict in a sentence."""
    if not answer.HasField("replayed"):
        return "It was not reached."
    failed, fails = bool(answer.recorded.error), bool(answer.replayed.error)
    if failed != fails:
        return "It succeeds now; it had failed." if failed else "It fails now; it had succeeded."
    if not differences(answer):
        return "It fails again, in the same way." if fails else "It succeeds again, with the same result."
    return "It fails again, in another way." if fails else "It succeeds again, with another result."


def differences(answer: host.ReplayResponse) -> list[str]:
    """What of the outcome differs, a line each: "- " recorded, "+ " now.

    Addresses, MAC addresses and the names of veths are chosen anew each time and do not count, nor do the id and the
    namespace of the replay. Nor does time.
    """
    then, now = answer.recorded.plugin, answer.replayed.plugin
    lines = []
    for name, was, is_now in (
        ("exit status", plugin_results.ending(then), plugin_results.ending(now)),
        ("stderr", _text(then.stderr), _text(_as_then(answer, now.stderr))),
    ):
        if was != is_now and not (then.timed_out and now.timed_out):
            lines += [f"- {name}: {was or 'nothing'}", f"+ {name}: {is_now or 'nothing'}"]
    before, after = _result(then.stdout), _result(_as_then(answer, now.stdout))
    if isinstance(before, dict) and isinstance(after, dict):
        return lines + plugin_results.differences(before, after)
    if before != after:
        lines += [f"- stdout: {_shown(before)}", f"+ stdout: {_shown(after)}"]
    return lines


def text(answer: host.ReplayResponse, title: str, *, verbose: bool = False) -> Text:
    """The whole answer, for a person; `title` names the pod."""
    return Text("\n").join(_lines(answer, title, verbose))


def as_dict(answer: host.ReplayResponse) -> dict[str, Any]:
    """The answer for programs, with the verdict and the differences; plugins' input and output as JSON or text."""
    data = render.as_dict(answer)
    for name in ("before", "after"):
        render.open_plugins(data[name], getattr(answer, name))
    render.open_plugins([data["recorded"]], [answer.recorded])
    reached = answer.HasField("replayed")
    if reached:
        render.open_plugins([data["replayed"]], [answer.replayed])
    return {**data, "verdict": again(answer), "differences": differences(answer) if reached else []}


def _lines(answer: host.ReplayResponse, title: str, verbose: bool) -> Iterator[Text]:
    plugin = answer.recorded.plugin
    yield text_line(("Replay of ", "bold"), f"{plugin.command} {_name(answer.recorded)}", f" of pod {title}")
    if answer.netns_path:
        what = "kept" if answer.kept else "still there, see below" if answer.left else "removed again"
        yield text_line("    in the scratch namespace ", answer.netns_path, f" ({what})")
    for each in answer.changed:
        yield text_line("    not as recorded: ", (each, "dim"))
    yield Text()
    for step in answer.before:
        yield from _execution("before it", step, verbose=False)
    yield from _execution("recorded", answer.recorded, verbose=verbose, style="dim")
    if answer.HasField("replayed"):
        yield from _execution("now", answer.replayed, verbose=verbose, style="bold")
    else:
        yield text_line(f"{'now':>13}  ", (answer.error, "bold red"))
    for step in answer.after:
        yield from _execution("after it", step, verbose=False)
    yield Text()
    yield text_line((again(answer), "bold"))
    for line in differences(answer) if answer.HasField("replayed") else ():
        yield text_line("    ", line)
    yield from _what_is_left(answer)


def _execution(label: str, step: host.Step, *, verbose: bool, style: str = "") -> Iterator[Text]:
    plugin = step.plugin if step.HasField("plugin") else None
    line = plugin_results.line(plugin) if plugin is not None else step.name
    yield text_line((f"{label:>13}  ", "dim"), (line, "red" if step.error else style))
    indent = " " * 17
    for name, value in (
        ("error", step.error),
        ("stderr", _text(plugin.stderr) if plugin is not None else ""),
        ("cause", step.detail.get("cause", "")),
        ("next", step.detail.get("next", "")),
    ):
        for line in value.split("\n") if value else ():
            yield text_line(indent, (f"{name}  ", "dim"), line)
    if verbose and plugin is not None:
        for name, value in plugin_results.told(plugin):
            yield text_line(indent, (name, "dim"))
            yield from (text_line(indent, "  ", each) for each in value.split("\n"))


def _what_is_left(answer: host.ReplayResponse) -> Iterator[Text]:
    short = answer.scratch_id[:SHORT_ID]
    if answer.kept:
        name = answer.netns_path.rpartition("/")[2]
        yield Text()
        yield text_line("To look:  ", f"ip netns exec {name} ip addr")
        yield text_line("To undo:  ", f"sandboxctl debts retry {short}")
    elif answer.left:
        yield Text()
        yield text_line(("It could not be undone: ", "bold red"), answer.left)
        yield text_line(f"It is a debt now, and tried again; `sandboxctl debts forgive {short}` gives it up.")


def _as_then(answer: host.ReplayResponse, output: bytes) -> bytes:
    """What was printed now, with the id and the namespace of then."""
    then, now = answer.recorded.plugin.env, answer.replayed.plugin.env
    for key in ("CNI_NETNS", "CNI_CONTAINERID"):
        if now.get(key) and then.get(key):
            output = output.replace(now[key].encode(), then[key].encode())
    return output


def _result(output: bytes) -> Any:
    """The JSON object that was printed, without what is chosen anew each time; the text when it is none."""
    found = plugin_results.json_object(output)
    return _settled(found) if found else _text(output)


def _settled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _chosen(key, each) for key, each in value.items()}
    if isinstance(value, list):
        return [_settled(each) for each in value]
    return value


def _chosen(key: str, value: Any) -> Any:
    """A value of a result; of an address only the length of its prefix stays."""
    if not isinstance(value, str):
        return _settled(value)
    if key == "mac" and value:
        return "(any)"
    if key == "address":
        return f"(any)/{value.rpartition('/')[2]}"
    return "veth(any)" if key == "name" and _ANEW.match(value) else value


def _shown(value: Any) -> str:
    return value or "nothing" if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _name(step: host.Step) -> str:
    return step.detail.get("plugin") or step.plugin.binary.rpartition("/")[2]


def _text(data: bytes) -> str:
    return data.decode(errors="replace").strip("\n")

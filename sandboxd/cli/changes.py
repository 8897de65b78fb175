"""What CNI plugins changed on the machine for a pod, or what there is of its network now: text, and data. Pure.

ADD bridge
  in the pod
    + link eth0  veth, peer veth2c5c01ac, mac 6a:…, mtu 1500, up
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from rich.text import Text

from sandboxd.cli import nesting
from sandboxd.cli.names import SHORT_ID
from sandboxd.cli.render import as_dict, text_line
from sandboxd.pb.host.v1 import host_pb2 as host

UNRECORDED = (
    "What there was before is not known: the changes were not recorded. They are for a pod that is made with\n"
    "`sandboxctl run --record-changes` or has the annotation sandboxd.io/record-changes=true, and for every pod\n"
    "with record_changes = true under [insight] of the daemon's configuration."
)
_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}
_WHERE = {
    ("pod", "pod"): "in the pod",
    ("host", "pod"): "on the host",
    ("host", "network"): "on the host, shared by the network's pods",
    ("host", ""): "on the host meanwhile, perhaps by others",
}
# The order in which they are told; those without a word of their own say enough by themselves.
_WORDS = {
    "kind": "",
    "master": "on ",
    "peer": "peer ",
    "mac": "mac ",
    "mtu": "mtu ",
    "state": "",
    "value": "",
    "content": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A plugin, and what has changed while it ran."""

    operation: str
    verb: str
    plugin: str
    started_at: int  # of the look after it, unix nanoseconds
    changes: Sequence[host.NetworkChange]
    left_out: str  # how many more there were, "" for none
    unseen: str  # what could not be looked at, and why


def recorded(answer: host.ExplainResponse) -> list[Execution]:
    """The recorded executions in order: of the pod, then of what is under way and what failed of its name."""
    found = []
    for steps in (answer.steps, *(each.steps for each in answer.operations)):
        for operation, nodes in nesting.operations(steps):
            looks = [node.step for node, _ in nesting.walk(nodes) if node.step.name == "cni.look"]
            found += [_execution(operation, each) for each in looks if each.detail.get("after")]
    return found


def _execution(operation: str, look: host.Step) -> Execution:
    return Execution(
        operation=operation,
        verb=look.detail.get("verb", ""),
        plugin=look.detail["after"],
        started_at=look.started_at,
        changes=look.changes,
        left_out=look.detail.get("left_out", ""),
        unseen=look.detail.get("unseen", ""),
    )


# --- for people ------------------------------------------------------------------------------------------------


def told(executions: Iterable[Execution], title: str, pod_id: str) -> Text:
    """What was recorded, plugin by plugin."""
    lines = [_head(title, pod_id)]
    last = ""
    for each in executions:
        if each.operation != last:
            last = each.operation
            moment = datetime.fromtimestamp(each.started_at // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
            lines += [Text(), text_line((each.operation, "bold"), f"  {moment} UTC")]
        lines += [text_line("    ", (f"{each.verb} {each.plugin}", "bold"))]
        lines += _places(each.changes, _changed)
        if not each.changes:
            lines += [text_line("      changed nothing that is looked at")]
        if each.left_out:
            lines += [text_line(f"      and {each.left_out} more")]
        if each.unseen:
            lines += [text_line("      ", (f"not seen: {each.unseen}", "yellow"))]
    return Text("\n").join(lines)


def now(answer: host.PodNetworkResponse | None, title: str, pod_id: str) -> Text:
    """What there is where nothing was recorded, and how to record; None is for a pod that does not exist."""
    lines = [_head(title, pod_id), Text(), *(text_line(each) for each in UNRECORDED.split("\n"))]
    if answer is not None:
        lines += [Text(), text_line(("What there is of its network now", "bold"))]
        lines += _places(answer.things, _thing)
        lines += [text_line("      nothing")] if not answer.things else []
        lines += [text_line("      ", (f"not seen: {each}", "yellow")) for each in answer.unseen]
    return Text("\n").join(lines)


def _head(title: str, pod_id: str) -> Text:
    return text_line(("Changes for pod ", "bold"), title, f"  {pod_id[:SHORT_ID]}".rstrip())


def _places(items: Iterable[Any], line: Any) -> Iterator[Text]:
    """The items below where they are; they come in that order."""
    for where, group in groupby(items, lambda each: (each.place, each.belongs_to)):
        yield text_line("      ", (_WHERE.get(where, " ".join(where)), "dim"))
        yield from map(line, group)


def _changed(change: host.NetworkChange) -> Text:
    sign, style = _SIGNS.get(change.change, ("?", ""))
    if change.change == "changed":
        says = _differing(change.before, change.after)
    else:
        says = _says(change.after if change.change == "added" else change.before)
    told = f"  {says}" if says else ""
    return text_line("        ", (f"{sign} ", style), f"{change.kind} {change.name}", (told, "dim"))


def _thing(thing: host.NetworkThing) -> Text:
    says = _says(thing.fields)
    return text_line("        ", f"{thing.kind} {thing.name}", (f"  {says}" if says else "", "dim"))


def _says(fields: Mapping[str, str]) -> str:
    return ", ".join(f"{_word(key)}{fields[key]}" for key in _in_order(fields))


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    keys = [key for key in _in_order({**before, **after}) if before.get(key, "") != after.get(key, "")]
    return ", ".join(f"{_word(key)}{before.get(key, 'none')} → {after.get(key, 'none')}" for key in keys)


def _word(key: str) -> str:
    return _WORDS.get(key, f"{key} ")


def _in_order(fields: Mapping[str, str]) -> list[str]:
    return sorted(fields, key=lambda key: ([*_WORDS].index(key) if key in _WORDS else len(_WORDS), key))


# --- for programs ----------------------------------------------------------------------------------------------


def as_data(executions: Iterable[Execution], answer: host.PodNetworkResponse | None, pod_id: str) -> dict[str, Any]:
    """The same as data; "now" is null where changes were recorded."""
    told = [
        {
            "operation": each.operation,
            "command": each.verb,
            "plugin": each.plugin,
            "at": str(each.started_at),
            "changes": [as_dict(change) for change in each.changes],
            "leftOut": int(each.left_out or 0),
            "unseen": each.unseen,
        }
        for each in executions
    ]
    looked = as_dict(answer) if answer is not None else None
    return {"podSandboxId": pod_id, "recorded": bool(told), "executions": told, "now": looked}

"""What an execution of a CNI plugin came to, for people: its ending, what it made, what it changed. Pure."""

from __future__ import annotations

import difflib
import itertools
import json
import posixpath
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sandboxd.cli.render import span
from sandboxd.pb.host.v1 import host_pb2 as host


def line(plugin: host.PluginExecution) -> str:
    """The execution in one line: "ADD bridge → eth0 10.0.10.2/24 via 10.0.10.1, vethadb6932d on sbx0  28 ms".

    One that was done in-process says so at its end.
    """
    said = f"{plugin.command} {posixpath.basename(plugin.binary)}"
    if plugin.exit_code or plugin.timed_out:
        said += f" failed: {ending(plugin)}"
    elif plugin.command == "ADD":
        said += f" → {made(plugin)}"
    return f"{said}  {span(plugin.duration)}{f' {plugin.backend}' if plugin.backend else ''}"


def ending(plugin: host.PluginExecution) -> str:
    """How it ended: its exit status, or the signal and who sent it."""
    if plugin.timed_out:
        return f"killed by sandboxd when its time was over, after {span(plugin.duration)}"
    if plugin.exit_code >= 0:
        return f"exit status {plugin.exit_code}"
    try:
        name = signal.Signals(-plugin.exit_code).name
    except ValueError:
        name = f"signal {-plugin.exit_code}"
    by = "sandboxd" if plugin.ended_by == "sandboxd" else "itself, the kernel or another process, not by sandboxd"
    return f"killed with {name} by {by}"


def made(plugin: host.PluginExecution) -> str:
    """What an ADD added to what the plugins before it had made."""
    conf, result = json_object(plugin.stdin), json_object(plugin.stdout)
    before = _object(conf.get("prevResult"))
    told = [*_inside(result, before), *_outside(conf, result, before), *_ports(conf)]
    if told:
        return ", ".join(told)
    if not before:
        return "no address, no interface"
    keys = sorted({*before, *result} - {"cniVersion"})
    changed = [key for key in keys if before.get(key) != result.get(key)]
    return f"a result that differs: {', '.join(changed)}" if changed else "the result as before"


def told(plugin: host.PluginExecution) -> Iterator[tuple[str, str]]:
    """All that the plugin was given and said, as labelled texts; of two results, what differs."""
    yield "environment", "\n".join(f"{key}={plugin.env[key]}" for key in sorted(plugin.env))
    conf, result = json_object(plugin.stdin), json_object(plugin.stdout)
    before = conf.pop("prevResult", None)
    yield "conf", _pretty(conf) if conf else _text(plugin.stdin)
    if isinstance(before, dict):
        yield "prevResult", f"as the plugins before it answered ({_summary(before)})"
    if isinstance(before, dict) and result and not plugin.exit_code and plugin.command == "ADD":
        changed = differences(before, result)
        yield "result", "\n".join(("prevResult, with:", *changed)) if changed else "prevResult, unchanged"
    elif plugin.stdout:
        yield (
            "stdout" if plugin.exit_code or not result else "result",
            _pretty(result) if result else _text(plugin.stdout),
        )
    if plugin.stderr:
        yield "stderr", _text(plugin.stderr)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What of two results differs, as the lines of their JSON that only one has: "- " before, "+ " after.

    "cniVersion" is left out: it is the configuration's.
    """
    was, is_now = (
        json.dumps({k: v for k, v in each.items() if k != "cniVersion"}, indent=2, sort_keys=True, ensure_ascii=False)
        for each in (before, after)
    )
    # ndiff would also compare within lines, which takes minutes for two long results.
    compared = difflib.unified_diff(was.split("\n"), is_now.split("\n"), n=0, lineterm="")
    return [f"{each[0]} {each[1:]}" for each in itertools.islice(compared, 2, None) if not each.startswith("@")]


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that the bytes are, an empty one for anything else."""
    try:
        return _object(json.loads(data))
    except (ValueError, RecursionError):
        return {}


def _pretty(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _text(data: bytes) -> str:
    return data.decode(errors="replace").strip("\n")


def _summary(result: Mapping[str, Any]) -> str:
    names = [str(each.get("name")) for each in _interfaces(result)]
    addresses = [str(each.get("address")) for each in _addresses(result)]
    return ", ".join((*names, *addresses)) or "nothing"


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(result: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = result.get(key)
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _interfaces(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return _objects(result, "interfaces")


def _inside(result: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[str]:
    """The pod's new addresses, each with its interface and its gateway."""
    known = _objects(before, "ips")
    interfaces = _interfaces(result)
    told = set()
    for each in _addresses(result):
        if each in known:
            continue
        index = each.get("interface")
        name = ""
        if isinstance(index, int) and 0 <= index < len(interfaces):
            name = str(interfaces[index].get("name", ""))
            told.add(name)
        gateway = f" via {each['gateway']}" if each.get("gateway") else ""
        yield f"{name} {each.get('address', '?')}{gateway}".strip()
    for each in interfaces:
        if each.get("sandbox") and each not in _interfaces(before) and each.get("name") not in told:
            yield f"{each.get('name')} without an address"


def _addresses(result: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """The addresses, also of results before version 0.3.0."""
    old = [_object(result.get(key)) for key in ("ip4", "ip6")]
    return [*_objects(result, "ips"), *({**each, "address": each["ip"]} for each in old if "ip" in each)]


def _outside(conf: Mapping[str, Any], result: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[str]:
    """The host's new interfaces."""
    names = [
        str(each.get("name"))
        for each in _interfaces(result)
        if not each.get("sandbox") and each not in _interfaces(before)
    ]
    bridge = conf.get("bridge", "cni0") if conf.get("type") == "bridge" else None
    if bridge in names and len(names) > 1:
        yield f"{', '.join(name for name in names if name != bridge)} on {bridge}"
    elif names:
        yield f"{', '.join(names)} on the host"


def _ports(conf: Mapping[str, Any]) -> Iterator[str]:
    for each in _objects(_object(conf.get("runtimeConfig")), "portMappings"):
        address = f"{each['hostIP']}:" if each.get("hostIP") else ""
        protocol = each.get("protocol", "tcp")
        yield f"host port {address}{each.get('hostPort')}/{protocol} to {each.get('containerPort')}"

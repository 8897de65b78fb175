"""Explain's answer → what a person would type instead, for a shell: the network namespace and its plugins, and
the containers of a pod that runs (`ctr`). Pure.

The commands are those of the pod's making, from the recorded executions: the same environment (without the span that
it was traced in), the same configuration, the same result handed on. What undoes them follows from them, as the
specification says: each plugin's DEL in reverse, with what its ADD was given and the last result. Values are quoted;
what is printed is ASCII without control characters, in lines that a terminal takes.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sandboxd.cli import ctr, nesting
from sandboxd.cli.plugin_results import json_object, line
from sandboxd.cli.shell import comment, fed, quoted
from sandboxd.pb.host.v1 import host_pb2 as host

_NAMED = ("/run/netns", "/var/run/netns")  # where ip(8) looks for namespaces
_FIRST = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "PATH")
_TRACED = frozenset({"TRACEPARENT", "TRACESTATE"})  # that trace is over
_NAMESPACES = ("pod.netns.create", "pod.userns.create")


class NothingRecorded(Exception):
    """Why there are no commands, for the user."""


def commands(answer: host.ExplainResponse, title: str, pod: ctr.Pod | None = None) -> list[str]:
    """The lines that make the pod's network, and its containers if it runs; what undoes them follows, as comments.

    Raises NothingRecorded when the answer has no making of a network.
    """
    made = _making(answer)
    lines = [f"# {_what(pod)} {comment(title)}, by hand; run it as root, in place of the pod."]
    for step in made:
        if step.name in _NAMESPACES:
            lines += ["", *_namespace(step, answer.netns_path)]
        else:
            lines += [
                "",
                f"# {comment(line(step.plugin))}",
                *_execution(step.plugin, step.plugin.env, step.plugin.stdin),
            ]
            if step.plugin.exit_code or step.plugin.timed_out:
                lines += ["# It failed; what follows undoes what was made."]
    if pod is not None:
        lines += ["", "# Its sysctls", *ctr.sysctls(pod, answer.netns_path), "", *ctr.up(pod)]
    lines += ["", "# To undo it (`--commands=down` prints this without the #):", "#"]
    return [*lines, *(f"# {each}".rstrip() for each in _down(answer, made, pod))]


def undoing(answer: host.ExplainResponse, title: str, pod: ctr.Pod | None = None) -> list[str]:
    """The lines that undo what `commands` makes. Raises NothingRecorded likewise."""
    made = _making(answer)
    return [f"# Undoes {_what(pod).lower()} {comment(title)}, made by hand.", *_down(answer, made, pod)]


def _what(pod: ctr.Pod | None) -> str:
    return "The network of pod" if pod is None else "The network and the containers of pod"


def _making(answer: host.ExplainResponse) -> list[host.Step]:
    """The steps of the last making of the pod's network, in order: the namespace, then each ADD."""
    attempts = [answer.steps, *(each.steps for each in answer.operations)]
    for steps in attempts:
        for _, nodes in reversed(list(nesting.operations(steps))):
            every = [node.step for node, _ in nesting.walk(nodes)]
            adds = [each for each in every if each.name == "cni.add" and each.HasField("plugin")]
            if adds:
                # Of a very long timeline the first steps are dropped, and the namespace is one of them.
                unknown = host.Step(name="pod.netns.create", detail={"path": adds[0].plugin.env.get("CNI_NETNS", "")})
                return ([each for each in every if each.name in _NAMESPACES] or [unknown]) + adds
    if answer.pod_sandbox_id and not answer.netns_path:
        raise NothingRecorded("the pod is in the host's own network: nothing was made for it")
    raise NothingRecorded("no execution of a CNI plugin's ADD is recorded")


def _namespace(step: host.Step, known_path: str) -> Iterator[str]:
    path = step.detail.get("path") or known_path
    directory, name = posixpath.split(path)
    yield "# The network namespace, its loopback up"
    if step.name == "pod.userns.create":
        yield from _owned(step, path)
    elif directory in _NAMED:
        yield f"ip netns add {quoted(name)}"
    else:
        yield f"mkdir -p {quoted(directory)} && touch {quoted(path)}"
        yield f"unshare --net sh -c {quoted(f'mount --bind /proc/self/ns/net {quoted(path)}')}"
    yield f"nsenter --net={quoted(path)} ip link set lo up"


def _owned(step: host.Step, path: str) -> Iterator[str]:
    """A network namespace that belongs to a user namespace; a process has to hold both until the first is pinned."""
    ids = f"0 {step.detail.get('host_uid', '0')} {step.detail.get('length', '1')}"
    yield f"mkdir -p {quoted(posixpath.dirname(path))} && touch {quoted(path)}"
    yield "unshare --user --net sleep 60 &"
    yield 'until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done'
    yield f"for map in uid_map gid_map; do echo {quoted(ids)} > /proc/$!/$map; done"
    yield f"mount --bind /proc/$!/ns/net {quoted(path)}"
    yield "kill $!"


def _execution(plugin: host.PluginExecution, env: Mapping[str, str], stdin: bytes) -> Iterator[str]:
    """One execution: a variable a line, and the configuration as a here-document."""
    for key in (*(each for each in _FIRST if each in env), *sorted(set(env) - {*_FIRST, *_TRACED})):
        yield f"{key}={quoted(env[key])} \\"
    yield from fed(quoted(plugin.binary), _document(stdin))


def _down(answer: host.ExplainResponse, made: Iterable[host.Step], pod: ctr.Pod | None) -> Iterator[str]:
    """The containers, the DELs, the last plugin's first, and the namespace."""
    if pod is not None:
        yield from ctr.down(pod)
    steps = list(made)
    adds = [step.plugin for step in steps if step.name == "cni.add"]
    result = next((json_object(each.stdout) for each in reversed(adds) if _succeeded(each)), {})
    for plugin in reversed(adds):
        conf = {key: value for key, value in json_object(plugin.stdin).items() if key != "prevResult"}
        # Since 0.4.0 a DEL is given the result of the last ADD, in the version of the configuration.
        if result and _number(conf.get("cniVersion")) >= (0, 4):
            conf["prevResult"] = result
        yield from _execution(plugin, {**plugin.env, "CNI_COMMAND": "DEL"}, json.dumps(conf).encode())
    for path in {step.detail.get("path") or answer.netns_path for step in steps if step.name in _NAMESPACES}:
        directory, name = posixpath.split(path)
        if directory in _NAMED:
            yield f"ip netns del {quoted(name)}"
        else:
            yield f"umount {quoted(path)} && rm {quoted(path)}"


def _succeeded(plugin: host.PluginExecution) -> bool:
    return not plugin.exit_code and not plugin.timed_out


def _number(version: object) -> tuple[int, ...]:
    words = str(version).split(".")
    return tuple(int(word) for word in words) if all(word.isdecimal() and len(word) < 9 for word in words) else (0,)


def _document(stdin: bytes) -> Sequence[str]:
    """The configuration in short lines: pasted into a terminal, one has at most 4095 bytes (termios(3))."""
    try:
        return json.dumps(json.loads(stdin), indent=2).split("\n")
    except (ValueError, RecursionError):
        return quoted(stdin.decode(errors="replace")).split("\n")

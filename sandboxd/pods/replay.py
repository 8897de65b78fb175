"""A recorded execution of a plugin, run again: in a scratch network namespace, for nobody that a plugin could know.

    attachment planned in the ledger → netns → the ADDs before it → it → every DEL → netns gone → the record

The attachment is one without a pod, so that whatever cuts a replay off leaves what the comparison pays as any other
debt, plugins that outlive the daemon included. What would meet the pod is not as recorded, and told: its id, name and
uid, which networks find pods by; its host ports, of which others are published; addresses that somebody has.

CHECK can be run in place, since it changes nothing. An ADD in place is not harmless when it fails: `bridge` gives the
address of the pod that has it back to its IPAM plugin. A DEL that is owed has a way of its own (`debts`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sandboxd import disclosure, steps
from sandboxd.cni import recorded, result
from sandboxd.cni.recorded import Call, Elsewhere, Link
from sandboxd.errors import InvalidRequest, NotReady, PluginFailed, SandboxdError
from sandboxd.model import Attachment, AttachmentState
from sandboxd.node import Node
from sandboxd.operations import Held, perform
from sandboxd.pods import network, publish
from sandboxd.pods.debts import REPLAY
from sandboxd.steps import PluginExecution, StepRecord

_COMMANDS = ("ADD", "CHECK", "DEL", "STATUS", "VERSION")
_PLUGIN_STEPS = frozenset(f"cni.{command.lower()}" for command in _COMMANDS)


@dataclass(slots=True, kw_only=True)
class Replayed:
    """What came of it; the steps are those of plugins, in the order in which they were run."""

    replayed: StepRecord | None = None
    error: str = ""  # why it was not reached
    before: list[StepRecord] = field(default_factory=list)
    after: list[StepRecord] = field(default_factory=list)
    changed: tuple[str, ...] = ()  # what of its input is not as recorded, for people
    scratch_id: str = ""
    netns_path: str = ""
    kept: bool = False
    left: str = ""  # why it could not be undone; it is a debt then


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is run: the chain as it is for the scratch namespace, and the place of the target in it."""

    command: str
    links: Sequence[Link]
    place: int
    attachment: Attachment
    changed: tuple[str, ...]
    without_netns: bool  # a DEL of which the namespace was gone

    def calls(self) -> list[tuple[str, int]]:
        """Command and place of each execution, the target last."""
        if self.command == "ADD":
            return [("ADD", position) for position in range(self.place + 1)]
        whole = range(len(self.links))
        own = whole[self.place :][::-1] if self.command == "DEL" else whole[: self.place + 1]
        return [*(("ADD", position) for position in whole), *((self.command, position) for position in own)]

    def call(self, command: str, position: int, given: Mapping[str, Any] | None) -> Call:
        """One of them, after the result `given`."""
        link = self.links[position]
        if command == "DEL" and position == self.place and self.without_netns:
            link = replace(link, env={**link.env, "CNI_NETNS": ""})
        return recorded.call(link, command, given, last=position == len(self.links) - 1)


async def replay(
    node: Node,
    source: Sequence[StepRecord],
    target: StepRecord,
    pod: str,
    *,
    in_place: bool = False,
    keep: bool = False,
) -> Replayed:
    """Run the plugin of `target` again. It runs to its end, and is undone, even if the client leaves.

    `source` are the steps of the pod that the target is one of, and `pod` its name, for people. How the plugin ends
    is in the answer. Raises InvalidRequest for what cannot be replayed; NotReady for what would disturb a pod, and
    when the pod that a CHECK in place is about is not attached any more.
    """
    execution = _replayable(target, in_place=in_place)
    own = secrets.token_hex(32)
    if execution.command in ("STATUS", "VERSION"):
        return await _performed(node, own, pod, lambda held: _as_recorded(held, execution))
    if in_place:
        sandbox_id = execution.env.get("CNI_CONTAINERID", "")
        return await _performed(node, sandbox_id, pod, lambda held: _in_place(held, execution))
    plan = _planned(node, source, execution, own, pod)
    return await _performed(node, own, pod, lambda held: _in_scratch(held, plan, keep=keep))


def _replayable(target: StepRecord, *, in_place: bool) -> PluginExecution:
    execution = target.plugin
    if execution is None:
        raise InvalidRequest(f"{target.name} did not run a plugin")
    if execution.command not in _COMMANDS:
        raise InvalidRequest(f"{execution.command} is not replayed: what it was told of the network's pods is old")
    if in_place and execution.command in ("ADD", "DEL"):
        instead = {"ADD": "leave out --in-place", "DEL": "`sandboxctl debts retry` runs a DEL that is owed"}
        raise InvalidRequest(
            f"{execution.command} is not run in place: it could take away the network of a pod that runs; "
            f"{instead[execution.command]}"
        )
    return execution


async def _performed(
    node: Node, sandbox_id: str, pod: str, work: Callable[[Held], Coroutine[Any, Any, Replayed]]
) -> Replayed:
    subject = f"replay of {pod}"
    return await perform(node, REPLAY, sandbox_id, work, subject=subject, turns=node.machine.load.pods)


@contextmanager
def _collected(sandbox_id: str) -> Iterator[list[StepRecord]]:
    """The steps of plugins that a replay under this id makes."""
    ran: list[StepRecord] = []

    def receive(record: StepRecord) -> None:
        if (record.operation, record.sandbox_id) == (REPLAY, sandbox_id) and record.name in _PLUGIN_STEPS:
            ran.append(record)

    stop = steps.subscribe(receive)
    try:
        yield ran
    finally:
        stop()


async def _as_recorded(held: Held, execution: PluginExecution, changed: tuple[str, ...] = ()) -> Replayed:
    """Once more with the same input, to the byte: what changes nothing."""
    with _collected(held.sandbox_id) as ran, suppress(SandboxdError):  # which is in the step
        await held.node.network.cni.repeat(recorded.as_recorded(execution))
    return Replayed(replayed=ran[-1], changed=changed)


async def _in_place(held: Held, execution: PluginExecution) -> Replayed:
    """A CHECK in the pod itself. Raises NotReady when it is not attached as it was."""
    where = execution.env.get("CNI_NETNS", ""), execution.env.get("CNI_IFNAME", "")
    attached = [
        each
        for each in held.node.ledger.attachments_of(held.sandbox_id)
        if each.state is AttachmentState.ADDED and (each.netns_path, each.ifname) == where
    ]
    if not attached or not held.node.netns.exists(where[0]):
        raise NotReady(f"pod {held.sandbox_id} is not attached any more as it was then; leave out --in-place")
    return await _as_recorded(held, execution, ("nothing: it was run in place, in the pod's own namespace",))


# --- in a scratch namespace ------------------------------------------------------------------------------------


def _planned(node: Node, source: Sequence[StepRecord], execution: PluginExecution, own: str, pod: str) -> _Plan:
    """What is to be run. Raises InvalidRequest, and NotReady for a network that has an address for one pod only."""
    executions = [each.plugin for each in sorted(source, key=lambda each: each.started_at) if each.plugin]
    links, place = recorded.chain(executions, execution)
    left_out, remarks = _left_out(node, links)
    ports = _other_ports(node, links)
    where = Elsewhere(
        id=own, netns_path=node.places.network_namespace(own), ports=ports, left_out=frozenset(left_out)
    )
    moved = [recorded.elsewhere(link, where) for link in links]
    covered = moved[: place + 1] if execution.command == "ADD" else moved
    return _Plan(
        command=execution.command,
        links=moved,
        place=place,
        attachment=recorded.attachment(covered, where, pod=f"replay of {pod}", boot=node.machine.boot),
        changed=(
            "namespace, id, pod name and pod uid are the replay's own",
            *(f"host port {port} is {other}, so that none of a pod's is touched" for port, other in ports.items()),
            *remarks,
        ),
        without_netns=execution.command == "DEL" and not execution.env.get("CNI_NETNS"),
    )


def _left_out(node: Node, links: Sequence[Link]) -> tuple[list[str], list[str]]:
    """The capabilities that the scratch namespace does not get, and why, a sentence each.

    Raises NotReady when the configuration itself gives an address that a pod has.
    """
    having = _addresses(node)
    for link in links:
        for address in recorded.fixed_addresses(link):
            if address in having:
                raise NotReady(
                    f"the network gives everybody the address {address}, which {having[address]} has: a replay would"
                    " take its traffic; remove that pod first"
                )
    left_out = {"cgroupPath": "cgroupPath is left out: nothing runs in the namespace"}
    for capability in ("ips", "mac"):
        for value in dict.fromkeys(each for link in links for each in recorded.asked(link, capability)):
            if value in having:
                left_out[capability] = f"{capability} is left out: {having[value]} has {value}"
    given = {key for link in links for key in link.capabilities}
    return list(left_out), [words for key, words in left_out.items() if key in given]


def _addresses(node: Node) -> dict[str, str]:
    """Addresses that are somebody's, MAC addresses that a pod asked for included, each with whose it is."""
    found: dict[str, str] = {}
    for each in node.ledger.attachments:
        whose = f"pod {each.pod or each.sandbox_id}"
        with suppress(PluginFailed):
            if each.result:
                ips = result.pod_ips(result.parse_result(each.result, each.network), each.ifname)
                found |= dict.fromkeys(ips, whose)
        with suppress(ValueError):
            capabilities = json.loads(each.capability_args)
            if isinstance(capabilities, dict) and isinstance(mac := capabilities.get("mac"), str):
                found[mac] = whose
    return found


def _other_ports(node: Node, links: Sequence[Link]) -> dict[int, int]:
    """For each host port of the chain another one, which is free."""
    asked: dict[int, list[Mapping[str, Any]]] = {}
    for link in links:
        for each in link.ports:
            asked.setdefault(int(each.get("hostPort", 0)), []).append(each)
    others: dict[int, int] = {}
    for port, mappings in asked.items():
        others[port] = publish.free_port(node, mappings, frozenset(others.values()))
    return others


async def _in_scratch(held: Held, plan: _Plan, *, keep: bool) -> Replayed:
    """The chain up to the target, the target, and everything undone."""
    node, path = held.node, plan.attachment.netns_path
    outcome = Replayed(changed=plan.changed, scratch_id=held.sandbox_id, netns_path=path)
    node.ledger.put_attachment(plan.attachment)
    with _collected(held.sandbox_id) as ran:
        try:
            with steps.step("pod.netns.create", path=path):
                await node.netns.create(path)
            outcome.error = await _run(held, plan)
            outcome.before = list(ran)
            outcome.replayed = None if outcome.error else outcome.before.pop()
            if keep:
                _keep(held)
                outcome.kept = True
        finally:
            if not outcome.kept:
                reached = len(ran)
                outcome.left = await _undone(held, path)
                outcome.after = ran[reached:]
    return outcome


async def _run(held: Held, plan: _Plan) -> str:
    """Every execution up to the target, which is the last; why it was not reached, "" when it was."""
    cni, given, added = held.node.network.cni, None, True
    calls = plan.calls()
    for number, (command, position) in enumerate(calls, 1):
        if command == "ADD":
            if not added:
                continue  # before a DEL: the ADDs end with the one that fails, as they did
            result_so_far = json.dumps(given, separators=(",", ":")).encode() if given else b""
            held.node.ledger.put_attachment(
                replace(plan.attachment, state=AttachmentState.ADDING, result=result_so_far)
            )
        try:
            answer = await cni.repeat(plan.call(command, position, given))
        except SandboxdError as exc:
            if number == len(calls):
                return ""
            if plan.command != "DEL":
                return f"{command} {plan.links[position].type}, which comes before it, failed: {exc}"
            added = added and command != "ADD"
        else:
            given = answer if command == "ADD" else given
    return ""


def _keep(held: Held) -> None:
    for attachment in held.node.ledger.attachments_of(held.sandbox_id):
        held.node.ledger.put_attachment(replace(attachment, kept=True))


async def _undone(held: Held, path: str) -> str:
    """DEL everything and remove the namespace; why that is a debt now, "" when nothing is left."""
    try:
        return "; ".join(debt.error for debt in await network.release(held, path))
    except SandboxdError as exc:
        return disclosure.sentence(exc)

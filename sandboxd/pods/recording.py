"""What each plugin changes on the machine for a pod, recorded as steps: for pods that ask for it, or for all.

A look before the first plugin and one after each. What differs between two is the plugin's in the pod's namespace,
and on the host as far as it bears a mark of the pod or of its network (`network_state`). Looking never fails a pod:
what cannot be seen is noted on the step.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from sandboxd import network_state, steps
from sandboxd.cni.invoker import Around, unobserved
from sandboxd.machine import network_look
from sandboxd.machine.network_look import Subject
from sandboxd.model import Attachment
from sandboxd.network_state import State
from sandboxd.node import Node
from sandboxd.oci import sandbox
from sandboxd.places import RECORD_CHANGES
from sandboxd.steps import NetworkChange

log = structlog.get_logger(__name__)

MOST_CHANGES = 200  # of one plugin; a plugin that changes more is rare, and others may do anything meanwhile
MOST_CHARACTERS = 1000  # of a name or a value

Look = Callable[[Subject], Awaitable[State]]


def around(node: Node, attachment: Attachment, verb: str, look: Look = network_look.look) -> Around:
    """What the plugins of an attachment are run within, for `verb`: it records, if that is asked for."""
    pod = node.ledger.sandboxes.get(attachment.sandbox_id)
    # A debt may outlive its pod, and the pod's timeline; then there is nowhere to record to.
    if pod is None or not _is_asked(node, pod.config.annotations.get(RECORD_CHANGES, "")):
        return unobserved
    return Recorder(Subject.of(attachment), verb, look, not_plugins=sandbox.sysctls(pod.config)).around


def _is_asked(node: Node, annotation: str) -> bool:
    return annotation == "true" if annotation else node.config.insight.record_changes


class Recorder:
    """Of one chain of plugins, run one after the other."""

    def __init__(self, subject: Subject, verb: str, look: Look, *, not_plugins: Collection[str]) -> None:
        """`not_plugins` are sysctls of the pod that its runtime sets."""
        self._subject = subject
        self._verb = verb
        self._look = look
        self._not_plugins = not_plugins
        self._last: State | None = None
        self._seen: list[State] = []  # the first and the last, by which the pod is known

    @asynccontextmanager
    async def around(self, plugin: str) -> AsyncIterator[None]:
        """Record what changes until the block is left; not when it is cancelled."""
        if self._last is None:
            with steps.step("cni.look", before=plugin, verb=self._verb) as step:
                self._last = await self._looked(step)
        try:
            yield
        except Exception:
            await self._record(plugin)
            raise
        await self._record(plugin)

    async def _record(self, plugin: str) -> None:
        before = self._last
        with steps.step("cni.look", after=plugin, verb=self._verb) as step:
            after = self._last = await self._looked(step)
            if before is None or after is None:
                return
            # A DEL removes the marks one after the other: the pod is known by all that was seen of it.
            self._seen = [*self._seen[:1], before, after]
            found = network_state.difference(
                before, after, self._subject.marks(*self._seen), not_plugins=self._not_plugins
            )
            step.changes = tuple(map(_bounded, found[:MOST_CHANGES]))
            step.note(changes=len(found), left_out=max(0, len(found) - MOST_CHANGES) or None)

    async def _looked(self, step: steps.Step) -> State | None:
        try:
            seen = await self._look(self._subject)
        except Exception as exc:  # what is only looked at must not fail for it
            log.warning("the machine's network could not be looked at", sandbox=self._subject.pod_id, error=repr(exc))
            step.note(unseen=repr(exc))
            return None
        step.note(unseen="; ".join(dict.fromkeys(seen.unseen.values())) or None)
        return seen


def _bounded(change: NetworkChange) -> NetworkChange:
    def cut(text: str) -> str:
        return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"

    def all_cut(fields: Mapping[str, str] | None) -> Mapping[str, str] | None:
        return None if fields is None else {key: cut(value) for key, value in fields.items()}

    return replace(change, name=cut(change.name), before=all_cut(change.before), after=all_cut(change.after))

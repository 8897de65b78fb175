"""The audit: what is on this machine against the ledger, in both directions, and what is nobody's removed on request.

A finding is what two looks in a row show. Between them something that was being made or removed has come to be, or
has gone: the record of a pod is there before anything of it and after all of it, and an operation holds its id.

A repair goes the ways that there are. What is left of a pod gets a record again and is torn down (`pods.reclaim`);
what work on images left goes with `images.leftovers`. One that fails stops no other. Whether a thing is gone is then
looked at, not concluded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from sandboxd import disclosure
from sandboxd.cni import reservations
from sandboxd.containerd import shims
from sandboxd.errors import SandboxdError
from sandboxd.images import leftovers, uploads
from sandboxd.images.store import ImageStore
from sandboxd.insight import sightings
from sandboxd.insight.residue import Finding, Kind, Known, Thing, missing, residue
from sandboxd.insight.sightings import Sight
from sandboxd.machine import pins, pod_files
from sandboxd.node import Node
from sandboxd.operations import hold, known_sandbox
from sandboxd.pods import adopt, reclaim, recover

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0  # between two looks: what a request that has just ended leaves to the kernel is gone by then
EVERY_SECONDS = 600.0  # between two audits that nobody asked for

_CONNECTED = frozenset({Kind.ADDRESS, Kind.NAMESPACE, Kind.RULE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a repair has come to."""

    finding: Finding
    repaired: bool
    error: str = ""  # why not, "" when it was not tried


class Auditor:
    """Audits one daemon's machine."""

    def __init__(self, node: Node, store: ImageStore, bundles: str) -> None:
        """`bundles` is the directory of containerd's task bundles."""
        self.found: tuple[Finding, ...] = ()  # by the last audit; what is unclear left out
        self._node = node
        self._store = store
        self._bundles = bundles

    async def audit(self, *, thorough: bool = True) -> list[Finding]:
        """Everything that is found. Changes nothing. Raises Unavailable when containerd does not answer."""
        _, _, findings = await self._looked_twice(thorough=thorough)
        self.found = tuple(finding for finding in findings if finding.certain)
        return findings

    async def repair(self) -> list[Outcome]:
        """Repair what an audit finds. Runs to its end, and is joined by who asks meanwhile."""
        return await self._node.jobs.run_to_end(("Audit",), self._repair)

    async def watch(self) -> None:
        """Audit now and then, and log what is found when that has changed; repairs nothing."""
        before: frozenset[tuple[Kind, str]] = frozenset()
        while True:
            try:
                await self.audit(thorough=False)
            except (SandboxdError, OSError) as exc:
                log.debug("the machine could not be audited", error=str(exc))
            else:
                now = frozenset(finding.key for finding in self.found)
                if now - before:
                    log.warning(
                        "there are things that no record knows, or that records know and are gone",
                        count=len(now),
                        first=", ".join(f"{finding.kind} {finding.name}" for finding in self.found[:3]),
                        next_step="`sandboxctl audit` names them, `--repair` removes what is nobody's",
                    )
                before = now
            await asyncio.sleep(EVERY_SECONDS)

    # --- looking -----------------------------------------------------------------------------------------------

    async def _looked_twice(self, *, thorough: bool) -> tuple[Sight, Known, list[Finding]]:
        _, _, first = await self._looked(thorough=thorough)
        if first:
            await asyncio.sleep(LOOK_SECONDS)
        sight, known, second = await self._looked(thorough=thorough)
        seen = {finding.key for finding in first}
        return sight, known, [finding for finding in second if finding.key in seen]

    async def _looked(self, *, thorough: bool) -> tuple[Sight, Known, list[Finding]]:
        ledger, held = self._node.ledger, self._node.jobs.held
        before = ledger.sandboxes.keys() | ledger.containers.keys() | held()
        sight = await sightings.look(self._node, self._store, self._bundles, thorough=thorough)
        known = Known(
            sandboxes=dict(ledger.sandboxes),
            containers=dict(ledger.containers),
            owing=frozenset(attachment.sandbox_id for attachment in ledger.attachments),
            busy=held() | (before - ledger.sandboxes.keys() - ledger.containers.keys()),
            quarantined=frozenset(each.id for each in ledger.quarantined()),
            strangers=sight.strangers,
        )
        lost = missing(known, sight.there)
        # What was made while this looked was not seen, and is there.
        return sight, known, [*residue(sight.things, known), *(each for each in lost if each.owner in before)]

    # --- repairing ---------------------------------------------------------------------------------------------

    async def _repair(self) -> list[Outcome]:
        if self._node.jobs.retries.failing(adopt.KEY):  # what can be put back is not to be removed
            await adopt.adopt(self._node)
        sight, _, findings = await self._looked_twice(thorough=True)
        wanted = [finding for finding in findings if finding.certain]
        errors: dict[tuple[Kind, str], str] = {}
        for repairs, do in self._plan(sight.things, wanted):
            try:
                await do()
            except Exception as exc:
                expected = isinstance(exc, SandboxdError | OSError | TimeoutError)
                words = str(exc) if expected else disclosure.sentence(exc)
                log.warning("the audit could not repair something", error=words, exc_info=None if expected else exc)
                errors |= {finding.key: words for finding in repairs}
        left = {finding.key for finding in (await self.audit() if wanted else ())}
        return [self._outcome(finding, finding.key in left, errors.get(finding.key, "")) for finding in findings]

    def _outcome(self, finding: Finding, left: bool, error: str) -> Outcome:
        if not finding.certain:
            return Outcome(finding=finding, repaired=False)
        ledger = self._node.ledger
        if left:
            error = error or ("it is still gone" if finding.missing else "it is still there")
        elif finding.missing:
            error = ""
        elif finding.owner in ledger.sandboxes or finding.owner in ledger.containers:
            error = error or "it could not be removed whole; this is tried again"
        elif finding.kind in _CONNECTED and any(each.sandbox_id == finding.owner for each in ledger.attachments):
            error = "a plugin's DEL failed; it is a debt now, see `sandboxctl debts`"
        else:
            error = ""
        return Outcome(finding=finding, repaired=not error, error=error)

    def _plan(
        self, things: Sequence[Thing], findings: Sequence[Finding]
    ) -> list[tuple[list[Finding], Callable[[], Awaitable[object]]]]:
        """What is done, and for which findings."""
        node = self._node
        of_owner: dict[str, list[Finding]] = {}
        for finding in findings:
            of_owner.setdefault(finding.owner, []).append(finding)
        plan: list[tuple[list[Finding], Callable[[], Awaitable[object]]]] = []
        for owner, found in of_owner.items():
            residual = [finding for finding in found if not finding.missing]
            if owner and residual:
                plan.append((residual, partial(self._reclaim, owner, residual, things)))
            if owner and len(residual) < len(found):
                plan.append(([each for each in found if each.missing], partial(self._put_back, owner)))
        for finding in of_owner.get("", ()):
            if finding.kind is Kind.UPLOAD:
                plan.append(([finding], partial(uploads.remove, [Path(finding.name)])))
            elif finding.kind is Kind.RESERVATION:
                plan.append(([finding], partial(reservations.release, finding.name)))
            elif finding.kind is Kind.TRANSFER:
                plan.append(([finding], partial(self._store.content.give_up, finding.name)))
        of_images = [each for each in of_owner.get("", ()) if each.kind in (Kind.DRAFT, Kind.LEASE)]
        if of_images:
            plan.append((of_images, partial(leftovers.clear, self._store, node.jobs)))
        return plan

    async def _reclaim(self, owner: str, found: Sequence[Finding], things: Sequence[Thing]) -> None:
        node = self._node
        names = {finding.key for finding in found}
        mine = [thing for thing in things if (thing.kind, thing.name) in names]
        points = [thing.name for thing in mine if thing.kind is Kind.MOUNT]
        containers = sorted({thing.id for thing in mine if len(thing.id) == len(owner) and thing.id != owner})
        if any(owner == thing.pod_id for thing in mine):
            lost = reclaim.Lost(
                id=owner,
                pod=found[0].pod,
                uid=next((thing.uid for thing in mine if thing.uid), ""),
                containers=containers,
                connected=any(thing.kind in _CONNECTED for thing in mine),
                mounts=points,
                ports=sorted({port for thing in mine for port in thing.ports}),
            )
            await reclaim.reclaim(node, lost)
        else:
            pod_id = next((thing.pod_id for thing in mine if thing.pod_id), "")
            await reclaim.reclaim_container(node, owner, points, sandbox_id=pod_id)
        for thing in mine:
            if thing.kind is Kind.SNAPSHOT:  # of a mounted image, whose directory may be gone
                await node.images.remove_rootfs(thing.name)
        for id_ in {owner, *containers}:
            await node.images.forget_changes(id_)
        await self._end_shims({owner, *containers})

    async def _end_shims(self, ids: Iterable[str]) -> None:
        """Those that a teardown leaves: without a task, nothing tells containerd to end them."""
        where = self._node.config.containerd_socket, self._node.config.containerd.namespace
        tasks: Mapping[str, object] = await self._node.runtime.list()
        for id_ in ids:
            if id_ not in tasks:
                await asyncio.to_thread(shims.end_left, *where, id_)

    async def _put_back(self, sandbox_id: str) -> None:
        """What a pod lacks and can get again."""
        node = self._node
        async with hold(node, sandbox_id):
            sandbox = known_sandbox(node, sandbox_id)
            await pins.restore(node, sandbox)
            await pod_files.mend(node, sandbox)
        await recover.compare(node)

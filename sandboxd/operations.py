"""The one shape of a mutating request.

    perform ── joined by its key ──► a job that runs to its end ──► the pod's lock ──► work(held) ──► the answer
                                                                                    └─ held.effect(step) ─ undo

1. The same request joins the one in flight and gets its answer.
2. It runs to its end even if the client leaves.
3. One at a time per pod. `Held` is the lock while it is held: records are looked up through it, so after the lock,
   and what changes a pod asks for it, so that nothing can change one without the lock.
4. What it does outside the process is an `effect`: a named step, undone when it fails.
5. What makes something waits for its turn first (`turns`): of a burst, so many are under way at once that who asks
   for something else meanwhile is answered. So does what ends something, but for others that do and nobody else, and
   for each of them a moment only: none that hangs keeps another from going.

Everything that is to happen around all requests (hooks, fault injection, the vocabulary of steps) comes in here.

A lock that is taken while a pod's is held is never waited for the other way round; there is one: `containers.ending`
records the end of a task under a key of its own, since an exit must be recorded while a StopContainer waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeVar

import structlog

from sandboxd import disclosure, steps
from sandboxd.errors import CleanupIncomplete, NotFound, NotReady, SandboxdError, Unavailable
from sandboxd.machine import pins, pod_files
from sandboxd.model import ContainerRecord, ContainerState, SandboxRecord, SandboxState, subject_of
from sandboxd.node import Node
from sandboxd.turns import Turns

log = structlog.get_logger(__name__)

T = TypeVar("T")
Undo = Callable[[BaseException], Awaitable[None]]


class Held:
    """The lock on one pod while it is held. Made by `hold` and `perform` only, and useless after them."""

    __slots__ = ("_node", "_released", "sandbox_id", "waited")

    def __init__(self, node: Node, sandbox_id: str, waited: str = "") -> None:
        self._node = node
        self._released = False
        self.sandbox_id = sandbox_id
        self.waited = waited  # for its turn, in words; "" when it came at once

    def release(self) -> None:
        """From now on it is refused."""
        self._released = True

    @property
    def node(self) -> Node:
        """The resources. Raises RuntimeError once the lock has been released."""
        if self._released:
            raise RuntimeError(f"the lock on pod {self.sandbox_id} is no longer held")
        return self._node

    def sandbox(self) -> SandboxRecord:
        """The pod as it is now; raises NotFound."""
        return known_sandbox(self.node, self.sandbox_id)

    async def ready_sandbox(self) -> SandboxRecord:
        """The pod, able to take containers: what they join is repaired if need be.

        Raises NotFound; NotReady saying what it lacks; Unavailable when containerd does not answer, at once if that
        is known.
        """
        sandbox = known_sandbox(self.node, self.sandbox_id)
        if sandbox.state is SandboxState.READY and not await pins.restore(self.node, sandbox):
            sandbox = lost(self.node, sandbox)
        if sandbox.state is not SandboxState.READY:
            why = f" ({sandbox.failure})" if sandbox.failure else ""
            raise NotReady(f"pod {sandbox.name} ({sandbox.id}) is {sandbox.state.value}{why}")
        demand_containerd(self.node)
        await pod_files.mend(self.node, sandbox)
        return sandbox

    def container(self, container_id: str) -> ContainerRecord:
        """A container of the pod as it is now; raises NotFound."""
        return known_container(self.node, container_id)

    def running_container(self, container_id: str) -> ContainerRecord:
        """A container of the pod that runs; raises NotFound or NotReady."""
        return running_container(self.node, container_id)

    @asynccontextmanager
    async def effect(self, step: str, *, undo: Undo | None = None, **detail: object) -> AsyncIterator[steps.Step]:
        """Do something that can be seen outside the process, as the step `step`.

        When it fails, `undo` is called with the error; what `undo` cannot undo is noted on the error, which goes on.
        """
        try:
            with steps.step(step, **detail) as this:
                yield this
        except BaseException as exc:
            if undo is not None:
                await _undone(undo, exc)
            raise


async def _undone(undo: Undo, cause: BaseException) -> None:
    try:
        await undo(cause)
    except Exception as left:
        cause.add_note(f"cleaning up: {disclosure.sentence(left)}")


async def perform(
    node: Node,
    verb: str,
    sandbox_id: str,
    work: Callable[[Held], Coroutine[Any, Any, T]],
    *,
    container_id: str = "",
    key: tuple[Hashable, ...] = (),
    subject: str = "",
    turns: Turns | None = None,
) -> T:
    """Answer one mutating request with what `work` returns; see the head of this module.

    `verb` is the RPC's name, and `key` what makes two requests the same: the id of the container or pod by default.
    Keys are named in the log, so they hold ids and digests, not messages. `subject` names what is to be made; what
    exists has a name. Of requests with the same `turns` so many are under way at once.
    """

    async def whole() -> T:
        about = subject or _named(node, sandbox_id, container_id)
        with steps.operation(verb, sandbox_id=sandbox_id, container_id=container_id, subject=about):
            async with _turn(node, turns, sandbox_id) as waited, hold(node, sandbox_id, waited) as held:
                return await work(held)

    return await node.jobs.run_to_end((verb, *(key or (container_id or sandbox_id,))), whole)


@asynccontextmanager
async def _turn(node: Node, turns: Turns | None, sandbox_id: str) -> AsyncIterator[str]:
    """Wait for a turn and have it; how long that took, in words, "" when it came at once."""
    if turns is None:
        yield ""
        return
    # Of one pod only one waits for a turn, or has one while it waits for the pod's lock: others can use them.
    kind = "end" if turns is node.machine.load.teardowns else "turn"
    async with node.jobs.exclusive(f"{kind}:{sandbox_id}"), AsyncExitStack() as stack:
        if not turns.full():
            await stack.enter_async_context(turns.turn(who=sandbox_id))
            yield ""
            return
        began = time.monotonic()
        log.log(logging.DEBUG if turns.waiting() else logging.INFO, "waiting for its turn", sandbox=sandbox_id)
        with steps.step("pod.wait", ahead=turns.waiting()):
            await stack.enter_async_context(turns.turn(who=sandbox_id))
        yield f"{time.monotonic() - began:.1f} s"


async def perform_unlocked(
    node: Node,
    verb: str,
    container: ContainerRecord,
    work: Callable[[], Coroutine[Any, Any, T]],
    *,
    key: tuple[Hashable, ...],
) -> T:
    """`perform` without the pod's lock, for StopContainer alone.

    Its grace period can be hours. Held for so long, the lock would keep the pod from being stopped, which ends the
    same container at once.
    """

    async def whole() -> T:
        about = _named(node, container.sandbox_id, container.id)
        with steps.operation(verb, sandbox_id=container.sandbox_id, container_id=container.id, subject=about):
            return await work()

    return await node.jobs.run_to_end((verb, *key), whole)


def _named(node: Node, sandbox_id: str, container_id: str) -> str:
    """The name of the container, or of the pod, as people know it; "" when there is none."""
    sandbox = node.ledger.sandboxes.get(sandbox_id)
    container = node.ledger.containers.get(container_id)
    if sandbox is None:
        return ""
    return subject_of(sandbox.config.metadata, container.config.metadata.name if container else "")


@asynccontextmanager
async def hold(node: Node, sandbox_id: str, waited: str = "") -> AsyncIterator[Held]:
    """Wait for the pod's lock and hold it: for repairs, which are not requests."""
    async with node.jobs.exclusive(sandbox_id):
        held = Held(node, sandbox_id, waited)
        try:
            yield held
        finally:
            held.release()


@contextmanager
def cleaning(what: str) -> Iterator[None]:
    """Turn an unexpected error into CleanupIncomplete: a bug must not make a pod undeletable.

    A retry continues from there. The traceback is logged.
    """
    try:
        yield
    except SandboxdError:
        raise
    except Exception as exc:
        log.error("cleaning up failed unexpectedly, a retry continues from there", what=what, exc_info=exc)
        raise CleanupIncomplete(f"{what}: {disclosure.sentence(exc)}") from exc


def demand_containerd(node: Node) -> None:
    """Raise Unavailable if containerd is known not to answer: nothing is begun that could not be undone."""
    if trouble := node.runtime.trouble():
        raise Unavailable(f"{trouble}; repeat the request once it does")


def known_sandbox(node: Node, sandbox_id: str) -> SandboxRecord:
    """The pod; raises NotFound."""
    sandbox = node.ledger.sandboxes.get(sandbox_id)
    if sandbox is None:
        raise NotFound(f"pod {sandbox_id} does not exist")
    return sandbox


def lost(node: Node, sandbox: SandboxRecord) -> SandboxRecord:
    """Record that the pod's namespaces are gone: it has no address, and it is not ready if it still was."""
    failure = pins.complaint(node, sandbox) if sandbox.state is SandboxState.READY else sandbox.failure
    ended = time.time_ns() if sandbox.pinned else 0  # nothing else of such a pod ends
    return node.ledger.update_sandbox(sandbox.id, failure=failure, ips=(), exited_at=sandbox.exited_at or ended)


def unstopped_sandbox(node: Node, sandbox_id: str) -> SandboxRecord:
    """The pod, if it has not been stopped; raises NotFound or NotReady."""
    sandbox = known_sandbox(node, sandbox_id)
    if sandbox.stopped_at:
        raise NotReady(f"pod {sandbox.name} ({sandbox.id}) is no longer running")
    return sandbox


def known_container(node: Node, container_id: str) -> ContainerRecord:
    """The container; raises NotFound. One that is still being created is not known to clients."""
    container = node.ledger.containers.get(container_id)
    if container is None or container.state is ContainerState.CREATING:
        raise NotFound(f"container {container_id} does not exist")
    return container


def running_container(node: Node, container_id: str) -> ContainerRecord:
    """The container, if it is running; raises NotFound or NotReady."""
    container = known_container(node, container_id)
    if container.state is not ContainerState.RUNNING:
        raise NotReady(f"container {container_id} is {container.state.value}, not running")
    return container

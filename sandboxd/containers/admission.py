"""How many processes are exec'd into one pod at once.

All containers of a pod share a shim, and that of containerd 1.6 stops for half a minute and more when about 32
processes end while it starts one: its runc and the process itself, each time. So what is bounded is not only how many
are started at once, but how many there are:

    session   of a client that drives it, for hours perhaps   two thirds of the places
    place     any exec, from before its start to its end      `runtime.execs_per_pod`
    start     from before its start to when it runs           a sixth of them

They are waited for in this order, each first come, first served. Sessions leave places for ExecSync, so that nobody
who keeps a terminal open keeps probes from running. Nothing that ends a process waits here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import structlog

from sandboxd import steps
from sandboxd.errors import Exhausted, NotReady
from sandboxd.model import ContainerRecord
from sandboxd.node import Node
from sandboxd.operations import running_container
from sandboxd.turns import Turns

log = structlog.get_logger(__name__)

SESSION_SECONDS = 30.0  # for which a client that wants to drive a process waits for another one to leave


class Admission:
    """One exec's way in, and what it holds of the pod's places."""

    def __init__(self, node: Node, container: ContainerRecord) -> None:
        self._node = node
        self._container = container
        self._place = AsyncExitStack()
        self._start = AsyncExitStack()

    async def wait(self, *, session: bool) -> None:
        """Wait until the process may be started; `session` if a client drives it.

        Raises NotFound or NotReady when the container or the pod has ended meanwhile; Exhausted when there is no
        end to the wait: it says who has the places.
        """
        execs, pod = self._node.machine.load.execs, self._container.sandbox_id
        try:
            queues = (execs.places, execs.starts, *([execs.sessions] if session else ()))
            if any(turns.full(pod) for turns in queues):
                await self._waited(session)
            else:
                await self._admitted(session)
            # What was waited for may have been the end of the container.
            running_container(self._node, self._container.id)
        except BaseException:
            await self.leave()
            raise

    async def _waited(self, session: bool) -> None:
        execs, pod, who = self._node.machine.load.execs, self._container.sandbox_id, self._container.id
        left: asyncio.CancelledError | None = None
        with (
            steps.operation("Exec", sandbox_id=pod, container_id=who),
            steps.step("container.exec.wait", running=len(execs.places.holders(pod))) as step,
        ):
            try:
                await self._admitted(session)
            except asyncio.CancelledError as exc:
                left = exc  # the client: nothing has failed
                step.note(ended="the client left")
        if left is not None:
            raise left

    async def _admitted(self, session: bool) -> None:
        execs, pod, who = self._node.machine.load.execs, self._container.sandbox_id, self._container.id
        if session:
            try:
                async with asyncio.timeout(SESSION_SECONDS):
                    await self._place.enter_async_context(execs.sessions.turn(pod, who))
            except TimeoutError:
                raise Exhausted(_taken(execs.sessions, pod)) from None
        await self._place.enter_async_context(execs.places.turn(pod, who))
        await self._start.enter_async_context(execs.starts.turn(pod, who))

    async def started(self) -> None:
        """The process runs, or does not: another one may be started."""
        await self._start.aclose()

    async def leave(self) -> None:
        """Nothing is left of the process. Idempotent."""
        await self._start.aclose()
        await self._place.aclose()


def _taken(sessions: Turns, pod: str) -> str:
    by = Counter(sessions.holders(pod))
    holders = ", ".join(f"{count} in container {container[:12]}" for container, count in by.most_common(5))
    return (
        f"pod {pod} has {sum(by.values())} open exec sessions ({holders}), and takes no more at once: end one;"
        " runtime.execs_per_pod bounds them"
    )


def dismiss(node: Node, sandbox_id: str) -> None:
    """The pod is being stopped: nobody waits any longer to execute something in it."""
    execs = node.machine.load.execs
    for turns in (execs.sessions, execs.places, execs.starts):
        turns.dismiss(sandbox_id, NotReady(f"pod {sandbox_id} is being stopped"))

"""containerd as operations see it: containers, their tasks, and the processes in them."""

from __future__ import annotations

from sandboxd.containerd import bundles
from sandboxd.containerd.client import Containerd
from sandboxd.containerd.processes import Processes
from sandboxd.containerd.records import Records
from sandboxd.containerd.tasks import Exit, Tasks
from sandboxd.jobs import in_pieces


class ContainerdRuntime(Tasks):
    """Containers and tasks; `processes` are those that run inside, `records` those that are stored."""

    def __init__(self, client: Containerd, state: str) -> None:
        """`state` is the state directory of the containerd behind `client`."""
        super().__init__(client)
        self.processes = Processes(client)
        self.records = Records(client)
        self._client = client
        self._bundles = bundles.directory(state, client.namespace)

    def trouble(self) -> str:
        """Why containerd is known not to answer, "" when it is not."""
        return self._client.trouble()

    async def delete(self, container_id: str) -> Exit | None:
        """Free a task's resources, as `Tasks.delete`; also what a containerd that died has left of one.

        Raises CleanupIncomplete besides.
        """
        before = container_id in self._freed
        ended = await super().delete(container_id)
        if ended is None and not before:
            await in_pieces(bundles.remove_left(f"{self._bundles}/{container_id}"))
        return ended

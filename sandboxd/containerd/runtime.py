"""containerd as operations see it: containers, their tasks, and the processes in them."""

from __future__ import annotations

from sandboxd.containerd.client import Containerd
from sandboxd.containerd.processes import Processes
from sandboxd.containerd.tasks import Tasks


class ContainerdRuntime(Tasks):
    """Containers and tasks; `processes` are those that run inside."""

    def __init__(self, client: Containerd) -> None:
        super().__init__(client)
        self.processes = Processes(client)
        self._client = client

    def trouble(self) -> str:
        """Why containerd is known not to answer, "" when it is not."""
        return self._client.trouble()

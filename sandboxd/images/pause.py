"""The image of every pod's first container: here before the first pod asks, brought again where it was removed."""

from __future__ import annotations

import asyncio

from sandboxd.config import Runtime
from sandboxd.errors import NotFound, Unavailable
from sandboxd.images import load
from sandboxd.images.pull import Pulls
from sandboxd.images.store import ImageStore
from sandboxd.jobs import Jobs
from sandboxd.model import ImageRecord

BUILTIN = "builtin"  # made from this machine's own catatonit


class PauseImage:
    """The configured pause image, kept pinned."""

    def __init__(self, store: ImageStore, pulls: Pulls, jobs: Jobs, settings: Runtime) -> None:
        self._store = store
        self._pulls = pulls
        self._jobs = jobs
        self._settings = settings
        self._record: ImageRecord | None = None

    async def get(self) -> ImageRecord:
        """The image; it is brought again if it was removed.

        Raises Unavailable while it has not been fetched for the first time, and what bringing it again raises.
        """
        if self._record is not None:
            try:
                self._store.resolve(self._record.id)
            except NotFound:
                await self._jobs.run_to_end(("pause image",), self._bring)
        if self._record is None:
            raise Unavailable(f"the pause image {self._settings.pause_image} is not here yet; it is being fetched")
        return self._record

    async def prepare(self) -> None:
        """Bring the image at start, so that running a pod needs no registry.

        One that has to be fetched is fetched in the background: what exists already does not need it.
        """
        try:
            if self._settings.pause_image != BUILTIN:
                self._store.resolve(self._settings.pause_image)
        except NotFound:
            self._jobs.watch("pause image", self._fetch)
        else:
            await self._bring()

    async def _fetch(self) -> None:
        await self._bring()
        await asyncio.Event().wait()  # a watched loop that ends would be started again

    async def _bring(self) -> None:
        wanted = self._settings.pause_image
        if wanted == BUILTIN:
            self._record = await load.ensure_pause(self._store, self._settings.pause_binary)
            return
        try:
            record = self._store.resolve(wanted)
        except NotFound:
            record = await self._pulls.pull(wanted)
        else:
            await self._store.ensure_unpacked(record)
        self._record = await self._store.pin(record)

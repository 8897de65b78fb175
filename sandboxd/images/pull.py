"""PullImage: from a reference to an image that can be run.

    resolve    what the reference means now; an image that is here already and has not changed ends here
    manifest   index and manifest: is it for this machine, can it be stored
    content    config and layers, fetched, examined and unpacked at the same time (`fetch_blobs`)
    name       the image records, last: from now on the image exists

Rules:

1. The same reference with the same credentials is pulled once, however many ask; each of them may go away, and
   when the last has, the pull stops. Other credentials are another pull: who may not have an image must not get it
   by asking at the right moment.
2. What was fetched belongs to a lease. A pull that was stopped, or that a registry or the network let down, leaves
   its lease for the next attempt, for `KEEP_SECONDS` at most. Wrong content and a full disk leave nothing.
3. No name exists before everything that it needs does.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import structlog

from sandboxd import steps
from sandboxd.containerd.images import Image
from sandboxd.errors import (
    AccessDenied,
    InvalidRequest,
    NotFound,
    NotReady,
    SandboxdError,
    TimedOut,
    Unavailable,
)
from sandboxd.images.fetch import ACCEPT, Counters, Fetch, Found, Hold, Shared, find, no_space
from sandboxd.images.store import MANAGED, OWN_DOMAIN, ImageStore
from sandboxd.images.unpack import Memory
from sandboxd.jobs import Jobs
from sandboxd.model import ImageRecord, Progress, Report, unreported
from sandboxd.oci.image import is_digest
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.registry import auth, reference
from sandboxd.registry.auth import Credentials
from sandboxd.registry.client import Registries, Repository, first_cause
from sandboxd.registry.reference import Reference

log = structlog.get_logger(__name__)

KEEP_SECONDS = 24 * 3600.0
LEASE_PREFIX = "sandboxd-pull-"
LEASES_KEY = "leases of pulls"  # held while one is chosen or given up, so that none goes that has just been taken up
LAYERS_OF_ALL = 12  # under way at once, over all pulls; each may hold a thread and some MiB
WRITERS = 4  # threads that unpack from memory or write blobs, which must not wait for those that wait for the network

# The next attempt can go on from what these left; it says nothing against the content.
_WORTH_KEEPING = (asyncio.CancelledError, Unavailable, TimedOut, NotReady, AccessDenied)


@dataclass(slots=True, eq=False)
class _Flight:
    """A pull under way and those who wait for it."""

    task: asyncio.Task[ImageRecord] | None = None
    waiting: int = 0
    listeners: list[Report] = field(default_factory=list)
    told: dict[str, Progress] = field(default_factory=dict)  # the last of each layer

    def tell(self, progress: Progress) -> None:
        self.told[progress.digest] = progress
        for listener in tuple(self.listeners):
            listener(progress)


class Pulls:
    """All pulls of one daemon."""

    def __init__(self, store: ImageStore, jobs: Jobs, registries: Registries, *, layers_at_once: int = 3) -> None:
        """`layers_at_once` is for each pull."""
        self._store = store
        self._jobs = jobs
        self._registries = registries
        self._at_once = layers_at_once
        self._flights: dict[tuple[str, Credentials], _Flight] = {}
        self._stopping = False
        # Threads of their own: an examination waits for the network, and the network must not wait for a thread.
        self._executor = ThreadPoolExecutor(
            max_workers=LAYERS_OF_ALL + WRITERS, thread_name_prefix="layer-check", initializer=_work_in_bulk
        )
        self.counters = Counters()
        self._shared = Shared(
            store=store,
            jobs=jobs,
            executor=self._executor,
            layers=asyncio.Semaphore(LAYERS_OF_ALL),
            counters=self.counters,
            memory=Memory(),
        )

    async def pull(
        self,
        text: str,
        credentials: Credentials | None = None,
        report: Report = unreported,
    ) -> ImageRecord:
        """Fetch what `text` names and return the image, unpacked.

        `report` is called with each layer's progress; for a caller that joins a pull under way, at once with where
        it is. Cancelling is how a caller goes away.

        Raises InvalidRequest or Unsupported for a reference or an image that cannot be used, NotFound, AccessDenied,
        TimedOut without progress, Exhausted for too many requests or a full disk, NotReady for certificates and
        credential helpers, Unavailable for what did not answer.
        """
        name = reference.parse(text)
        if name.digest and not is_digest(name.digest):
            raise InvalidRequest(f"{text}: only sha256 digests are supported")
        if name.domain == OWN_DOMAIN:
            raise InvalidRequest(f"{name}: names of {OWN_DOMAIN} are sandboxd's own, no registry has them")
        key = (str(name), credentials or Credentials())
        flight = await self._board(key, name)
        flight.waiting += 1
        flight.listeners.append(report)
        for progress in flight.told.values():
            report(progress)
        assert flight.task is not None
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError as exc:
            if flight.task.cancelled() and self._stopping:
                raise Unavailable(f"{name}: the pull was stopped, as sandboxd is shutting down") from exc
            raise
        finally:
            flight.waiting -= 1
            flight.listeners.remove(report)
            if not flight.waiting and not flight.task.done():
                flight.task.cancel()

    async def _board(self, key: tuple[str, Credentials], name: Reference) -> _Flight:
        """The flight for this key: one under way that is not being stopped, or a new one."""
        while (flight := self._flights.get(key)) is not None:
            assert flight.task is not None
            if not flight.task.done() and not flight.task.cancelling():
                return flight
            # It was abandoned: wait until it has released its resources.
            await asyncio.wait((flight.task,))
        if self._stopping:
            raise Unavailable("sandboxd is shutting down")
        flight = self._flights[key] = _Flight()
        flight.task = self._jobs.spawn(("PullImage", key[0], id(flight)), lambda: self._run(key, name, flight))
        return flight

    def in_flight(self) -> tuple[str, ...]:
        """The references that are being pulled now."""
        return tuple(key[0] for key in self._flights)

    async def stop(self, within: float | None = None) -> None:
        """End all pulls, at shutdown: what is complete is kept for the next attempt.

        Returns after `within` seconds even if one of them is still running.
        """
        self._stopping = True
        tasks = [flight.task for flight in self._flights.values() if flight.task is not None]
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=within)
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)

    async def _run(self, key: tuple[str, Credentials], name: Reference, flight: _Flight) -> ImageRecord:
        self.counters.started += 1
        try:
            with steps.operation("PullImage", subject=str(name)):
                record = await self._pull(name, key[1], flight.tell)
        except asyncio.CancelledError:
            self.counters.cancelled += 1
            raise
        except BaseException:
            self.counters.failed += 1
            raise
        finally:
            del self._flights[key]
            if not self._flights:
                self._shared.brought.clear()
        self.counters.succeeded += 1
        return record

    async def _pull(self, name: Reference, credentials: Credentials, report: Report) -> ImageRecord:
        async with self._registries.open(name, credentials, ACCEPT) as repository:
            try:
                if (record := await self._unchanged(name, repository)) is not None:
                    if await self._forget_attempts(str(name)):
                        self._jobs.start("collection", self._store.leases.collect)
                    return record
                with steps.step("image.manifest", image=str(name)) as step:
                    found = await find(self._store, repository, await repository.manifest(name.digest or name.tag))
                    step.note(digest=found.target.digest, layers=len(found.manifest.layers))
                await self._bring_in(name, repository, found, report)
            except BaseExceptionGroup as exc:
                raise first_cause(exc) from exc
            finally:
                self.counters.retries += repository.retries
        await self._store.look()
        self._jobs.start("image usage", self._store.measure)
        return self._store.resolve_as(str(name))

    async def _unchanged(self, name: Reference, repository: Repository) -> ImageRecord | None:
        """The image, if it is here under this very name and the registry still means it.

        The registry is asked even for a digest: that the image is here does not mean that this client may use it.
        """
        try:
            record = self._store.resolve_as(str(name))
        except NotFound:
            return None
        with steps.step("image.resolve", image=str(name)) as step:
            digest = await repository.resolve(name.digest or name.tag)
            step.note(digest=digest)
        if f"{name.repository}@{digest}" not in record.repo_digests:
            return None
        try:
            # The same image may be known by several digests: the tag has to be at this one.
            if not name.digest and (await self._store.images.get(str(name))).target.digest != digest:
                return None
            await self._store.ensure_unpacked(record)
        except NotFound:
            return None
        # Its files are here; to be saved, or unpacked elsewhere, it needs what they came from, too.
        return record if await self._store.is_whole(str(name)) else None

    async def _bring_in(self, name: Reference, repository: Repository, found: Found, report: Report) -> None:
        """Everything that the manifest leads to, into containerd; then the names."""
        async with self._lease(str(name)) as hold:
            fetch = Fetch(self._shared, repository, hold, self._at_once, report)
            before = replace(self.counters)
            total = sum(layer.size for layer in found.manifest.layers)
            with steps.step("image.content", image=str(name), bytes=total) as step:
                config, data = await fetch.config(found)
                async with asyncio.TaskGroup() as group:
                    group.create_task(fetch.keep_documents(found, config, data))
                    group.create_task(fetch.layers(found.manifest, config))
                # Of all pulls at this time; mostly there is one.
                step.note(fetched=self.counters.blobs_fetched - before.blobs_fetched)
                step.note(reused=self.counters.blobs_reused - before.blobs_reused)
            with steps.step("image.name", image=str(name)):
                # The digest keeps the image when the tag moves on to another one. It comes first: an image that has
                # its tag has all that a pull gives it, also if we die in between.
                names = [f"{name.repository}@{found.target.digest}"]
                if not name.digest:
                    names.append(f"{name.repository}:{name.tag}")
                images = [Image(name=each, target=found.target, labels=MANAGED) for each in names]
                await self._store.name(hold.lease, images)

    # The lease.

    @asynccontextmanager
    async def _lease(self, name: str) -> AsyncIterator[Hold]:
        """Hold a lease of this reference: the one that an earlier attempt left, or a new one."""
        leases = self._store.leases
        with ExitStack() as using:
            async with self._jobs.exclusive(LEASES_KEY):
                now = time.time()
                left = await self._left(name)
                # Its end is in its id. One that might end under our hands is replaced; what is touched moves over.
                usable = [lease for lease in left if _end(lease) > now + KEEP_SECONDS / 2]
                fresh = f"{_prefix(name)}{int(now + KEEP_SECONDS):x}-{secrets.token_hex(4)}"
                lease = usable[-1] if usable else fresh
                using.enter_context(leases.using(lease))
            if not usable:
                await leases.create(lease, seconds=KEEP_SECONDS)
            hold = Hold(lease=lease, written=bool(usable))
            try:
                with no_space(name):
                    yield hold
            except BaseException as exc:
                error = first_cause(exc) if isinstance(exc, BaseExceptionGroup) else exc
                if not (hold.written and isinstance(error, _WORTH_KEEPING)):
                    await self._drop(name, lease, sync=True)
                raise
            await self._drop(name, lease, sync=False)

    async def _left(self, name: str) -> list[str]:
        """The leases that attempts to pull this reference left, the one that lasts longest last."""
        return sorted(lease for lease in await self._store.leases.idle() if lease.startswith(_prefix(name)))

    async def _forget_attempts(self, name: str, lease: str = "") -> bool:
        """Give up what attempts hold that were cut off after they had given the names, or that `lease` replaces."""
        leases = self._store.leases
        try:
            async with self._jobs.exclusive(LEASES_KEY):
                left = [each for each in await self._left(name) if each != lease]
                for each in left:
                    await leases.delete(each)
        except SandboxdError as exc:
            log.warning("what an earlier pull left could not be given up, it will expire", image=name, error=str(exc))
            return False
        return bool(left)

    async def _drop(self, name: str, lease: str, *, sync: bool) -> None:
        """Give up what this attempt and earlier ones hold; `sync` waits until it is gone."""
        await self._forget_attempts(name, lease)
        try:
            await self._store.leases.delete(lease, sync=sync)
        except SandboxdError as exc:
            # Without this it would look like an attempt to go on from, once the image's names are gone.
            self._store.given_up.add(lease)
            log.warning("a lease could not be deleted, this is tried again later", lease=lease, error=str(exc))


def _prefix(name: str) -> str:
    """With what the ids of a reference's leases begin."""
    return f"{LEASE_PREFIX}{hashlib.sha256(name.encode()).hexdigest()[:16]}-"


def _work_in_bulk() -> None:
    """Keep the calling thread from preempting others when it wakes up (sched(7), SCHED_BATCH)."""
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _end(lease: str) -> int:
    """When a pull's lease ends, unix seconds; 0 for an id that does not say."""
    try:
        return int(lease.split("-")[3], 16)
    except (IndexError, ValueError):
        return 0


def credentials_of(message: cri.AuthConfig) -> Credentials:
    """CRI's AuthConfig; `auth` counts when there is no user name. Raises InvalidRequest when it cannot be decoded."""
    username, password = message.username, message.password
    if message.auth and not username:
        username, password = auth.decode(message.auth)
    return Credentials(
        username=username,
        password=password,
        identity_token=message.identity_token,
        registry_token=message.registry_token,
        server_address=message.server_address,
    )

"""The daemon's view of container output: open, reopen, drain, close, follow.

The work is done by the logger, a process of its own (`logger`). It is found or started when it is first needed,
replaced when it is of another version, and restarted when it has died. What a FIFO holds is never lost in between:
the shim keeps it open while the container runs, the daemon until its output is drained. So the guarantees are:

- Restart or death of the daemon: nothing is lost, torn or delayed; the logger does not notice.
- A logger of another version is asked to retire: nothing is lost or torn.
- Death of the logger: loses at most what it had read and not yet written, which is less than one read per stream; a
  half-written entry is removed from the file, the beginning of an unfinished line is kept beside the FIFO.
- Death of both: the same, except that a container that ends before they are back loses what its FIFOs held.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog

import sandboxd
from sandboxd import supervised
from sandboxd.errors import NotReady, TimedOut
from sandboxd.logs import process, wire
from sandboxd.logs.control import Control
from sandboxd.logs.fifos import Keeper, fifo_paths, make_fifos

__all__ = ["Logs", "fifo_paths", "make_fifos"]

log = structlog.get_logger(__name__)

ANSWER_SECONDS = 10.0  # for a request, including a start of the logger
HELLO_SECONDS = 5.0  # a logger that takes longer to answer a hello is stuck
END_SECONDS = 3.0  # for a logger that was asked to end
RETRY_SECONDS = 0.05  # before a follower looks for the successor of a logger that has just died
COUNT_SECONDS = 5.0  # between two looks at what the logger has done
STEADY_SECONDS = 1.0  # a logger that lived for less is not restarted at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What the logger has done since it was started, `COUNT_SECONDS` ago at most; it may outlive the daemon."""

    read: int = 0  # bytes of output
    lost: int = 0  # bytes of log entries that could not be written


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What a logger must know to continue with a container."""

    fifos: Mapping[str, str]
    log_path: str
    came_first: frozenset[str]  # the streams whose writer existed before our keeper
    keeper: Keeper


class Logs:
    """The output of every running container."""

    def __init__(
        self, *, places: process.LoggerPaths, max_line_bytes: int, idle_seconds: float, env: Mapping[str, str]
    ) -> None:
        self._places = places
        self._max_line = max_line_bytes
        self._idle = idle_seconds
        self._env = env
        self._opened: dict[str, _Opened] = {}
        self._control: Control | None = None
        self._connecting = asyncio.Lock()
        self.counted = Counted()

    @property
    def connected(self) -> bool:
        """Whether there is a logger."""
        return self._control is not None and not self._control.lost.is_set()

    async def connect(self) -> None:
        """Find or start the logger. Raises NotReady."""
        await self._connected()

    async def keep_up(self) -> None:
        """Restart the logger whenever it ends; returns when it ends too soon after its start."""
        clock = asyncio.get_running_loop().time
        while True:
            control = await self._connected()
            began = clock()
            while not control.lost.is_set():
                await self._count(control)
                with suppress(TimeoutError):
                    async with asyncio.timeout(COUNT_SECONDS):
                        await control.lost.wait()
            log.warning("the logger has ended, restarting it")
            if clock() - began < STEADY_SECONDS:
                return

    async def _count(self, control: Control) -> None:
        with suppress(TimeoutError, ConnectionError, NotReady):  # one of an earlier version does not count
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await control.call("count")
            self.counted = Counted(read=answer["read"], lost=answer["lost"])

    async def open(self, container_id: str, fifos: Mapping[str, str], log_path: str, *, resume: bool = False) -> None:
        """Start logging; a no-op for a container that is already open.

        `resume` says that the container may be logged already, and that the writer came first: a FIFO without one
        has ended, and a log file that cannot be opened costs lines, not the container.

        Raises NotReady when a FIFO or the log file cannot be opened.
        """
        if container_id in self._opened:
            return
        try:
            keeper = Keeper(fifos)
        except OSError as exc:
            raise NotReady(f"the output of container {container_id} cannot be logged: {exc}") from exc
        came_first = frozenset(fifos if resume else ())
        opened = _Opened(fifos=fifos, log_path=log_path, came_first=came_first, keeper=keeper)
        try:
            await self._ask("open", **self._opening(container_id, opened), must_write=not resume)
        except BaseException as exc:
            keeper.close()
            if isinstance(exc, NotReady):
                raise NotReady(f"the output of container {container_id} cannot be logged: {exc}") from exc
            raise
        self._opened[container_id] = opened

    async def reopen(self, container_id: str) -> None:
        """Write to a new file at the same path; raises NotReady when the container is not being logged."""
        if container_id not in self._opened:
            raise NotReady(f"container {container_id} is not running, its log cannot be reopened")
        try:
            await self._ask("reopen", container=container_id)
        except NotReady as exc:
            raise NotReady(f"the log of container {container_id} cannot be reopened: {exc}") from exc

    async def drain(self, container_id: str, timeout: float) -> None:
        """Wait up to `timeout` seconds for the rest of a dead container's output, then close it."""
        try:
            await self._ask("drain", timeout=timeout, container=container_id)
        except TimedOut:
            log.warning(
                "container output did not end in time and is cut off", container=container_id, seconds=timeout
            )
        except NotReady as exc:
            log.warning("container output cannot be drained", container=container_id, error=str(exc))
        else:
            self._forget(container_id)
            return
        await self.close(container_id)

    async def close(self, container_id: str) -> None:
        """Stop logging now. Idempotent."""
        self._forget(container_id)
        try:
            await self._ask("close", container=container_id)
        except (NotReady, TimedOut) as exc:
            # No logger will be asked to open it again, and a running one forgets it at the daemon's next start.
            log.warning("the logger could not be asked to close", container=container_id, error=str(exc))

    async def retain(self, container_ids: Collection[str]) -> None:
        """Have the logger forget all other containers. Raises NotReady."""
        await self._ask("retain", containers=list(container_ids))

    async def leave(self) -> None:
        """Disconnect, because the daemon stops: the logger continues, unless it has nothing to log."""
        control, self._control = self._control, None
        if control is not None:
            pidfd = self._places.process.pidfd()
            try:
                async with asyncio.timeout(END_SECONDS):
                    if (await control.call("leave"))["ending"] and pidfd >= 0:
                        await asyncio.to_thread(supervised.ended, pidfd, END_SECONDS)
            except (TimeoutError, ConnectionError, NotReady):
                pass  # it has ended, or will end once it has been idle for long enough
            finally:
                if pidfd >= 0:
                    os.close(pidfd)
            control.close()
        for container_id in tuple(self._opened):
            self._forget(container_id)

    async def changes(self, container_id: str) -> AsyncGenerator[None, None]:
        """Yield whenever the container's log may have grown, until its output ends."""
        async with aclosing(self._frames("watch", container_id)) as frames:
            async for kind, _ in frames:
                if kind == wire.MESSAGE:
                    yield

    @asynccontextmanager
    async def output(self, container_id: str) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
        """What the container writes from now on, as (stream, bytes), until its output ends.

        A slow reader makes the container wait, but not forever: an iterator that is not advanced for seconds on end
        while megabytes wait for it raises TimedOut. If the logger dies, what the container writes until the next one
        reads it is missing.

        Raises NotReady when the container is not being logged.
        """
        async with aclosing(self._frames("attach", container_id)) as frames:
            try:
                await anext(frames)
            except StopAsyncIteration:
                raise NotReady(f"container {container_id} is not running, it has no output") from None
            yield _chunks(frames)

    async def _frames(self, op: str, container_id: str) -> AsyncGenerator[tuple[bytes, bytes], None]:
        """What the logger sends, a message first; continues with the next logger when one dies."""
        while container_id in self._opened:
            try:
                control = await self._connected()
                reader, writer = await asyncio.open_unix_connection(self._places.socket)
            except NotReady as exc:
                log.warning("the logger cannot be asked for output", container=container_id, error=str(exc))
                return
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)  # it has just died
                continue
            try:
                writer.write(wire.message(op=op, container=container_id))
                while True:
                    kind, payload = await _receive(reader)
                    fields = wire.parse(payload) if kind == wire.MESSAGE else {}
                    if "end" in fields or "error" in fields:
                        return
                    yield kind, payload
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()
            # The end of a dying logger's connections is not noticed at once.
            if op == "attach" and not await _lost(control):
                raise TimedOut(f"the output of container {container_id} was read too slowly and is cut off")

    def _opening(self, container_id: str, opened: _Opened) -> dict[str, Any]:
        return {
            "container": container_id,
            "fifos": dict(opened.fifos),
            "log": opened.log_path,
            "max_line": self._max_line,
            "came_first": sorted(opened.came_first | opened.keeper.abandoned()),
        }

    async def _ask(self, op: str, timeout: float = ANSWER_SECONDS, **fields: Any) -> dict[str, Any]:
        """A request to the logger that is alive; every request may be repeated.

        Raises NotReady when it refuses or cannot be started, TimedOut.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    control = await self._connected()
                    try:
                        return await control.call(op, **fields)
                    except ConnectionError:
                        continue
        except TimeoutError as exc:
            log_file = self._places.log_file
            raise TimedOut(f"the logger has not answered {op} for {timeout:g} s; see {log_file}") from exc

    async def _connected(self) -> Control:
        async with self._connecting:
            if self._control is None or self._control.lost.is_set():
                self._control = await self._connect()
            return self._control

    async def _connect(self) -> Control:
        """A logger of our version that has everything open. Raises NotReady."""
        opened = dict(self._opened)
        borrowed: list[Keeper] = []
        try:
            for _ in range(3):
                control = await self._reach()
                try:
                    async with asyncio.timeout(HELLO_SECONDS):
                        hello = await control.call("hello", protocol=wire.PROTOCOL, version=sandboxd.__version__)
                        ours = (hello["protocol"], hello["version"]) == (wire.PROTOCOL, sandboxd.__version__)
                        if not ours:
                            log.info("replacing the logger of another version", version=hello["version"])
                            opened |= _inherited(hello["containers"], opened, borrowed)
                            await control.call("retire")
                            await control.lost.wait()
                            continue
                    await self._take_over(control, opened)
                    return control
                except ConnectionError:
                    pass  # it was just ending
                except TimeoutError:
                    log.warning("the logger does not answer, killing it")
                    await asyncio.to_thread(self._places.process.end, END_SECONDS)
                except BaseException:
                    control.close()
                    raise
                control.close()
        finally:
            for keeper in borrowed:
                keeper.close()
        raise NotReady(f"the logger ends as soon as it is started; see {self._places.log_file}")

    async def _reach(self) -> Control:
        """A connection to the logger, which is started if it is not running."""
        loop = asyncio.get_running_loop()
        for attempt in (1, 2):
            try:
                _, control = await loop.create_unix_connection(lambda: Control(_log_notice), self._places.socket)
                return control
            except (FileNotFoundError, ConnectionRefusedError) as exc:
                if attempt == 2:
                    raise NotReady(f"the logger cannot be reached: {exc}") from exc
                process.start(self._places, self._idle, self._env)
            except OSError as exc:
                raise NotReady(f"the logger cannot be reached: {exc}") from exc
        raise AssertionError("unreachable")

    async def _take_over(self, control: Control, opened: Mapping[str, _Opened]) -> None:
        """Have everything opened; a container that cannot be opened is reported and does not affect the others."""
        for container_id, output in opened.items():
            try:
                before = self._opening(container_id, output)
                await control.call("open", **before, must_write=False)
                after = self._opening(container_id, output)
                if after["came_first"] != before["came_first"]:  # its writer left while it was being opened
                    await control.call("open", **after, must_write=False)
            except NotReady as exc:
                log.error("container output is no longer logged", container=container_id, error=str(exc))

    def _forget(self, container_id: str) -> None:
        opened = self._opened.pop(container_id, None)
        if opened is not None:
            opened.keeper.close()


def _inherited(
    containers: Mapping[str, Any], opened: Mapping[str, _Opened], borrowed: list[Keeper]
) -> dict[str, _Opened]:
    """What another logger has open and we have not (yet), kept alive by keepers that the caller closes."""
    inherited = {}
    for container_id, output in containers.items():
        if container_id in opened or output["ended"]:
            continue
        try:
            keeper = Keeper(output["fifos"])
        except OSError:
            continue  # removed with its container
        borrowed.append(keeper)
        inherited[container_id] = _Opened(
            fifos=output["fifos"], log_path=output["log"], came_first=frozenset(output["fifos"]), keeper=keeper
        )
    return inherited


def _log_notice(notice: dict[str, Any]) -> None:
    log.warning(notice.pop("notice"), **notice)


async def _receive(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    kind, length = wire.head(await reader.readexactly(wire.HEAD_BYTES))
    return kind, await reader.readexactly(length)


async def _chunks(frames: AsyncIterator[tuple[bytes, bytes]]) -> AsyncIterator[tuple[str, bytes]]:
    async for kind, payload in frames:
        if kind in wire.STREAMS:
            yield wire.STREAMS[kind], payload


async def _lost(control: Control) -> bool:
    try:
        async with asyncio.timeout(1.0):
            await control.lost.wait()
    except TimeoutError:
        return False
    return True

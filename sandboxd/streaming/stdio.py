"""Exec and attach: one process's standard streams over one link.

1. The client opens its streams; early input waits in a bounded inbox.
2. The session is opened, then input, sizes and output flow, each in its own task.
3. The process ends; all of its output is sent, then the outcome, then the close.
Any failure becomes the outcome, if the client is still there to read it.

A disconnect also ends the client's input; older WebSocket clients have no other way to do so. Input that was sent
before is still delivered, and an exec'd process that reads it has a moment to end by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import structlog

from sandboxd import disclosure
from sandboxd.errors import SandboxdError
from sandboxd.jobs import Jobs
from sandboxd.streaming import remotecommand
from sandboxd.streaming.inbox import Inbox
from sandboxd.streaming.link import Broken, Gone, Idle, Link, first_leaf
from sandboxd.streaming.remotecommand import Exited, Failed, Outcome, ResizeReader, StreamSet, TerminalSize
from sandboxd.streaming.sessions import AttachRequest, AttachSession, ExecRequest, ExecSession
from sandboxd.streaming.streams import Data, Event, StreamOpened, StreamReset

log = structlog.get_logger(__name__)

Session = ExecSession | AttachSession

SHUTDOWN = "sandboxd is shutting down; open the stream again once it is back"


class Stdio:
    """One exec or attach, from the upgrade to the close."""

    def __init__(
        self, link: Link, request: ExecRequest | AttachRequest, *, version: int, websocket: bool, jobs: Jobs
    ) -> None:
        self.link = link
        self._request = request
        self._version = version
        self._jobs = jobs
        self._set = StreamSet(remotecommand.expected(version, request.streams, websocket=websocket))
        self._complete = asyncio.Event()
        self._resizes = ResizeReader()
        self._size: TerminalSize | None = None  # the newest; older ones are obsolete
        self._resized = asyncio.Event()
        self._exited = False
        self._waiting: set[asyncio.Timeout] = set()  # of the output readers
        self._left = False
        self._fed = asyncio.Event()  # the process has all its input, or no longer reads
        self.stdin = Inbox()

    async def run(self) -> str:
        """Serve the client to the end of the session. Returns why it ended, for the log."""
        if isinstance(self._request, ExecRequest):
            private = self._request.private
            disclosure.withhold(lambda: private)
        try:
            outcome = await self._attended()
        except asyncio.CancelledError:
            self._report(Failed(message=SHUTDOWN))
            self.link.mux.close()
            self.link.push()
            raise
        if isinstance(outcome, Gone):
            self.link.close()
            return str(outcome)
        if isinstance(outcome, Broken):
            await self.link.finish(str(outcome))
            return str(outcome)
        self._report(outcome)
        await self.link.finish()
        return outcome.message if isinstance(outcome, Failed) else f"exit code {outcome.code}"

    async def _attended(self) -> Outcome | Gone | Broken:
        """Run the session while reading the connection; a failure of reading ends the session, but not vice versa."""
        try:
            async with asyncio.TaskGroup() as group:
                watchers = [
                    group.create_task(self._until_left(self.link.read(self._handle))),
                    group.create_task(self._until_left(self.link.watch_idle())),
                ]
                outcome = await self._session()
                for task in watchers:
                    task.cancel()
        except BaseExceptionGroup as errors:
            match first_leaf(errors):
                case Gone() | Broken() as ended:
                    return ended
                case Idle() as idle:
                    return Failed(message=str(idle))
                case _:
                    raise
        return outcome

    async def _until_left(self, watching: Coroutine[Any, Any, None]) -> None:
        try:
            await watching
        except (Gone, Broken, Idle) as ended:
            self._left = True
            self.stdin.close()
            if isinstance(ended, Gone):
                await self._last_input()
            raise

    async def _last_input(self) -> None:
        """Wait until an attached container has all the input, or give an exec'd process time to end after it."""
        streams = self._request.streams
        attached = isinstance(self._request, AttachRequest)
        if not streams.stdin or (streams.tty and not attached):  # the end of its input means nothing to a terminal
            return
        linger = self.link.limits.linger
        if attached:
            try:
                async with asyncio.timeout(linger):
                    await self._fed.wait()
            except TimeoutError:
                pass
        else:
            await asyncio.sleep(linger)  # at most: the end of the process ends the session and cancels this

    async def _handle(self, event: Event) -> None:
        mux = self.link.mux
        match event:
            case StreamOpened(stream=stream, headers=headers, fin=fin):
                name = self._set.add(stream, headers)
                if name is None:
                    mux.reset(stream, refused=True)
                    return
                mux.reply(stream)
                if fin and name == "stdin":
                    self.stdin.close()
                if not self._set.missing:
                    self._complete.set()
            case Data(stream=stream, data=data, fin=fin):
                name = self._set.name(stream)
                if name == "stdin":
                    await self.stdin.put(data)
                    if fin:
                        self.stdin.close()
                elif name == "resize":
                    for size in self._resizes.read(data):
                        self._size = size
                        self._resized.set()
            case StreamReset(stream=stream):
                if self._set.name(stream) == "stdin":
                    self.stdin.close()

    async def _session(self) -> Outcome:
        try:
            async with asyncio.timeout(self.link.limits.streams):
                await self._complete.wait()
        except TimeoutError:
            missing = ", ".join(sorted(self._set.missing))
            return Failed(
                message=f"the client did not open its {missing} stream within {self.link.limits.streams:g} s"
            )
        if self._version == 1 and (stdin := self._set.stream("stdin")) is not None:
            await self.link.send(stdin, b"", fin=True)  # as v1 clients expect
        try:
            session = await self._open()
            try:
                return await self._run(session)
            finally:
                self._close(session)
        except SandboxdError as exc:
            return Failed(message=str(exc))
        except (Gone, Broken, asyncio.CancelledError):
            raise
        except Exception as exc:
            log.exception("streaming session failed", subject=self._request.subject)
            return Failed(message=f"{self._request.subject}: internal error: {disclosure.words(exc)}")

    async def _open(self) -> Session:
        if isinstance(self._request, ExecRequest):
            await self._request.admit()
        # A job, so that a disconnect at this point cannot leak a process.
        opening = self._jobs.spawn(("stream", "open", id(self)), self._opening)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._close_orphan)
            raise

    async def _opening(self) -> Session:
        return await self._request.open()

    def _close_orphan(self, opening: asyncio.Task[Session]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._close(opening.result())

    def _close(self, session: Session) -> None:
        # A job: neither a disconnect nor a slow close can interrupt it.
        self._jobs.start(("stream", "close", id(session)), lambda: self._closing(session))

    async def _closing(self, session: Session) -> None:
        if self._left and self._request.streams.stdin and isinstance(self._request, AttachRequest):
            await _end_stdin(session)
        await session.close()

    async def _run(self, session: Session) -> Outcome:
        streams = self._request.streams
        try:
            async with asyncio.TaskGroup() as group:

                def output(name: str, source: AsyncIterator[bytes]) -> asyncio.Task[None]:
                    return group.create_task(self._send_output(name, source))

                outputs = []
                if streams.stdout:
                    outputs.append(output("stdout", session.stdout()))
                if streams.stderr and not streams.tty:
                    outputs.append(output("stderr", session.stderr()))
                inputs = []
                if streams.stdin:
                    inputs.append(group.create_task(self._feed_stdin(session)))
                if streams.tty:
                    inputs.append(group.create_task(self._resize(session)))
                outcome = Exited(code=await session.wait() or 0)
                self._note_exit()
                for task in outputs:
                    await task
                for task in inputs:
                    task.cancel()
        except BaseExceptionGroup as errors:
            raise first_leaf(errors) from errors
        return outcome

    async def _feed_stdin(self, session: Session) -> None:
        try:
            while data := await self.stdin.take():
                await session.write_stdin(data)
        except (SandboxdError, OSError):
            # The process no longer reads, which is not an error: further input is dropped.
            self.stdin.discard()
        else:
            await _end_stdin(session)
        self._fed.set()

    async def _resize(self, session: Session) -> None:
        while True:
            await self._resized.wait()
            self._resized.clear()
            if self._size is not None:
                try:
                    await session.resize(width=self._size.width, height=self._size.height)
                except (SandboxdError, OSError) as exc:
                    log.debug("terminal not resized", subject=self._request.subject, error=str(exc))

    async def _send_output(self, name: str, source: AsyncIterator[bytes]) -> None:
        stream = self._set.stream(name)
        while True:
            try:
                async with asyncio.timeout(self.link.limits.silence if self._exited else None) as waiting:
                    self._waiting.add(waiting)
                    try:
                        data = await anext(source)
                    finally:
                        self._waiting.discard(waiting)
            except StopAsyncIteration:
                break
            except TimeoutError:
                # A process that was left behind keeps the pipe open; the client must not wait for it.
                break
            await self._send(stream, data)
        await self._send(stream, b"", fin=True)

    async def _send(self, stream: int | None, data: bytes, *, fin: bool = False) -> None:
        if stream is not None:
            try:
                await self.link.send(stream, data, fin=fin)
            except Gone:
                pass  # the task that reads the connection sees it too, and decides when the session ends

    def _note_exit(self) -> None:
        self._exited = True
        deadline = asyncio.get_running_loop().time() + self.link.limits.silence
        for waiting in self._waiting:
            waiting.reschedule(deadline)

    def _report(self, outcome: Outcome) -> None:
        """Queue the outcome and the end of every stream."""
        mux = self.link.mux
        error = self._set.stream("error")
        if error is not None:
            mux.send_data(error, remotecommand.outcome_message(self._version, outcome))
        for name in ("stdin", "stdout", "stderr", "resize", "error"):
            if (stream := self._set.stream(name)) is not None:
                mux.send_data(stream, b"", fin=True)


async def _end_stdin(session: Session) -> None:
    try:
        await session.close_stdin()
    except (SandboxdError, OSError) as exc:
        log.debug("stdin not ended", error=str(exc))

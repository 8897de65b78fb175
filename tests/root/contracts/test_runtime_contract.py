"""What operations rely on of containers, tasks and processes: the same with containerd and with the fake of it.

A rule that the fake breaks would let a test of an operation pass for the wrong reason; one that containerd breaks
would make the fake a lie.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sandboxd.containerd.client import Containerd
from sandboxd.containerd.runtime import ContainerdRuntime
from sandboxd.containerd.snapshots import Mount
from sandboxd.containerd.tasks import RuntimeOptions, TaskState
from sandboxd.errors import AlreadyExists, NotFound, NotReady, SandboxdError, TimedOut
from sandboxd.images.store import ImageStore
from sandboxd.logs.fifos import make_fifos
from sandboxd.node import ProcessService, Runtime
from tests.fakes import runtime as fake
from tests.fakes.points import Points
from tests.fakes.runtime import Program

IDLE = ("sleep", "1000")
POLITE = ("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done")
DEAF = ("sh", "-c", "echo ready; sleep 1000")
SAYS = ("sh", "-c", "echo said")
FAILS = ("sh", "-c", "exit 3")
MISSING = ("/no/such/program",)
PROGRAMS = {
    POLITE: Program(output=b"ready\n", handles={signal.SIGTERM: 7}),
    DEAF: Program(output=b"ready\n"),
    SAYS: Program(output=b"said\n", code=0),
    FAILS: Program(code=3),
    MISSING: Program(missing=True),
}
OWNER = "contract"  # the mark on what is made here
SECONDS = 30.0  # for what takes milliseconds
NUMBERS = itertools.count()


def process(argv: Sequence[str]) -> dict[str, Any]:
    return {"user": {"uid": 0, "gid": 0}, "args": list(argv), "env": ["PATH=/bin:/usr/bin"], "cwd": "/"}


def spec(argv: Sequence[str], name: str) -> dict[str, Any]:
    """An OCI runtime spec of what these tests need and no more."""
    kinds = ("pid", "ipc", "mount", "uts", "network")
    return {
        "ociVersion": "1.0.2",
        "process": process(argv),
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666"],
            },
        ],
        "linux": {"cgroupsPath": f"/sandboxd-{name}", "namespaces": [{"type": kind} for kind in kinds]},
    }


@dataclass(kw_only=True)
class Bench:
    """A runtime, and what it takes to put a container into it."""

    runtime: Runtime
    rootfs: Callable[[str], Awaitable[Sequence[Mount]]]
    directory: Path
    mounts: dict[str, Sequence[Mount]] = field(default_factory=dict)
    fds: dict[str, int] = field(default_factory=dict)

    @property
    def processes(self) -> ProcessService:
        return self.runtime.processes

    def fifos(self, *streams: str) -> dict[str, str]:
        """FIFOs that somebody reads, without which a process cannot be created; the descriptors are in `fds`."""
        for fd in self.fds.values():
            os.close(fd)
        made = make_fifos(f"{self.directory}/{next(NUMBERS)}", streams)
        self.fds = {stream: os.open(path, os.O_RDONLY | os.O_NONBLOCK) for stream, path in made.items()}
        return made

    async def record(self, argv: Sequence[str] = IDLE) -> str:
        """A container that is to run this; its id."""
        name = f"contract-{os.getpid()}-{next(NUMBERS)}"
        self.mounts[name] = await self.rootfs(name)
        await self.store(name, argv)
        return name

    async def store(self, name: str, argv: Sequence[str], keep: bytes = b"") -> None:
        await self.runtime.create_container(
            name,
            spec=spec(argv, name),
            image="busybox",
            snapshotter="overlayfs",
            snapshot_key=name,
            labels={"a": "b"},
            runtime=RuntimeOptions(type="io.containerd.runc.v2"),
            keep=keep,
        )

    async def created(self, argv: Sequence[str] = IDLE, **streams: str) -> str:
        """A container whose task is created and not started."""
        name = await self.record(argv)
        assert await self.runtime.create(name, self.mounts[name], **streams) > 0  # type: ignore[arg-type]
        return name

    async def running(self, argv: Sequence[str] = IDLE) -> str:
        name = await self.created(argv)
        assert await self.runtime.start(name) > 0
        return name

    async def ready(self, argv: Sequence[str]) -> str:
        """A container whose program has said so: before, it is the OCI runtime that gets its signals."""
        name = await self.created(argv, **self.fifos("stdout", "stderr"))
        await self.runtime.start(name)
        os.set_blocking(self.fds["stdout"], True)
        assert await asyncio.to_thread(os.read, self.fds["stdout"], 100) == b"ready\n"
        return name

    async def ended(self) -> str:
        """A container whose task has ended and was not deleted."""
        name = await self.running()
        await self.runtime.kill(name, signal.SIGKILL)
        await self.runtime.wait(name, SECONDS)
        return name

    async def state(self, name: str) -> TaskState | None:
        try:
            return (await self.runtime.get(name)).state
        except NotFound:
            return None

    async def end(self) -> None:
        """Leave nothing in the runtime."""
        for fd in self.fds.values():
            os.close(fd)
        for name, argv in dict.fromkeys(self.mounts, IDLE).items():
            try:
                await self.store(name, argv)  # without a record its task cannot be reached
            except AlreadyExists:
                pass
            await self.runtime.kill(name, signal.SIGKILL)
            try:
                await self.runtime.wait(name, SECONDS)
            except NotFound:
                pass
            await self.runtime.delete(name)
            await self.runtime.delete_container(name)
        assert not set(await self.runtime.list()) & set(self.mounts)


class Contract:
    """The rules."""

    # Records

    async def test_a_record_is_stored_once_and_removed_as_often_as_one_likes(self, bench: Bench) -> None:
        name = await bench.record(SAYS)
        with pytest.raises(AlreadyExists):
            await bench.store(name, IDLE)
        assert (await bench.runtime.spec(name))["process"]["args"] == list(SAYS)
        for _ in range(2):
            await bench.runtime.delete_container(name)
        with pytest.raises(NotFound):
            await bench.runtime.spec(name)

    async def test_records_are_listed_with_whose_they_are_and_what_is_kept_with_them(self, bench: Bench) -> None:
        plain, name = await bench.record(), f"contract-{os.getpid()}-{next(NUMBERS)}"
        bench.mounts[name] = await bench.rootfs(name)
        before, kept = time.time_ns(), bytes(range(256)) * 512
        await bench.store(name, IDLE, kept)
        listed = await bench.runtime.records.list()
        stored = listed[name]
        assert (stored.id, stored.extension, stored.owner) == (name, kept, OWNER)
        assert stored.labels["a"] == "b"
        assert (stored.snapshotter, stored.snapshot_key) == ("overlayfs", name)
        assert abs(stored.created_at - before) < 3600 * 10**9
        assert listed[plain].extension == b""

        await bench.runtime.set_spec(name, spec(SAYS, name), keep=b"other")
        assert (await bench.runtime.records.list())[name].extension == b"other"
        await bench.runtime.set_spec(name, spec(IDLE, name))
        changed = (await bench.runtime.records.list())[name]
        assert (changed.extension, changed.labels) == (b"other", stored.labels), "what is not given stays"
        await bench.runtime.set_spec(name, spec(IDLE, name), keep=b"third", labels={"a": "c", "io.d/e": "f"})
        labelled = (await bench.runtime.records.list())[name]
        assert (labelled.extension, labelled.labels) == (b"third", {**stored.labels, "a": "c", "io.d/e": "f"})
        await bench.runtime.delete_container(name)
        assert name not in await bench.runtime.records.list()

    async def test_a_spec_can_be_replaced_while_there_is_a_record(self, bench: Bench) -> None:
        name = await bench.record()
        await bench.runtime.set_spec(name, {**spec(SAYS, name), "hostname": "other"})
        assert (await bench.runtime.spec(name))["hostname"] == "other"
        with pytest.raises(NotFound):
            await bench.runtime.set_spec("no-such-container", {})

    async def test_a_spec_that_was_read_is_the_readers_own(self, bench: Bench) -> None:
        name = await bench.record()
        (await bench.runtime.spec(name))["process"]["args"].append("changed")
        assert (await bench.runtime.spec(name))["process"]["args"] == list(IDLE)

    # What is not there

    @pytest.mark.parametrize("with_record", [False, True])
    async def test_without_a_task_what_ends_one_succeeds_and_all_else_says_so(
        self, bench: Bench, with_record: bool
    ) -> None:
        name = await bench.record() if with_record else "no-such-container"
        runtime = bench.runtime
        await runtime.kill(name, signal.SIGKILL)
        assert await runtime.delete(name) is None
        await runtime.resume(name)
        path = str(bench.directory)
        for call in (
            runtime.get(name),
            runtime.wait(name, SECONDS),
            runtime.start(name),
            runtime.pause(name),
            runtime.update(name, {"memory": {"limit": 1 << 26}}),
            runtime.checkpoint(name, image_path=path, work_path=path, terminal=False, timeout=SECONDS),
        ):
            with pytest.raises(NotFound):
                await call
        assert name not in await runtime.list()

    async def test_a_task_needs_a_record(self, bench: Bench) -> None:
        with pytest.raises(NotFound):
            await bench.runtime.create("no-such-container", [])

    # Creating and starting

    async def test_a_task_is_created_then_runs(self, bench: Bench) -> None:
        name = await bench.created()
        task = await bench.runtime.get(name)
        assert (task.id, task.state, task.exit) == (name, TaskState.CREATED, None)
        with pytest.raises(AlreadyExists):
            await bench.runtime.create(name, bench.mounts[name])
        assert await bench.runtime.start(name) == task.pid
        assert await bench.state(name) is TaskState.RUNNING
        with pytest.raises(NotReady):
            await bench.runtime.start(name)
        assert (await bench.runtime.list())[name].pid == task.pid

    async def test_a_program_that_is_not_there_leaves_no_task(self, bench: Bench) -> None:
        name = await bench.record(MISSING)
        for _ in range(2):
            with pytest.raises(NotReady, match="no such file"):
                await bench.runtime.create(name, bench.mounts[name])
            assert await bench.state(name) is None

    async def test_streams_that_are_not_there_leave_no_task(self, bench: Bench) -> None:
        name = await bench.record()
        with pytest.raises(NotReady, match=r"(?i)no such file"):
            await bench.runtime.create(name, bench.mounts[name], stdout=f"{bench.directory}/missing/stdout")
        assert await bench.state(name) is None

    async def test_of_two_outputs_both_are_needed_or_none(self, bench: Bench) -> None:
        name = await bench.record()
        for stream in ("stdout", "stderr"):
            with pytest.raises(NotReady, match=r"(?i)no such file"):
                await bench.runtime.create(name, bench.mounts[name], **bench.fifos(stream))  # type: ignore[arg-type]
            assert await bench.state(name) is None

    # Output

    async def test_what_a_process_has_written_can_be_read_to_its_end(self, bench: Bench) -> None:
        name = await bench.created(SAYS, **bench.fifos("stdout", "stderr"))
        await bench.runtime.start(name)
        assert (await bench.runtime.wait(name, SECONDS)).code == 0
        await bench.runtime.delete(name)
        stdout, stderr = bench.fds["stdout"], bench.fds["stderr"]
        assert [os.read(stdout, 100), os.read(stdout, 100), os.read(stderr, 100)] == [b"said\n", b"", b""]

    # Ending

    async def test_sigkill_ends_a_task_whatever_it_does_and_may_be_repeated(self, bench: Bench) -> None:
        name = await bench.running()
        ends = []
        for _ in range(2):
            await bench.runtime.kill(name, signal.SIGKILL)
            ends.append(await bench.runtime.wait(name, SECONDS))
        assert ends[0] == ends[1]
        assert (end := ends[0]).code == 137
        task = await bench.runtime.get(name)
        assert (task.state, task.exit) == (TaskState.STOPPED, end)
        assert await bench.runtime.delete(name) == end
        assert await bench.runtime.delete(name) is None
        assert await bench.state(name) is None

    async def test_a_program_decides_what_another_signal_does(self, bench: Bench) -> None:
        name = await bench.ready(POLITE)
        await bench.runtime.kill(name, signal.SIGTERM)
        assert (await bench.runtime.wait(name, SECONDS)).code == 7

    async def test_a_signal_that_the_first_process_does_not_handle_does_nothing(self, bench: Bench) -> None:
        name = await bench.ready(DEAF)
        await bench.runtime.kill(name, signal.SIGTERM)
        with pytest.raises(TimedOut):
            await bench.runtime.wait(name, 0.2)
        assert await bench.state(name) is TaskState.RUNNING

    async def test_a_program_that_ends_has_its_own_code(self, bench: Bench) -> None:
        name = await bench.running(FAILS)
        assert (await bench.runtime.wait(name, SECONDS)).code == 3

    async def test_a_task_that_runs_cannot_be_deleted(self, bench: Bench) -> None:
        name = await bench.running()
        with pytest.raises(SandboxdError):
            await bench.runtime.delete(name)
        assert await bench.state(name) is TaskState.RUNNING

    async def test_a_task_that_never_ran_can_be_deleted(self, bench: Bench) -> None:
        name = await bench.created()
        end = await bench.runtime.delete(name)
        assert end is not None and end.at < 0
        assert await bench.state(name) is None
        await bench.runtime.create(name, bench.mounts[name])

    async def test_a_task_that_never_ran_can_be_killed(self, bench: Bench) -> None:
        name = await bench.created()
        await bench.runtime.kill(name, signal.SIGKILL)
        assert (await bench.runtime.wait(name, SECONDS)).code == 137
        assert await bench.state(name) is TaskState.STOPPED

    async def test_a_task_that_has_ended_does_nothing_any_more(self, bench: Bench) -> None:
        name = await bench.ended()
        runtime, path = bench.runtime, str(bench.directory)
        await runtime.kill(name, signal.SIGTERM)
        await runtime.resume(name)
        for call in (
            runtime.start(name),
            runtime.pause(name),
            runtime.update(name, {"memory": {"limit": 1 << 26}}),
            runtime.checkpoint(name, image_path=path, work_path=path, terminal=False, timeout=SECONDS),
            bench.processes.add(name, "e", process(SAYS)),
        ):
            with pytest.raises(NotReady):
                await call
        with pytest.raises(AlreadyExists):
            await runtime.create(name, bench.mounts[name])

    async def test_a_task_whose_record_is_gone_is_listed_and_out_of_reach(self, bench: Bench) -> None:
        """So a record must not go first."""
        name = await bench.running()
        await bench.runtime.delete_container(name)
        assert (await bench.runtime.list())[name].state is TaskState.RUNNING
        await bench.runtime.kill(name, signal.SIGKILL)
        assert await bench.runtime.delete(name) is None
        for call in (bench.runtime.get(name), bench.runtime.wait(name, SECONDS)):
            with pytest.raises(NotFound):
                await call
        assert (await bench.runtime.list())[name].state is TaskState.RUNNING

    # Pausing

    async def test_a_paused_task_gets_its_signals_when_it_goes_on(self, bench: Bench) -> None:
        name = await bench.running()
        await bench.runtime.pause(name)
        assert await bench.state(name) is TaskState.PAUSED
        with pytest.raises(NotReady):
            await bench.runtime.pause(name)
        with pytest.raises(NotReady):
            await bench.processes.add(name, "e", process(SAYS))
        await bench.runtime.update(name, {"memory": {"limit": 1 << 26}})
        for _ in range(2):
            await bench.runtime.resume(name)
            assert await bench.state(name) is TaskState.RUNNING

    async def test_what_has_not_begun_to_run_cannot_be_paused(self, bench: Bench) -> None:
        name = await bench.created()
        with pytest.raises(NotReady):
            await bench.runtime.pause(name)
        await bench.runtime.resume(name)
        assert await bench.state(name) is TaskState.CREATED

    async def test_sigkill_ends_a_paused_task(self, bench: Bench) -> None:
        name = await bench.running()
        await bench.runtime.pause(name)
        await bench.runtime.kill(name, signal.SIGKILL)
        assert (await bench.runtime.wait(name, SECONDS)).code == 137

    # Further processes

    async def test_a_further_process_runs_to_its_end_and_is_forgotten(self, bench: Bench) -> None:
        name, processes = await bench.running(), bench.processes
        await processes.add(name, "e", process(FAILS))
        with pytest.raises(AlreadyExists):
            await processes.add(name, "e", process(SAYS))
        assert await processes.pid(name, "e") == 0
        assert await processes.start(name, "e") > 0
        assert (await processes.wait(name, "e")).code == 3
        assert await processes.pid(name, "e") == 0
        await processes.kill(name, "e", signal.SIGKILL)
        with pytest.raises(NotReady):
            await processes.start(name, "e")
        for _ in range(2):
            await processes.delete(name, "e")
        with pytest.raises(NotFound):
            await processes.wait(name, "e")

    async def test_the_shim_tells_what_it_has_started_besides_the_first_process(self, bench: Bench) -> None:
        name = await bench.running()
        assert await bench.processes.pids(name) == frozenset()
        await bench.processes.add(name, "e", process(IDLE))
        pid = await bench.processes.start(name, "e")
        assert await bench.processes.pids(name) == {pid}
        with pytest.raises(NotFound):
            await bench.processes.pids("no-such-container")

    async def test_a_further_process_ends_by_any_signal_and_not_before_can_it_be_deleted(self, bench: Bench) -> None:
        name, processes = await bench.running(), bench.processes
        await processes.add(name, "e", process(IDLE))
        pid = await processes.start(name, "e")
        assert await processes.pid(name, "e") == pid
        with pytest.raises(SandboxdError):
            await processes.delete(name, "e")
        await processes.kill(name, "e", signal.SIGTERM)
        assert (await processes.wait(name, "e")).code == 143
        await processes.close_stdin(name, "e")
        await processes.resize(name, "e", width=80, height=24)
        await processes.delete(name, "e")

    async def test_a_further_process_that_was_not_started_cannot_be_signalled_and_can_be_deleted(
        self, bench: Bench
    ) -> None:
        name, processes = await bench.running(), bench.processes
        await processes.add(name, "e", process(IDLE))
        with pytest.raises(NotReady):
            await processes.kill(name, "e", signal.SIGKILL)
        await processes.delete(name, "e")
        with pytest.raises(NotFound):
            await processes.start(name, "e")

    async def test_a_further_process_without_a_program_is_there_to_be_deleted(self, bench: Bench) -> None:
        name, processes = await bench.running(), bench.processes
        await processes.add(name, "e", process(MISSING))
        with pytest.raises(NotReady, match="no such file"):
            await processes.start(name, "e")
        assert await processes.pid(name, "e") == 0
        await processes.delete(name, "e")
        await processes.add(name, "e", process(SAYS))

    async def test_the_streams_of_a_further_process_are_needed_when_it_starts(self, bench: Bench) -> None:
        name, processes = await bench.running(), bench.processes
        await processes.add(name, "e", process(SAYS), stdout=f"{bench.directory}/missing/stdout")
        with pytest.raises(NotReady):
            await processes.start(name, "e")
        await processes.delete(name, "e")

    async def test_of_two_outputs_of_a_further_process_both_are_needed(self, bench: Bench) -> None:
        name, processes = await bench.running(), bench.processes
        for stream in ("stdin", "stdout", "stderr"):
            await processes.add(name, stream, process(SAYS), **bench.fifos(stream))  # type: ignore[arg-type]
            with pytest.raises(NotReady, match=r"(?i)no such file"):
                await processes.start(name, stream)
            await processes.delete(name, stream)

    async def test_a_terminal_of_a_further_process_has_one_output_and_needs_it(self, bench: Bench) -> None:
        name, processes = await bench.running(), bench.processes
        terminal = {**process(FAILS), "terminal": True}
        await processes.add(name, "a", terminal, terminal=True, **bench.fifos("stdin"))
        with pytest.raises(NotReady, match=r"(?i)no such file"):
            await processes.start(name, "a")
        await processes.delete(name, "a")
        await processes.add(name, "b", terminal, terminal=True, **bench.fifos("stdout"))
        assert await processes.start(name, "b") > 0
        assert (await processes.wait(name, "b")).code == 3
        await processes.delete(name, "b")

    async def test_further_processes_end_with_the_first(self, bench: Bench) -> None:
        name, processes = await bench.running(), bench.processes
        await processes.add(name, "e", process(IDLE))
        await processes.start(name, "e")
        await bench.runtime.kill(name, signal.SIGKILL)
        assert (await processes.wait(name, "e")).code == 137

    async def test_of_a_process_that_is_not_there_what_ends_one_succeeds(self, bench: Bench) -> None:
        for name in ("no-such-container", await bench.running()):
            processes = bench.processes
            await processes.kill(name, "e", signal.SIGKILL)
            await processes.delete(name, "e")
            assert await processes.pid(name, "e") == 0
            for call in (processes.wait(name, "e"), processes.start(name, "e")):
                with pytest.raises(NotFound):
                    await call
        with pytest.raises(NotFound):
            await bench.processes.add("no-such-container", "e", process(SAYS))


class TestFake(Contract):
    """The fake of it."""

    @pytest.fixture
    async def bench(self, tmp_path: Path) -> AsyncIterator[Bench]:
        programs: Mapping[tuple[str, ...], Program] = PROGRAMS
        runtime = fake.Runtime(Points(), programs)
        runtime.owner = OWNER

        async def rootfs(name: str) -> Sequence[Mount]:
            return ()

        made = Bench(runtime=runtime, rootfs=rootfs, directory=tmp_path)
        yield made
        await made.end()
        runtime.close()


@pytest.mark.root
@pytest.mark.e2e
class TestContainerd(Contract):
    """The real thing."""

    @pytest.fixture
    async def bench(self, client: Containerd, store: ImageStore, tmp_path: Path) -> AsyncIterator[Bench]:
        image = store.resolve("busybox")

        async def rootfs(name: str) -> Sequence[Mount]:
            return await store.prepare_rootfs(name, image)

        made = Bench(
            runtime=ContainerdRuntime(client, str(Path(client.socket).parent)), rootfs=rootfs, directory=tmp_path
        )
        yield made
        await made.end()
        for name in made.mounts:
            await store.remove_rootfs(name)

    async def test_a_task_that_was_deleted_is_known_to_be_gone_until_somebody_else_makes_another(
        self, bench: Bench, client: Containerd
    ) -> None:
        name = await bench.ended()
        await bench.runtime.delete(name)
        assert await bench.runtime.delete(name) is None

        somebody = ContainerdRuntime(client, str(Path(client.socket).parent))
        await somebody.create(name, bench.mounts[name])
        assert name in await bench.runtime.list(), "as the comparison looks"
        await bench.runtime.kill(name, signal.SIGKILL)
        assert (await bench.runtime.wait(name, SECONDS)).code == 137
        assert await bench.runtime.delete(name)

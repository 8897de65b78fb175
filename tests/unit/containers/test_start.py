"""StartContainer: the log is open before the task is, and a container that cannot be started has ended and says why.

What happens where one of the calls fails or hangs is in tests/unit/matrix.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from sandboxd.containerd.tasks import TaskState
from sandboxd.containers.create import create_container
from sandboxd.containers.start import START_ERROR, start_container
from sandboxd.errors import NotFound, NotReady, TimedOut, Unavailable
from sandboxd.model import ContainerRecord, ContainerState, SandboxRecord
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pods import recover
from tests.fakes.bundle import Bundle, container_config
from tests.fakes.points import Point
from tests.fakes.runtime import Program

APP = ("/bin/app",)


async def created(fakes: Bundle, pod: SandboxRecord, config: cri.ContainerConfig | None = None) -> str:
    return await create_container(fakes.node, pod.id, config or container_config())


async def started(fakes: Bundle, container_id: str) -> ContainerRecord:
    await start_container(fakes.node, container_id)
    await fakes.settled()
    return fakes.node.ledger.containers[container_id]


async def test_a_started_container_runs_and_is_logged(fakes: Bundle, pod: SandboxRecord) -> None:
    container_id = await created(fakes, pod)
    record = await started(fakes, container_id)

    task = fakes.runtime.tasks[container_id]
    assert (record.state, record.pid) == (ContainerState.RUNNING, task.init.pid)
    assert task.init.state is TaskState.RUNNING
    assert task.rootfs == fakes.images.snapshots[container_id]
    assert container_id in fakes.logs.opened


async def test_nothing_that_it_writes_is_lost_and_an_end_that_nobody_saw_is_recorded(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    """It has ended before the record says that it runs."""
    fakes.runtime.programs[APP] = Program(output=b"hello\n", code=3)
    config = container_config()
    config.log_path = "app.log"
    record = await started(fakes, await created(fakes, pod, config))

    assert (record.state, record.exit_code, record.reason) == (ContainerState.EXITED, 3, "Error")
    assert Path(record.log_path).read_text().endswith(" stdout F hello\n")
    assert not fakes.runtime.tasks


async def test_the_record_says_that_it_runs_once_it_does(fakes: Bundle, pod: SandboxRecord) -> None:
    container_id = await created(fakes, pod)
    fakes.points.hang(Point("runtime.start", 0))
    request = asyncio.create_task(start_container(fakes.node, container_id))
    await fakes.points.hangs.wait()

    assert fakes.node.ledger.containers[container_id].state is ContainerState.CREATED
    fakes.points.release()
    await request
    assert fakes.node.ledger.containers[container_id].state is ContainerState.RUNNING
    await fakes.settled()


@pytest.mark.parametrize(
    ("tty", "stdin", "names"),
    [
        (False, False, {"stdout", "stderr"}),
        (False, True, {"stdin", "stdout", "stderr"}),
        (True, False, {"stdout"}),
        (True, True, {"stdin", "stdout"}),
    ],
)
async def test_it_gets_the_streams_that_it_asks_for_and_a_terminal_has_no_stderr(
    fakes: Bundle, pod: SandboxRecord, tty: bool, stdin: bool, names: set[str]
) -> None:
    config = container_config()
    config.tty, config.stdin = tty, stdin
    container_id = await created(fakes, pod, config)
    await started(fakes, container_id)

    directory = fakes.places.streams(container_id)
    assert set(os.listdir(directory)) == names
    assert all(stat.S_ISFIFO(os.stat(f"{directory}/{name}").st_mode) for name in names)


async def test_a_container_that_runs_is_started(fakes: Bundle, pod: SandboxRecord) -> None:
    container_id = await created(fakes, pod)
    first = await started(fakes, container_id)

    assert await started(fakes, container_id) == first


async def test_the_same_request_at_the_same_time_starts_it_once(fakes: Bundle, pod: SandboxRecord) -> None:
    container_id = await created(fakes, pod)
    await asyncio.gather(*(start_container(fakes.node, container_id) for _ in range(3)))
    await fakes.settled()

    assert fakes.points.count("runtime.start") == 1


async def test_a_container_that_has_ended_is_not_started_again(fakes: Bundle, pod: SandboxRecord) -> None:
    fakes.runtime.programs[APP] = Program(code=0)
    container_id = await created(fakes, pod)
    ended = await started(fakes, container_id)

    with pytest.raises(NotReady, match=f"container {container_id} is exited, not created"):
        await start_container(fakes.node, container_id)
    assert fakes.node.ledger.containers[container_id] == ended


async def test_a_container_that_is_not_known_or_still_being_created_does_not_exist(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    container_id = await created(fakes, pod)
    fakes.node.ledger.update_container(container_id, created_at=0)

    for unknown in ("nowhere", container_id):
        with pytest.raises(NotFound, match=f"container {unknown} does not exist"):
            await start_container(fakes.node, unknown)


async def test_a_container_of_a_pod_that_does_not_run_stays_created(fakes: Bundle, pod: SandboxRecord) -> None:
    """It has not failed: nothing was tried."""
    container_id = await created(fakes, pod)
    fakes.node.ledger.update_sandbox(pod.id, stopped_at=2)
    left = fakes.left()

    with pytest.raises(NotReady, match=pod.id):
        await start_container(fakes.node, container_id)
    assert fakes.node.ledger.containers[container_id].state is ContainerState.CREATED
    assert fakes.left() == left


async def test_a_program_that_is_not_there_ends_the_container_with_the_runtimes_words(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    fakes.runtime.programs[APP] = Program(missing=True)
    container_id = await created(fakes, pod)
    with pytest.raises(NotReady, match="OCI runtime create failed") as caught:
        await start_container(fakes.node, container_id)

    record = fakes.node.ledger.containers[container_id]
    assert (record.state, record.exit_code, record.reason) == (ContainerState.EXITED, START_ERROR, "StartError")
    assert record.message == str(caught.value)
    assert not fakes.runtime.tasks
    assert container_id not in fakes.logs.opened


async def test_an_error_that_nobody_expected_is_marked_as_such_in_the_record(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    container_id = await created(fakes, pod)
    fakes.points.fail(Point("runtime.start", 0), RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        await start_container(fakes.node, container_id)

    assert fakes.node.ledger.containers[container_id].message == "unexpected RuntimeError: a bug"
    assert not fakes.runtime.tasks


async def test_a_container_whose_log_cannot_be_written_is_not_run(fakes: Bundle, pod: SandboxRecord) -> None:
    Path(pod.config.log_directory).write_text("not a directory")
    config = container_config()
    config.log_path = "app.log"
    container_id = await created(fakes, pod, config)

    with pytest.raises(NotReady, match="cannot be logged"):
        await start_container(fakes.node, container_id)
    assert fakes.node.ledger.containers[container_id].reason == "StartError"
    assert fakes.points.count("runtime.create") == 0


async def test_what_is_left_of_a_start_that_failed_is_noted_and_its_log_is_closed(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    fakes.runtime.programs[APP] = Program(missing=True)
    container_id = await created(fakes, pod)
    fakes.points.fail(Point("runtime.kill", 0), Unavailable("containerd is away"))
    with pytest.raises(NotReady, match="OCI runtime create failed") as caught:
        await start_container(fakes.node, container_id)

    assert caught.value.__notes__ == ["cleaning up: containerd is away"]
    assert fakes.node.ledger.containers[container_id].reason == "StartError"
    assert container_id not in fakes.logs.opened


async def test_mapped_mounts_are_there_while_the_task_is_created_and_no_longer(
    fakes: Bundle, pod: SandboxRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, **_: None)  # only root may
    ids = cri.IDMapping(host_id=100_000, container_id=0, length=65536)
    modes = pod.config.linux.security_context.namespace_options
    modes.network = cri.POD
    modes.userns_options.CopyFrom(cri.UserNamespace(mode=cri.POD, uids=[ids], gids=[ids]))
    os.mkdir(fakes.places.sandbox(pod.id))
    await fakes.netns.create_user_namespace(fakes.places.user_namespace(pod.id), uid_map="", gid_map="")
    container_id = await created(fakes, pod)
    fakes.points.hang(Point("runtime.create", 0))
    request = asyncio.create_task(start_container(fakes.node, container_id))
    await fakes.points.hangs.wait()
    stage = fakes.places.stage(container_id)
    assert set(fakes.kernel.mounts) == {f"{stage}/0-0"}
    fakes.points.release()
    await request
    await fakes.settled()

    (overlay,) = fakes.runtime.tasks[container_id].rootfs
    assert f"lowerdir={stage}/0-0" in overlay.options
    assert not fakes.kernel.mounts
    assert not os.path.exists(stage)


# A start that was cut off: what came of it is not known, and not said to be a failure

AWAY = Unavailable("containerd does not answer")


async def cut_off(fakes: Bundle, container_id: str, point: str, *, after: bool) -> ContainerRecord:
    """containerd goes away at this call and is not back when the start is undone."""
    fakes.points.fail(Point(point, 0), AWAY, after=after)
    fakes.points.fail_always("runtime.get", AWAY)
    with pytest.raises(Unavailable, match="containerd does not answer"):
        await start_container(fakes.node, container_id)
    record = fakes.node.ledger.containers[container_id]
    assert (record.state, record.reason) == (ContainerState.CREATED, "")
    fakes.points.reset()  # it is back
    return record


CUTS = pytest.mark.parametrize(
    ("point", "after", "begun"),
    [
        ("images.rootfs", False, False),
        ("runtime.create", False, False),
        ("runtime.create", True, False),
        ("runtime.start", False, False),
        ("runtime.start", True, True),
    ],
)


@CUTS
async def test_an_outage_does_not_end_a_container_that_can_be_started(
    fakes: Bundle, pod: SandboxRecord, point: str, after: bool, begun: bool
) -> None:
    config = container_config()
    config.log_path = "app.log"
    container_id = await created(fakes, pod, config)
    await cut_off(fakes, container_id, point, after=after)

    record = await started(fakes, container_id)  # asked for again before anything has compared
    assert record.state is ContainerState.RUNNING
    assert fakes.runtime.tasks[container_id].init.state is TaskState.RUNNING
    assert container_id in fakes.logs.opened
    assert fakes.points.count("runtime.start") == (0 if begun else 1)


@CUTS
async def test_when_containerd_is_back_the_comparison_decides(
    fakes: Bundle, pod: SandboxRecord, point: str, after: bool, begun: bool
) -> None:
    container_id = await created(fakes, pod)
    await cut_off(fakes, container_id, point, after=after)

    await recover.compare(fakes.node)
    await fakes.repaired()
    state = fakes.node.ledger.containers[container_id].state
    assert state is (ContainerState.RUNNING if begun else ContainerState.CREATED)
    assert (container_id in fakes.runtime.tasks) is begun


async def test_one_that_ran_and_ended_meanwhile_has_its_own_exit_code(fakes: Bundle, pod: SandboxRecord) -> None:
    fakes.runtime.programs[APP] = Program(output=b"hello\n", code=3)
    config = container_config()
    config.log_path = "app.log"
    container_id = await created(fakes, pod, config)
    await cut_off(fakes, container_id, "runtime.start", after=True)

    await recover.compare(fakes.node)
    await fakes.repaired()
    record = fakes.node.ledger.containers[container_id]
    assert (record.state, record.exit_code) == (ContainerState.EXITED, 3)
    assert Path(record.log_path).read_text().endswith(" stdout F hello\n")


async def test_a_lost_answer_is_looked_up_at_once(fakes: Bundle, pod: SandboxRecord) -> None:
    container_id = await created(fakes, pod)
    fakes.points.fail(Point("runtime.start", 0), AWAY, after=True)
    with pytest.raises(Unavailable):
        await start_container(fakes.node, container_id)
    await fakes.settled()
    assert fakes.node.ledger.containers[container_id].state is ContainerState.RUNNING


async def test_a_shutdown_does_not_end_a_container_that_was_being_started(fakes: Bundle, pod: SandboxRecord) -> None:
    container_id = await created(fakes, pod)
    fakes.points.fail(Point("runtime.start", 0), asyncio.CancelledError())  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await start_container(fakes.node, container_id)
    assert fakes.node.ledger.containers[container_id].state is ContainerState.CREATED
    await fakes.settled()


@pytest.mark.parametrize("away", ["", "containerd has stopped answering"])
async def test_a_limit_that_ran_out_is_a_failure_only_while_containerd_answers(
    fakes: Bundle, pod: SandboxRecord, away: str
) -> None:
    container_id = await created(fakes, pod)

    async def create(*_: object, **__: object) -> int:
        fakes.runtime.away = away
        raise TimedOut("context deadline exceeded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fakes.runtime, "create", create)
        with pytest.raises(TimedOut):
            await start_container(fakes.node, container_id)
    state = fakes.node.ledger.containers[container_id].state
    assert state is (ContainerState.CREATED if away else ContainerState.EXITED)


async def test_while_containerd_is_known_to_be_away_a_start_is_refused_and_nothing_is_tried(
    fakes: Bundle, pod: SandboxRecord
) -> None:
    container_id = await created(fakes, pod)
    left = fakes.left()
    fakes.runtime.away = "containerd at x does not answer"
    with pytest.raises(Unavailable, match="containerd at x does not answer; repeat the request once it does"):
        await start_container(fakes.node, container_id)
    with pytest.raises(Unavailable):
        await create_container(fakes.node, pod.id, container_config("another"))
    assert fakes.node.ledger.containers[container_id].state is ContainerState.CREATED
    assert fakes.left() == left

"""Stopping a container: whatever is wrong with its stop signal, it ends. The rest is tests/e2e/test_lifecycle.py."""

from __future__ import annotations

import signal as signals

import pytest

from sandboxd.containerd.tasks import Exit
from sandboxd.containers import ending
from sandboxd.containers.stop import signal_number, stop_container
from sandboxd.errors import CleanupIncomplete, NotFound, NotReady, SandboxdError, TimedOut, Unavailable
from sandboxd.model import ContainerRecord, ContainerState
from sandboxd.node import Node
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.fakes.bundle import Bundle
from tests.fakes.points import Point
from tests.fakes.runtime import Program


class Container:
    """A running container, the signals that its task gets, and how its stop signal fails."""

    def __init__(self, fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        self.signals: list[int] = []
        self.refuse: SandboxdError | None = None
        self.late: list[bool] = []  # of the next stop signals: without an answer in time, sent or not
        self._fakes = fakes
        self._kill = fakes.runtime.kill
        monkeypatch.setattr(fakes.runtime, "kill", self._noted)

    def run(self, record: ContainerRecord, *handled: int, exit: Exit | None = None) -> None:
        """Its task ends by the signals `handled`, or has ended already."""
        self._fakes.node.ledger.add_container(record)
        self._fakes.runtime.put(record.id, exit, Program(handles={number: 128 + number for number in handled}))

    async def _noted(self, container_id: str, signal: int) -> None:
        self.signals.append(signal)
        if signal != signals.SIGKILL and self.refuse is not None:
            raise self.refuse
        sent = self.late.pop(0) if self.late else None
        if sent is not False:
            await self._kill(container_id, signal)
        if sent is not None:
            raise TimedOut("no answer")


@pytest.fixture
def container(fakes: Bundle, monkeypatch: pytest.MonkeyPatch) -> Container:
    return Container(fakes, monkeypatch)


@pytest.fixture
def node(fakes: Bundle) -> Node:
    return fakes.node


def running(stop_signal: str = "") -> ContainerRecord:
    return ContainerRecord(
        id="c",
        sandbox_id="s",
        config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c")),
        sandbox_name="pod",
        image_ref="",
        image_id="",
        log_path="",
        stop_signal=stop_signal,
        created_at=1,
        started_at=1,
    )


@pytest.mark.parametrize(
    ("name", "number"),
    [("", 15), ("SIGQUIT", 3), ("rtmin+3", 37), ("SIGRTMAX-1", 63), ("10", 10)],
)
async def test_the_stop_signal_ends_the_container(node: Node, container: Container, name: str, number: int) -> None:
    container.run(running(name), number)
    await stop_container(node, "c", 10)

    assert container.signals[0] == number
    assert node.ledger.containers["c"].exit_code == 128 + number


@pytest.mark.parametrize("name", ["SIGNOPE", "99999", "-9", "SIGRTMAX+100", "0", "\u0663", " SIGTERM ", "9" * 5000])
async def test_a_record_with_a_stop_signal_that_nobody_knows_is_stopped_with_sigterm(
    node: Node, container: Container, name: str
) -> None:
    container.run(running(name), signals.SIGTERM)
    assert signal_number(running(name)) == signals.SIGTERM
    await stop_container(node, "c", 10)

    assert container.signals[0] == signals.SIGTERM
    assert node.ledger.containers["c"].state is ContainerState.EXITED


@pytest.mark.parametrize("error", [NotReady, CleanupIncomplete, SandboxdError])
async def test_a_stop_signal_that_is_refused_is_followed_by_sigkill(
    node: Node, container: Container, error: type[SandboxdError]
) -> None:
    container.refuse = error("unknown signal")
    container.run(running(), signals.SIGTERM)
    await stop_container(node, "c", 10)

    assert container.signals == [signals.SIGTERM, signals.SIGKILL]
    ended = node.ledger.containers["c"]
    assert (ended.state, ended.exit_code, ended.reason) == (ContainerState.EXITED, 137, "Error")


async def test_an_outage_of_containerd_does_not_cost_the_grace_period(node: Node, container: Container) -> None:
    """The signal may have been sent, with only the answer lost; the same request again goes on from there."""
    container.refuse = Unavailable("containerd does not answer")
    container.run(running(), signals.SIGTERM)
    with pytest.raises(Unavailable):
        await stop_container(node, "c", 10)
    assert container.signals == [signals.SIGTERM]

    container.refuse = None
    await stop_container(node, "c", 10)
    assert node.ledger.containers["c"].exit_code == 128 + signals.SIGTERM


@pytest.mark.parametrize("sent", [True, False])
async def test_a_stop_signal_without_an_answer_does_not_cost_the_grace_period(
    node: Node, container: Container, sent: bool
) -> None:
    container.late = [sent]
    container.run(running(), signals.SIGTERM)
    await stop_container(node, "c", 10)

    assert container.signals == [signals.SIGTERM, signals.SIGTERM]
    assert node.ledger.containers["c"].exit_code == 128 + signals.SIGTERM


async def test_a_shim_that_never_answers_a_stop_signal_gets_sigkill(node: Node, container: Container) -> None:
    container.late = [False, False]
    container.run(running(), signals.SIGTERM)
    await stop_container(node, "c", 10)

    assert container.signals == [signals.SIGTERM, signals.SIGTERM, signals.SIGKILL]
    assert node.ledger.containers["c"].exit_code == 137


async def test_a_stop_signal_that_finds_no_task_is_the_end(node: Node, container: Container) -> None:
    container.refuse = NotFound("no task")
    container.run(running(), exit=Exit(code=0, at=1))
    await stop_container(node, "c", 10)

    assert node.ledger.containers["c"].reason == "Completed"


async def test_a_stop_signal_that_is_ignored_is_followed_by_sigkill(node: Node, container: Container) -> None:
    container.run(running())
    await stop_container(node, "c", 10)

    assert container.signals == [signals.SIGTERM, signals.SIGKILL]


async def test_a_paused_container_is_resumed_to_act_on_its_stop_signal(
    fakes: Bundle, node: Node, container: Container
) -> None:
    container.run(running(), signals.SIGTERM)
    await fakes.runtime.pause("c")
    await stop_container(node, "c", 10)

    assert container.signals == [signals.SIGTERM]
    assert node.ledger.containers["c"].exit_code == 143


@pytest.mark.parametrize("timeout", [0, 10])
async def test_a_paused_container_on_which_sigkill_has_no_effect_is_resumed(
    fakes: Bundle, node: Node, container: Container, timeout: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On cgroup v1, under an OCI runtime that does not thaw it."""
    monkeypatch.setattr(ending, "SOON_SECONDS", 0)
    container.run(running())
    fakes.runtime.task("c").init.deaf = True
    await fakes.runtime.pause("c")
    await stop_container(node, "c", timeout)

    assert node.ledger.containers["c"].exit_code == 137


@pytest.mark.parametrize("error", [NotReady, Unavailable, TimedOut])
async def test_a_container_that_cannot_be_resumed_is_killed(
    fakes: Bundle, node: Node, container: Container, error: type[SandboxdError]
) -> None:
    container.run(running(), signals.SIGTERM)
    await fakes.runtime.pause("c")
    fakes.points.fail(Point("runtime.resume", 0), error("no"))
    await stop_container(node, "c", 10)

    assert container.signals == [signals.SIGTERM, signals.SIGKILL]
    assert node.ledger.containers["c"].exit_code == 137

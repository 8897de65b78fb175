"""A repair fails alone, whatever the error; neither the start nor the comparisons end with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from sandboxd.containers import checkpoint
from sandboxd.errors import NotReady, Unavailable
from sandboxd.node import Node
from sandboxd.pods import recover
from sandboxd.pods.reconcile import Action, Repair
from tests.fakes.bundle import CONTAINER, Bundle

ERRORS = [
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    ValueError("x"),
    KeyError("x"),
    OSError(5, "Input/output error"),
    TimeoutError(),
    NotReady("not now"),
]
BY_TYPE = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without a configuration structlog shows each variable of a traceback, which takes longer than all else."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def node(fakes: Bundle) -> Node:
    return fakes.with_records()


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the repairs that were begun; there are three, and the one named "bad" is not what this is about."""
    found: list[str] = []
    repairs = [Repair(action=Action.SETTLE_SANDBOX, id=name) for name in ("first", "bad", "last")]
    monkeypatch.setattr(recover, "reconcile", lambda *_, **__: repairs)
    return found


def failing(monkeypatch: pytest.MonkeyPatch, applied: list[str], error: Exception) -> None:
    async def apply(node: Node, repair: Repair) -> None:
        applied.append(repair.id)
        if repair.id == "bad":
            raise error

    monkeypatch.setattr(recover, "_apply", apply)


@BY_TYPE
@pytest.mark.parametrize("how", [recover.recover, recover.compare])
async def test_after_a_repair_that_fails_the_next_is_made(
    node: Node, applied: list[str], monkeypatch: pytest.MonkeyPatch, how: Any, error: Exception
) -> None:
    failing(monkeypatch, applied, error)
    await how(node)
    assert applied == ["first", "bad", "last"]


@BY_TYPE
async def test_leftovers_that_cannot_be_ended_do_not_end_the_round(
    node: Node, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    node.ledger.update_container(CONTAINER, started_at=4)
    asked = []

    async def end_leftovers(node: Node, container_id: str) -> None:
        asked.append(container_id)
        raise error

    monkeypatch.setattr(recover, "end_leftovers", end_leftovers)
    monkeypatch.setattr(recover, "reconcile", lambda *_, **__: [])
    await recover.recover(node)
    await recover.compare(node)
    assert asked == [CONTAINER] * 2


@BY_TYPE
async def test_a_checkpoint_that_cannot_be_undone_does_not_end_the_round(
    node: Node, applied: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Path(node.places.checkpoints, CONTAINER).mkdir(parents=True)

    async def undo(node: Node, container_id: str) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "undo", undo)
    failing(monkeypatch, applied, ValueError())
    await recover.recover(node)
    assert applied == ["first", "bad", "last"]


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), TypeError("a fault of ours")])
async def test_the_daemon_starts_and_goes_on_comparing_when_the_comparison_itself_is_broken(
    node: Node, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def reconcile(*_: Any, **__: Any) -> list[Repair]:
        raise error

    monkeypatch.setattr(recover, "reconcile", reconcile)
    await recover.recover(node)
    await recover.compare(node)


async def test_without_containerd_a_start_is_told_so_and_a_comparison_waits_for_the_next(
    fakes: Bundle, node: Node, applied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, applied, ValueError())
    fakes.points.fail_always("runtime.list", Unavailable("containerd does not answer"))
    with pytest.raises(Unavailable):
        await recover.recover(node)
    await recover.compare(node)
    assert applied == []

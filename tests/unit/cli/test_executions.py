"""An execution is named by its number, command, plugin or step; when that is not one, those there are are told."""

from __future__ import annotations

import pytest

from sandboxd.cli import executions
from sandboxd.cli.executions import NotOne
from sandboxd.pb.host.v1 import host_pb2 as host


def step(command: str, plugin: str, at: int, error: str = "") -> host.Step:
    execution = host.PluginExecution(command=command, binary=f"/opt/{plugin}", exit_code=int(bool(error)), duration=1)
    return host.Step(
        operation="RunPodSandbox",
        name=f"cni.{command.lower()}",
        started_at=at,
        detail={"plugin": plugin},
        plugin=execution,
        error=error,
    )


ADDS = [step("VERSION", "bridge", 1), step("ADD", "bridge", 3), step("ADD", "portmap", 5, "no luck")]
DELS = [step("DEL", "portmap", 7), step("DEL", "bridge", 9)]
ANSWER = host.ExplainResponse(
    steps=[host.Step(name="pod.netns.create", started_at=2), *reversed(ADDS)],
    operations=[host.Operation(steps=[ADDS[2], *DELS])],
)
LISTED = executions.listed(ANSWER)


def test_each_execution_has_a_number_in_the_order_of_their_starts_and_is_counted_once() -> None:
    assert [(each.number, each.command, each.plugin) for each in LISTED] == [
        (1, "VERSION", "bridge"),
        (2, "ADD", "bridge"),
        (3, "ADD", "portmap"),
        (4, "DEL", "portmap"),
        (5, "DEL", "bridge"),
    ]


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ((), 3),  # the last that failed
        (("5",), 5),
        (("ADD bridge",), 2),
        (("add", "bridge"), 2),
        (("cni.version",), 1),
        (("VERSION",), 1),
        (("cni.del", "portmap"), 4),
    ],
)
def test_words_mean_one(words: tuple[str, ...], number: int) -> None:
    assert executions.meant(LISTED, words).number == number


@pytest.mark.parametrize(
    ("words", "numbers"),
    [(("ADD",), [2, 3]), (("bridge",), [2, 5]), (("nosuch",), [1, 2, 3, 4, 5]), (("9",), [1, 2, 3, 4, 5])],
)
def test_when_several_or_none_are_meant_it_says_which_there_are(words: tuple[str, ...], numbers: list[int]) -> None:
    with pytest.raises(NotOne) as caught:
        executions.meant(LISTED, words)
    _, *lines = str(caught.value).splitlines()
    assert [int(line.split()[0]) for line in lines] == numbers


def test_without_words_something_must_have_failed() -> None:
    with pytest.raises(NotOne, match="none of its plugins failed"):
        executions.meant(LISTED[:2], ())

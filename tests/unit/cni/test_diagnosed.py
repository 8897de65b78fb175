"""A plugin's step that fails notes the kind, the cause and what comes next; its error carries them to the client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from sandboxd import steps
from sandboxd.cni import diagnosed
from sandboxd.cni.failures import error_from
from sandboxd.errors import InvalidRequest, NotReady, SandboxdError
from sandboxd.steps import PluginExecution, StepRecord

PANIC = b"panic: runtime error: nil\n\ngoroutine 1 [running]:\n" + b"main.main()\n" * 1000


@pytest.fixture
def records() -> Iterator[list[StepRecord]]:
    seen: list[StepRecord] = []
    stop = steps.subscribe(seen.append)
    yield seen
    stop()


def fails(stdout: bytes = b"", stderr: bytes = b"", exit_code: int = 1, stdin: bytes = b"{}") -> SandboxdError:
    """A step in which a plugin ends so."""
    error = error_from(stdout, stderr, exit_code, False, plugin="bridge", command="ADD", seconds=9)
    with (
        pytest.raises(type(error)) as caught,
        steps.step("cni.add", plugin="bridge", network="pods") as step,
        diagnosed.noted(step, "ADD"),
    ):
        step.plugin = PluginExecution(
            command="ADD",
            binary="/b",
            env={},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            exit_code=exit_code,
            duration=1,
        )
        raise error
    return caught.value


def test_cause_and_next_step_are_noted_and_the_words_kept(records: list[StepRecord]) -> None:
    words = json.dumps({"code": 999, "msg": "could not set bridge's mac: invalid argument"}).encode()

    error = fails(words, stdin=b'{"bridge": "b7", "name": "pods"}')

    (record,) = records
    assert record.error == str(error) and "could not set bridge's mac: invalid argument" in str(error)
    assert record.detail["kind"] == "bridge_mac"
    assert "b7 is an empty bridge" in record.detail["cause"] and "ip link delete b7" in record.detail["next"]
    assert error.__notes__ == [f"cause: {record.detail['cause']}", f"next: {record.detail['next']}"]


@pytest.mark.parametrize("stdin", [b"", b"[]", b"{"])
def test_words_that_nobody_knows_are_left_to_themselves(records: list[StepRecord], stdin: bytes) -> None:
    error = fails(b'{"code": 999, "msg": "the switch is on fire"}', stdin=stdin)

    (record,) = records
    assert record.detail == {"plugin": "bridge", "network": "pods", "kind": "other"}
    assert not hasattr(error, "__notes__")


def test_a_panic_is_known_though_its_beginning_is_cut_off_the_message(records: list[StepRecord]) -> None:
    error = fails(stderr=PANIC, exit_code=2)

    assert "panic" not in str(error)
    assert records[0].detail["kind"] == "crash" and "exit status 2" in records[0].detail["cause"]
    fails(stderr=b"panic: said a script\n", exit_code=2)
    assert records[1].detail["kind"] == "other"


def test_an_exhausted_range_is_known_behind_its_translation(records: list[StepRecord]) -> None:
    fails(b'{"code": 999, "msg": "no IP addresses available in range set: 10.0.0.1-10.0.0.2"}')

    assert records[0].detail["kind"] == "addresses_exhausted"


def test_what_precedes_the_plugins_is_a_step_only_when_it_fails(records: list[StepRecord]) -> None:
    with diagnosed.before_plugins("pods"):
        pass
    assert records == []
    missing = 'CNI plugin "foo" (network "pods") was not found; looked in /a; put its binary in one of them'
    for raised in (NotReady(missing), InvalidRequest("what is this")):
        with pytest.raises(type(raised)), diagnosed.before_plugins("pods"):
            raise raised

    assert [(each.name, each.detail) for each in records] == [
        ("cni.prepare", {"plugin": "foo", "network": "pods", "kind": "plugin_missing"}),
        ("cni.prepare", {"plugin": "", "network": "pods", "kind": "other"}),
    ]

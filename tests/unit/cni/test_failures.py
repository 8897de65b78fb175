"""What a failed execution means, in the plugin's own words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandboxd.cni.failures import error_from
from sandboxd.errors import Exhausted, NotReady, PluginFailed, SandboxdError, TimedOut, Unavailable


def failure(
    stdout: bytes = b"", stderr: bytes = b"", code: int = 1, timed_out: bool = False, **more: Any
) -> SandboxdError:
    context: dict[str, Any] = {"plugin": "bridge", "command": "ADD", "seconds": 60.0, **more}
    return error_from(stdout, stderr, code, timed_out, **context)


def error_json(code: int, msg: str, details: str = "") -> bytes:
    return json.dumps({"cniVersion": "1.0.0", "code": code, "msg": msg, "details": details}).encode()


@pytest.mark.parametrize(
    ("stdout", "stderr", "exit_code", "code", "msg", "details"),
    [
        (error_json(7, "bad subnet", "10.0.0.0/99"), b"log", 1, 7, "bad subnet", "10.0.0.0/99"),
        (b'{"ips": []}\n' + error_json(999, "host netns"), b"", 1, 999, "host netns", ""),
        (b"warning {0} {\n" + error_json(999, "boom"), b"", 1, 999, "boom", ""),
        (b'{"code": 5}', b"disk full\n", 1, 5, "disk full", ""),
        (b"", b"panic: x\n", 2, 0, "panic: x", ""),
        (b"{}", b"", 2, 0, "exited with status 2 and said nothing", ""),
        (b'{"code": "11", "msg": "x"}', b"", 1, 0, "x", ""),
        (b'{"msg": "x", "details": null}', b"log", 1, 0, "x", ""),
        (b'{"code": null, "msg": "x", "details": "y"}', b"", 1, 0, "x", "y"),
        (b'{"Code": 7, "Msg": "x"}', b"", 1, 7, "x", ""),
        (b'{"code": 7, "msg": null, "details": null}', b"", 1, 7, "exited with status 1 and said nothing", ""),
        (error_json(7, "x") + b'{"level": "info", "msg": "bye"}', b"", 1, 7, "x", ""),
        (b"no such bridge\n", b"", 1, 0, "no such bridge", ""),
        (b"no such bridge\n", b"log", 1, 0, "log", ""),
        (b"", b"", -11, 0, "killed by SIGSEGV", ""),
        (b"", b"", -99, 0, "killed by signal 99", ""),
        (b"\xff{" * 10, b"\xff", 1, 0, "\ufffd", ""),
    ],
)
def test_a_failure_is_told_in_the_plugins_own_words(
    stdout: bytes, stderr: bytes, exit_code: int, code: int, msg: str, details: str
) -> None:
    failed = failure(stdout, stderr, exit_code)

    assert isinstance(failed, PluginFailed)
    assert (failed.plugin, failed.command) == ("bridge", "ADD")
    assert (failed.code, failed.msg, failed.details) == (code, msg, details)


def test_half_a_surrogate_pair_in_an_error_is_made_sendable() -> None:
    assert str(failure(b'{"code": 5, "msg": "\\ud800"}')).encode()


@pytest.mark.parametrize(
    "words",
    [
        "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.2",
        "Could not allocate IP in range: ip: 10.0.0.1",
        "address pool is exhausted",
        "no available IP addresses",
    ],
)
def test_an_empty_pool_is_known_by_its_words(words: str) -> None:
    for error in (
        failure(error_json(999, words)),
        failure(error_json(100, "ipam", words)),
        failure(b"", words.encode()),
    ):
        assert isinstance(error, Exhausted)
        assert isinstance(error.__cause__, PluginFailed)
        assert words in str(error)


def test_try_again_later_is_unavailable() -> None:
    error = failure(error_json(11, "still starting"), command="DEL")

    assert isinstance(error, Unavailable)
    assert "CNI plugin bridge failed on DEL: still starting (CNI error 11)" in str(error)


@pytest.mark.parametrize("code", [50, 51])
def test_a_status_of_not_available_is_not_ready(code: int) -> None:
    assert isinstance(failure(error_json(code, "no uplink"), command="STATUS"), NotReady)
    assert isinstance(failure(error_json(code, "no uplink"), command="ADD"), PluginFailed)


def test_a_timeout_names_the_plugin_the_verb_and_the_seconds() -> None:
    error = failure(b"", b"waiting for the lock\n", -9, timed_out=True)

    assert isinstance(error, TimedOut)
    assert "CNI plugin bridge did not finish ADD within 60 seconds" in str(error)
    assert "waiting for the lock" in str(error)

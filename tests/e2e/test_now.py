"""`top`, `watch` and `events` on a real daemon: on a terminal, which is given back, and through a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pods import container_config, pod_config, remove_pod, run_container, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

LEFT = b"\x1b[?1049l"  # the alternate screen

# A shell's background job, such as these tests may be a part of, ignores SIGINT, and so would all that it starts.
AS_IN_A_SHELL = """\
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def argv(bed: Testbed, *args: str) -> list[str]:
    return [str(Path(sys.executable).parent / "sandboxctl"), "--socket", str(bed.socket), *args]


@contextlib.contextmanager
def on_a_terminal(bed: Testbed, *args: str) -> Iterator[tuple[subprocess.Popen[bytes], int, bytearray]]:
    """The command on a terminal of its own: the process, the terminal's other end, what was written so far."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    before = termios.tcgetattr(theirs)
    env = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "160", "LINES": "30"}
    command = [sys.executable, "-c", AS_IN_A_SHELL, *argv(bed, *args)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    told = bytearray()
    try:
        yield process, ours, told
        process.wait(60)
        assert termios.tcgetattr(theirs) == before, "keys are shown again"
    finally:
        process.kill()
        process.wait(60)
        os.close(ours)
        os.close(theirs)


def has_written(ours: int, told: bytearray, words: bytes) -> bool:
    with contextlib.suppress(BlockingIOError):
        told += os.read(ours, 1 << 16)
    return words in told


@pytest.mark.parametrize(("command", "words"), [("top", b"MEMORY"), ("watch", b"pods ready")])
@pytest.mark.parametrize("end", ["q", "interrupted"])
def test_it_is_drawn_until_it_is_ended_and_the_terminal_is_given_back(
    bed: Testbed, command: str, words: bytes, end: str
) -> None:
    with on_a_terminal(bed, command, "-d", "200ms") as (process, ours, told):
        until(lambda: has_written(ours, told, words), what="it is drawn")
        os.write(ours, b"q") if end == "q" else process.send_signal(signal.SIGINT)
        until(lambda: has_written(ours, told, LEFT), what="the screen is left")
    assert process.returncode == (0 if end == "q" else 130)
    assert b"\x1b[3" not in told and b"Traceback" not in told, "no colour was asked for"


def test_a_pod_is_seen_with_what_it_uses_and_what_happens_to_it(bed: Testbed, images: tuple[str, ...]) -> None:
    follow = subprocess.Popen(argv(bed, "events", "-f", "-o", "json"), stdout=subprocess.PIPE, text=True)
    watch = subprocess.Popen(argv(bed, "watch", "-d", "50ms", "-o", "json"), stdout=subprocess.PIPE, text=True)
    assert follow.stdout and watch.stdout
    watch.stdout.readline()
    warm = run_pod(bed, pod_config("warm"))
    seen = [json.loads(follow.stdout.readline())]
    pod_id = run_pod(bed, pod_config("used"))
    run_container(bed, pod_id, container_config("busy", "busybox", ["sh", "-c", "while :; do :; done"]))
    while (seen[-1]["name"], seen[-1]["event"]) != ("default/used/busy", "started"):
        seen.append(json.loads(follow.stdout.readline()))
    rows = [json.loads(line) for line in run(bed, "top", "--once", "-o", "json")]
    (container,) = [row for row in rows if row["container"] == "busy"]
    (pod,) = [row for row in rows if row["id"] == pod_id]
    assert container["cpu"] > 0 and pod["processes"] >= 2 and pod["receivedBytesPerSecond"] is not None
    assert any("default/used/busy" in line for line in run(bed, "events"))
    assert any("default/used" in line for line in run(bed, "top"))
    remove_pod(bed, pod_id)
    remove_pod(bed, warm)
    while (seen[-1]["name"], seen[-1]["event"]) != ("default/warm", "deleted"):
        seen.append(json.loads(follow.stdout.readline()))
    assert {each["name"] for each in seen} >= {"default/used", "default/warm", "default/used/busy"}
    news: list[tuple[str, str]] = []
    while ("went", "default/warm") not in news:
        news += [(each["what"], each["pod"]) for each in json.loads(watch.stdout.readline())["news"]]
    assert ("appeared", "default/used") in news
    for process in (follow, watch):
        process.terminate()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def run(bed: Testbed, *args: str) -> list[str]:
    return subprocess.run(
        argv(bed, *args), capture_output=True, text=True, timeout=60, check=True
    ).stdout.splitlines()


def test_a_reader_that_leaves_is_no_traceback(bed: Testbed) -> None:
    command = " ".join(argv(bed, "watch", "-d", "10ms", "-o", "json"))
    done = subprocess.run(["sh", "-c", f"{command} | head -1"], capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == 1 and "Traceback" not in done.stderr

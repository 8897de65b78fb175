"""Supervised processes, with real ones: found only when they are ours, ended with a grace, never mistaken."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import pytest
from structlog.testing import capture_logs

from sandboxd.supervised import Supervised, ended

LONG = 60.0  # seconds for what happens at once
ENV = {"PATH": os.environ["PATH"]}

# Programs that say through the FIFO when SIGTERM will find them prepared.
PREPARED = """
import signal, sys
def say(word):
    with open(sys.argv[1], "w") as fifo:
        fifo.write(word)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
say("ready")
signal.sigwait([signal.SIGTERM])
"""
OBEDIENT = PREPARED + "print('terminated')"
STUBBORN = PREPARED + "say('refused'); signal.pause()"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Supervised]:
    """Where a process may be started; it is ended with the test."""
    made = Supervised(pid_file=f"{tmp_path}/it.pid", argument=f"{tmp_path}/fifo")
    os.mkfifo(made.argument)
    yield made
    made.end(0)


@pytest.fixture
def log_file(tmp_path: Path) -> str:
    return f"{tmp_path}/it.log"


def start(process: Supervised, log_file: str) -> int:
    """A `cat` that waits for a writer."""
    return process.start(["cat", process.argument], log_file=log_file, env=ENV)


def start_prepared(process: Supervised, program: str, log_file: str) -> int:
    """One of the programs above, ready for SIGTERM by the time that this returns."""
    pid = process.start([sys.executable, "-c", program, process.argument], log_file=log_file, env=ENV)
    assert Path(process.argument).read_text() == "ready"
    return pid


@contextmanager
def cat(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `cat` that is not supervised; it runs by now."""
    with subprocess.Popen(["cat", "-", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdin and started.stdout
        started.stdin.write(b"\n")
        started.stdin.flush()
        assert started.stdout.readline() == b"\n"
        yield started
        started.kill()


def kill(process: Supervised) -> None:
    """SIGKILL from somebody else; returns when it has ended."""
    fd = process.pidfd()
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    assert ended(fd, LONG)
    os.close(fd)


def test_a_started_process_is_found_by_its_pid_file(process: Supervised, log_file: str) -> None:
    pid = start(process, log_file)

    assert process.pid() == pid
    assert Path(process.pid_file).read_text() == f"{pid}\n"
    assert os.stat(process.pid_file).st_mode & 0o777 == 0o600


def test_a_started_process_has_a_session_and_a_directory_of_its_own(process: Supervised, log_file: str) -> None:
    pid = start(process, log_file)

    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_a_started_process_inherits_only_what_it_is_given(process: Supervised, log_file: str) -> None:
    inheritable = fcntl.fcntl(0, fcntl.F_DUPFD, 100)
    os.set_inheritable(inheritable, True)
    process.start(["cat", "/proc/self/environ", process.argument], log_file=log_file, env={"A": "b"})
    pid, fd = process.pid(), process.pidfd()
    with open(process.argument, "w"):
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        assert not os.path.lexists(f"/proc/{pid}/fd/{inheritable}")
    assert ended(fd, LONG)
    os.close(fd)
    os.close(inheritable)

    assert Path(log_file).read_text() == "A=b\0"


def test_what_it_writes_is_appended_to_its_log(process: Supervised, log_file: str) -> None:
    Path(log_file).write_text("before\n")
    process.start(
        ["sh", "-c", 'echo out; echo err >&2; read -r _ < "$0"', process.argument], log_file=log_file, env=ENV
    )
    fd = process.pidfd()
    Path(process.argument).write_text("go on\n")
    assert ended(fd, LONG)
    os.close(fd)

    assert Path(log_file).read_text() == "before\nout\nerr\n"


def test_a_descriptor_can_be_its_input(process: Supervised, log_file: str) -> None:
    reader, writer = os.pipe()
    process.start(["sh", "-c", "cat", process.argument], log_file=log_file, env=ENV, stdin=reader)
    fd = process.pidfd()
    os.close(reader)
    os.write(writer, b"passed on")
    os.close(writer)
    assert ended(fd, LONG)
    os.close(fd)

    assert Path(log_file).read_text() == "passed on"


def test_a_program_that_is_missing_leaves_no_pid_file(process: Supervised, log_file: str) -> None:
    with pytest.raises(FileNotFoundError):
        process.start(["no-such-program", process.argument], log_file=log_file, env=ENV)

    assert not os.path.exists(process.pid_file)


def test_a_pid_file_that_cannot_be_written_is_reported_and_the_process_runs(
    process: Supervised, log_file: str
) -> None:
    os.mkdir(process.pid_file)
    with capture_logs() as logs:
        pid = start(process, log_file)
    os.rmdir(process.pid_file)
    Path(process.pid_file).write_text(str(pid))

    assert [(entry["log_level"], entry["pid"]) for entry in logs] == [("warning", pid)]
    assert process.pid() == pid


@pytest.mark.parametrize(
    "content", [b"", b"no number", b"-1", b"0", b"1 2", b"99999999999999999999", b"\xff\xfe", b"4194305"]
)
def test_a_damaged_pid_file_names_no_process(process: Supervised, content: bytes) -> None:
    Path(process.pid_file).write_bytes(content)

    assert process.pid() == 0
    assert process.pidfd() == -1
    assert not process.end(0)
    assert process.terminate(0)


def test_a_missing_pid_file_names_no_process(process: Supervised) -> None:
    assert process.pid() == 0
    assert not process.end(0)


def test_a_pid_that_another_program_has_by_now_is_left_alone(process: Supervised) -> None:
    with cat() as other:
        Path(process.pid_file).write_text(f"{other.pid}\n")

        assert process.pid() == 0
        assert not process.end(0)
        assert process.terminate(0)
        assert other.poll() is None


def test_a_part_of_an_argument_does_not_identify_a_process(process: Supervised) -> None:
    with cat(f"{process.argument}.other") as other:
        Path(process.pid_file).write_text(f"{other.pid}\n")

        assert process.pid() == 0


def test_a_process_that_has_ended_but_was_not_waited_for_does_not_run(process: Supervised) -> None:
    with cat(process.argument) as zombie:
        Path(process.pid_file).write_text(f"{zombie.pid}\n")
        kill(process)

        assert process.pid() == 0
        assert not process.end(0)


def test_ending_one_that_is_dead_already_is_no_error(process: Supervised, log_file: str) -> None:
    start(process, log_file)
    kill(process)

    assert process.pid() == 0
    assert not process.end(0)
    assert process.terminate(0)


def test_ending_sends_sigterm_first(process: Supervised, log_file: str) -> None:
    start_prepared(process, OBEDIENT, log_file)

    assert process.end(LONG)
    assert Path(log_file).read_text() == "terminated\n"
    assert not os.path.exists(process.pid_file)


def test_one_that_ignores_sigterm_is_killed_after_the_grace(process: Supervised, log_file: str) -> None:
    start_prepared(process, STUBBORN, log_file)
    fd = process.pidfd()

    assert process.end(0.01)
    assert ended(fd, 0)
    os.close(fd)
    assert not os.path.exists(process.pid_file)


def test_terminating_never_kills(process: Supervised, log_file: str) -> None:
    pid = start_prepared(process, STUBBORN, log_file)

    assert not process.terminate(0.01)
    assert process.pid() == pid


def test_terminating_one_that_obeys_removes_its_pid_file(process: Supervised, log_file: str) -> None:
    start(process, log_file)

    assert process.terminate(LONG)
    assert process.pid() == 0
    assert not os.path.exists(process.pid_file)


def test_two_callers_may_end_it_at_the_same_time(process: Supervised, log_file: str) -> None:
    start_prepared(process, STUBBORN, log_file)
    fd = process.pidfd()
    together = Barrier(2)

    def end() -> bool:
        together.wait()
        return process.end(0.01)

    with ThreadPoolExecutor(2) as callers:
        answers = [caller.result() for caller in [callers.submit(end), callers.submit(end)]]

    assert True in answers
    assert ended(fd, 0)
    os.close(fd)
    assert not os.path.exists(process.pid_file)


def test_the_pid_file_of_one_started_since_is_kept(process: Supervised, log_file: str) -> None:
    """One caller waits for its end while another has started the next already."""
    start_prepared(process, STUBBORN, log_file)
    with ThreadPoolExecutor(1) as caller:
        first = process.pidfd()
        ending = caller.submit(process.end, LONG)
        assert Path(process.argument).read_text() == "refused"  # found, and asked to end
        second = start(process, log_file)
        signal.pidfd_send_signal(first, signal.SIGKILL)
        assert ending.result()
        os.close(first)

    assert process.pid() == second

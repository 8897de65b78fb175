"""What containers write: across restarts and deaths, rotation, full disks and floods."""

from __future__ import annotations

import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from sandboxd.logs.format import parse
from sandboxd.logs.pump import PIPE_BYTES, READ_BYTES
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.pods import (
    LOGS,
    container_info,
    container_status,
    create_container,
    exited,
    log_lines,
    pod_config,
    refused,
    remove_pod,
    run_container,
    run_pod,
    shell,
    start_container,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("images")]

PID_FILE = "/run/sandboxd/logger.pid"
GATES = "/var/lib/gates"


class Gate:
    """A file that a container's script waits for: `$GATE` in the script, `open` here."""

    def __init__(self, bed: Testbed) -> None:
        self.name = secrets.token_hex(4)
        self._directory = bed.write(f"{GATES}/.keep", "").parent

    def open(self) -> None:
        (self._directory / self.name).touch()


def gated(script: str, gate: Gate) -> cri.ContainerConfig:
    """A busybox container that runs a script, which may call `wait_gate`."""
    head = f"wait_gate() {{ while [ ! -e /gates/{gate.name} ]; do sleep 0.02; done; }}; "
    return shell(head + script, mounts=[cri.Mount(host_path=GATES, container_path="/gates")])


def counting(gate: Gate, *, pause: str = "") -> str:
    """A script that writes numbered lines as fast as it can, or pauses after each, until the gate opens."""
    each = f'i=$((i+1)); echo "line $i end"{"; " + pause if pause else ""}'
    return f"i=0; while [ ! -e /gates/{gate.name} ]; do {each}; done; echo total $i"


def numbers(texts: list[str]) -> list[int]:
    """The numbers of a counting script's lines; each must be whole, and the last says how many there are."""
    *lines, last = texts
    found = [re.fullmatch(r"line (\d+) end", line) for line in lines]
    broken = [line for line, match in zip(lines, found, strict=True) if match is None]
    assert not broken, f"split: {broken[:5]}"
    total = re.fullmatch(r"total (\d+)", last)
    assert total is not None, last
    return [int(match[1]) for match in found if match] + [int(total[1]) + 1]


def complete(texts: list[str]) -> bool:
    """Whether every line is there, once and in its place."""
    found = numbers(texts)
    return found == list(range(1, len(found) + 1))


def raw_lines(bed: Testbed, path: str) -> list[str]:
    """The texts of a log file wherever it is mounted; each line must be a whole entry."""
    entries = [parse(line.encode()) for line in bed.run(["cat", path]).stdout.split("\n")[:-1]]
    assert None not in entries
    return [entry.text.decode() for entry in entries if entry is not None]


def log_size(bed: Testbed, container_id: str) -> int:
    return bed.path(container_status(bed, container_id).log_path).stat().st_size


def grows(bed: Testbed, container_id: str) -> None:
    """Wait until the container's log has grown."""
    path = bed.path(container_status(bed, container_id).log_path)
    before = path.stat().st_size
    until(lambda: path.stat().st_size > before, what="the log grows")


def ends(bed: Testbed, container_id: str, *, within: float = 60) -> cri.ContainerStatus:
    until(lambda: exited(bed, container_id), within=within, what="the container ends")
    return container_status(bed, container_id)


def reopen(bed: Testbed, container_id: str) -> None:
    bed.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container_id), timeout=30)


def logger_pid(bed: Testbed) -> str:
    return bed.path(PID_FILE).read_text().strip()


def kill_logger(bed: Testbed) -> None:
    """SIGKILL the logger; returns when another one has taken its place."""
    before = logger_pid(bed)
    bed.run(["kill", "-9", before])
    until(lambda: logger_pid(bed) not in ("", before), what="another logger")


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
def test_an_application_that_writes_all_the_time_loses_nothing_when_the_daemon_goes(
    bed: Testbed, pod: str, kill: bool
) -> None:
    gate = Gate(bed)
    container_id = run_container(bed, pod, gated(counting(gate), gate))
    path = bed.path(container_status(bed, container_id).log_path)
    grows(bed, container_id)
    logger = logger_pid(bed)
    bed.kill_daemon() if kill else bed.stop_daemon()
    before = path.stat().st_size
    until(lambda: path.stat().st_size > before + 2 * PIPE_BYTES, what="it goes on without the daemon")
    bed.relaunch_daemon()
    grows(bed, container_id)
    gate.open()
    ends(bed, container_id)

    assert complete(log_lines(bed, container_id))
    assert logger_pid(bed) == logger


def test_the_last_lines_of_a_container_that_ended_while_the_daemon_was_down_are_there(bed: Testbed, pod: str) -> None:
    gate = Gate(bed)
    script = (
        "wait_gate; i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo line $i end; done; echo total $i; printf rest"
    )
    container_id = run_container(bed, pod, gated(script, gate))
    path = bed.path(container_status(bed, container_id).log_path)
    bed.stop_daemon()
    gate.open()
    until(lambda: path.read_bytes().endswith(b" P rest\n"), what="its last words are logged")
    bed.relaunch_daemon()

    assert ends(bed, container_id).exit_code == 0
    texts = log_lines(bed, container_id)
    assert texts.pop() == "rest"
    assert complete(texts) and len(texts) == 5001


def test_a_killed_logger_loses_at_most_one_read_and_splits_nothing(bed: Testbed, pod: str) -> None:
    gate = Gate(bed)
    container_id = run_container(bed, pod, gated(counting(gate, pause="usleep 500"), gate))
    for _ in range(3):
        grows(bed, container_id)
        kill_logger(bed)
    grows(bed, container_id)
    gate.open()
    ends(bed, container_id)

    found = numbers(log_lines(bed, container_id))
    assert found == sorted(set(found)), "nothing twice, nothing out of order"
    missing = found[-1] - len(found)
    assert missing <= 3 * READ_BYTES // len("line 1 end\n")


def test_a_container_that_ends_while_there_is_no_logger_keeps_its_last_lines(bed: Testbed, pod: str) -> None:
    gate = Gate(bed)
    script = "echo line 1 end; wait_gate; echo line 2 end; echo total 2"
    container_id = run_container(bed, pod, gated(script, gate))
    path = bed.path(container_status(bed, container_id).log_path)
    until(lambda: path.stat().st_size, what="its first line is logged")
    bed.run(["kill", "-STOP", logger_pid(bed)])  # it reads no more, and dies with what the container writes unread
    gate.open()
    pid = container_info(bed, container_id)["pid"]
    until(lambda: _over(bed, pid), what="the container's process has ended")
    bed.run(["kill", "-9", logger_pid(bed)])
    ends(bed, container_id)

    assert complete(log_lines(bed, container_id))


def _over(bed: Testbed, pid: int) -> bool:
    """Whether the process has ended; a dead one may wait as a zombie for the shim to look at it."""
    try:
        return (bed.proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_rotation_under_load_loses_and_splits_nothing(bed: Testbed, pod: str) -> None:
    gate = Gate(bed)
    container_id = run_container(bed, pod, gated(counting(gate), gate))
    path = bed.path(container_status(bed, container_id).log_path)
    rotated: list[Path] = []
    for number in range(20):
        grows(bed, container_id)
        rotated.append(path.rename(path.with_suffix(f".{number}")))
        reopen(bed, container_id)
        assert path.exists()
    gate.open()
    ends(bed, container_id)

    texts = [
        line.split(" ", 3)[3] for file in (*rotated, path) for line in file.read_text(encoding="utf-8").splitlines()
    ]
    assert complete(texts)
    assert all(file.stat().st_size for file in rotated)


def test_a_restart_between_rename_and_reopen_loses_nothing(bed: Testbed, pod: str) -> None:
    gate = Gate(bed)
    container_id = run_container(bed, pod, gated(counting(gate, pause="usleep 500"), gate))
    path = bed.path(container_status(bed, container_id).log_path)
    grows(bed, container_id)
    old = path.rename(path.with_suffix(".1"))
    bed.restart_daemon(kill=True)
    reopen(bed, container_id)
    grows(bed, container_id)
    gate.open()
    ends(bed, container_id)

    texts = [line.split(" ", 3)[3] for file in (old, path) for line in file.read_text().splitlines()]
    assert complete(texts)


def test_long_lines_are_split_at_16_kib_and_marked(bed: Testbed, pod: str) -> None:
    script = (
        "dd if=/dev/zero bs=16384 count=3 2>/dev/null | tr '\\0' x; echo end;"
        "dd if=/dev/zero bs=16384 count=1 2>/dev/null | tr '\\0' y; echo; printf unfinished"
    )
    container_id = run_container(bed, pod, shell(script))
    ends(bed, container_id)
    data = bed.path(container_status(bed, container_id).log_path).read_bytes()
    entries = [parse(line) for line in data.splitlines()]

    expected = [(True, b"x" * 16384)] * 3 + [(False, b"end"), (False, b"y" * 16384), (True, b"unfinished")]
    assert [(entry.partial, entry.text) for entry in entries if entry] == expected


def test_a_full_disk_never_blocks_the_container_and_is_told(bed: Testbed, images: tuple[str, ...]) -> None:
    bed.run(["mkdir", "-p", "/var/lib/tiny"])
    bed.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/var/lib/tiny"])
    pod_id = run_pod(bed, pod_config(log_directory="/var/lib/tiny"))
    gate = Gate(bed)
    flood = "i=0; while [ $i -lt 40000 ]; do i=$((i+1)); echo line $i of the flood that nobody keeps; done"
    last = "echo line 1 end; echo total 1"
    container_id = run_container(
        bed, pod_id, gated(f"{flood}; touch /gates/{gate.name}.flooded; wait_gate; {last}", gate)
    )
    path = container_status(bed, container_id).log_path
    until(bed.path(f"{GATES}/{gate.name}.flooded").exists, what="the flood passes although the disk is full")
    texts = raw_lines(bed, path)
    assert texts == [f"line {i} of the flood that nobody keeps" for i in range(1, len(texts) + 1)]
    assert "lines are lost" in bed.log_file.read_text(encoding="utf-8", errors="replace")
    other = run_container(bed, pod_id, shell("exit 7"))  # its log has no room either
    assert ends(bed, other).exit_code == 7

    bed.run(["sh", "-c", "rm /var/lib/tiny/*"])  # the administrator makes room, and rotates
    reopen(bed, container_id)
    gate.open()
    assert ends(bed, container_id).exit_code == 0
    # What the pipe still held of the flood has found room too.
    assert complete(raw_lines(bed, path)[-2:])
    remove_pod(bed, pod_id)
    bed.run(["umount", "/var/lib/tiny"])
    bed.run(["rmdir", "/var/lib/tiny"])


def test_a_removed_directory_never_blocks_the_container(bed: Testbed, images: tuple[str, ...]) -> None:
    pod_id = run_pod(bed, pod_config(log_directory="/var/lib/gone"))
    gate = Gate(bed)
    script = (
        "echo first; wait_gate; i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo line $i into the void; done;"
        f"touch /gates/{gate.name}.flooded; while [ ! -e /gates/{gate.name}.again ]; do sleep 0.02; done; echo last"
    )
    container_id = run_container(bed, pod_id, gated(script, gate))
    path = bed.path(container_status(bed, container_id).log_path)
    until(lambda: path.stat().st_size, what="the first line is logged")
    bed.run(["rm", "-r", "/var/lib/gone"])
    gate.open()
    until(bed.path(f"{GATES}/{gate.name}.flooded").exists, what="the flood passes")
    reopen(bed, container_id)
    bed.path(f"{GATES}/{gate.name}.again").touch()
    assert ends(bed, container_id).exit_code == 0

    assert log_lines(bed, container_id)[-1] == "last"
    remove_pod(bed, pod_id)


def test_a_log_that_cannot_be_written_at_all_is_an_error_of_the_start(bed: Testbed, images: tuple[str, ...]) -> None:
    bed.write("/var/lib/not-a-directory", "")
    pod_id = run_pod(bed, pod_config(log_directory="/var/lib/not-a-directory"))
    with pytest.raises(grpc.RpcError) as caught:
        run_container(bed, pod_id, shell("true"))
    code, words = refused(caught.value)

    assert code is grpc.StatusCode.FAILED_PRECONDITION and "/var/lib/not-a-directory" in words
    remove_pod(bed, pod_id)


def test_a_running_containers_log_that_cannot_be_opened_after_a_restart_does_not_block_it(
    bed: Testbed, images: tuple[str, ...]
) -> None:
    pod_id = run_pod(bed, pod_config(log_directory="/var/lib/taken"))
    gate = Gate(bed)
    flood = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo line $i into the void; done"
    container_id = run_container(bed, pod_id, gated(f"echo first; wait_gate; {flood}", gate))
    bed.run(["mv", "/var/lib/taken", "/var/lib/taken-before"])
    bed.write("/var/lib/taken", "a file where the directory was")
    kill_logger(bed)
    gate.open()

    assert ends(bed, container_id).exit_code == 0
    remove_pod(bed, pod_id)


def test_the_logger_ends_with_the_daemon_when_nothing_is_left_to_log(fresh_bed: StartBed) -> None:
    bed = fresh_bed()
    pid = logger_pid(bed)
    assert (bed.proc / pid).exists()
    bed.stop_daemon()

    assert not bed.path(PID_FILE).exists()
    assert not bed.path("/run/sandboxd/logger.sock").exists()
    assert "sandboxd.logs" not in bed.run(["ps", "ax", "-o", "args"]).stdout


def test_the_logger_ends_by_itself_when_the_daemon_does_not_come_back(fresh_bed: StartBed) -> None:
    bed = fresh_bed(logs={"idle_seconds": 0.2})
    pid = logger_pid(bed)
    bed.kill_daemon()

    until(lambda: not (bed.proc / pid).exists(), what="the logger ends")
    assert not bed.path(PID_FILE).exists()


def test_nothing_is_left_of_containers_whose_logger_was_killed(bed: Testbed, images: tuple[str, ...]) -> None:
    remove_pod(bed, run_pod(bed))
    gate = Gate(bed)
    gates = bed.path(GATES)
    before = observe(bed)
    pod_id = run_pod(bed)
    container_id = run_container(bed, pod_id, gated(counting(gate, pause="usleep 500"), gate))
    log = bed.path(container_status(bed, container_id).log_path)
    kill_logger(bed)
    grows(bed, container_id)
    with ThreadPoolExecutor(1) as client:
        removing = client.submit(remove_pod, bed, pod_id)
        bed.run(["kill", "-9", logger_pid(bed)], check=False)
        removing.result(60)
    log.unlink()  # it belongs to the client that named its place
    (gates / gate.name).unlink(missing_ok=True)
    assert_no_leaks(bed, before)


# What others may have put into the log directory.

STRANGERS = {
    "a FIFO": "mkfifo {path}",
    "a device": "mknod {path} c 1 5",
    "a directory": "mkdir {path}",
    "a symbolic link": "ln -s {path}.target {path}; printf 'first line\\nlast line' > {path}.target",
}


@pytest.mark.parametrize("words", STRANGERS)
def test_a_container_whose_log_would_be_no_regular_file_is_not_started_and_the_others_are_logged(
    bed: Testbed, pod: str, words: str
) -> None:
    gate = Gate(bed)
    other = run_container(bed, pod, gated(counting(gate, pause="sleep 0.05"), gate))
    config = shell("yes a line | head -c 3000000")
    path = f"{LOGS}/{config.log_path}"
    bed.run(["sh", "-c", f"mkdir -p {LOGS}; {STRANGERS[words].format(path=path)}"])
    container_id = create_container(bed, pod, config)
    with pytest.raises(grpc.RpcError) as error:
        start_container(bed, container_id)

    code, said = refused(error.value)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert words in said and path in said
    assert container_status(bed, container_id).reason == "StartError"
    grows(bed, other)
    gate.open()
    ends(bed, other)
    assert complete(log_lines(bed, other))
    if words == "a symbolic link":
        assert bed.path(f"{path}.target").read_text() == "first line\nlast line"
    bed.run(["rm", "-rf", path])


@pytest.mark.parametrize("words", STRANGERS)
def test_what_comes_in_place_of_a_log_that_was_moved_is_not_written_nor_read(
    bed: Testbed, pod: str, words: str
) -> None:
    gate = Gate(bed)
    container_id = run_container(bed, pod, gated(counting(gate, pause="sleep 0.05"), gate))
    grows(bed, container_id)
    path = container_status(bed, container_id).log_path
    bed.run(["sh", "-c", f"mv {path} {path}.1; {STRANGERS[words].format(path=path)}"])
    with pytest.raises(grpc.RpcError) as error:
        reopen(bed, container_id)
    assert words in refused(error.value)[1]
    with pytest.raises(grpc.RpcError) as error:
        list(bed.host.ReadLogs(host_pb2.ReadLogsRequest(container_id=container_id, tail=-1), timeout=30))
    code, said = refused(error.value)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert words in said and path in said

    bed.run(["rm", "-rf", path])
    reopen(bed, container_id)
    gate.open()
    ends(bed, container_id)
    assert complete(raw_lines(bed, f"{path}.1") + raw_lines(bed, path)), "the old file took what came meanwhile"


def test_a_log_path_of_very_many_parts_does_not_end_the_logger(bed: Testbed, pod: str) -> None:
    pid = logger_pid(bed)
    config = shell("true")
    config.log_path = "d/" * 5000 + "0.log"
    container_id = create_container(bed, pod, config)
    with pytest.raises(grpc.RpcError) as error:
        start_container(bed, container_id)

    assert refused(error.value)[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert logger_pid(bed) == pid

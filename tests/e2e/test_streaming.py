"""Exec on real containers through every transport and protocol: what goes in, what comes out, and what is left."""

from __future__ import annotations

import hashlib
import random
import secrets
from collections.abc import Iterator

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.pods import container_config, remove_pod, run_container, run_pod
from tests.streaming.remote import (
    NEWEST,
    SPDY_V4,
    TRANSPORTS,
    WEBSOCKET_V5,
    Settled,
    Transport,
    execute,
    exit_code,
    failure,
    reached,
    resident_kb,
)
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

PAYLOAD = random.Random(1).randbytes(4 << 20)


@pytest.fixture(scope="module")
def box(bed: Testbed, images: tuple[str, ...]) -> Iterator[str]:
    """A busybox container that lives for the module."""
    pod_id = run_pod(bed)
    yield run_container(bed, pod_id, container_config("box", "busybox", ["sleep", "100000"]))
    remove_pod(bed, pod_id)


def marked() -> tuple[str, str]:
    """A duration for sleep(1) that nobody else sleeps, and how to find who sleeps it."""
    duration = str(random.SystemRandom().randrange(10**8, 10**9))
    return duration, f"sleep {duration}"


def running(bed: Testbed, marker: str) -> bool:
    """Whether a process with this argument runs in the bed."""
    return bed.run(["pgrep", "-f", marker], check=False).returncode == 0


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
async def test_outputs_come_apart_and_the_exit_code_as_the_protocol_says(
    bed: Testbed, box: str, transport: Transport
) -> None:
    remote = await execute(bed, box, "sh", "-c", "echo out; echo err >&2; exit 42", transport=transport)
    assert exit_code(transport, await remote.ended()) == 42
    assert (remote.said("stdout"), remote.said("stderr")) == (b"out\n", b"err\n")


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
async def test_success_is_told_as_the_protocol_says(bed: Testbed, box: str, transport: Transport) -> None:
    remote = await execute(bed, box, "true", transport=transport)
    assert exit_code(transport, await remote.ended()) == 0


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
async def test_a_command_that_cannot_be_executed_says_why(bed: Testbed, box: str, transport: Transport) -> None:
    remote = await execute(bed, box, "no-such-command", transport=transport)
    assert "no-such-command" in failure(transport, await remote.ended())


@pytest.mark.parametrize("transport", [t for t in TRANSPORTS if t.ends_stdin], ids=str)
async def test_the_end_of_stdin_reaches_the_process_which_goes_on(
    bed: Testbed, box: str, transport: Transport
) -> None:
    remote = await execute(bed, box, "sh", "-c", "cat; echo end; exit 3", transport=transport, stdin=True)
    await remote.send(b"one\ntwo\n")
    await remote.until(lambda: remote.said("stdout") == b"one\ntwo\n")
    await remote.end_stdin()
    assert exit_code(transport, await remote.ended()) == 3
    assert remote.said("stdout") == b"one\ntwo\nend\n"


@pytest.mark.parametrize("transport", [t for t in TRANSPORTS if t.ends_stdin], ids=str)
async def test_stdin_that_ends_at_once_is_read_whole(bed: Testbed, box: str, transport: Transport) -> None:
    """The shim opens its end of the pipe about when ours is let go of."""
    for number in range(15):
        remote = await execute(bed, box, "cat", transport=transport, stdin=True)
        await remote.send(b"%d" % number)
        await remote.end_stdin()
        assert exit_code(transport, await remote.ended()) == 0
        assert remote.said("stdout") == b"%d" % number


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
async def test_megabytes_go_in_and_come_out_unchanged(bed: Testbed, box: str, transport: Transport) -> None:
    """Both directions at once; the process tells the checksum of what came in."""
    script = f"head -c {len(PAYLOAD)} | tee /tmp/in; sha256sum < /tmp/in >&2; rm /tmp/in"
    remote = await execute(bed, box, "sh", "-c", script, transport=transport, stdin=True)
    await remote.send(PAYLOAD)
    assert exit_code(transport, await remote.ended()) == 0
    assert remote.said("stderr").split()[0].decode() == hashlib.sha256(PAYLOAD).hexdigest()
    assert hashlib.sha256(remote.said("stdout")).digest() == hashlib.sha256(PAYLOAD).digest()


@pytest.mark.parametrize("transport", [t for t in TRANSPORTS if t.resizes], ids=str)
async def test_a_terminal_has_one_output_and_the_client_s_size(bed: Testbed, box: str, transport: Transport) -> None:
    """The first size is there soon after the start, later ones as they come."""
    script = (
        'until [ "$(stty size 2>/dev/null)" = "30 100" ]; do sleep 0.02; done; echo first;'
        'until [ "$(stty size 2>/dev/null)" = "25 81" ]; do sleep 0.02; done; echo second >&2; exit 7'
    )
    remote = await execute(bed, box, "sh", "-c", script, transport=transport, stdin=True, tty=True)
    await remote.resize(100, 30)
    await remote.until(lambda: remote.said("stdout") == b"first\r\n")
    await remote.resize(81, 25)
    assert exit_code(transport, await remote.ended()) == 7
    assert remote.said("stdout") == b"first\r\nsecond\r\n"


async def test_control_c_reaches_what_runs_in_the_terminal(bed: Testbed, box: str) -> None:
    duration, marker = marked()
    remote = await execute(bed, box, "sh", transport=WEBSOCKET_V5, stdin=True, tty=True)
    await remote.send(f"sleep {duration}\n".encode())
    await reached(lambda: running(bed, marker), what="it sleeps")
    await remote.send(b"\x03")
    await reached(lambda: not running(bed, marker), what="it is interrupted")
    await remote.send(b"exit 5\n")
    assert exit_code(WEBSOCKET_V5, await remote.ended()) == 5


@pytest.mark.parametrize("politely", [True, False], ids=["goodbye", "reset"])
@pytest.mark.parametrize("transport", NEWEST, ids=str)
@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "terminal"])
async def test_a_client_that_disappears_ends_the_process_and_leaves_nothing(
    bed: Testbed, box: str, transport: Transport, politely: bool, tty: bool
) -> None:
    before = observe(bed)
    duration, marker = marked()
    remote = await execute(bed, box, "sleep", duration, transport=transport, stdin=True, tty=tty)
    await reached(lambda: running(bed, marker), what="it sleeps")
    if politely:
        await remote.close()
    else:
        await remote.vanish()
    await reached(lambda: not running(bed, marker), what="it is ended")
    assert_no_leaks(bed, before)


async def test_what_the_process_has_started_is_ended_with_it(bed: Testbed, box: str) -> None:
    """A shell that is killed alone leaves what it waits for."""
    duration, marker = marked()
    remote = await execute(bed, box, "sh", "-c", f"sleep {duration} | cat; true", transport=SPDY_V4)
    await reached(lambda: running(bed, f"^{marker}"), what="it sleeps")
    await remote.vanish()
    await reached(lambda: not running(bed, marker), what="all are ended")


async def test_what_a_leaving_client_has_sent_still_reaches_the_process(bed: Testbed, box: str) -> None:
    """Before v5 a WebSocket client has no other way to end its input."""
    transport = next(t for t in TRANSPORTS if t.websocket and not t.ends_stdin)
    name = f"/tmp/{secrets.token_hex(4)}"
    remote = await execute(
        bed, box, "sh", "-c", f"cat > {name}; mv {name} {name}.whole", transport=transport, stdin=True
    )
    await remote.send(PAYLOAD)
    await remote.close()
    await reached(lambda: stdout_of(bed, box, "ls", "/tmp").count(f"{name[5:]}.whole".encode()), what="it has all")
    said = stdout_of(bed, box, "sha256sum", f"{name}.whole")
    assert said.split()[0].decode() == hashlib.sha256(PAYLOAD).hexdigest()


def stdout_of(bed: Testbed, container_id: str, *cmd: str) -> bytes:
    request = cri.ExecSyncRequest(container_id=container_id, cmd=cmd, timeout=30)
    return bytes(bed.runtime.ExecSync(request, timeout=60).stdout)


@pytest.mark.parametrize("transport", NEWEST, ids=str)
async def test_a_client_that_does_not_read_stops_the_process_not_the_memory(
    bed: Testbed, box: str, transport: Transport
) -> None:
    """256 MiB wait to be written; once they are read, all of them come."""
    size = 256 << 20
    warm = await execute(bed, box, "head", "-c", str(8 << 20), "/dev/zero", transport=transport)
    await warm.ended()
    resident = resident_kb(bed.daemon_pid)
    script = f"head -c {size} /dev/zero & echo $! >&2; wait"
    remote = await execute(bed, box, "sh", "-c", script, transport=transport)
    await remote.until(lambda: b"\n" in remote.said("stderr"))
    remote.reading.clear()

    def written() -> int:
        """What the process has written so far, as it is seen inside the container."""
        said = stdout_of(bed, box, "cat", f"/proc/{remote.said('stderr').decode().strip()}/io")
        return next(int(line.split()[1]) for line in said.splitlines() if line.startswith(b"wchar"))

    await reached(Settled(written), what="it writes no more")
    assert written() < 64 << 20
    grown = resident_kb(bed.daemon_pid) - resident
    assert grown < 16 << 10, f"{grown} kB"
    remote.reading.set()
    assert exit_code(transport, await remote.ended()) == 0
    assert len(remote.said("stdout")) == size
    grown = resident_kb(bed.daemon_pid) - resident
    assert grown < 16 << 10, f"{grown} kB"

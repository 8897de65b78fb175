"""Attach on real containers: a client comes to a container's own streams, and goes; the container goes on."""

from __future__ import annotations

import asyncio
import hashlib
import random

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.pods import (
    container_status,
    exited,
    log_lines,
    refused,
    run_container,
    shell,
)
from tests.streaming.remote import (
    NEWEST,
    SPDY_V4,
    TRANSPORTS,
    WEBSOCKET_V5,
    Remote,
    Transport,
    attach,
    exit_code,
    failure,
    open_files,
    reached,
)
from tests.testbed import Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("images")]

PAYLOAD = random.Random(2).randbytes(4 << 20)
ECHO = 'while read line; do echo "out $line"; echo "err $line" >&2; done; echo over; exec sleep 1000'


def runs(bed: Testbed, container_id: str) -> bool:
    """Whether the container is seen to run."""
    return container_status(bed, container_id).state == cri.CONTAINER_RUNNING


async def talk(remote: Remote, word: str) -> None:
    """Say a line to a container with ECHO; its answers come on their own streams, to all who have talked before."""
    await remote.send(f"{word}\n".encode())
    await remote.until(lambda: remote.said("stdout").endswith(f"out {word}\n".encode()))
    await remote.until(lambda: remote.said("stderr").endswith(f"err {word}\n".encode()))


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
async def test_a_client_talks_leaves_and_the_next_one_goes_on_talking(
    bed: Testbed, pod: str, transport: Transport
) -> None:
    """Output and errors come apart, and without stdin_once nobody's leaving ends the container's input."""
    container_id = run_container(bed, pod, shell(ECHO, stdin=True))
    first = await attach(bed, container_id, transport=transport, stdin=True)
    await talk(first, "one")
    await first.close()
    second = await attach(bed, container_id, transport=transport, stdin=True)
    await talk(second, "two")
    await second.vanish()
    third = await attach(bed, container_id, transport=transport, stdin=True)
    await talk(third, "three")
    assert (third.said("stdout"), third.said("stderr")) == (b"out three\n", b"err three\n")
    if transport.ends_stdin:
        await third.end_stdin()
    await third.close()
    assert runs(bed, container_id)
    await reached(lambda: len(log_lines(bed, container_id)) == 6, what="all of it is logged")
    assert "over" not in log_lines(bed, container_id)


@pytest.mark.parametrize("leave", ["end stdin", "goodbye", "reset"])
@pytest.mark.parametrize("transport", NEWEST, ids=str)
async def test_with_stdin_once_the_first_client_s_end_is_the_container_s_too(
    bed: Testbed, pod: str, transport: Transport, leave: str
) -> None:
    """However it leaves; one that stays sees what comes of it, and nobody gets at stdin any more."""
    container_id = run_container(bed, pod, shell(ECHO, stdin=True, stdin_once=True))
    remote = await attach(bed, container_id, transport=transport, stdin=True)
    other = await attach(bed, container_id, transport=transport, stdin=True)
    await talk(other, "zero")
    await talk(remote, "one")
    if leave == "end stdin":
        await remote.end_stdin()
        await remote.until(lambda: remote.said("stdout").endswith(b"over\n"))
    if leave == "reset":
        await remote.vanish()
    else:
        await remote.close()
    await other.until(lambda: other.said("stdout") == b"out zero\nout one\nover\n")
    await other.send(b"two\n")
    late = await attach(bed, container_id, transport=transport, stdin=True)
    assert "closed by an earlier client" in failure(transport, await late.ended())
    assert runs(bed, container_id)
    await other.close()
    assert sorted(log_lines(bed, container_id)) == ["err one", "err zero", "out one", "out zero", "over"]


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
async def test_all_that_a_leaving_client_sent_reaches_the_container(
    bed: Testbed, pod: str, transport: Transport
) -> None:
    container_id = run_container(bed, pod, shell("sha256sum", stdin=True, stdin_once=True))
    remote = await attach(bed, container_id, transport=transport, stdin=True)
    await remote.send(PAYLOAD)
    await remote.close()
    await reached(lambda: exited(bed, container_id), what="it has read to the end")
    assert log_lines(bed, container_id) == [f"{hashlib.sha256(PAYLOAD).hexdigest()}  -"]


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
async def test_the_end_of_the_container_ends_the_attach_with_success(
    bed: Testbed, pod: str, transport: Transport
) -> None:
    """Its exit code is in its status; to the last byte, output comes first."""
    script = "read go; head -c 3000000 /dev/zero; echo over >&2; exit 3"
    container_id = run_container(bed, pod, shell(script, stdin=True))
    remote = await attach(bed, container_id, transport=transport, stdin=True)
    await remote.send(b"go\n")
    assert exit_code(transport, await remote.ended()) == 0
    assert (len(remote.said("stdout")), remote.said("stderr")) == (3_000_000, b"over\n")
    await reached(lambda: exited(bed, container_id), what="its end is known")
    assert container_status(bed, container_id).exit_code == 3


async def test_several_clients_see_all_and_say_what_they_like(bed: Testbed, pod: str) -> None:
    container_id = run_container(bed, pod, shell(ECHO, stdin=True))
    clients = [await attach(bed, container_id, transport=transport, stdin=True) for transport in NEWEST * 2]

    async def sees(client: Remote, said: bytes) -> None:
        await client.until(lambda: client.said("stdout").endswith(said))

    for number, client in enumerate(clients):
        await talk(client, f"hello {number}")
    last = b"out hello %d\n" % (len(clients) - 1)
    for number, client in enumerate(clients):
        await client.send(b"%d\n" % number)
        for each in clients[number:]:
            await sees(each, last + b"".join(b"out %d\n" % n for n in range(number + 1)))
        await client.close()
    assert runs(bed, container_id)


async def test_what_came_before_the_client_is_not_repeated(bed: Testbed, pod: str) -> None:
    container_id = run_container(bed, pod, shell(f"echo early; {ECHO}", stdin=True))
    await reached(lambda: log_lines(bed, container_id) == ["early"], what="it has begun")
    remote = await attach(bed, container_id, transport=SPDY_V4, stdin=True)
    await talk(remote, "one")
    assert remote.said("stdout") == b"out one\n"
    await remote.close()


@pytest.mark.parametrize("transport", [t for t in TRANSPORTS if t.resizes], ids=str)
async def test_a_terminal_is_attached_to_with_its_size(bed: Testbed, pod: str, transport: Transport) -> None:
    """One output, the size as it changes; a terminal's input does not end with a client, stdin_once or not."""
    container_id = run_container(bed, pod, shell("exec sh -i", stdin=True, stdin_once=True, tty=True))

    async def sized(remote: Remote, columns: int, rows: int) -> None:
        await remote.resize(columns, rows)
        wanted = f"{rows} {columns}"
        await remote.send(
            f'until [ "$(stty size)" = "{wanted}" ]; do sleep 0.02; done; echo now $(stty size)\n'.encode()
        )
        await remote.until(lambda: f"\r\nnow {wanted}\r\n".encode() in remote.said("stdout"))

    first = await attach(bed, container_id, transport=transport, stdin=True, tty=True)
    await sized(first, 100, 30)
    await sized(first, 81, 25)
    await first.close()
    second = await attach(bed, container_id, transport=transport, stdin=True, tty=True)
    await sized(second, 132, 43)
    await second.send(b"exit 4\n")
    assert exit_code(transport, await second.ended()) == 0
    await reached(lambda: exited(bed, container_id), what="its end is known")
    assert container_status(bed, container_id).exit_code == 4


async def test_attach_is_refused_where_there_is_nothing_to_attach_to(bed: Testbed, pod: str) -> None:
    container_id = run_container(bed, pod, shell("sleep 1000"))
    with pytest.raises(grpc.RpcError) as error:
        await attach(bed, container_id, transport=SPDY_V4, stdin=True)
    code, words = refused(error.value)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "has no stdin" in words
    remote = await attach(bed, container_id, transport=SPDY_V4)
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id))
    assert exit_code(SPDY_V4, await remote.ended()) == 0
    with pytest.raises(grpc.RpcError) as error:
        await attach(bed, container_id, transport=SPDY_V4)
    assert refused(error.value)[0] is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("transport", NEWEST, ids=str)
async def test_a_client_that_does_not_read_does_not_stop_the_container_for_ever(
    bed: Testbed, pod: str, transport: Transport
) -> None:
    """It is cut off, and told so when it reads again; others and the log go on."""
    container_id = run_container(bed, pod, shell("read go; i=0; while :; do i=$((i+1)); echo $i; done", stdin=True))
    log = bed.path(container_status(bed, container_id).log_path)
    slow = await attach(bed, container_id, transport=transport, stdin=True)
    slow.reading.clear()
    await slow.send(b"go\n")
    await reached(lambda: cut_off(bed, container_id), what="it is cut off")
    size = log.stat().st_size
    await reached(lambda: log.stat().st_size > size + (1 << 20), what="the container goes on")
    other = await attach(bed, container_id, transport=transport)
    await other.until(lambda: len(other.said("stdout")) > 1 << 20)
    await other.close()
    slow.reading.set()
    assert "too slowly" in failure(transport, await slow.ended())


def cut_off(bed: Testbed, container_id: str) -> bool:
    """Whether the daemon has said so."""
    lines = bed.log_file.read_text(encoding="utf-8").splitlines()
    return any("read nothing for too long" in line and container_id in line for line in lines)


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
@pytest.mark.parametrize("transport", NEWEST, ids=str)
async def test_the_container_goes_on_when_the_daemon_is_restarted_and_can_be_attached_to_again(
    bed: Testbed, pod: str, transport: Transport, kill: bool
) -> None:
    """The client of the old daemon is told, if that had the time; stdin_once or not, stdin has not ended."""
    once = run_container(bed, pod, shell(ECHO, stdin=True, stdin_once=True))
    many = run_container(bed, pod, shell(ECHO, stdin=True))
    before = observe(bed)
    clients = [await attach(bed, container_id, transport=transport, stdin=True) for container_id in (once, many)]
    for client in clients:
        await talk(client, "one")
    await restart(bed, kill=kill)
    for client in clients:
        if kill:
            await client.close()
        else:
            assert "shutting down" in failure(transport, await client.ended())
    assert_no_leaks(bed, before)
    for container_id in (once, many):
        client = await attach(bed, container_id, transport=transport, stdin=True)
        await talk(client, "two")
        await client.close()
    await reached(lambda: "over" in log_lines(bed, once), what="the input has ended where it should")
    assert runs(bed, once) and runs(bed, many)
    assert sorted(log_lines(bed, many)) == ["err one", "err two", "out one", "out two"]


async def restart(bed: Testbed, *, kill: bool) -> None:
    """Restart the daemon while the clients listen."""
    await asyncio.to_thread(bed.restart_daemon, kill=kill)


async def test_many_clients_leave_nothing_behind(bed: Testbed, pod: str) -> None:
    """Not a file in the daemon either."""
    container_id = run_container(bed, pod, shell(ECHO, stdin=True))
    remote = await attach(bed, container_id, transport=WEBSOCKET_V5, stdin=True)
    await talk(remote, "first")
    await remote.close()
    before, files = observe(bed), open_files(bed)
    for number in range(20):
        remote = await attach(bed, container_id, transport=NEWEST[number % 2], stdin=True)
        await talk(remote, str(number))
        if number % 3:
            await remote.close()
        else:
            await remote.vanish()
    await reached(lambda: open_files(bed) <= files, what="the daemon has let go of everything")
    assert_no_leaks(bed, before)

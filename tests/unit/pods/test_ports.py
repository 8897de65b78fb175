"""A connection to a pod's port is made inside the pod, over IPv4 or IPv6; a refusal says why and leaves nothing.

The sockets lead to a server on a unix socket: whichever address of the pod they are given, nothing leaves the test.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandboxd import netns
from sandboxd.errors import NotFound, NotReady
from sandboxd.model import SandboxRecord
from sandboxd.pods import ports
from sandboxd.pods.ports import PodPorts
from tests.fakes.bundle import Bundle, pod_config

IPV4, IPV6 = socket.AF_INET, socket.AF_INET6
PATH = "/run/netns/pod"


class Leading(socket.socket):
    """A socket that connects to a unix socket, or fails, or waits, whatever address it is given."""

    to = ""
    error: OSError | None = None
    other_end: socket.socket | None = None  # closed with it
    address: tuple[str, int] | None = None
    asked: asyncio.Event | None = None  # set when it is

    def connect(self, address: Any) -> None:
        self.address = address
        if self.asked is not None:
            self.asked.set()
        if self.error is not None:
            raise self.error
        super().connect(self.to)

    def close(self) -> None:
        if self.other_end is not None:
            self.other_end.close()
        super().close()


def silent() -> Leading:
    """One that never becomes connected: nobody answers."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        while ours.send(b"x" * 65536):
            pass
    except BlockingIOError:
        pass
    made = Leading(fileno=ours.detach())
    made.error = BlockingIOError(errno.EINPROGRESS, "in progress")
    made.other_end = theirs
    return made


class Pod:
    """What the pod's namespace answers, by family."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.refusing: dict[int, Exception] = {}  # by the family whose sockets cannot be opened
        self.failing: dict[int, OSError] = {}  # by the family over which nobody can be reached
        self.silent = False
        self.opened: list[tuple[str, int, Leading]] = []
        self.asked = asyncio.Event()  # set once a connection was begun

    async def open_socket(self, path: str, family: int, kind: int) -> socket.socket:
        assert kind == socket.SOCK_STREAM
        if family in self.refusing:
            raise self.refusing[family]
        made = silent() if self.silent else Leading(socket.AF_UNIX, socket.SOCK_STREAM)
        made.to, made.asked, made.error = self.server, self.asked, self.failing.get(family, made.error)
        self.opened.append((path, family, made))
        return made

    @property
    def tried(self) -> list[tuple[int, tuple[str, int] | None]]:
        """(family, address) of each attempt."""
        return [(family, made.address) for _, family, made in self.opened]


def refused(address: str) -> ConnectionRefusedError:
    """As asyncio words it, which leaves out why."""
    return ConnectionRefusedError(errno.ECONNREFUSED, f"Connect call failed ('{address}', 80)")


@pytest.fixture
async def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_unix_server(echo, tmp_path / "server")
    made = Pod(str(tmp_path / "server"))
    monkeypatch.setattr(netns, "open_socket", made.open_socket)
    yield made
    for _, _, opened in made.opened:
        opened.close()
    server.close()
    await server.wait_closed()


def record(fakes: Bundle, *, netns_path: str = PATH, stopped_at: int = 0) -> SandboxRecord:
    made = SandboxRecord(
        id="pod",
        config=pod_config(),
        runtime_handler="",
        netns_path=netns_path,
        created_at=1,
        started_at=2,
        stopped_at=stopped_at,
    )
    fakes.node.ledger.add_sandbox(made)
    return made


async def echoed(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
    reader, writer = streams
    writer.write(b"hello\n")
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_a_port_is_reached_inside_the_pods_namespace(fakes: Bundle, pod: Pod) -> None:
    record(fakes)

    streams = await PodPorts(fakes.node, "pod").open(80)

    assert await echoed(streams) == b"hello\n"
    assert [path for path, _, _ in pod.opened] == [PATH]
    assert pod.tried == [(IPV4, ("127.0.0.1", 80))]


async def test_where_nobody_answers_over_ipv4_it_is_reached_over_ipv6(fakes: Bundle, pod: Pod) -> None:
    record(fakes)
    pod.failing[IPV4] = refused("127.0.0.1")

    streams = await PodPorts(fakes.node, "pod").open(80)

    assert await echoed(streams) == b"hello\n"
    assert pod.tried == [(IPV4, ("127.0.0.1", 80)), (IPV6, ("::1", 80))]


async def test_a_pod_in_the_hosts_network_has_the_hosts_ports(fakes: Bundle, pod: Pod) -> None:
    record(fakes, netns_path="")

    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
        _, writer = await PodPorts(fakes.node, "pod").open(address[1])
        reached = writer.get_extra_info("peername")
        writer.close()
        await writer.wait_closed()

    assert reached == address
    assert not pod.opened


async def test_a_refusal_says_the_pod_and_the_kernels_reason(fakes: Bundle, pod: Pod) -> None:
    name = record(fakes).name
    pod.failing = {IPV4: refused("127.0.0.1"), IPV6: refused("::1")}

    words = f"nothing to connect to on the localhost of pod {name}: {os.strerror(errno.ECONNREFUSED)}"
    with pytest.raises(NotReady, match=f"^{re.escape(words)}$"):
        await PodPorts(fakes.node, "pod").open(80)


@pytest.mark.parametrize(
    ("ipv4", "words"),
    [
        (OSError(errno.EHOSTUNREACH, "unreachable"), os.strerror(errno.EHOSTUNREACH)),
        (NotReady("the namespace is gone"), "the namespace is gone"),
    ],
    ids=["connecting", "opening a socket"],
)
async def test_the_reason_is_that_of_ipv4_as_ipv6_may_be_off(
    fakes: Bundle, pod: Pod, ipv4: Exception, words: str
) -> None:
    record(fakes)
    pod.refusing = {IPV4: ipv4, IPV6: OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")}

    with pytest.raises(NotReady, match=f": {words}$") as caught:
        await PodPorts(fakes.node, "pod").open(80)

    assert caught.value.__cause__ is ipv4


async def test_a_port_where_nobody_answers_is_given_up_in_time(
    fakes: Bundle, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(fakes)
    pod.silent = True
    monkeypatch.setattr(ports, "CONNECT_SECONDS", 0)

    with pytest.raises(NotReady, match=r": no answer in 0 s$"):
        await PodPorts(fakes.node, "pod").open(80)

    assert [family for family, _ in pod.tried] == [IPV4, IPV6]
    assert all(made.fileno() == -1 for _, _, made in pod.opened)


async def test_a_failed_attempt_leaves_no_socket(fakes: Bundle, pod: Pod) -> None:
    record(fakes)
    pod.failing = {IPV4: refused("127.0.0.1"), IPV6: refused("::1")}

    with pytest.raises(NotReady):
        await PodPorts(fakes.node, "pod").open(80)

    assert [made.fileno() for _, _, made in pod.opened] == [-1, -1]


async def test_an_attempt_that_is_cancelled_leaves_no_socket(fakes: Bundle, pod: Pod) -> None:
    record(fakes)
    pod.silent = True
    opening = asyncio.ensure_future(PodPorts(fakes.node, "pod").open(80))
    await pod.asked.wait()

    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening

    ((_, _, made),) = pod.opened
    assert made.fileno() == -1


async def test_a_pod_that_is_not_there_is_not_found(fakes: Bundle) -> None:
    with pytest.raises(NotFound, match="pod gone does not exist"):
        await PodPorts(fakes.node, "gone").open(80)


async def test_a_stopped_pod_has_no_ports(fakes: Bundle, pod: Pod) -> None:
    """Its namespace may be another's by now; one in the host's network must not reach the host's."""
    record(fakes, stopped_at=3)

    with pytest.raises(NotReady, match=r"\(pod\) is no longer running$"):
        await PodPorts(fakes.node, "pod").open(80)

    assert not pod.opened


async def test_the_record_is_looked_up_for_each_connection(fakes: Bundle, pod: Pod) -> None:
    record(fakes)
    opened = PodPorts(fakes.node, "pod")
    assert await echoed(await opened.open(80)) == b"hello\n"
    fakes.node.ledger.update_sandbox("pod", stopped_at=3)

    with pytest.raises(NotReady):
        await opened.open(80)

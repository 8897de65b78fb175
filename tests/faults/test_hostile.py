"""Hostile requests: nothing that a client can say is a crash, a hang, an INTERNAL or a residue.

The inputs come from a seed, which is part of each cell; SEED=number tries others. What they found once is a case of a
unit test by now.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.faults import hostile
from tests.faults.cells import Cells
from tests.faults.garbage import Garbage
from tests.faults.parsers import PARSERS
from tests.pods import LOGS, container_config, container_status, remove_pod, run_container, run_pod
from tests.pulling import QUICK
from tests.testbed import Testbed

pytestmark = pytest.mark.faults

SEED = int(os.environ.get("SEED", "11"))
REQUESTS, SLOW_REQUESTS, CONNECTIONS = 400, 40, 200  # with test_hostile_parsers more than 100,000 inputs
TO_SUCCEED = hostile.SLOW - {"PullImage", "LoadImage", "SaveImage", "CheckpointContainer"} - hostile.FOR_EVER
LIMIT_SECONDS = 1800.0
LONG = 10  # times as many with FAULTS=long


@pytest.fixture
def host(containerd_bin: Path | None) -> Iterator[hostile.Host]:
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        bed.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")  # it refuses at once
        bed.run(["mkdir", "-p", hostile.HERE, LOGS])
        bed.start_daemon(images=QUICK, daemon={"log_level": "info"})
        bed.load_image("busybox")
        yield hostile.Host(bed=bed, garbage=Garbage(SEED, ("busybox", LOGS, hostile.HERE, "runc")))


@pytest.mark.timeout(3600)  # with everything
def test_an_rpc_answers_whatever_it_is_asked_and_leaves_nothing(
    cells: Cells, everything: bool, host: hostile.Host
) -> None:
    bed, times = host.bed, LONG if everything else 1
    warm = run_pod(bed)
    run_container(bed, warm, container_config("warm", "busybox", ["true"]))
    remove_pod(bed, warm)
    before = observe(bed)
    for method in hostile.methods():
        count = (SLOW_REQUESTS if method.name in hostile.SLOW | hostile.MEASURING else REQUESTS) * times
        if method.name in hostile.FOR_EVER:
            count = 3
        with cells.cell("hostile", at=method.name, what=f"{count} requests, seed {SEED}"):
            host.populate()
            wrong = [words for _ in range(count) if (words := host.call(method, host.request(method)))]
            assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:3])
    with cells.cell("hostile", at="all RPCs", what="what is left"):
        assert not [name for name in TO_SUCCEED if not host.taken[name]], f"they were never met: {host.taken}"
        for pod in bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
            remove_pod(bed, pod.id)
        left = [line for line in _different(bed, before) if hostile.HERE not in line and LOGS not in line]
        assert not left, "\n".join(left)
        assert "unexpectedly" not in bed.log_file.read_text("utf-8", "replace")


def _different(bed: Testbed, before: object) -> list[str]:
    try:
        assert_no_leaks(bed, before)  # type: ignore[arg-type]
    except AssertionError as error:
        return str(error).splitlines()[1:]
    return []


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAMES = (
    _PREFACE + b"\0\0\0\4\0\0\0\0\0",
    _PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\4\x01\x05\0\0\0\1\x82\x86\x84\x41",
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
)


def test_bytes_that_are_no_http_2_end_their_own_connection_only(
    cells: Cells, everything: bool, host: hostile.Host
) -> None:
    count = CONNECTIONS * (LONG if everything else 1)
    garbage = Garbage(SEED)
    with cells.cell("hostile", at="the daemon's socket", what=f"{count} connections, seed {SEED}"):
        for _ in range(count):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(hostile.SECONDS)
                client.connect(str(host.bed.socket))
                try:
                    client.sendall(garbage.changed(_FRAMES))
                except OSError:
                    pass  # it did not want to hear the rest
        assert host.bed.runtime.Version(cri.VersionRequest(), timeout=hostile.SECONDS).runtime_name == "sandboxd"


# In the bed: connects, says what it is told, ends its side and reads to the end.
_CLIENT = """
import json, socket, sys
answers = []
for port, text in json.load(sys.stdin):
    with socket.socket() as client:
        client.settimeout(30)
        client.connect(("127.0.0.1", port))
        got, state = b"", "ended"
        try:
            client.sendall(bytes.fromhex(text))
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(65536):
                got = (got + data)[:64]
        except TimeoutError:
            state = "hangs"
        except OSError:
            pass
        answers.append([state, got.hex()])
json.dump(answers, sys.stdout)
"""
_WEBSOCKET = (
    "GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
)
_SPDY = (
    "POST {path} HTTP/1.1\r\nHost: h\r\nUpgrade: SPDY/3.1\r\nConnection: Upgrade\r\n"
    "X-Stream-Protocol-Version: {protocol}\r\n\r\n"
)
_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io", "base64.channel.k8s.io", "SPDY/3.1+portforward.k8s.io", "x")


@pytest.mark.timeout(3600)  # with everything
def test_a_stream_takes_or_refuses_whatever_it_is_sent(cells: Cells, everything: bool, host: hostile.Host) -> None:
    count = CONNECTIONS // 2 * (LONG if everything else 1)
    bed, garbage = host.bed, host.garbage
    host.populate()
    for container in host.containers:
        if container_status(bed, container).state == cri.CONTAINER_RUNNING:  # the first makes a directory for all
            bed.runtime.ExecSync(cri.ExecSyncRequest(container_id=container, cmd=["true"]), timeout=hostile.SECONDS)
    before = observe(bed)
    frames = [seed for parser in PARSERS if parser.name in ("SPDY", "WebSocket") for seed in parser.seeds]
    with cells.cell("hostile", at="the streaming ports", what=f"{count} connections, seed {SEED}"):
        said: list[tuple[int, str]] = []
        for _ in range(count):
            path, port = _url(host)
            head = garbage.random.choice((_WEBSOCKET, _SPDY)).format(
                path=path, protocol=garbage.random.choice(_PROTOCOLS)
            )
            start = head.encode() if garbage.random.random() < 0.8 else garbage.changed([head.encode()])
            said.append((port, (start + garbage.changed(frames)).hex()))
        ran = bed.run([sys.executable, "-I", "-c", _CLIENT], stdin=json.dumps(said), timeout=LIMIT_SECONDS)
        answers = json.loads(ran.stdout)
        hang = [bytes.fromhex(text) for (_, text), (state, _) in zip(said, answers, strict=True) if state != "ended"]
        assert not hang, f"{len(hang)} of {count}: {hang[:3]}"
        assert bed.runtime.Version(cri.VersionRequest(), timeout=hostile.SECONDS).runtime_name == "sandboxd"
        assert_no_leaks(bed, before)
        log = bed.log_file.read_text("utf-8", "replace")
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]


def _url(host: hostile.Host) -> tuple[str, int]:
    """The path and port of a stream for something that lives."""
    draw = host.garbage.random
    runtime = host.bed.runtime
    running = [each for each in host.containers if container_status(host.bed, each).state == cri.CONTAINER_RUNNING]
    container, pod = draw.choice(running), draw.choice(host.pods)
    match draw.randrange(3):
        case 0:
            url = runtime.Exec(cri.ExecRequest(container_id=container, cmd=["cat"], stdin=True, stdout=True)).url
        case 1:
            url = runtime.Attach(cri.AttachRequest(container_id=container, stdout=True)).url
        case _:
            url = runtime.PortForward(cri.PortForwardRequest(pod_sandbox_id=pod, port=[80])).url
    place = url.partition("://")[2]
    address, _, path = place.partition("/")
    return f"/{path}", int(address.rpartition(":")[2])

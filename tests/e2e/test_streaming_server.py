"""The streaming server as a whole: who is let in, TLS, idleness, and what restarts do to what is open."""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
from collections.abc import Iterator

import grpc
import pytest
from websockets.exceptions import InvalidStatus

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.pods import container_config, refused, remove_pod, run_container, run_pod
from tests.streaming import clients, tls
from tests.streaming.remote import (
    NEWEST,
    SPDY_V4,
    WEBSOCKET_V5,
    Transport,
    connect,
    dial,
    exec_url,
    execute,
    exit_code,
    failure,
    reached,
)
from tests.streaming.spdy_client import SpdyClient
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

PAYLOAD = random.Random(4).randbytes(4 << 20)
SPDY = ["v4.channel.k8s.io"]


@pytest.fixture(scope="module")
def box(bed: Testbed, images: tuple[str, ...]) -> Iterator[str]:
    """A busybox container that lives for the module."""
    pod_id = run_pod(bed)
    yield run_container(bed, pod_id, container_config("box", "busybox", ["sleep", "100000"]))
    remove_pod(bed, pod_id)


def started(bed: Testbed) -> str:
    """A busybox container in a bed of the test's own."""
    bed.load_image("busybox")
    return run_container(bed, run_pod(bed), container_config("box", "busybox", ["sleep", "100000"]))


def sleeper() -> tuple[str, str]:
    """How long to sleep that nobody else sleeps so long, and how to find who does."""
    duration = str(random.SystemRandom().randrange(10**8, 10**9))
    return duration, f"sleep {duration}"


def running(bed: Testbed, marker: str) -> bool:
    """Whether a process with this argument runs in the bed."""
    return bed.run(["pgrep", "-f", marker], check=False).returncode == 0


async def status_of(bed: Testbed, url: str) -> int:
    """The HTTP status that a SPDY client gets at this URL; a session that opens is left at once."""
    client = await SpdyClient.connect(url, SPDY, sock=await dial(bed, url))
    await client.close()
    return client.status


@pytest.mark.parametrize("transport", NEWEST, ids=str)
async def test_a_url_is_good_for_one_session(bed: Testbed, box: str, transport: Transport) -> None:
    """Whatever came of it, and for the other transport too."""
    url = exec_url(bed, box, "sh", "-c", "exit 4")
    remote = await connect(bed, url, transport, "stdout", "stderr")
    assert await status_of(bed, url) == 404
    assert exit_code(transport, await remote.ended()) == 4
    assert await status_of(bed, url) == 404
    with pytest.raises(InvalidStatus) as error:
        await clients.websocket(url, "v5.channel.k8s.io", sock=await dial(bed, url))
    assert error.value.response.status_code == 404


async def test_urls_that_nobody_gave_out_lead_nowhere(bed: Testbed, box: str) -> None:
    """Guessed, of another kind, or none."""
    url = exec_url(bed, box, "true")
    base, _, token = url.rpartition("/exec/")
    assert await status_of(bed, f"{base}/exec/{'A' * len(token)}") == 404
    assert await status_of(bed, f"{base}/exec/{token[:-1]}") == 404
    assert await status_of(bed, f"{base}/exec/") == 404
    assert await status_of(bed, f"{base}/") == 404
    assert await status_of(bed, f"{base}/attach/{token}") == 404
    assert await status_of(bed, url) == 404  # used up by whoever took it for an attach


@pytest.mark.parametrize(
    ("request_fields", "code"),
    [
        ({"cmd": ["true"], "stdout": True, "stderr": True, "tty": True}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"cmd": ["true"]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"cmd": [], "stdout": True}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"cmd": ["true"], "stdout": True, "container_id": "none"}, grpc.StatusCode.NOT_FOUND),
    ],
    ids=["terminal with stderr", "no streams", "no command", "no container"],
)
def test_what_cannot_be_executed_gets_no_url(
    bed: Testbed, box: str, request_fields: dict[str, object], code: grpc.StatusCode
) -> None:
    fields = {"container_id": box, **request_fields}
    with pytest.raises(grpc.RpcError) as error:
        bed.runtime.Exec(cri.ExecRequest(**fields), timeout=30)  # type: ignore[arg-type]
    assert refused(error.value)[0] is code


async def test_over_tls_everything_is_the_same(fresh_bed: StartBed) -> None:
    """The URLs are https; who does not trust the certificate, or speaks plain HTTP, gets nowhere."""
    bed = fresh_bed(daemon=False)
    bed.write("/etc/cni/tls/cert.pem", tls.CERTIFICATE)
    bed.write("/etc/cni/tls/key.pem", tls.KEY, mode=0o600)
    bed.start_daemon(streaming={"tls_cert": "/etc/cni/tls/cert.pem", "tls_key": "/etc/cni/tls/key.pem"})
    box = started(bed)
    script = f"head -c {len(PAYLOAD)} | tee /tmp/in; sha256sum < /tmp/in >&2; exit 6"
    for transport in NEWEST:
        url = exec_url(bed, box, "sh", "-c", script, stdin=True)
        assert url.startswith("https://127.0.0.1:")
        with pytest.raises(ssl.SSLCertVerificationError):
            await SpdyClient.connect(url, SPDY, tls=ssl.create_default_context(), sock=await dial(bed, url))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await SpdyClient.connect(url.replace("https", "http"), SPDY, sock=await dial(bed, url))
        remote = await connect(bed, url, transport, "stdin", "stdout", "stderr", tls=tls.client_context())
        await remote.send(PAYLOAD)
        assert exit_code(transport, await remote.ended()) == 6
        assert remote.said("stderr").split()[0].decode() == hashlib.sha256(PAYLOAD).hexdigest()
        assert remote.said("stdout") == PAYLOAD
        url = exec_url(bed, box, "stty", "size", stdin=True, tty=True)
        remote = await connect(bed, url, transport, "stdin", "stdout", "resize", tls=tls.client_context())
        await remote.ended()


async def test_a_stream_on_which_nothing_moves_is_ended(fresh_bed: StartBed) -> None:
    """With its process, and with the reason; one that says something now and then is not."""
    bed = fresh_bed(streaming={"idle_seconds": 2.0})
    box = started(bed)
    await (await execute(bed, box, "true", transport=SPDY_V4)).ended()
    before = observe(bed)
    talks = "for i in 1 2 3 4 5 6; do sleep 0.7; echo $i; done; exit 8"
    for transport in NEWEST:
        duration, marker = sleeper()
        talking = await execute(bed, box, "sh", "-c", talks, transport=transport)
        silent = await execute(bed, box, "sleep", duration, transport=transport, stdin=True)
        assert "nothing was sent or received for 2 s" in failure(transport, await silent.ended())
        await reached(lambda marker=marker: not running(bed, marker), what="the process is ended")  # type: ignore[misc]
        assert exit_code(transport, await talking.ended()) == 8
    assert_no_leaks(bed, before)


@pytest.mark.parametrize("kill", [False, True], ids=["terminated", "killed"])
@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "terminal"])
async def test_a_restart_of_the_daemon_ends_what_was_executed_and_leaves_nothing(
    bed: Testbed, box: str, tty: bool, kill: bool
) -> None:
    """Silent ones and one in the middle of writing all it can; afterwards everything works."""
    await (await execute(bed, box, "true", transport=SPDY_V4)).ended()
    before = observe(bed)
    duration, marker = sleeper()
    silent = [await execute(bed, box, "sleep", duration, transport=t, stdin=True, tty=tty) for t in NEWEST]
    loud = [await execute(bed, box, "yes", marker, transport=t, stdin=True, tty=tty) for t in NEWEST]
    for remote in loud:
        await remote.until(lambda remote=remote: len(remote.said("stdout")) > 1 << 20)  # type: ignore[misc]
    await reached(lambda: running(bed, marker), what="they run")
    await asyncio.to_thread(bed.restart_daemon, kill=kill)
    for transport, remote in zip(NEWEST, silent, strict=True):
        if kill:
            await remote.close()
        else:
            assert "shutting down" in failure(transport, await remote.ended())
    for remote in loud:
        await remote.close()
    await reached(lambda: not running(bed, marker), what="they are ended")
    assert_no_leaks(bed, before)
    for transport in NEWEST:
        remote = await execute(bed, box, "cat", transport=transport, stdin=True)
        await remote.send(b"again")
        await remote.end_stdin()
        assert exit_code(transport, await remote.ended()) == 0
        assert remote.said("stdout") == b"again"


async def test_what_is_executed_when_containerd_dies_is_ended_when_it_is_back(fresh_bed: StartBed) -> None:
    """Nobody knows what became of the process then; the client is told so, and the process does not stay."""
    bed = fresh_bed(daemon={"reconcile_seconds": 1.0})
    box = started(bed)
    await (await execute(bed, box, "true", transport=SPDY_V4)).ended()
    before = observe(bed)
    duration, marker = sleeper()
    remote = await execute(bed, box, "sleep", duration, transport=WEBSOCKET_V5, stdin=True)
    await reached(lambda: running(bed, marker), what="it sleeps")
    pid = bed.path("/run/sandboxd/containerd/containerd.pid").read_text().strip()
    bed.run(["kill", "-9", pid])
    assert failure(WEBSOCKET_V5, await remote.ended())
    await reached(lambda: not running(bed, marker), what="it is ended")
    assert_no_leaks(bed, before)
    remote = await execute(bed, box, "sh", "-c", "exit 9", transport=SPDY_V4)
    assert exit_code(SPDY_V4, await remote.ended()) == 9

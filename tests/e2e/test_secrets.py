"""Secrets of requests are never in the daemon's log, its timelines, its figures, errors, or what others are shown.

Where they are by design is not looked at: the ledger, containerd's spec, and a container's own verbose status.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sys
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2
from tests.conftest import StartBed
from tests.pods import (
    container_config,
    container_info,
    create_container,
    pod_info,
    refused,
    remove_pod,
    run_container,
    run_pod,
    start_container,
)
from tests.processes import processes_in
from tests.registry_server import start_program
from tests.streaming.remote import NEWEST, Transport, connect, exec_url
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

IMAGE = "docker.io/library/busybox"
SECRET = "hunter2-s3cr3t"
ENVS = [cri.KeyValue(key="DB_PASSWORD", value=SECRET.encode())]

# A registry that repeats what it was shown, in a program of its own: it must be inside the bed.
ECHO = """
import base64, json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
status = int(sys.argv[2])
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        shown = self.headers.get("Authorization")
        if not shown:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic realm=x")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        plain = base64.b64decode(shown.split()[1]).decode()
        body = json.dumps({"errors": [{"message": f"denied: {shown} which is {plain}"}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")
    do_HEAD = do_GET
    def log_message(self, *args): pass
server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"""

# A daemon in which every creation of a container fails as nobody expected, with its request in its hands.
BREAKING = """
import sandboxd.__main__
from sandboxd.containers import create
async def build(host, sandbox, record, image):
    values = [env.value.decode() for env in record.config.envs]
    def deeper(depth):
        deeper(depth + 1)
    if record.config.metadata.name == "deep":
        deeper(0)
    raise KeyError(*values) if record.config.metadata.name == "key" else RuntimeError("boom")
create._build = build
sandboxd.__main__.main()
"""


@pytest.fixture(scope="module")
def other(bed: Testbed, shared_pod: str) -> str:
    """Another container of the same pod, which has no secrets."""
    return run_container(bed, shared_pod, container_config("other", IMAGE, ["sleep", "1000"]))


def leaks(text: str) -> list[str]:
    """What is around the secret, at the first places where it is."""
    forms = (SECRET, base64.b64encode(f"me:{SECRET}".encode()).decode())
    found = (match for form in forms for match in re.finditer(re.escape(form), text))
    return [text[max(0, match.start() - 80) : match.end() + 20] for match in found][:5]


def shown(bed: Testbed, pod_id: str, *others: str) -> str:
    """Everything that somebody sees who is not looking at the container itself."""
    runtime = bed.runtime
    return "\n".join(
        [
            bed.log_file.read_text("utf-8", "replace"),
            str(bed.host.Explain(host_pb2.ExplainRequest(pod_sandbox_id=pod_id), timeout=30)),
            str(bed.host.Metrics(host_pb2.MetricsRequest(), timeout=30)),
            json.dumps(pod_info(bed, pod_id)),
            *(json.dumps(container_info(bed, each)) for each in others),
            str(runtime.Status(cri.StatusRequest(verbose=True), timeout=30)),
            str(runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30)),
            str(runtime.ListContainers(cri.ListContainersRequest(), timeout=30)),
            str(runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest(), timeout=30)),
            str(runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest(), timeout=30)),
        ]
    )


def test_a_container_s_life_leaves_no_secret_behind(bed: Testbed, shared_pod: str, other: str) -> None:
    config = container_config("life", IMAGE, ["sh", "-c", f": {SECRET}; sleep 1000"], envs=ENVS)
    container = run_container(bed, shared_pod, config)
    answer = bed.runtime.ExecSync(
        cri.ExecSyncRequest(container_id=container, cmd=["sh", "-c", f": {SECRET}; echo $DB_PASSWORD"]), timeout=60
    )
    limits = cri.LinuxContainerResources(cpu_shares=512)
    bed.runtime.UpdateContainerResources(
        cri.UpdateContainerResourcesRequest(container_id=container, linux=limits), timeout=60
    )
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=0), timeout=60)
    bed.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=60)

    assert answer.stdout.decode().strip() == SECRET
    assert not leaks(shown(bed, shared_pod, other))


def test_what_cannot_be_executed_is_not_quoted_beyond_its_program(bed: Testbed, shared_pod: str, other: str) -> None:
    """Command lines are given as one argument by mistake, and runtimes quote them."""
    lines = [f"mysql -p{SECRET}", f"/no/such/program --password={SECRET}", f"PASSWORD={SECRET}", f'a "{SECRET}"']
    words = []
    for number, line in enumerate(lines):
        created = create_container(bed, shared_pod, container_config(f"line-{number}", IMAGE, [line], envs=ENVS))
        with pytest.raises(grpc.RpcError) as caught:
            start_container(bed, created)
        words.append(refused(caught.value))
        with pytest.raises(grpc.RpcError) as caught:
            bed.runtime.ExecSync(cri.ExecSyncRequest(container_id=other, cmd=[line, SECRET]), timeout=60)
        words.append(refused(caught.value))
    with pytest.raises(grpc.RpcError) as caught:
        bed.runtime.ExecSync(cri.ExecSyncRequest(container_id=other, cmd=["no-such-program", SECRET]), timeout=60)

    assert not leaks(str(words) + shown(bed, shared_pod, other))
    assert {code for code, _ in words} == {grpc.StatusCode.FAILED_PRECONDITION}
    assert "no-such-program" in refused(caught.value)[1]  # what is plainly a program is named


def test_a_command_that_takes_too_long_is_named_without_its_arguments(
    bed: Testbed, shared_pod: str, other: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        request = cri.ExecSyncRequest(container_id=other, cmd=["sh", "-c", f": {SECRET}; sleep 60"], timeout=1)
        bed.runtime.ExecSync(request, timeout=60)

    code, words = refused(caught.value)
    assert (code, words.split(" ")[0]) == (grpc.StatusCode.DEADLINE_EXCEEDED, "sh")
    assert not leaks(words + shown(bed, shared_pod, other))


@pytest.mark.parametrize("transport", NEWEST, ids=str)
async def test_a_stream_is_logged_without_command_or_token(
    bed: Testbed, shared_pod: str, other: str, transport: Transport
) -> None:
    tokens = []
    for command in (["sh", "-c", f": {SECRET}"], [f"mysql -p{SECRET}"]):
        url = exec_url(bed, other, *command)
        tokens.append(url.rpartition("/")[2])
        remote = await connect(bed, url, transport, "stdout", "stderr")
        ended = await remote.ended()
        assert command[1:] or not leaks(str(ended))

    log = bed.log_file.read_text("utf-8", "replace")
    assert "stream opened" in log
    assert not [token for token in tokens if token in log]
    assert not leaks(shown(bed, shared_pod, other))


@pytest.mark.parametrize(
    "envs",
    [
        [cri.KeyValue(key=f"DB_PASSWORD={SECRET}", value=b"")],
        [cri.KeyValue(key="DB_PASSWORD", value=SECRET.encode() + b"\0")],
        [cri.KeyValue(key="DB_PASSWORD", value=SECRET.encode() + b"\xff")],
        [cri.KeyValue(key="", value=SECRET.encode())],
    ],
    ids=["in the name", "NUL", "not UTF-8", "no name"],
)
def test_a_variable_that_is_refused_is_named_without_its_value(
    bed: Testbed, shared_pod: str, other: str, envs: list[cri.KeyValue]
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        create_container(bed, shared_pod, container_config("refused", IMAGE, ["true"], envs=envs))

    code, words = refused(caught.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "config.envs[0]" in words
    assert not leaks(words + shown(bed, shared_pod, other))


def test_a_message_that_cannot_be_read_is_not_repeated(bed: Testbed, shared_pod: str, other: str) -> None:
    garbled = cri.CreateContainerRequest(
        pod_sandbox_id=shared_pod, config=container_config("x", IMAGE, envs=ENVS)
    ).SerializeToString()
    for data in (garbled[:-3], garbled.replace(b"busybox", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9")):
        with pytest.raises(grpc.RpcError) as caught:
            channel: Any = bed.channel
            call = channel.unary_unary("/runtime.v1.RuntimeService/CreateContainer")
            call(data, timeout=30)
        assert not leaks(refused(caught.value)[1])

    assert not leaks(shown(bed, shared_pod, other))


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_registry_that_repeats_the_credentials_is_not_repeated(bed: Testbed, status: int) -> None:
    port = 7000 + status
    process = start_program(bed, [sys.executable, "-I", "-c", ECHO, str(port), str(status)])
    auth = cri.AuthConfig(username="me", password=SECRET)
    words = []
    try:
        for call in (
            lambda: bed.images.PullImage(
                cri.PullImageRequest(image=cri.ImageSpec(image=f"127.0.0.1:{port}/a/b"), auth=auth), timeout=120
            ),
            lambda: list(
                bed.host.PullImage(host_pb2.PullImageRequest(image=f"127.0.0.1:{port}/a/b", auth=auth), timeout=120)
            ),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            words.append(refused(caught.value)[1])
    finally:
        process.kill()
        process.communicate(timeout=10)

    assert all(f"HTTP status {status}" in each for each in words)
    assert not leaks(str(words) + bed.log_file.read_text("utf-8", "replace"))


@pytest.mark.parametrize("name", ["https://me:{}@r.test/a", "me:{}@r.test/a:v1", "https://r.test/a?token={}"])
def test_credentials_in_the_name_of_an_image_are_not_repeated(bed: Testbed, shared_pod: str, name: str) -> None:
    image = cri.ImageSpec(image=name.format(SECRET))
    config = container_config("named", image.image, ["true"])
    calls = (
        lambda: bed.images.PullImage(cri.PullImageRequest(image=image), timeout=60),
        lambda: bed.images.ImageStatus(cri.ImageStatusRequest(image=image), timeout=60),
        lambda: bed.images.RemoveImage(cri.RemoveImageRequest(image=image), timeout=60),
        lambda: list(bed.host.PullImage(host_pb2.PullImageRequest(image=image.image), timeout=60)),
        lambda: list(bed.host.SaveImage(host_pb2.SaveImageRequest(images=[image.image]), timeout=60)),
        lambda: create_container(bed, shared_pod, config),
    )
    words = []
    for call in calls:
        try:
            call()
        except grpc.RpcError as exc:
            words.append(refused(exc)[1])

    assert words
    assert not leaks(str(words) + shown(bed, shared_pod))


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_an_error_that_nobody_expected_is_told_without_values(fresh_bed: StartBed, log_format: str) -> None:
    bed = fresh_bed(daemon=False)
    bed.env["PYTHONASYNCIODEBUG"] = "1"
    bed.daemon_argv = [sys.executable, "-c", BREAKING]
    bed.start_daemon(daemon={"log_level": "debug", "log_format": log_format})
    bed.load_image("busybox")
    pod_id = run_pod(bed)
    words = []
    for name in ("plain", "key", "deep"):
        with pytest.raises(grpc.RpcError) as caught:
            create_container(bed, pod_id, container_config(name, IMAGE, ["sh", SECRET], envs=ENVS))
        words.append(refused(caught.value))

    assert {code for code, _ in words} == {grpc.StatusCode.INTERNAL}
    log = bed.log_file.read_text("utf-8", "replace")
    assert log.count("Traceback (most recent call last)") >= 3
    assert "RecursionError" in log
    assert not leaks(str(words) + shown(bed, pod_id))


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_what_is_cut_off_is_named_without_its_request(fresh_bed: StartBed, end: str) -> None:
    bed = fresh_bed(daemon=False)
    bed.start_daemon(daemon={"log_level": "debug", "log_format": "json", "drain_seconds": 0.2})
    bed.load_image("busybox")
    pod_id = run_pod(bed)
    config = container_config("cut-off", IMAGE, ["sh", "-c", f": {SECRET}"], envs=ENVS)
    stopped = [pid for pid in processes_in(bed.pid_namespace) if _name(pid) == "containerd"]
    assert stopped
    request = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=config)

    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)  # whoever asks it waits
    try:
        asked = bed.runtime.CreateContainer.future(request, timeout=60)
        for _ in range(20):  # requests are taken in their order
            bed.runtime.Version(cri.VersionRequest(), timeout=30)
        assert not asked.done()
        bed.stop_daemon() if end == "SIGTERM" else bed.kill_daemon()
        with pytest.raises(grpc.RpcError) as caught:
            asked.result()
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    cut_off = [line for line in bed.log_file.read_text("utf-8").splitlines() if "operations were interrupted" in line]
    bed.relaunch_daemon()

    assert ["CreateContainer" in line for line in cut_off] == [True] * (end == "SIGTERM")
    assert not leaks(str(caught.value) + shown(bed, pod_id))
    remove_pod(bed, pod_id)


def _name(pid: int) -> str:
    with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        return file.read().strip()

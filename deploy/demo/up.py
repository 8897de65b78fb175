"""`make demo`: from nothing to nginx at the pod's IP."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from rich.console import Console

from deploy.demo import before, places
from deploy.demo.places import DemoError
from deploy.demo.story import Teller
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.cri.v1 import api_pb2_grpc
from sandboxd.pb.host.v1 import host_pb2, host_pb2_grpc

START_SECONDS = 60.0
CHUNK = 1 << 18


def up(console: Console) -> None:
    """Run the whole story. Raises DemoError."""
    if os.geteuid() != 0:
        raise DemoError("the demo makes network namespaces and mounts; run it as root: sudo make demo")
    network = places.network()
    before.remember()
    try:
        _check_range(network)
        channel = _daemon(console)
    except DemoError:
        if not places.DAEMON.pid():
            _forget()
        raise
    teller = Teller(console)
    runtime = api_pb2_grpc.RuntimeServiceStub(channel)
    host = host_pb2_grpc.HostStub(channel)
    _remove_pod(runtime)
    image = _load(host, teller)
    pod = _pod_config()
    pod_id = _run(teller, runtime, pod)
    container_id = _start_nginx(runtime, pod_id, pod, image)
    story = host.Explain(host_pb2.ExplainRequest(pod_sandbox_id=pod_id))
    pid = json.loads(
        runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container_id, verbose=True)).info["info"]
    )["pid"]
    teller.tell(story.steps, {"container.task.start": pid})
    ip = runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id)).status.network.ip
    teller.say("The pod's address", ip)
    _show_same_netns(teller, story, pid)
    _fetch(teller, ip)
    _farewell(console, story.netns_path, pod_id, ip)


def _check_range(network: places.Network) -> None:
    """The address range must be free, or the bridge's own."""
    wanted = ipaddress.ip_network(network.subnet)
    listed = subprocess.run(["ip", "-j", "-4", "route", "show", "table", "all"], capture_output=True, text=True)
    for route in json.loads(listed.stdout or "[]"):
        if route.get("dev") == network.bridge or route["dst"] == "default":
            continue
        if ipaddress.ip_network(route["dst"], strict=False).overlaps(wanted):
            raise DemoError(
                f"the demo's address range {network.subnet} is in use on {route.get('dev', 'this machine')}"
                f" (route to {route['dst']}); choose another subnet and gateway in {places.CONFLIST}"
            )


def _daemon(console: Console) -> grpc.Channel:
    """A channel to the demo's daemon, started if it does not run."""
    channel = grpc.insecure_channel(f"unix://{places.SOCKET}")
    if not places.DAEMON.pid():
        places.CONF_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        (places.CONF_DIR / places.CONFLIST.name).write_bytes(places.CONFLIST.read_bytes())
        places.DAEMON.start(places.daemon_command(), log_file=str(places.DAEMON_LOG), env=os.environ)
    with console.status("starting containerd and sandboxd"):
        _wait_ready(channel)
    return channel


def _wait_ready(channel: grpc.Channel) -> None:
    """Wait until the daemon serves; raises DemoError with its own words when it does not."""
    runtime = api_pb2_grpc.RuntimeServiceStub(channel)
    deadline = time.monotonic() + START_SECONDS
    words = "it did not answer"
    while time.monotonic() < deadline:
        if not places.DAEMON.pid():
            tail = places.DAEMON_LOG.read_text(encoding="utf-8", errors="replace").strip()[-1500:]
            raise DemoError(f"sandboxd ended at once; the end of {places.DAEMON_LOG}:\n{tail}")
        try:
            runtime.Version(cri.VersionRequest(), timeout=5, wait_for_ready=True)
            return
        except grpc.RpcError as exc:
            words = str(exc.details())
        time.sleep(0.1)
    raise DemoError(f"sandboxd did not become ready in {START_SECONDS:g} s: {words}; see {places.DAEMON_LOG}")


def _forget() -> None:
    """Nothing was started: leave not even the note."""
    places.BEFORE.unlink(missing_ok=True)
    for directory in (places.CONF_DIR, places.STATE, places.ROOT):
        try:
            directory.rmdir()
        except OSError:
            pass  # not made, or something is in it that down will deal with


def _remove_pod(runtime: api_pb2_grpc.RuntimeServiceStub) -> None:
    """The pod of an earlier demo."""
    for pod in runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
        if pod.metadata.name == places.POD:
            runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id))
            runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id))


def _load(host: host_pb2_grpc.HostStub, teller: Teller) -> str:
    began = time.monotonic()

    def chunks() -> Iterator[host_pb2.LoadImageRequest]:
        with open(places.NGINX, "rb") as archive:
            while chunk := archive.read(CHUNK):
                yield host_pb2.LoadImageRequest(chunk=chunk)

    name = ""
    for event in host.LoadImage(chunks()):
        if event.HasField("loaded"):
            name = event.loaded.names[0]
    teller.say(
        "The nginx image, built from this machine's Debian package, is imported",
        name,
        seconds=time.monotonic() - began,
    )
    return name


def _pod_config() -> cri.PodSandboxConfig:
    return cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=places.POD, namespace="default", uid="demo"),
        hostname=places.POD,
        log_directory=str(places.STATE / "logs"),
    )


def _run(teller: Teller, runtime: api_pb2_grpc.RuntimeServiceStub, pod: cri.PodSandboxConfig) -> str:
    began = time.monotonic()
    try:
        pod_id = runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=pod)).pod_sandbox_id
    except grpc.RpcError as exc:
        raise DemoError(f"the pod could not be started: {exc.details()}") from exc
    teller.say("RunPodSandbox, whole; its steps follow", f"pod {pod_id[:12]}", seconds=time.monotonic() - began)
    return pod_id


def _start_nginx(runtime: api_pb2_grpc.RuntimeServiceStub, pod_id: str, pod: cri.PodSandboxConfig, image: str) -> str:
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="nginx"),
        image=cri.ImageSpec(image=image),
        log_path="nginx/0.log",
    )
    request = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod)
    try:
        container_id = runtime.CreateContainer(request).container_id
        runtime.StartContainer(cri.StartContainerRequest(container_id=container_id))
    except grpc.RpcError as exc:
        raise DemoError(f"nginx could not be started: {exc.details()}") from exc
    return container_id


def _show_same_netns(teller: Teller, story: host_pb2.ExplainResponse, nginx: int) -> None:
    pause, workload = (os.stat(f"/proc/{pid}/ns/net").st_ino for pid in (story.pid, nginx))
    same = "the same" if pause == workload == story.netns_inode else "NOT the same"
    teller.say(
        f"pause and nginx are in {same} network namespace",
        f"pause {pause}, nginx {workload}, {Path(story.netns_path).name[:21]}… {story.netns_inode}",
    )


def _fetch(teller: Teller, ip: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        began = time.monotonic()
        try:
            connection = http.client.HTTPConnection(ip, 80, timeout=5)
            connection.request("GET", "/")
            answer = connection.getresponse()
            body = answer.read(4096).decode(errors="replace")
            break
        except ConnectionRefusedError as exc:
            # nginx runs, but has not bound its port yet.
            if time.monotonic() > deadline:
                raise DemoError(f"http://{ip}/ refused the connection for 10 s; see: sandboxctl logs") from exc
            time.sleep(0.02)
        except OSError as exc:
            raise DemoError(f"http://{ip}/ cannot be fetched: {exc}") from exc
    lines = [line for line in body.splitlines() if line.strip()][:3]
    teller.say(f"GET http://{ip}/", f"HTTP {answer.status} {answer.reason}", *lines, seconds=time.monotonic() - began)
    if answer.status != 200:
        raise DemoError(f"http://{ip}/ answered {answer.status}, not 200")


def _farewell(console: Console, netns: str, pod_id: str, ip: str) -> None:
    ctl = f".venv/bin/sandboxctl --socket {places.SOCKET}"
    console.print(
        f"\nThe pod is running. Look further:\n"
        f"  {ctl} pods\n"
        f"  {ctl} explain {places.POD}\n"
        f"  {ctl} logs nginx\n"
        f"  crictl --runtime-endpoint unix://{places.SOCKET} pods\n"
        f"  ip netns exec {Path(netns).name} ip addr\n"
        f"  curl http://{ip}/\n"
        f"\nWhen you have seen enough: make demo-down",
        soft_wrap=True,
        highlight=False,
    )

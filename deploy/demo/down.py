"""`make demo-down`: no process, namespace, link, mount, rule or file that was not there before."""

from __future__ import annotations

import os

import grpc
from rich.console import Console

from deploy.demo import before, places
from deploy.demo.places import DemoError
from deploy.demo.up import _daemon
from sandboxd.containerd import managed
from sandboxd.logs import process as logger
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.cri.v1 import api_pb2_grpc

STOP_SECONDS = 45.0


def down(console: Console) -> None:
    """Undo the demo. Raises DemoError naming what could not be undone."""
    if os.geteuid() != 0:
        raise DemoError("the demo belongs to root; run: sudo make demo-down")
    remembered = before.recall()
    if remembered is None:
        console.print("There is no demo here; nothing to do.")
        return
    # A daemon that died left its pods running, and only a daemon knows how to take them down.
    with _daemon(console) as channel:
        _remove_pods(channel)
    _stop_daemon()
    logger.LoggerPaths(state=str(places.STATE)).process.end(STOP_SECONDS)  # the daemon may have been killed
    _containerd().process.end(STOP_SECONDS)
    left = before.restore(remembered)
    if left:
        raise DemoError("the demo is down, but the machine is not as it was: " + "; ".join(left))
    console.print("The demo is down; the machine is as it was.")


def _containerd() -> managed.ManagedPaths:
    return managed.ManagedPaths(
        root=str(places.ROOT / "containerd"),
        state=str(places.STATE / "containerd"),
        socket=str(places.STATE / "containerd" / "containerd.sock"),
    )


def _remove_pods(channel: grpc.Channel) -> None:
    runtime = api_pb2_grpc.RuntimeServiceStub(channel)
    for pod in runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
        try:
            runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id))
            runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
        except grpc.RpcError as exc:
            words = exc.details()
            raise DemoError(f"pod {pod.id} could not be removed: {words}; see {places.DAEMON_LOG}") from exc


def _stop_daemon() -> None:
    pid = places.DAEMON.pid()
    if not places.DAEMON.terminate(STOP_SECONDS):
        raise DemoError(f"sandboxd (pid {pid}) did not end within {STOP_SECONDS:g} s; see {places.DAEMON_LOG}")

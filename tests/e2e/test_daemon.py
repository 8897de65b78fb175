"""The daemon as a program: its socket, its readiness, how it ends, and the containerd that it finds."""

from __future__ import annotations

import json
import socket
import stat
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.conftest import StartBed
from tests.fakes.cni_plugin import calls, install
from tests.pods import container_config, pod_config, pod_status, refused, remove_pod, run_container, run_pod
from tests.processes import until
from tests.testbed import BedFailed, Testbed

pytestmark = pytest.mark.e2e


def test_only_root_may_connect(bed: Testbed) -> None:
    info = bed.socket.stat()
    assert stat.S_IMODE(info.st_mode) == 0o600
    assert info.st_uid == 0


def test_systemd_is_told_when_it_serves_and_when_it_stops(fresh_bed: StartBed) -> None:
    bed = fresh_bed(daemon=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.bind(str(bed.path("/run/notify.sock")))
        notifications.settimeout(30)
        bed.env["NOTIFY_SOCKET"] = "/run/notify.sock"
        bed.start_daemon()
        assert notifications.recv(100) == b"READY=1"
        assert bed.stop_daemon() == 0
        assert notifications.recv(100) == b"STOPPING=1"


def test_without_containerd_it_serves_the_reason(fresh_bed: StartBed) -> None:
    bed = fresh_bed(daemon=False)
    bed.start_daemon(ready=False, containerd={"binary": "no-such-containerd"})
    until(bed.socket.exists, what="the socket is there")

    def words() -> str:
        try:
            bed.runtime.Version(cri.VersionRequest(), timeout=5)
        except grpc.RpcError as error:
            code, details = refused(error)
            assert code is grpc.StatusCode.UNAVAILABLE
            return details
        raise AssertionError("it must not serve")

    until(lambda: "no-such-containerd was not found" in words(), what="the reason is given")
    assert bed.stop_daemon() == 0


def test_an_unknown_key_is_refused_with_the_nearest_known_one(fresh_bed: StartBed) -> None:
    bed = fresh_bed(daemon=False, network=False)
    with pytest.raises(BedFailed, match=r"network\.conf_dri.*did you mean 'conf_dir'"):
        bed.start_daemon(network={"conf_dri": "/etc"})


def test_sigterm_lets_a_running_request_finish(fresh_bed: StartBed) -> None:
    bed = fresh_bed(network=False)
    plugins = bed.path("/opt/cni/bin")
    plugins.mkdir(parents=True)
    install(str(plugins), "scripted", {"ADD": [{"wait_for": "go"}]})
    conflist = {"cniVersion": "1.0.0", "name": "test", "plugins": [{"type": "scripted"}]}
    bed.write("/etc/cni/net.d/10-test.conflist", json.dumps(conflist))
    config = pod_config()
    with ThreadPoolExecutor(2) as clients:
        running = clients.submit(run_pod, bed, config)
        until(lambda: any(c["command"] == "ADD" for c in calls(str(plugins))), what="ADD is called")
        stopping = clients.submit(bed.stop_daemon)
        until(lambda: "shutting down" in bed.log_tail(), what="it is shutting down")
        (plugins / "go").touch()
        pod_id = running.result(timeout=60)
        assert stopping.result(timeout=60) == 0
    bed.relaunch_daemon()
    assert pod_status(bed, pod_id).state == cri.SANDBOX_READY
    assert run_pod(bed, config) == pod_id
    remove_pod(bed, pod_id)


def test_a_daemon_that_waits_for_containerd_stops_at_once(fresh_bed: StartBed) -> None:
    bed = fresh_bed(daemon=False, network=False)
    nobody = {"managed": False, "socket": "/run/none.sock"}
    bed.start_daemon(ready=False, containerd=nobody, daemon={"drain_seconds": 1000.0})
    until(lambda: "not ready yet" in bed.log_tail(), what="it has looked for containerd")
    assert bed.stop_daemon() == 0  # which waits for less than the drain could take


def test_an_existing_containerd_is_used_as_it_is(fresh_bed: StartBed) -> None:
    bed = fresh_bed(daemon=False)
    bed.write("/etc/cni/containerd.toml", 'version = 2\nroot = "/var/lib/own"\nstate = "/run/own"\n')
    bed.popen(["containerd", "--config", "/etc/cni/containerd.toml", "--address", "/run/own.sock"])
    bed.start_daemon(containerd={"managed": False, "socket": "/run/own.sock"})
    bed.load_image("busybox")
    pod_id = run_pod(bed)
    run_container(bed, pod_id, container_config("main", "busybox", ["sleep", "1000"]))
    listed = bed.run(["ctr", "-a", "/run/own.sock", "-n", "sandboxd", "containers", "list", "-q"]).stdout
    assert pod_id in listed
    remove_pod(bed, pod_id)


def test_a_host_port_leads_to_the_pod(bed: Testbed, images: tuple[str, ...]) -> None:
    mapping = cri.PortMapping(protocol=cri.TCP, container_port=80, host_port=8080)
    pod_id = run_pod(bed, pod_config(port_mappings=[mapping]))
    run_container(bed, pod_id, container_config("nginx", "nginx"))
    bed.http_get(pod_status(bed, pod_id).network.ip)  # it listens
    assert bed.http_get("127.0.0.1", 8080)[0] == 200
    remove_pod(bed, pod_id)
    with pytest.raises(BedFailed):
        bed.http_get("127.0.0.1", 8080, timeout=2, within=0.1)

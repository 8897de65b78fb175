"""DELs that fail, on a real daemon: what can be freed is, nothing waits for the rest, and a person can end it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.fakes.cni_plugin import calls, install
from tests.pods import pod_config, pod_info, pod_status, refused, remove_pod, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

PLUGINS = "/opt/cni/bin"
CONF = "/etc/cni/net.d/10-test.conflist"
REFUSES = {"DEL": [{"error": {"code": 100, "msg": "not today"}}]}
HANGS = {"DEL": [{"hang": True}]}


def script(bed: Testbed, name: str, what: dict[str, Any]) -> None:
    """Install a plugin that does as it is told."""
    bed.path(PLUGINS).mkdir(parents=True, exist_ok=True)
    install(str(bed.path(PLUGINS)), name, what)


def scripted_bed(fresh_bed: StartBed, **sections: Any) -> Testbed:
    """A bed whose only network is that of the plugin `scripted`; a pod has been run and removed."""
    bed = fresh_bed(network=False, **sections)
    script(bed, "scripted", {})
    plugins = [{"type": "scripted"}]
    bed.write(CONF, json.dumps({"cniVersion": "1.0.0", "name": "test", "plugins": plugins}))
    remove_pod(bed, run_pod(bed))
    return bed


def debts(bed: Testbed) -> list[host_pb2.Debt]:
    return list(bed.host.ListDebts(host_pb2.ListDebtsRequest()).debts)


def sandboxctl(bed: Testbed, *args: str) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(sys.executable).parent / "sandboxctl"), "--socket", str(bed.socket), *args]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120)


def hanging(bed: Testbed) -> set[str]:
    """The pids of the plugin's processes that run."""
    return set(bed.run(["pgrep", "-f", f"{PLUGINS}/scripted"], check=False).stdout.split())


def test_neither_the_start_nor_pods_nor_a_stop_of_the_daemon_wait_for_dels_that_hang(fresh_bed: StartBed) -> None:
    bed = scripted_bed(fresh_bed)
    before = observe(bed)
    script(bed, "scripted", REFUSES)
    for name in ("one", "two", "three"):
        remove_pod(bed, run_pod(bed, pod_config(name)))
    script(bed, "scripted", HANGS)

    bed.restart_daemon()  # until it is ready
    until(lambda: len(hanging(bed)) == 3, what="all three are tried at once")
    stuck = hanging(bed)
    pod_id = run_pod(bed)
    assert pod_status(bed, pod_id).state == cri.SANDBOX_READY
    assert hanging(bed) == stuck, "the pod was run beside them"
    assert [(debt.pod, debt.next_at) for debt in debts(bed)] == [
        ("default/one", 0),
        ("default/two", 0),
        ("default/three", 0),
    ]

    bed.stop_daemon()
    assert not hanging(bed), "what the next start takes up again is ended"
    assert "operations were interrupted" not in bed.log_file.read_text()
    script(bed, "scripted", {})
    bed.relaunch_daemon()
    until(lambda: not debts(bed), what="the debts are paid")
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_a_stopped_pods_debt_is_seen_and_tried_again_by_each_stop_and_by_the_daemon(fresh_bed: StartBed) -> None:
    bed = scripted_bed(fresh_bed, daemon=True)
    before = observe(bed)
    script(bed, "scripted", REFUSES)
    pod_id = run_pod(bed, pod_config("web"))
    stop = cri.StopPodSandboxRequest(pod_sandbox_id=pod_id)
    for attempts in (1, 2):
        bed.runtime.StopPodSandbox(stop)
        (debt,) = debts(bed)
        assert (debt.pod, debt.pod_exists, debt.attempts) == ("default/web", True, attempts)
        assert [(owed.plugin, "not today" in owed.error) for owed in debt.plugins] == [("scripted", True)]
    assert "NotReady (owes DEL)" in sandboxctl(bed, "pods").stdout
    assert "sandboxd_network_debts 1.0" in sandboxctl(bed, "metrics").stdout
    script(bed, "scripted", {})

    bed.restart_daemon()
    until(lambda: not debts(bed), what="the daemon has paid it")

    assert not bed.path(debt.netns_path).exists()
    assert pod_status(bed, pod_id).state == cri.SANDBOX_NOTREADY
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_a_strict_daemon_stops_no_pod_whose_del_fails(fresh_bed: StartBed) -> None:
    bed = scripted_bed(fresh_bed)
    bed.stop_daemon()
    bed.start_daemon(network={"teardown": "strict"})
    before = observe(bed)
    script(bed, "scripted", REFUSES)
    pod_id = run_pod(bed)
    for ask in (
        lambda: bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id)),
        lambda: bed.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask()
        code, words = refused(caught.value)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "not today" in words and "network.teardown is strict" in words
    script(bed, "scripted", {})
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_an_interrupted_pod_is_undone_behind_the_start_and_its_name_can_be_used(fresh_bed: StartBed) -> None:
    bed = scripted_bed(fresh_bed)
    before = observe(bed)
    script(bed, "scripted", {"ADD": [{"hang": True}]})
    config = pod_config("web")
    asked = bed.runtime.RunPodSandbox.future(cri.RunPodSandboxRequest(config=config))
    until(lambda: hanging(bed), what="ADD is called")
    bed.kill_daemon()
    assert isinstance(asked.exception(), grpc.RpcError)
    for pid in hanging(bed):
        bed.run(["kill", "-9", pid], check=False)
    (cut_off,) = {call["env"]["CNI_CONTAINERID"] for call in calls(str(bed.path(PLUGINS)))[-1:]}
    script(bed, "scripted", {"DEL": [{"wait_for": "go"}]})

    bed.relaunch_daemon()  # until it is ready
    until(lambda: hanging(bed), what="DEL is called")
    asked = bed.runtime.RunPodSandbox.future(cri.RunPodSandboxRequest(config=config))
    bed.path(f"{PLUGINS}/go").touch()
    pod_id = asked.result(timeout=120).pod_sandbox_id

    assert pod_id != cut_off
    assert [pod.id for pod in bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items] == [pod_id]
    bed.path(f"{PLUGINS}/go").unlink()
    script(bed, "scripted", {})
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


# Real plugins, and one after them that fails


def with_dataplane(bed: Testbed) -> tuple[str, str]:
    """The default network with one more plugin, which is installed; the file, and its text before."""
    network = bed.default_network()
    chain = {**network.conflist, "plugins": [*network.conflist["plugins"], {"type": "dataplane"}]}
    script(bed, "dataplane", {})
    text = bed.path(network.file).read_text()
    bed.write(network.file, json.dumps(chain))
    return network.file, text


def uninstall(bed: Testbed) -> None:
    """Remove the plugins that tests install, and what they wrote."""
    bed.run(["find", "/opt/cni", "-mindepth", "1", "-delete"])


def published() -> cri.PodSandboxConfig:
    config = pod_config("web")
    config.port_mappings.add(container_port=80, host_port=8080)
    return config


def real_bed(fresh_bed: StartBed) -> Testbed:
    bed = fresh_bed()
    remove_pod(bed, run_pod(bed, published()))
    return bed


def test_a_plugin_that_was_uninstalled_leaves_nothing(fresh_bed: StartBed) -> None:
    bed = real_bed(fresh_bed)
    before = observe(bed)
    file, text = with_dataplane(bed)
    pod_id = run_pod(bed, published())
    uninstall(bed)
    bed.write(file, text)

    remove_pod(bed, pod_id)

    assert not debts(bed)
    assert_no_leaks(bed, before)


def test_what_a_plugin_made_itself_goes_although_its_ipam_plugin_was_uninstalled(fresh_bed: StartBed) -> None:
    bed = real_bed(fresh_bed)
    network = bed.default_network()
    text = bed.path(network.file).read_text()
    bed.path(PLUGINS).mkdir(parents=True, exist_ok=True)
    before = observe(bed)
    bed.run(["cp", "/usr/lib/cni/host-local", f"{PLUGINS}/static-pool"])
    bed.write(network.file, text.replace('"host-local"', '"static-pool"'))
    pod_id = run_pod(bed, published())
    ip = pod_status(bed, pod_id).network.ip
    uninstall(bed)
    bed.path(PLUGINS).mkdir(parents=True)
    bed.write(network.file, text)

    remove_pod(bed, pod_id)

    assert not debts(bed)
    bed.run(["rm", f"/var/lib/cni/networks/{network.name}/{ip}"])  # what only the IPAM plugin could have freed
    assert_no_leaks(bed, before)


def test_a_dels_rules_go_although_somebody_took_away_what_it_finds_them_by(fresh_bed: StartBed) -> None:
    bed = real_bed(fresh_bed)
    before = observe(bed)
    for taken in ("addr flush dev eth0", "link delete eth0"):
        pod_id = run_pod(bed)
        assert any(pod_id in line and "POSTROUTING" in line for line in observe(bed).lines), "bridge masquerades"
        bed.run(["ip", "-n", f"sandboxd-{pod_id}", *taken.split()])
        remove_pod(bed, pod_id)
    ended = run_pod(bed)
    bed.run(["kill", "-9", str(pod_info(bed, ended)["pid"])])
    until(lambda: pod_status(bed, ended).state == cri.SANDBOX_NOTREADY, what="it has ended")
    bed.run(["ip", "netns", "delete", f"sandboxd-{ended}"])
    remove_pod(bed, ended)

    assert not debts(bed)
    assert_no_leaks(bed, before)


def test_what_precedes_a_failing_plugin_is_freed_and_a_person_retries_or_forgives_the_rest(
    fresh_bed: StartBed,
) -> None:
    bed = real_bed(fresh_bed)
    before = observe(bed)
    file, text = with_dataplane(bed)
    paid, forgiven = run_pod(bed, published()), run_pod(bed, pod_config("db"))
    script(bed, "dataplane", REFUSES)
    for pod_id in (paid, forgiven):
        remove_pod(bed, pod_id)
    left = [line for line in observe(bed).lines if line.startswith(("ipam ", "link veth"))]
    assert not left, "the others have done their DEL"
    assert [[owed.plugin for owed in debt.plugins] for debt in debts(bed)] == [["dataplane"], ["dataplane"]]
    assert all(bed.path(debt.netns_path).exists() for debt in debts(bed))

    listed = sandboxctl(bed, "debts").stdout
    assert "default/web (removed)" in listed and "dataplane" in listed and "not today" in listed
    refused_again = sandboxctl(bed, "debts", "retry", "--all")
    assert refused_again.returncode == 1 and refused_again.stderr.count("not today") == 2
    assert sandboxctl(bed, "debts", "forgive", "default/db").returncode == 0
    script(bed, "dataplane", {})
    assert sandboxctl(bed, "debts", "retry", "web").stdout.strip() == paid

    assert len(sandboxctl(bed, "debts").stdout.splitlines()) == 1, "the heading"
    uninstall(bed)
    bed.write(file, text)
    assert_no_leaks(bed, before)


def test_a_range_that_is_exhausted_says_who_holds_its_addresses(fresh_bed: StartBed) -> None:
    bed = fresh_bed(network=False)
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.9.9.0/29"}]]}
    bridge = {"type": "bridge", "bridge": "small", "isGateway": True, "ipam": ipam}
    plugins = [bridge, {"type": "dataplane"}]
    bed.write(CONF, json.dumps({"cniVersion": "1.0.0", "name": "small", "plugins": plugins}))
    script(bed, "dataplane", {})
    pods = [run_pod(bed, pod_config(name)) for name in ("one", "two")]
    for last in (4, 5, 6):
        bed.write(f"/var/lib/cni/networks/small/10.9.9.{last}", "c0ffee00c0ffee00\r\neth0")

    with pytest.raises(grpc.RpcError) as caught:
        run_pod(bed)

    code, words = refused(caught.value)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 running pods (default/one, default/two)" in words
    assert "1 container that sandboxd does not know (c0ffee00c0ff; see /var/lib/cni/networks/small" in words
    for pod_id in pods:
        remove_pod(bed, pod_id)

"""The story that the project grew from, step by step, on real parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.pods import (
    container_config,
    container_info,
    container_status,
    log_lines,
    pod_config,
    pod_info,
    pod_status,
    remove_pod,
    run_container,
    run_pod,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e


@dataclass(frozen=True, kw_only=True)
class Story:
    """A running pod with nginx in it."""

    bed: Testbed
    pod_id: str
    nginx: str
    ip: str
    pause_pid: int
    nginx_pid: int


@pytest.fixture(scope="module")
def story(bed: Testbed, images: tuple[str, ...]) -> Iterator[Story]:
    pod_id = run_pod(bed, pod_config("story"))
    nginx = run_container(bed, pod_id, container_config("nginx", "nginx"))
    yield Story(
        bed=bed,
        pod_id=pod_id,
        nginx=nginx,
        ip=pod_status(bed, pod_id).network.ip,
        pause_pid=pod_info(bed, pod_id)["pid"],
        nginx_pid=container_info(bed, nginx)["pid"],
    )
    remove_pod(bed, pod_id)


def test_the_pause_container_runs_and_its_pid_is_told(story: Story) -> None:
    assert pod_status(story.bed, story.pod_id).state == cri.SANDBOX_READY
    argv = (story.bed.proc / str(story.pause_pid) / "cmdline").read_bytes().split(b"\0")
    assert argv[:2] == [b"/catatonit", b"-P"]


def test_the_network_namespace_is_listed_by_ip_netns_under_the_pods_id(story: Story) -> None:
    assert f"sandboxd-{story.pod_id}" in [
        line.split()[0] for line in story.bed.run(["ip", "netns", "list"]).stdout.splitlines()
    ]


def test_pause_and_nginx_are_in_that_one_namespace(story: Story) -> None:
    pinned = story.bed.path(f"/run/netns/sandboxd-{story.pod_id}").name
    by_name = story.bed.run(["stat", "-Lc", "%i", f"/run/netns/{pinned}"]).stdout.strip()
    pids = (story.pause_pid, story.nginx_pid)
    inodes = {story.bed.run(["stat", "-Lc", "%i", f"/proc/{pid}/ns/net"]).stdout.strip() for pid in pids}
    assert inodes == {by_name}


def test_the_bridge_has_the_gateway_address(story: Story) -> None:
    network = story.bed.default_network()
    shown = json.loads(story.bed.run(["ip", "-j", "addr", "show", network.bridge]).stdout)
    assert network.gateway in [address["local"] for address in shown[0]["addr_info"]]


def test_the_ipam_file_of_the_pods_address_holds_the_pods_id(story: Story) -> None:
    network = story.bed.default_network()
    reserved = story.bed.path(f"/var/lib/cni/networks/{network.name}/{story.ip}").read_text().split()
    assert reserved == [story.pod_id, "eth0"]


def test_nginx_answers_at_the_pods_address(story: Story) -> None:
    status, body = story.bed.http_get(story.ip)
    assert status == 200
    assert "nginx" in body.lower()


def test_the_access_is_in_the_log(story: Story) -> None:
    story.bed.http_get(story.ip, path="/?marked")
    until(lambda: "/?marked" in "\n".join(log_lines(story.bed, story.nginx)), what="the log entry")


def test_the_pods_routes_are_those_of_the_configuration(story: Story) -> None:
    network = story.bed.default_network()
    shown = json.loads(story.bed.run(["ip", "-n", f"sandboxd-{story.pod_id}", "-j", "route", "show"]).stdout)
    gateways = {route["dst"]: route.get("gateway") for route in shown}
    assert gateways["default"] == network.gateway
    assert gateways["1.1.1.1"] == network.gateway


def test_the_timeline_tells_the_steps_in_order_with_the_plugin_call(story: Story) -> None:
    names = [step["step"] for step in pod_info(story.bed, story.pod_id)["timeline"]]
    wanted = [
        "pod.netns.create",
        "cni.add",
        "pod.network.attach",
        "pod.pause.start",
        "pod.run",
        "container.task.start",
    ]
    assert [name for name in names if name in wanted and name != "cni.add"] == [
        name for name in wanted if name != "cni.add"
    ]
    assert "cni.add" in names


def test_a_verbose_status_shows_what_each_plugin_was_told_and_said(story: Story) -> None:
    timeline = pod_info(story.bed, story.pod_id)["timeline"]
    bridge, portmap = (step["plugin"] for step in timeline if step["step"] == "cni.add")
    assert bridge["env"]["CNI_NETNS"] == f"/run/netns/sandboxd-{story.pod_id}"
    assert json.loads(bridge["stdin"])["bridge"] == story.bed.default_network().bridge
    assert json.loads(bridge["stdout"])["ips"][0]["address"].startswith(f"{story.ip}/")
    assert json.loads(portmap["stdin"])["prevResult"]["ips"] == json.loads(bridge["stdout"])["ips"]
    assert bridge["exitCode"] == portmap["exitCode"] == 0


def test_everything_is_gone_after_removal(bed: Testbed, images: tuple[str, ...]) -> None:
    """The story told once before, so that what the plugins set up once is there; then nothing may be left."""
    warm = run_pod(bed)
    run_container(bed, warm, container_config("nginx", "nginx"))
    remove_pod(bed, warm)
    before = observe(bed)
    pod_id = run_pod(bed)
    nginx = run_container(bed, pod_id, container_config("nginx", "nginx"))
    ip = pod_status(bed, pod_id).network.ip
    assert bed.http_get(ip)[0] == 200
    assert container_status(bed, nginx).state == cri.CONTAINER_RUNNING
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)

"""One execution of a plugin is run again for a person, on real plugins, and nothing of that stays."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import difference, network, observe
from tests.pods import pod_config, remove_pod, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.insight]

SOCKET = "/run/sandboxd/sandboxd.sock"
CONF = "/etc/cni/net.d/10-sandboxd.conflist"
# After bridge: it waits if it is told to, and fails if it is told to.
ODD = """#!/bin/sh
case $CNI_COMMAND in
VERSION) cat >/dev/null; echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}'; exit ;;
ADD) ;;
*) cat >/dev/null; exit ;;
esac
while [ -e /run/odd/wait ]; do touch /run/odd/waits; sleep 0.05; done
[ -e /run/odd/well ] && exec /usr/lib/cni/portmap
cat >/dev/null
echo "no luck for $CNI_CONTAINERID" >&2
echo '{"cniVersion": "1.0.0", "code": 999, "msg": "the switch is on fire"}'
exit 1
"""


@pytest.fixture(scope="module")
def bed(containerd_bin: Any) -> Iterator[Testbed]:
    """With a pod `web` that has a host port, and a pod `burns` whose second plugin failed."""
    with Testbed(containerd_bin=containerd_bin) as made:
        default = made.default_network()
        made.start_daemon()
        remove_pod(made, run_pod(made, named("first", host_port=8079)))  # what plugins make once stays
        run_pod(made, named("web", host_port=8080))
        broken = {**default.conflist, "plugins": [default.conflist["plugins"][0], {"type": "odd"}]}
        made.write("/opt/cni/bin/odd", ODD, mode=0o755)
        made.write("/run/odd/made", "")
        made.write(CONF, json.dumps(broken))
        with pytest.raises(grpc.RpcError, match="the switch is on fire"):
            run_pod(made, named("burns"))
        yield made


def named(name: str, host_port: int = 0) -> cri.PodSandboxConfig:
    config = pod_config(name)
    if host_port:
        config.port_mappings.add(protocol=cri.TCP, host_port=host_port, container_port=80)
    return config


def sandboxctl(bed: Testbed, *argv: str) -> subprocess.CompletedProcess[str]:
    return bed.run([str(Path(sys.executable).parent / "sandboxctl"), "--socket", SOCKET, *argv], check=False)


def as_before(bed: Testbed, before: Any) -> None:
    with contextlib.suppress(TimeoutError):
        until(lambda: not difference(before, network(bed)), what="the host's network is as it was")
    assert not difference(before, network(bed))


def test_an_add_that_succeeded_succeeds_in_a_scratch_namespace_and_the_host_stays_as_it_was(bed: Testbed) -> None:
    before = observe(bed)
    told = sandboxctl(bed, "replay", "web", "ADD", "bridge")
    assert told.returncode == 0, told.stdout + told.stderr
    assert "in the scratch namespace /run/netns/sandboxd-" in told.stdout and "(removed again)" in told.stdout
    assert "It succeeds again, with the same result." in told.stdout
    assert [line.split()[:3] for line in told.stdout.splitlines() if line.startswith("     after it")] == [
        ["after", "it", "DEL"]
    ]
    until(lambda: not difference(before, observe(bed)), what="the host is exactly as it was")


def test_a_replay_of_portmap_runs_the_chain_before_it_and_publishes_another_port(bed: Testbed) -> None:
    before = network(bed)
    told = json.loads(sandboxctl(bed, "replay", "web", "ADD portmap", "-o", "json").stdout)
    assert told["verdict"] == "It succeeds again, with the same result." and told["left"] == ""
    assert [step["plugin"]["command"] for step in told["before"]] == ["ADD"]
    assert [step["detail"]["plugin"] for step in told["after"]] == ["portmap", "bridge"]
    (given,) = told["replayed"]["plugin"]["stdin"]["runtimeConfig"]["portMappings"]
    assert given["hostPort"] != 8080 and given["containerPort"] == 80
    assert any(f"host port 8080 is {given['hostPort']}" in each for each in told["changed"])
    env, was = told["replayed"]["plugin"]["env"], told["recorded"]["plugin"]["env"]
    assert env["CNI_CONTAINERID"] == told["scratchId"] != was["CNI_CONTAINERID"]
    assert env["CNI_NETNS"] == told["netnsPath"] != was["CNI_NETNS"]
    assert was["CNI_CONTAINERID"] not in env["CNI_ARGS"] and "K8S_POD_NAME=web" not in env["CNI_ARGS"]
    as_before(bed, before)


def test_a_failed_add_fails_again_in_the_same_way_and_once_it_is_mended_does_not(bed: Testbed) -> None:
    before = network(bed)
    told = sandboxctl(bed, "replay", "burns")
    assert told.returncode == 1
    assert "It fails again, in the same way." in told.stdout, told.stdout + told.stderr
    assert "no luck for" in told.stdout and "the switch is on fire" in told.stdout
    bed.write("/run/odd/well", "")
    mended = sandboxctl(bed, "replay", "burns")
    bed.path("/run/odd/well").unlink()
    assert mended.returncode == 0 and "It succeeds now; it had failed." in mended.stdout
    as_before(bed, before)


def test_a_daemon_that_is_killed_in_the_middle_of_a_replay_leaves_nothing_after_its_restart(bed: Testbed) -> None:
    before = network(bed)
    bed.write("/run/odd/wait", "")
    argv = [str(Path(sys.executable).parent / "sandboxctl"), "--socket", SOCKET, "replay", "burns"]
    client = bed.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: bed.path("/run/odd/waits").exists(), what="the plugin runs")
    assert difference(before, network(bed)), "bridge has added to a namespace"
    assert len(sandboxctl(bed, "debts").stdout.splitlines()) == 1, "nothing is owed while it runs"
    bed.kill_daemon()
    client.wait(60)
    bed.relaunch_daemon()
    as_before(bed, before)
    until(lambda: len(sandboxctl(bed, "debts").stdout.splitlines()) == 1, what="nothing is owed")
    bed.path("/run/odd/wait").unlink()


def test_a_client_that_leaves_does_not_keep_a_replay_from_being_undone(bed: Testbed) -> None:
    before = network(bed)
    bed.path("/run/odd/waits").unlink(missing_ok=True)
    bed.write("/run/odd/wait", "")
    argv = [str(Path(sys.executable).parent / "sandboxctl"), "--socket", SOCKET, "replay", "burns"]
    client = bed.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: bed.path("/run/odd/waits").exists(), what="the plugin runs")
    client.kill()
    client.wait(60)
    bed.path("/run/odd/wait").unlink()
    as_before(bed, before)


def test_a_kept_replay_stays_until_it_is_undone(bed: Testbed) -> None:
    before = network(bed)
    told = sandboxctl(bed, "replay", "web", "--keep", "ADD", "bridge").stdout
    look, undo = (
        next(line for line in told.splitlines() if line.startswith(word)) for word in ("To look", "To undo")
    )
    bed.restart_daemon(kill=True)
    seen = bed.run(["sh", "-c", look.partition(":")[2]]).stdout
    assert "eth0" in seen and "10.0.10." in seen
    listed = sandboxctl(bed, "debts").stdout
    assert "replay of default/web" in listed and "on request" in listed
    assert sandboxctl(bed, *undo.split()[3:]).returncode == 0
    as_before(bed, before)


def test_what_would_touch_a_pod_is_refused_and_what_is_not_clear_is_listed(bed: Testbed) -> None:
    before = network(bed)
    in_place = sandboxctl(bed, "replay", "--in-place", "web", "ADD", "bridge")
    assert in_place.returncode == 1 and "ADD is not run in place" in in_place.stderr
    which = sandboxctl(bed, "replay", "web", "ADD")
    assert which.returncode == 3 and "ADD bridge" in which.stderr and "ADD portmap" in which.stderr
    assert "ADD bridge" in sandboxctl(bed, "replay", "--list", "web").stdout
    assert "said" not in which.stderr and sandboxctl(bed, "replay", "nosuch").returncode == 3
    assert not difference(before, network(bed))


def test_a_del_is_run_again_after_the_adds_that_it_undoes(bed: Testbed) -> None:
    pod_id = next(item.id for item in bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items)
    bed.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    before = network(bed)
    told = json.loads(sandboxctl(bed, "replay", "web", "DEL", "bridge", "-o", "json").stdout)
    assert told["verdict"] == "It succeeds again, with the same result."
    run = [(step["plugin"]["command"], step["detail"]["plugin"]) for step in told["before"]]
    assert run == [("ADD", "bridge"), ("ADD", "portmap"), ("DEL", "portmap")]
    as_before(bed, before)

"""Plugins as machines have them: slow, hanging, in need of tools, and still running when their daemon is killed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.fakes.cni_plugin import calls, install
from tests.pods import pod_status, remove_pod, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

CTR = ("ctr", "-a", "/run/sandboxd/containerd/containerd.sock", "-n", "sandboxd")

PLUGINS = "/opt/cni/bin"

# It does its work late: a daemon that is killed meanwhile is long gone.
SLOW = """#!/bin/sh
here=$(dirname "$0")
cat >/dev/null
link=slow$(echo "$CNI_CONTAINERID" | cut -c1-8)
case "$CNI_COMMAND" in
ADD)
    touch "$here/started"
    while ! [ -e "$here/go" ]; do sleep 0.05; done
    ip link add "$link" type veth peer name "${link}p"
    echo '{"ips": [{"address": "10.1.2.3/24"}]}'
    ;;
DEL) ip link del "$link" 2>/dev/null || true ;;
esac
"""

NEEDS_A_TOOL = """#!/bin/sh
cat >/dev/null
case "$CNI_COMMAND" in
ADD) address=$(tool-of-this-machine) && echo '{"ips": [{"address": "'"$address"'"}]}' ;;
esac
"""


def conflist(name: str, *plugins: dict[str, Any]) -> str:
    return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": list(plugins)})


def use(bed: Testbed, name: str, *types: str) -> None:
    """Make this chain the bed's network."""
    bed.write("/etc/cni/net.d/10-test.conflist", conflist(name, *({"type": type_} for type_ in types)))


def scripted(bed: Testbed, name: str, script: dict[str, Any]) -> Path:
    """Install the scripted plugin; the directory of the plugins, outside."""
    directory = bed.path(PLUGINS)
    directory.mkdir(parents=True, exist_ok=True)
    install(str(directory), name, script)
    return directory


def running(bed: Testbed, name: str) -> list[str]:
    return bed.run(["pgrep", "-f", f"{PLUGINS}/{name}"], check=False).stdout.split()


def test_a_slow_add_does_not_outlive_the_del_that_follows_the_kill_of_its_daemon(fresh_bed: StartBed) -> None:
    bed = fresh_bed(network=False)
    scripted(bed, "fast", {})
    use(bed, "test", "fast")
    remove_pod(bed, run_pod(bed))
    before = observe(bed)
    bed.write(f"{PLUGINS}/slow", SLOW, mode=0o755)
    use(bed, "test", "slow")
    with ThreadPoolExecutor(1) as client:
        cut_off = client.submit(run_pod, bed)
        until(bed.path(f"{PLUGINS}/started").exists, what="ADD is in its work")
        # Cut off in the middle of this, containerd 1.6 can leave a shim without a task: not the plugin's doing.
        until(
            lambda: bed.run([*CTR, "tasks", "ls", "-q"]).stdout.strip(), what="the pause container has been created"
        )
        bed.kill_daemon()
        assert isinstance(cut_off.exception(timeout=30), grpc.RpcError)
    assert running(bed, "slow")

    bed.relaunch_daemon()

    until(lambda: not bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items, what="the pod is removed")
    until(lambda: not running(bed, "slow"), what="the plugin has been ended")
    bed.write(f"{PLUGINS}/go", "")
    assert "slow" not in bed.run(["ip", "-o", "link"]).stdout
    assert_no_leaks(bed, before)


def test_plugins_find_what_is_in_the_daemons_path_or_in_the_configured_one(fresh_bed: StartBed) -> None:
    bed = fresh_bed(daemon=False, network=False)
    bed.write(f"{PLUGINS}/needy", NEEDS_A_TOOL, mode=0o755)
    bed.write("/var/lib/tools/tool-of-this-machine", "#!/bin/sh\necho 10.1.2.3/24\n", mode=0o755)
    bed.write("/var/lib/more/tool-of-this-machine", "#!/bin/sh\necho 10.4.5.6/24\n", mode=0o755)
    use(bed, "test", "needy")
    bed.env["PATH"] = f"{bed.env['PATH']}:/var/lib/tools"
    bed.start_daemon()
    pod = run_pod(bed)
    assert pod_status(bed, pod).network.ip == "10.1.2.3"
    remove_pod(bed, pod)

    bed.stop_daemon()
    bed.start_daemon(network={"plugin_path": "/var/lib/more:/usr/bin:/bin"})

    pod = run_pod(bed)
    assert pod_status(bed, pod).network.ip == "10.4.5.6"
    remove_pod(bed, pod)


def test_hanging_adds_hold_up_neither_another_network_nor_the_end_of_a_pod_on_theirs(fresh_bed: StartBed) -> None:
    bed = fresh_bed(network=False)
    plugins = scripted(bed, "well", {})
    scripted(bed, "hangs", {"ADD": [{"wait_for": "go"}]})
    use(bed, "first", "well")
    healthy, last = run_pod(bed), run_pod(bed)
    use(bed, "first", "hangs")

    def hanging() -> int:
        return sum((call["plugin"], call["command"]) == ("hangs", "ADD") for call in calls(str(plugins)))

    with ThreadPoolExecutor(12) as clients:
        pods = [clients.submit(run_pod, bed) for _ in range(12)]
        until(lambda: hanging() == 12, what="all of them are in their ADD")
        remove_pod(bed, healthy)
        use(bed, "second", "well")
        elsewhere = run_pod(bed)
        remove_pod(bed, elsewhere)
        remove_pod(bed, last)
        assert not any(pod.done() for pod in pods)
        (plugins / "go").touch()
        for pod in pods:
            remove_pod(bed, pod.result(timeout=120))

"""Run by here.py after the reboot that before_reboot.py prepared: its pods have ended, and can be removed whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.machine.before_reboot import NOTED
from tests.machine.host import Machine, left, shown
from tests.pods import container_config, container_status, pod_status, remove_pod, run_container, run_pod
from tests.processes import until

pytestmark = [pytest.mark.machine, pytest.mark.e2e]


def test_pods_of_the_earlier_boot_have_ended_and_are_removed_whole_and_new_ones_run() -> None:
    noted = json.loads(NOTED.read_text())
    with Machine() as machine:
        until(machine.serves, what="systemd has started the daemon with the machine")
        assert shown("ActiveState") == "active"
        machine.config, machine.name = noted["config"], noted["name"]
        for pod_id, container_id in noted["pods"].items():
            assert pod_status(machine, pod_id).state == cri.SANDBOX_NOTREADY
            assert container_status(machine, container_id).state == cri.CONTAINER_EXITED
        new = run_pod(machine)
        run_container(machine, new, container_config("nginx", "nginx"))
        assert machine.http_get(pod_status(machine, new).network.ip)[0] == 200
        for pod_id in (new, *noted["pods"]):
            remove_pod(machine, pod_id)
        assert not left()
        assert not list(Path("/var/lib/cni/networks").glob("*/10.*")), "no address is taken"
        trace = [str(path) for pod_id in noted["pods"] for path in Path("/var/lib/sandboxd").rglob(f"*{pod_id}*")]
        assert not trace

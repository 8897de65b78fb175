"""Run by here.py before the machine is rebooted: pods that run are left behind. after_reboot.py is the other half."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.machine.host import Machine, systemctl
from tests.pods import container_config, pod_status, run_container, run_pod

pytestmark = [pytest.mark.machine, pytest.mark.e2e]

NOTED = Path("/var/lib/sandboxd-before-reboot.json")


def test_two_pods_run_when_the_machine_goes_down() -> None:
    with Machine(keep=True) as machine:
        machine.default_network()
        machine.start_daemon()
        systemctl("enable", "sandboxd.service")
        pods = {}
        for name in ("nginx", "busybox"):
            machine.load_image(name)
            pod_id = run_pod(machine)
            command = ["sleep", "3600"] if name == "busybox" else []
            container_id = run_container(machine, pod_id, container_config(name, name, command))
            assert pod_status(machine, pod_id).state == cri.SANDBOX_READY
            pods[pod_id] = container_id
        NOTED.write_text(json.dumps({"pods": pods, "config": machine.config, "name": machine.name}))

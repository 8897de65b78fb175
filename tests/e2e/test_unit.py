"""The unit of deploy/systemd, started by a genuine systemd: it closes what is the daemon's, and spoils no container.

systemd is the first process of a pid namespace in a bed. It is given the unit as it is; a drop-in takes away its
dependencies, so that systemd starts nothing else on this machine.
"""

from __future__ import annotations

import configparser
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.pods import container_config, exited, log_lines, pod_config, remove_pod, run_container, run_pod
from tests.processes import until
from tests.testbed import ROOT, Testbed

pytestmark = pytest.mark.e2e

UNIT = ROOT / "deploy" / "systemd" / "sandboxd.service"
LOG = "/run/unit.log"
DROP_IN = f"""
[Unit]
DefaultDependencies=no
[Service]
StandardOutput=append:{LOG}
StandardError=append:{LOG}
"""

# systemd.exec(5): these are inherited by containerd, the shims and all containers, or put the daemon into a mount
# namespace of its own, out of which no mount of a pod would reach the machine.
INHERITED = """
    AmbientCapabilities CapabilityBoundingSet DevicePolicy DynamicUser IPAddressDeny InaccessiblePaths LimitCORE
    LockPersonality MemoryDenyWriteExecute MountFlags NoExecPaths NoNewPrivileges PrivateDevices PrivateIPC
    PrivateMounts PrivateNetwork PrivateTmp PrivateUsers ProcSubset ProtectClock ProtectControlGroups ProtectHome
    ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables ProtectProc ProtectSystem
    ReadOnlyPaths RestrictAddressFamilies RestrictFileSystems RestrictNamespaces RestrictRealtime RestrictSUIDSGID
    RootDirectory SecureBits SystemCallArchitectures SystemCallFilter TemporaryFileSystem User
"""


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """A bed in which systemd has started the unit, and the daemon serves."""
    programs = tmp_path_factory.mktemp("programs")
    (programs / "sandboxd").write_text(f'#!/bin/sh\nexec {sys.executable} -m sandboxd "$@"\n')
    (programs / "sandboxd").chmod(0o755)
    with Testbed() as made:
        made.default_network()
        made.write("/run/systemd/system/sandboxd.service", UNIT.read_text())
        made.write("/run/systemd/system/sandboxd.service.d/bed.conf", DROP_IN)
        made.run(["ln", "-s", "/dev/null", "/run/systemd/system/network-online.target"])
        script = Path(__file__).with_name("systemd.sh")
        with (made.base / "systemd.log").open("w") as log:
            made.popen(["sh", "-eu", str(script), made.name, str(programs)], stdout=log, stderr=log)
        until(lambda: serves(made), what=f"the unit serves; see {made.base}/systemd.log")
        yield made


def serves(bed: Testbed) -> bool:
    try:
        bed.runtime.Version(cri.VersionRequest(), timeout=5)
    except grpc.RpcError:
        return False
    return True


def systemctl(bed: Testbed, *words: str) -> str:
    """Run systemctl where systemd is: it answers no process of another pid namespace."""
    (pid,) = (entry.name for entry in bed.proc.iterdir() if entry.name.isdigit() and name(entry) == "systemd")
    return bed.run(["nsenter", f"--target={pid}", "--mount", "--pid", "systemctl", *words], timeout=60).stdout


def name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return ""  # it has just ended


def properties(bed: Testbed) -> dict[str, str]:
    return dict(line.split("=", 1) for line in systemctl(bed, "show", "sandboxd.service").splitlines())


def test_systemd_knows_that_it_runs_and_where_it_keeps_its_things(bed: Testbed) -> None:
    found = properties(bed)
    assert (found["ActiveState"], found["SubState"], found["Type"]) == ("active", "running", "notify")
    assert (found["StateDirectoryMode"], found["RuntimeDirectoryMode"]) == ("0700", "0711")
    assert (found["NotifyAccess"], found["OOMPolicy"]) == ("main", "continue")
    modes = bed.run(["stat", "-c", "%a", "/var/lib/sandboxd", "/run/sandboxd"]).stdout.split()
    assert modes == ["700", "711"]


def test_a_privileged_pod_can_do_what_it_could_without_the_unit(bed: Testbed) -> None:
    bed.load_image("busybox")
    context = cri.LinuxSandboxSecurityContext(privileged=True)
    pod_id = run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(security_context=context)))
    script = """
        mkdir -p /there && mount -t tmpfs inside /there && echo mounts
        mknod /node c 1 3 && echo x > /node && echo makes devices
        echo 1 > /proc/sys/net/ipv4/conf/lo/forwarding && echo sets sysctls
        grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'
    """
    config = container_config(
        "c",
        "busybox",
        ["sh", "-c", script],
        linux=cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(privileged=True)),
    )
    container_id = run_container(bed, pod_id, config)
    until(lambda: exited(bed, container_id), what="the container ends")
    expected = ["mounts", "makes devices", "sets sysctls", "NoNewPrivs:0", "Seccomp:0"]
    assert log_lines(bed, container_id) == expected
    remove_pod(bed, pod_id)


def test_pods_run_on_while_systemd_restarts_the_daemon(bed: Testbed) -> None:
    bed.load_image("busybox")
    pod_id = run_pod(bed)
    container_id = run_container(bed, pod_id, container_config("c", "busybox", ["sleep", "1000"]))
    before = properties(bed)["MainPID"]
    systemctl(bed, "restart", "sandboxd.service")
    until(lambda: serves(bed), what="the restarted unit serves")
    assert properties(bed)["MainPID"] != before
    assert not exited(bed, container_id)
    remove_pod(bed, pod_id)


def test_the_unit_has_nothing_that_containers_would_inherit() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    assert not set(INHERITED.split()) & set(unit["Service"])


def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    assert analyze, "systemd is not installed: make setup-test"
    with Testbed() as bed:
        program = "mount --bind {0} /usr/local/bin && exec systemd-analyze verify {1}"
        (tmp_path / "sandboxd").symlink_to(sys.executable)
        said = bed.run(["unshare", "--mount", "sh", "-c", program.format(tmp_path, UNIT)], check=False)
        assert (said.returncode, said.stdout + said.stderr) == (0, "")

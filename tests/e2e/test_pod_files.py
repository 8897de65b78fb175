"""What a pod's containers read in /etc, and whose names they have, on real parts."""

from __future__ import annotations

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.conftest import StartBed
from tests.pods import (
    create_container,
    exited,
    log_lines,
    pod_config,
    pod_info,
    remove_pod,
    run_container,
    run_pod,
    shell,
    start_container,
)
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

STUB = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"
ON_HOST = cri.LinuxPodSandboxConfig(
    security_context=cri.LinuxSandboxSecurityContext(namespace_options=cri.NamespaceOption(network=cri.NODE))
)


def said(bed: Testbed, pod_id: str, script: str) -> list[str]:
    """What a container of the pod prints."""
    container_id = run_container(bed, pod_id, shell(script))
    until(lambda: exited(bed, container_id), what="the container ends")
    return log_lines(bed, container_id)


@pytest.fixture
def resolved_bed(fresh_bed: StartBed) -> Testbed:
    """A machine that runs systemd-resolved."""
    bed = fresh_bed()
    bed.load_image("busybox")
    bed.write("/run/systemd/resolve/stub-resolv.conf", STUB)
    bed.write("/run/systemd/resolve/resolv.conf", "nameserver 192.0.2.7\nsearch lan\n")
    bed.run(["ln", "-sf", "/run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf"])
    return bed


def test_pods_ask_the_servers_behind_the_machines_stub(resolved_bed: Testbed) -> None:
    bed = resolved_bed
    show = "cat /etc/resolv.conf"
    plain = run_pod(bed)
    assert said(bed, plain, show) == ["nameserver 192.0.2.7", "search lan"]
    searching = run_pod(bed, pod_config(dns_config=cri.DNSConfig(searches=["a.example"])))
    assert said(bed, searching, show) == ["search a.example", "nameserver 192.0.2.7"]
    on_host = run_pod(bed, pod_config(linux=ON_HOST))
    assert said(bed, on_host, show) == STUB.splitlines()
    for pod_id in (plain, searching, on_host):
        remove_pod(bed, pod_id)


def test_a_pod_without_a_name_server_that_it_reaches_says_so(resolved_bed: Testbed) -> None:
    bed = resolved_bed
    bed.run(["rm", "/run/systemd/resolve/resolv.conf"])
    pod_id = run_pod(bed)
    assert said(bed, pod_id, "cat /etc/resolv.conf") == STUB.splitlines()[1:]
    (written,) = [step for step in pod_info(bed, pod_id)["timeline"] if step["step"] == "pod.files.write"]
    assert "127.0.0.53" in written["detail"]["warning"]
    remove_pod(bed, pod_id)


def test_what_a_cleaner_removed_is_there_for_the_next_container(bed: Testbed, images: tuple[str, ...]) -> None:
    show = "cat /etc/resolv.conf; tail -n 1 /etc/hosts; cat /etc/hostname"
    pod_id = run_pod(bed, pod_config(hostname="tidy", dns_config=cri.DNSConfig(servers=["192.0.2.9"])))
    before = said(bed, pod_id, show)
    assert before[0] == "nameserver 192.0.2.9" and before[1].endswith("\ttidy") and before[2] == "tidy"
    directory = f"/var/lib/sandboxd/pod-files/{pod_id}"
    clean = ["sh", "-ec", f"rm {directory}/*"]
    bed.run(clean)

    assert said(bed, pod_id, show) == before

    created = create_container(bed, pod_id, shell(show))
    bed.run(clean)
    start_container(bed, created)
    until(lambda: exited(bed, created), what="the container ends")
    assert log_lines(bed, created) == before
    bed.run(["sh", "-ec", f"umount {directory} && rmdir {directory}"])
    assert said(bed, pod_id, show) == before
    remove_pod(bed, pod_id)


def test_the_domain_name_is_the_pods(bed: Testbed, images: tuple[str, ...]) -> None:
    machines = bed.run(["cat", "/proc/sys/kernel/domainname"]).stdout
    pod_id = run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(sysctls={"kernel/domainname": "pods.example"})))

    assert said(bed, pod_id, "cat /proc/sys/kernel/domainname") == ["pods.example"]

    assert bed.run(["cat", "/proc/sys/kernel/domainname"]).stdout == machines
    remove_pod(bed, pod_id)

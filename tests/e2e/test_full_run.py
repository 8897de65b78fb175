"""What containers write never fills the machine's /run, which is memory and which every program needs.

The state directory is on a tmpfs like the one that Debian mounts at /run: small, and without programs.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.images import with_volumes
from tests.pods import IDS, container_config, pod_config, remove_pod, run_container, run_pod
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

IMAGE = "docker.io/test/with-volumes:1"
STATE = "/run/small/sandboxd"


def layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        directory = tarfile.TarInfo("vol")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o777
        tar.addfile(directory)
        program = b"#!/bin/sh\necho runs\n"
        entry = tarfile.TarInfo("vol/program")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def bed(containerd_bin: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    with Testbed(containerd_bin=containerd_bin) as made:
        made.default_network()
        options = "noexec,nosuid,nodev,size=16m,mode=755"
        made.run(["sh", "-c", f"mkdir /run/small && mount -t tmpfs -o {options} small /run/small"])
        made.start_daemon(daemon={"state": STATE}, api={"socket": "/run/sandboxd.sock"})
        archive = tmp_path_factory.mktemp("images") / "image.tar"
        made.load_archive(with_volumes(made.build_image("busybox"), archive, ["/vol"], layer(), IMAGE))
        yield made


@pytest.fixture(params=["plain", "user namespace"])
def container(bed: Testbed, request: pytest.FixtureRequest) -> Iterator[str]:
    options = cri.NamespaceOption()
    if request.param != "plain":
        options.userns_options.CopyFrom(cri.UserNamespace(mode=cri.POD, uids=IDS, gids=IDS))
    context = cri.LinuxSandboxSecurityContext(namespace_options=options)
    pod_id = run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(security_context=context)))
    yield run_container(bed, pod_id, container_config("c", IMAGE, ["sleep", "1000"]))
    remove_pod(bed, pod_id)


def inside(bed: Testbed, container_id: str, script: str) -> str:
    request = cri.ExecSyncRequest(container_id=container_id, cmd=["sh", "-c", script], timeout=60)
    answer = bed.runtime.ExecSync(request)
    return (answer.stdout + answer.stderr).decode()


def free_bytes(bed: Testbed) -> int:
    return int(bed.run(["sh", "-c", "df -B1 --output=avail /run/small | tail -1"]).stdout)


@pytest.mark.parametrize("file", ["hosts", "hostname", "resolv.conf"])
def test_a_pods_own_files_have_little_room(bed: Testbed, container: str, file: str) -> None:
    before = free_bytes(bed)
    said = inside(bed, container, f"dd if=/dev/zero of=/etc/{file} bs=64k count=512 2>&1; stat -c %s /etc/{file}")
    assert "No space left" in said
    assert int(said.split()[-1]) <= 2 << 20
    assert before - free_bytes(bed) < 1 << 20
    remove_pod(bed, run_pod(bed))  # another pod has files of its own


def test_an_images_volumes_are_on_disk_and_their_programs_run(bed: Testbed, container: str) -> None:
    before = free_bytes(bed)
    script = (
        "/vol/program; dd if=/dev/zero of=/vol/fill bs=1M count=64 2>/dev/null; stat -c %s /vol/fill; rm /vol/fill"
    )
    assert inside(bed, container, script).split() == ["runs", str(64 << 20)]
    assert before - free_bytes(bed) < 1 << 20


def test_shared_memory_has_a_limit_of_its_own(bed: Testbed, container: str) -> None:
    before = free_bytes(bed)
    said = inside(bed, container, "dd if=/dev/zero of=/dev/shm/fill bs=1M count=100; rm /dev/shm/fill")
    assert "No space left" in said
    assert before - free_bytes(bed) < 1 << 20


def test_a_pod_of_an_earlier_sandboxd_takes_new_containers(bed: Testbed) -> None:
    """It had its files elsewhere: the daemon that follows makes those that are missing."""
    pod_id = run_pod(bed)
    directory = f"/var/lib/sandboxd/pod-files/{pod_id}"
    bed.run(["sh", "-c", f"umount {directory} && rmdir {directory}"])
    bed.restart_daemon()
    container_id = run_container(bed, pod_id, container_config("c", IMAGE, ["sleep", "1000"]))
    ip = bed.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id)).status.network.ip
    assert ip in inside(bed, container_id, "cat /etc/hosts")
    remove_pod(bed, pod_id)
    assert not bed.path(directory).exists()

"""The volumes that an image declares: directories of the container's own, with what the image has there."""

from __future__ import annotations

import io
import secrets
import tarfile
from typing import Any

import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.images import with_volumes
from tests.pods import IDS, container_config, exited, log_lines, pod_config, remove_pod, run_container, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

IMAGE = "docker.io/test/with-volumes:1"


def layer() -> bytes:
    """/srv/data with a file, a set-id file of somebody's, and a link; /data leads there."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, mode, owner, text in (
            ("srv", tarfile.DIRTYPE, 0o755, 0, ""),
            ("srv/data", tarfile.DIRTYPE, 0o1770, 7, ""),
            ("srv/data/file", tarfile.REGTYPE, 0o640, 7, "from the image"),
            ("srv/data/tool", tarfile.REGTYPE, 0o4755, 7, "x"),
            ("srv/data/out", tarfile.SYMTYPE, 0o777, 0, "/etc/passwd"),
            ("data", tarfile.SYMTYPE, 0o777, 0, "srv/data"),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.uid, entry.gid = kind, mode, owner, owner
            data = b"" if kind != tarfile.REGTYPE else text.encode()
            entry.size, entry.linkname = len(data), text if kind == tarfile.SYMTYPE else ""
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def image(bed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> str:
    archive = tmp_path_factory.mktemp("images") / "volumes.tar"
    volumes = ["/data", "/var/none/", "/data"]
    bed.load_archive(with_volumes(bed.build_image("busybox"), archive, volumes, layer(), IMAGE))
    return IMAGE


def output(bed: Testbed, pod_id: str, image: str, script: str, **changes: Any) -> list[str]:
    name = f"sh-{secrets.token_hex(4)}"
    container_id = run_container(bed, pod_id, container_config(name, image, ["sh", "-c", script], **changes))
    until(lambda: exited(bed, container_id), what="the container ends")
    return log_lines(bed, container_id)


LOOK = "cat /data/file; echo; cd /data; stat -c '%n %a %u:%g' . file tool; readlink out"
FOUND = ["from the image", ". 1770 7:7", "file 640 7:7", "tool 4755 7:7", "/etc/passwd"]


def test_a_volume_has_what_the_image_has_there_and_is_of_a_file_system_of_its_own(
    bed: Testbed, pod: str, image: str
) -> None:
    assert output(bed, pod, image, LOOK) == FOUND
    script = "grep -c ' /data \\| /srv/data ' /proc/mounts; grep -c ' /var/none ' /proc/mounts; ls /var/none | wc -l"
    assert output(bed, pod, image, script) == ["1", "1", "0"]


def test_a_volume_can_be_written_where_the_root_cannot(bed: Testbed, pod: str, image: str) -> None:
    context = cri.LinuxContainerSecurityContext(readonly_rootfs=True)
    script = """
        touch /x 2>/dev/null || echo no; echo more >> /data/file; tail -c 5 /data/file
        touch /var/none/y; ls /var/none
    """
    found = output(bed, pod, image, script, linux=cri.LinuxContainerConfig(security_context=context))
    assert found == ["no", "more", "y"]


def test_what_one_container_writes_is_not_the_next_ones(bed: Testbed, pod: str, image: str) -> None:
    output(bed, pod, image, "echo mine > /data/file")
    assert output(bed, pod, image, "cat /data/file; echo") == ["from the image"]


def test_a_mount_at_the_volumes_place_takes_it(bed: Testbed, pod: str, image: str) -> None:
    bed.write("/var/lib/given/file", "given\n")
    mount = cri.Mount(host_path="/var/lib/given", container_path="/data")
    assert output(bed, pod, image, "cat /data/file", mounts=[mount]) == ["given"]


def test_a_pod_with_a_user_namespace_sees_its_own_ids_in_a_volume(bed: Testbed, image: str) -> None:
    modes = cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.POD, uids=IDS, gids=IDS))
    context = cri.LinuxSandboxSecurityContext(namespace_options=modes)
    pod_id = run_pod(bed, pod_config(linux=cri.LinuxPodSandboxConfig(security_context=context)))
    assert output(bed, pod_id, image, f"{LOOK}; touch /var/none/mine && stat -c %u /var/none/mine") == [*FOUND, "0"]
    remove_pod(bed, pod_id)


def test_volumes_go_with_their_container(bed: Testbed, image: str) -> None:
    run = run_pod(bed)
    output(bed, run, image, "true")
    remove_pod(bed, run)
    before = observe(bed)
    run = run_pod(bed)
    output(bed, run, image, "echo mine > /data/file")
    remove_pod(bed, run)
    assert_no_leaks(bed, before)

"""What containers and images make of directories: any pod can be removed, and meanwhile the others are answered."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.audit import assert_no_leaks, observe
from tests.conftest import StartBed
from tests.deep import DEEP
from tests.images import with_volumes
from tests.pods import container_config, container_info, log_lines, remove_pod, run_container, run_pod
from tests.processes import until
from tests.testbed import Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.images]

EMPTY = "docker.io/test/empty-volume:1"
FULL = "docker.io/test/deep-volume:1"
LONG = f"/{'n' * 200}" * 19  # just below PATH_MAX where it is unpacked, and beyond with a longer prefix
FILES, DIRECTORIES = 60_000, 300
NEST = (
    f"cd $0 && i=0; while [ $i -lt {DEEP} ]; do mkdir d && cd d || break; i=$((i+1)); done; echo made $i; sleep 1000"
)
FILL = f"""
    cd /vol; i=0; while [ $i -lt {DIRECTORIES} ]; do mkdir $i; i=$((i+1)); done
    seq 1 {FILES} | xargs -n 500 sh -c 'for x; do : > /vol/$((x % {DIRECTORIES}))/$x; done' _; echo made; sleep 1000
"""


def layer(*names: str) -> bytes:
    """A layer of directories that anybody may write to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(entry)
    return buffer.getvalue()


def load(bed: Testbed, directory: Path, name: str, *names: str) -> None:
    archive = with_volumes(bed.build_image("busybox"), directory / "image.tar", ["/vol"], layer(*names), name)
    bed.load_archive(archive)


@pytest.fixture(scope="module")
def warm(bed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Testbed:
    """The bed with the images, after a first pod."""
    load(bed, tmp_path_factory.mktemp("images"), EMPTY, "vol", "deep")
    load(bed, tmp_path_factory.mktemp("images"), FULL, f"vol{LONG}")
    run_and_remove_a_pod(bed)
    return bed


def run_and_remove_a_pod(bed: Testbed) -> None:
    pod_id = run_pod(bed)
    run_container(bed, pod_id, container_config("first", EMPTY, ["true"]))
    remove_pod(bed, pod_id)


@pytest.fixture
def pod(warm: Testbed) -> Iterator[str]:
    """A pod; when the test is over all of it must be gone, or what it left is shown."""
    before = observe(warm)
    pod_id = run_pod(warm)
    yield pod_id
    remove_pod(warm, pod_id)
    assert not warm.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    assert_no_leaks(warm, before)


def run_until_made(bed: Testbed, pod_id: str, script: str, *args: str, image: str = EMPTY) -> str:
    """A container that nobody privileged runs; returns its id when it has said that all is made."""
    context = cri.LinuxContainerSecurityContext(run_as_user=cri.Int64Value(value=65534))
    config = container_config(
        "maker", image, ["sh", "-c", script, *args], linux=cri.LinuxContainerConfig(security_context=context)
    )
    container_id = run_container(bed, pod_id, config)
    until(lambda: any("made" in line for line in log_lines(bed, container_id)), within=120, what="all is made")
    return container_id


@pytest.mark.parametrize("where", ["/vol", "/deep", "/dev/shm"])
def test_a_pod_whose_container_nested_directories_is_removed(warm: Testbed, pod: str, where: str) -> None:
    container_id = run_until_made(warm, pod, NEST, where)
    assert log_lines(warm, container_id) == [f"made {DEEP}"]


def volume_top(bed: Testbed, container_id: str) -> Path:
    """The directory that the container's volumes are in, and are removed with."""
    (source,) = (
        mount["source"]
        for mount in container_info(bed, container_id)["runtimeSpec"]["mounts"]
        if mount["destination"] == "/vol"
    )
    return bed.path(str(Path(source).parent.parent))


def files_in(top: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(top))


def test_while_many_files_are_removed_others_are_answered(warm: Testbed, pod: str) -> None:
    """Counted are answers that came when some of the files were gone and some were not."""
    container_id = run_until_made(warm, pod, FILL)
    top = volume_top(warm, container_id)
    assert files_in(top) >= FILES
    warm.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=0), timeout=60)
    removing = warm.runtime.RemoveContainer.future(cri.RemoveContainerRequest(container_id=container_id), timeout=300)
    answered = 0
    while not removing.done():
        warm.runtime.Version(cri.VersionRequest(), timeout=300)
        answered += 0 < files_in(top) < FILES
    removing.result()
    assert answered >= 3
    assert files_in(top) == 0


def test_a_removal_that_is_cut_off_is_finished_by_the_next(fresh_bed: StartBed, tmp_path: Path) -> None:
    bed = fresh_bed()
    load(bed, tmp_path, EMPTY, "vol")
    run_and_remove_a_pod(bed)
    before = observe(bed)
    pod_id = run_pod(bed)
    container_id = run_until_made(bed, pod_id, FILL)
    top = volume_top(bed, container_id)
    bed.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=0), timeout=60)
    removing = bed.runtime.RemoveContainer.future(cri.RemoveContainerRequest(container_id=container_id), timeout=300)
    until(lambda: files_in(top) < FILES, what="the removal has begun")
    bed.kill_daemon()
    left = files_in(top)
    with pytest.raises(grpc.RpcError):
        removing.result()
    assert left > 0
    bed.relaunch_daemon()
    remove_pod(bed, pod_id)
    assert_no_leaks(bed, before)


def test_a_deep_tree_at_an_images_volume_is_copied(warm: Testbed, pod: str) -> None:
    script = "cd /vol; i=0; while cd n* 2>/dev/null; do i=$((i+1)); done; echo made $i; sleep 1000"
    container_id = run_until_made(warm, pod, script, image=FULL)
    assert log_lines(warm, container_id) == [f"made {LONG.count('/')}"]


def test_many_removals_at_once_all_end(warm: Testbed, pod: str) -> None:
    """More than there are threads for them."""
    ids = []
    for i in range(6):
        config = container_config(
            f"c{i}", EMPTY, ["sh", "-c", "cd /vol; mkdir -p a/b c; touch a/x a/b/y; sleep 1000"]
        )
        ids.append(run_container(warm, pod, config))
    threads = [
        threading.Thread(
            target=lambda i=i: warm.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=i), timeout=120)
        )
        for i in ids
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listed = warm.runtime.ListContainers(cri.ListContainersRequest()).containers
    assert not {container.id for container in listed} & set(ids)

"""CheckpointContainer: an archive, a container that runs on, and nothing left behind, whatever happens."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.conftest import StartBed
from tests.pods import (
    container_config,
    create_container,
    exited,
    log_lines,
    refused,
    remove_pod,
    run_container,
    run_pod,
)
from tests.processes import until
from tests.testbed import ROOT, Testbed

pytestmark = pytest.mark.e2e

FAKE = "/var/lib/fake-criu"
ARCHIVES = "/var/lib/checkpoints-of-a-client"
# Tells that it lives, and has changed a file of its image, made one and deleted one.
LIVES = "echo made > /made; rm /etc/passwd; while :; do echo alive; sleep 0.1; done"


@pytest.fixture(scope="module")
def fake_bed(containerd_bin: Path | None) -> Iterator[Testbed]:
    """A bed whose CRIU is tests/fakes/criu.py."""
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        bed.write(f"{FAKE}/criu", (ROOT / "tests" / "fakes" / "criu.py").read_text(), mode=0o755)
        bed.write(f"{ARCHIVES}/.keep", "")
        bed.daemon_argv = ["env", f"PATH={FAKE}:{bed.env['PATH']}", *bed.daemon_argv]
        bed.start_daemon()
        bed.load_image("busybox")
        yield bed


def mode(bed: Testbed, text: str) -> None:
    bed.write(f"{FAKE}/mode", text)
    bed.write(f"{FAKE}/calls", "")


def dumping(bed: Testbed) -> bool:
    """Whether the fake was asked for more than its version, which is a start of its own."""
    return bed.path(f"{FAKE}/calls").read_text().count("swrk") > 1


def checkpoint(bed: Testbed, container_id: str, location: str, seconds: int = 60) -> None:
    request = cri.CheckpointContainerRequest(container_id=container_id, location=location, timeout=seconds)
    bed.runtime.CheckpointContainer(request, timeout=120)


def stores(bed: Testbed) -> list[str]:
    """Everything that containerd holds."""
    ctr = ["ctr", "--address", "/run/sandboxd/containerd/containerd.sock", "--namespace", "sandboxd"]
    lists = (["snapshots", "list"], ["leases", "list", "--quiet"], ["content", "list", "--quiet"])
    return [bed.run([*ctr, *words]).stdout for words in lists]


@contextmanager
def nothing_left(bed: Testbed) -> Iterator[None]:
    """What is done inside leaves nothing: in containerd, in the daemon's directories, in the client's."""
    before = stores(bed)
    yield
    until(lambda: stores(bed) == before, what="containerd has collected what the checkpoint needed")
    scratch = bed.path("/var/lib/sandboxd/checkpoints")
    until(lambda: not scratch.exists() or not list(scratch.iterdir()), what="what was gathered is gone")
    assert [path.name for path in bed.path(ARCHIVES).iterdir() if "unfinished" in path.name] == []


def lives(bed: Testbed, container_id: str) -> None:
    count = len(log_lines(bed, container_id))
    until(lambda: len(log_lines(bed, container_id)) > count + 2, what="the container goes on")


@pytest.fixture
def living(fake_bed: Testbed) -> Iterator[str]:
    """A running container that writes all the time."""
    pod_id = run_pod(fake_bed)
    yield run_container(fake_bed, pod_id, container_config("c", "busybox", ["sh", "-c", LIVES]))
    remove_pod(fake_bed, pod_id)


def test_the_archive_has_what_its_readers_look_for_and_the_container_runs_on(fake_bed: Testbed, living: str) -> None:
    bed, location = fake_bed, f"{ARCHIVES}/whole.tar"
    mode(bed, "works")
    lives(bed, living)
    with nothing_left(bed):
        checkpoint(bed, living, location)
    lives(bed, living)
    archive = bed.path(location)
    assert archive.stat().st_mode & 0o777 == 0o600, "it holds what the container has in memory"
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        assert len(names) == len(set(names))
        assert {"checkpoint", "checkpoint/inventory.img", "dump.log", "stats-dump"} <= set(names)
        assert tar.getmember("checkpoint").isdir()
        config = json.load(tar.extractfile("config.dump"))  # type: ignore[arg-type]
        assert (config["id"], config["name"], config["rootfsImageName"]) == (living, "c", "busybox")
        assert config["createdTime"] < config["checkpointedTime"]
        spec = json.load(tar.extractfile("spec.dump"))  # type: ignore[arg-type]
        assert spec["annotations"]["io.kubernetes.cri.container-name"] == "c"
        assert b"alive" in tar.extractfile("container.log").read()  # type: ignore[union-attr]
        with tarfile.open(fileobj=tar.extractfile("rootfs-diff.tar")) as changes:
            assert {"made", "etc/.wh.passwd"} <= set(changes.getnames())
            assert changes.extractfile("made").read() == b"made\n"  # type: ignore[union-attr]


def test_an_archive_that_was_there_is_replaced_by_a_whole_one_only(fake_bed: Testbed, living: str) -> None:
    bed, location = fake_bed, f"{ARCHIVES}/again.tar"
    there = bed.write(location, "an earlier one")
    mode(bed, "fails")
    with nothing_left(bed), pytest.raises(grpc.RpcError):
        checkpoint(bed, living, location)
    assert there.read_text() == "an earlier one"
    mode(bed, "works")
    checkpoint(bed, living, location)
    assert tarfile.is_tarfile(there)


def test_when_criu_fails_its_words_are_told_and_the_container_runs_on(fake_bed: Testbed, living: str) -> None:
    bed, location = fake_bed, f"{ARCHIVES}/failed.tar"
    mode(bed, "fails")
    with nothing_left(bed), pytest.raises(grpc.RpcError) as failed:
        checkpoint(bed, living, location)
    code, words = refused(failed.value)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "it was told to fail" in words
    assert not bed.path(location).exists()
    lives(bed, living)


def test_a_checkpoint_that_takes_too_long_is_given_up(fake_bed: Testbed, living: str) -> None:
    bed, location = fake_bed, f"{ARCHIVES}/late.tar"
    mode(bed, "hangs")
    with nothing_left(bed), pytest.raises(grpc.RpcError) as late:
        checkpoint(bed, living, location, seconds=2)
    assert refused(late.value)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not bed.path(location).exists()
    lives(bed, living)
    mode(bed, "works")
    checkpoint(bed, living, location)


def test_a_daemon_that_dies_in_the_middle_lets_the_container_run_on_when_it_is_back(
    fake_bed: Testbed, living: str
) -> None:
    bed, location = fake_bed, f"{ARCHIVES}/cut-off.tar"
    mode(bed, "hangs")
    with nothing_left(bed):
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(checkpoint, bed, living, location, 5)
            until(lambda: dumping(bed), what="CRIU is at it")
            scratch = bed.path("/var/lib/sandboxd/checkpoints")
            modes = {path.stat().st_mode & 0o777 for path in (scratch, scratch / living)}
            assert modes == {0o700}, "memory is nobody else's to read"
            bed.kill_daemon()
            with pytest.raises(grpc.RpcError):
                asked.result(timeout=30)
        bed.relaunch_daemon(within=120)
    lives(bed, living)
    assert not bed.path(location).exists()


def test_a_pod_can_be_removed_while_a_checkpoint_of_it_hangs(fake_bed: Testbed) -> None:
    bed = fake_bed
    mode(bed, "hangs")
    with nothing_left(bed):
        pod_id = run_pod(bed)
        container_id = run_container(bed, pod_id, container_config("c", "busybox", ["sh", "-c", LIVES]))
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(checkpoint, bed, container_id, f"{ARCHIVES}/removed.tar", 4)
            until(lambda: dumping(bed), what="CRIU is at it")
            remove_pod(bed, pod_id)
            with pytest.raises(grpc.RpcError):
                asked.result(timeout=60)


def test_a_kernel_that_criu_cannot_use_is_told_in_criu_s_words(fake_bed: Testbed, living: str) -> None:
    mode(fake_bed, "unfit")
    with pytest.raises(grpc.RpcError) as unfit:
        checkpoint(fake_bed, living, f"{ARCHIVES}/unfit.tar")
    code, words = refused(unfit.value)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "this kernel will not do" in words
    lives(fake_bed, living)


def test_what_cannot_be_checkpointed_is_told_apart(fake_bed: Testbed, living: str) -> None:
    bed = fake_bed
    mode(bed, "works")
    pod_id = run_pod(bed)
    created = create_container(bed, pod_id, container_config("created", "busybox", ["sleep", "3600"]))
    ended = run_container(bed, pod_id, container_config("ended", "busybox", ["true"]))
    until(lambda: exited(bed, ended), what="it has ended")
    there = f"{ARCHIVES}/never.tar"
    for container_id, location, seconds, code in (
        ("0" * 64, there, 0, grpc.StatusCode.NOT_FOUND),
        (created, there, 0, grpc.StatusCode.FAILED_PRECONDITION),
        (ended, there, 0, grpc.StatusCode.FAILED_PRECONDITION),
        (living, "never.tar", 0, grpc.StatusCode.INVALID_ARGUMENT),
        (living, "", 0, grpc.StatusCode.INVALID_ARGUMENT),
        (living, f"{ARCHIVES}/", 0, grpc.StatusCode.INVALID_ARGUMENT),
        (living, there, -1, grpc.StatusCode.INVALID_ARGUMENT),
        (living, f"{ARCHIVES}/no/such/directory.tar", 0, grpc.StatusCode.FAILED_PRECONDITION),
    ):
        with nothing_left(bed), pytest.raises(grpc.RpcError) as error:
            checkpoint(bed, container_id, location, seconds)
        assert refused(error.value)[0] is code, (container_id, location, seconds)
    assert not bed.path(there).exists()
    remove_pod(bed, pod_id)


def test_without_criu_the_answer_is_that_it_is_missing(bed: Testbed, images: tuple[str, ...]) -> None:
    for directory in bed.env["PATH"].split(":"):
        if (Path(directory) / "criu").is_file():
            bed.run(["mount", "--bind", "/dev/null", f"{directory}/criu"])
    pod_id = run_pod(bed)
    container_id = run_container(bed, pod_id, container_config("c", "busybox", ["sleep", "3600"]))
    with pytest.raises(grpc.RpcError) as missing:
        checkpoint(bed, container_id, "/var/lib/never.tar")
    code, words = refused(missing.value)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "criu is not installed" in words
    remove_pod(bed, pod_id)


def test_the_real_criu_dumps_the_memory_of_a_container(fresh_bed: StartBed) -> None:
    """Only where there is one that fits the kernel; the fake above stands for it elsewhere."""
    criu = shutil.which("criu")
    if criu is None:
        pytest.skip("criu is not installed")
    checked = subprocess.run([criu, "check"], capture_output=True, text=True, check=False)
    if checked.returncode:
        pytest.skip(f"{criu} does not fit this kernel: {checked.stderr.strip()}")
    bed = fresh_bed()
    bed.load_image("busybox")
    bed.write(f"{ARCHIVES}/.keep", "")
    pod_id = run_pod(bed)
    script = 'secret=$(echo kept-in-"memory-only"); while :; do echo alive; sleep 0.1; done'
    container_id = run_container(bed, pod_id, container_config("c", "busybox", ["sh", "-c", script]))
    lives(bed, container_id)
    with nothing_left(bed):
        checkpoint(bed, container_id, f"{ARCHIVES}/real.tar")
    lives(bed, container_id)
    with tarfile.open(bed.path(f"{ARCHIVES}/real.tar")) as tar:
        pages = [member for member in tar if member.name.startswith("checkpoint/pages-")]
        memory = b"".join(tar.extractfile(member).read() for member in pages)  # type: ignore[union-attr]
    assert b"kept-in-memory-only" in memory
    remove_pod(bed, pod_id)

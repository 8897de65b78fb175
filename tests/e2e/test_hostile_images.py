"""Images that are made to hurt, pulled from a registry and loaded from archives by the real daemon.

What each kind of bomb costs: tests/unit/oci/test_bombs.py. Here the daemon stays what it was: it goes on serving,
its memory stays bounded, and it ends when it is asked to.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2
from tests.conftest import StartBed
from tests.images import layer_of, with_volumes
from tests.pods import refused, remove_pod, run_pod
from tests.processes import until
from tests.registry_server import OCI_CONFIG, OCI_MANIFEST, RegistryServer, start_registry
from tests.testbed import Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.images]

MOST_GROWTH = 300 << 10  # KiB of the daemon's memory at its peak
DRAIN_SECONDS = 2.0
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info.tobuf(tarfile.USTAR_FORMAT)


def extended(key: str, value: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body)
    while length != len(str(length)) + len(body):
        length = len(str(length)) + len(body)
    data = str(length).encode() + body
    return header("x", kind, len(data)) + data + bytes(-len(data) % 512)


def packed(parts: Iterable[bytes]) -> tuple[bytes, str]:
    """(the layer in gzip, the digest of what is inside); the whole is never in memory."""
    output, digest = io.BytesIO(), hashlib.sha256()
    with gzip.GzipFile(fileobj=output, mode="wb", compresslevel=6) as file:
        for part in (*parts, bytes(1024)):
            file.write(part)
            digest.update(part)
    return output.getvalue(), f"sha256:{digest.hexdigest()}"


def deep_name() -> Iterable[bytes]:
    yield header("l", tarfile.SYMTYPE, link="x")
    yield extended("path", b"a/" * 500_000 + b"x") + header("y")


def global_headers() -> Iterable[bytes]:
    for number in range(300):
        yield extended(f"SCHILY.x{number}", b"a" * 1_000_000, tarfile.XGLTYPE) + header(f"f{number}")


def many_links() -> Iterable[bytes]:
    for number in range(40):
        yield extended("linkpath", b"x/../" * 800 + b"l%d" % (number + 1)) + header(f"l{number}", tarfile.SYMTYPE)
    for number in range(5000):
        yield header(f"l0/{number}/file")


def sparse() -> Iterable[bytes]:
    records = b"22 GNU.sparse.map=0,1\n35 GNU.sparse.size=100000000000000\n"
    yield header("x", tarfile.XHDTYPE, len(records)) + records + bytes(-len(records) % 512)
    yield header("s", size=512) + bytes(512)


@functools.cache
def much_work() -> tuple[bytes, str]:
    """A layer that is allowed and takes a while, to make as well: a quarter of a million entries."""
    return packed(header(f"{number:07}") for number in range(250_000))


def documents(layer: bytes, diff_id: str) -> tuple[bytes, bytes]:
    """The config and the manifest of an image of one layer."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "")
    rootfs = {"type": "layers", "diff_ids": [diff_id]}
    config = json.dumps({"os": "linux", "architecture": architecture, "rootfs": rootfs}).encode()

    def points_at(kind: str, data: bytes) -> dict[str, Any]:
        return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": points_at(OCI_CONFIG, config),
        "layers": [points_at(OCI_LAYER, layer)],
    }
    return config, json.dumps(manifest).encode()


def publish(registry: RegistryServer, name: str, packed_layer: tuple[bytes, str]) -> str:
    layer, diff_id = packed_layer
    config, manifest = documents(layer, diff_id)
    for blob in (layer, config):
        registry.storage.blob(blob)
    registry.storage.manifest(name, json.loads(manifest), "v1")
    return f"{registry.host}/{name}:v1"


def archive(path: Path, packed_layer: tuple[bytes, str]) -> Path:
    layer, diff_id = packed_layer
    config, manifest = documents(layer, diff_id)
    top = {
        "mediaType": OCI_MANIFEST,
        "digest": f"sha256:{hashlib.sha256(manifest).hexdigest()}",
        "size": len(manifest),
        "annotations": {"io.containerd.image.name": "docker.io/test/x:1"},
    }
    files = {f"blobs/sha256/{hashlib.sha256(data).hexdigest()}": data for data in (layer, config, manifest)}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pull(bed: Testbed, name: str, timeout: float = 60.0) -> object:
    return bed.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=name)), timeout=timeout)


def load(bed: Testbed, path: Path) -> object:
    return bed.load_archive(path)


def peak(bed: Testbed) -> int:
    """KiB that the daemon held at most so far."""
    status = Path(f"/proc/{bed.daemon_pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def test_hostile_layers_are_refused_while_others_are_pulled(fresh_bed: StartBed) -> None:
    bed = fresh_bed(network=False)
    registry = start_registry(bed, 5000)
    hostile = {
        publish(registry, name, packed(parts)): reason
        for name, parts, reason in (
            ("quadratic", deep_name(), "4095 bytes"),
            ("global", global_headers(), "global headers"),
            ("links", many_links(), "more symbolic links than can be followed"),
            ("sparse", sparse(), "when unpacked"),
        )
    }
    good = publish(registry, "good", packed([header("file", size=512), bytes(512)]))
    before = peak(bed)

    def refusal(name: str) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            pull(bed, name)
        return refused(caught.value)

    with ThreadPoolExecutor(len(hostile) + 1) as clients:
        answers = {name: clients.submit(refusal, name) for name in hostile}
        clients.submit(pull, bed, good).result()
        for name, reason in hostile.items():
            code, words = answers[name].result()
            assert code is grpc.StatusCode.INVALID_ARGUMENT, words
            assert reason in words
            assert len(words) < 1000
    assert peak(bed) - before < MOST_GROWTH
    listed = [tag for image in bed.images.ListImages(cri.ListImagesRequest()).images for tag in image.repo_tags]
    assert good in listed
    assert not hostile.keys() & set(listed)
    assert "Traceback" not in bed.log_tail(1000)


def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_refused(fresh_bed: StartBed, tmp_path: Path) -> None:
    bed = fresh_bed(network=False)
    bomb = tmp_path / "bomb.tar.gz"
    with gzip.open(bomb, "wb", compresslevel=6) as file:
        file.write(header("x", size=400 << 20))
        for _ in range(400):
            file.write(bytes(1 << 20))
    with pytest.raises(grpc.RpcError) as caught:
        bed.load_archive(bomb)
    code, words = refused(caught.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "decompress it before loading it" in words


@pytest.mark.parametrize("way", ["pull", "load"])
def test_sigterm_ends_it_in_its_time_while_a_layer_is_examined(fresh_bed: StartBed, tmp_path: Path, way: str) -> None:
    bed = fresh_bed(daemon=False, network=False)
    registry = start_registry(bed, 5000)
    bed.start_daemon(daemon={"drain_seconds": DRAIN_SECONDS})
    busy: Future[object]
    with ThreadPoolExecutor(1) as clients:
        if way == "pull":
            busy = clients.submit(pull, bed, publish(registry, "busy", much_work()))
        else:
            busy = clients.submit(load, bed, archive(tmp_path / "busy.tar", much_work()))
        until(lambda: examining(bed), what="a thread is at work on it")
        assert bed.stop_daemon(within=DRAIN_SECONDS + 10) == 0
        with pytest.raises(grpc.RpcError):
            busy.result(timeout=60)


def examining(bed: Testbed) -> bool:
    """Whether a thread of the daemon that reads layers or archives has worked for a while."""
    for task in Path(f"/proc/{bed.daemon_pid}/task").iterdir():
        try:
            if task.joinpath("comm").read_text().startswith(("layer", "archive")):
                return True
            fields = task.joinpath("stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if task.name != str(bed.daemon_pid) and int(fields[11]) >= 50:  # half a second of user time
            return True
    return False


def test_sigterm_ends_it_although_a_thread_never_ends(fresh_bed: StartBed) -> None:
    """One that opens a FIFO which nobody writes to: neither a flag nor an exception reaches it."""
    bed = fresh_bed(daemon=False, network=False)
    bed.run(["mkfifo", "/run/never"])
    bed.start_daemon(ready=False, runtime={"pause_binary": "/run/never"}, daemon={"drain_seconds": DRAIN_SECONDS})
    until(bed.socket.exists, what="it has started")
    until(lambda: opens_a_fifo(bed), what="a thread waits for the FIFO")
    assert bed.stop_daemon(within=DRAIN_SECONDS + 15) == 0
    assert "exiting without it" in bed.log_tail()


def opens_a_fifo(bed: Testbed) -> bool:
    waits = []
    for task in Path(f"/proc/{bed.daemon_pid}/task").iterdir():
        try:
            waits.append(task.joinpath("wchan").read_text())
        except OSError:
            continue
    return any("wait_for_partner" in wait for wait in waits)


@pytest.mark.parametrize("how", ["an archive takes its name", "it is removed"])
def test_every_pod_begins_with_sandboxds_own_pause_image(fresh_bed: StartBed, tmp_path: Path, how: str) -> None:
    bed = fresh_bed()
    bed.load_image("busybox")
    (own,) = [image for image in bed.images.ListImages(cri.ListImagesRequest()).images if image.pinned]
    if how == "it is removed":
        bed.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=own.id)))
    else:
        archive = tmp_path / "pause.tar"
        with_volumes(bed.build_image("busybox"), archive, [], layer_of([("file", b"content", "")]), own.repo_tags[0])
        (loaded,) = bed.load_archive(archive)
        assert list(loaded.names) == []
    pod_id = run_pod(bed)
    (pause,) = [image for image in bed.images.ListImages(cri.ListImagesRequest()).images if image.pinned]
    assert (pause.id, list(pause.repo_tags)) == (own.id, list(own.repo_tags))
    pid = bed.host.Explain(host_pb2.ExplainRequest(pod_sandbox_id=pod_id)).pid
    cmdline = bed.proc / str(pid) / "cmdline"
    # For a moment after the start it is still the runtime's own process, under names of its own.
    until(lambda: cmdline.read_bytes() == b"/catatonit\0-P\0", what="sandboxd's own pause runs")
    remove_pod(bed, pod_id)


def test_a_name_of_sandboxds_own_is_pulled_from_nowhere(fresh_bed: StartBed) -> None:
    bed = fresh_bed()
    with pytest.raises(grpc.RpcError) as error:
        bed.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image="sandboxd.local/pause:builtin")))
    code, words = refused(error.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "sandboxd's own" in words

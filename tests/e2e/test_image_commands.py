"""sandboxctl's image commands against a real registry, and the figures that the daemon counts meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sandboxd.containerd.ingest import MESSAGE_BYTES
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host
from tests.e2e.test_sandboxctl import Ctl
from tests.images import host_architecture, index_of, layer_of, make_image
from tests.pods import refused
from tests.processes import until
from tests.pulling import PATIENT, Site, blob_requests
from tests.registry_server import PASSWORD, USER, htpasswd, start_proxy, start_registry
from tests.testbed import Testbed

pytestmark = [pytest.mark.e2e, pytest.mark.images]

METRICS_PORT = 9477
CONTENT = "/var/lib/sandboxd/containerd/io.containerd.content.v1.content/blobs/sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Site):
    """A site with a sandboxctl."""

    ctl: Ctl

    def figure(self, name: str, **labels: str) -> float:
        """One of the daemon's figures; 0 for one that is not there yet."""
        text = self.bed.host.Metrics(host.MetricsRequest()).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return 0

    def inspect(self, name: str) -> dict[str, Any]:
        """`sandboxctl inspecti`."""
        data: dict[str, Any] = json.loads(self.ctl("inspecti", name))
        return data


@pytest.fixture(scope="module")
def place(containerd_bin: Path | None) -> Iterator[Place]:
    """One bed for the tests of this module."""
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        bed.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        registry = start_registry(bed, 5000)
        proxy = start_proxy(bed, 5001, registry.host)
        bed.start_daemon(images=PATIENT, metrics={"address": f"127.0.0.1:{METRICS_PORT}"})
        yield Place(bed=bed, registry=registry, proxy=proxy, ctl=Ctl(bed))


@pytest.fixture(autouse=True)
def honest(place: Place) -> None:
    """Each test begins with a proxy that changes nothing."""
    place.proxy.rules()


def test_a_pull_tells_each_layer_and_prints_the_name(place: Place) -> None:
    image = place.synthetic("told/lines", layers=3)
    name = f"{place.registry.host}/told/lines:v1"

    finished = place.ctl.run("pull", name)

    assert (finished.returncode, finished.stdout) == (0, f"{name}\n")
    lines = [line.split() for line in finished.stderr.splitlines()]
    for layer in image.layers:
        told = [stage for digest, stage, _ in lines if digest == layer[7:19]]
        assert told[-1] == "done"
    assert place.ctl("pull", "-q", name) == f"{image.config}\n"
    assert json.loads(place.ctl("pull", "-o", "json", name)) == {
        "name": name,
        "imageId": image.config,
        "digest": image.manifest_digest,
        "size": str(place.inspect(name)["status"]["size"]),
    }


def test_a_pull_on_a_terminal_has_a_bar_for_each_layer(place: Place) -> None:
    image = place.synthetic("told/bars", layers=3)
    # Slow enough to be drawn: the first layer comes only when the registry is asked again.
    place.proxy.rules({"path": image.layers[0], "do": "status", "status": 503, "retry_after": "1", "times": 1})
    ours, theirs = pty.openpty()
    try:
        argv = [*place.ctl._argv, "pull", f"{place.proxy.host}/told/bars:v1"]
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        )
        os.close(theirs)
        drawn = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
            while data := os.read(ours, 65536):
                drawn += data
        assert process.communicate(timeout=60)[0].decode().endswith("told/bars:v1\n")
    finally:
        os.close(ours)

    for word in ("all layers", *(layer[7:19] for layer in image.layers)):
        assert word.encode() in drawn


def test_cri_and_sandboxctl_pull_together(place: Place) -> None:
    image = place.synthetic("told/together", layers=2, layer_bytes=3_000_000)
    name = f"{place.proxy.host}/told/together:v1"
    place.proxy.rules({"path": image.layers[0], "do": "status", "status": 503, "retry_after": "1", "times": 1})

    with ThreadPoolExecutor() as pool:
        theirs = pool.submit(place.pull, name)
        until(lambda: blob_requests(place.proxy, image.layers[0]), what="the layer is asked for")
        ours = place.ctl("pull", "-q", name)

    assert ours.strip() == theirs.result() == image.config
    assert [request["do"] for request in blob_requests(place.proxy, image.layers[0])] == ["status", ""]
    assert len(blob_requests(place.proxy, image.layers[1])) == 1


def test_an_interrupt_stops_the_pull_and_the_next_one_goes_on(place: Place) -> None:
    image = place.synthetic("told/interrupt", layer_bytes=12_000_000)
    name = f"{place.proxy.host}/told/interrupt:v1"
    place.proxy.rules({"path": image.layers[0], "do": "stall", "after": 2 * MESSAGE_BYTES, "times": 1})
    before = place.figure("sandboxd_image_pulls_total", outcome="cancelled")

    # Who runs the tests in the background has them, and what they start, ignore an interrupt.
    argv = ["env", "--default-signal=INT", *place.ctl._argv, "pull", name]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: blob_requests(place.proxy, image.layers[0]), what="the layer is asked for")
    until(lambda: any("MB" in line for line in place.ctr("content", "active")), what="a part is stored")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 130, said
    assert "kept for the next attempt" in said
    until(
        lambda: place.figure("sandboxd_image_pulls_total", outcome="cancelled") == before + 1,
        what="the daemon has stopped the pull",
    )
    assert place.figure("sandboxd_image_pulls_in_flight") == 0
    assert place.status(name) is None
    place.ctl("pull", name)
    assert blob_requests(place.proxy, image.layers[0])[-1]["range"].startswith("bytes=")
    assert place.figure("sandboxd_image_blobs_resumed_total") >= 1


def test_credentials_are_sent_and_missing_ones_are_explained(place: Place) -> None:
    registry = start_registry(place.bed, 5003, storage=place.registry.storage, auth=htpasswd(place.bed))
    image = place.synthetic("private/image")
    name = f"{registry.host}/private/image:v1"

    finished = place.ctl.run("pull", name)
    assert finished.returncode == 1
    assert "--creds" in finished.stderr

    assert place.ctl("pull", "-q", "--creds", f"{USER}:{PASSWORD}", name).strip() == image.config


def test_a_registry_that_does_not_answer_is_not_taken_for_the_daemon(place: Place) -> None:
    finished = place.ctl.run("pull", "127.0.0.1:9/no/body:v1")

    assert finished.returncode == 1
    assert "127.0.0.1:9" in finished.stderr


def run_once(place: Place, name: str) -> str:
    """What a container of this image prints."""
    container = place.ctl("run", "-q", "--pull", "never", name, "--", "echo", "from the image").strip()
    until(lambda: container in place.ctl("ps", "-a", "-q", "--state", "exited"), what="the container ends")
    try:
        return place.ctl("logs", container[:12])
    finally:
        pods = json.loads(place.ctl("ps", "-a", "-o", "json"))["containers"]
        place.ctl("rm", "-f", next(each["podSandboxId"] for each in pods if each["id"] == container))


def test_an_image_that_was_saved_and_removed_comes_back_as_it_was_and_runs(place: Place, tmp_path: Path) -> None:
    name = place.busybox("saved/busybox")
    place.ctl("pull", name)
    before, archive = place.inspect(name), tmp_path / "busybox.tar"

    place.ctl("save", "-o", str(archive), name)
    place.ctl("rmi", name)
    assert place.ctl.run("inspecti", name).returncode == 3
    assert place.ctl("load", str(archive)) == f"{name}\n"

    assert place.inspect(name) == before
    assert run_once(place, name) == "from the image\n"
    assert place.ctr("leases", "ls", "-q") == []
    place.ctl("save", "-o", str(tmp_path / "again.tar"), name)
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()


def test_containerds_own_client_imports_what_was_saved(place: Place, tmp_path: Path) -> None:
    names = [f"{place.registry.host}/saved/{each}:v1" for each in ("one", "two")]
    images = [place.synthetic(f"saved/{each}", layers=2) for each in ("one", "two")]
    for name in names:
        place.ctl("pull", name)
    archive = tmp_path / "both.tar"

    place.ctl("save", "-o", str(archive), *names)

    ctr = ["ctr", "-a", "/run/sandboxd/containerd/containerd.sock", "-n", "elsewhere"]
    place.bed.run([*ctr, "images", "import", str(archive)])
    listed = [line.split()[:3] for line in place.bed.run([*ctr, "images", "ls"]).stdout.splitlines()[1:]]
    assert [[each[0], each[2]] for each in listed] == [
        [name, image.manifest_digest] for name, image in zip(names, images, strict=True)
    ]
    checked = [line for line in place.bed.run([*ctr, "images", "check"]).stdout.splitlines() if "saved/" in line]
    assert [("complete (3/3)" in line, "true" in line.split()) for line in checked] == [(True, True)] * 2
    place.bed.run([*ctr, "images", "rm", "--sync", *names])


def test_dockers_part_of_an_archive_is_the_same_image(place: Place, tmp_path: Path) -> None:
    name = place.busybox("saved/docker")
    place.ctl("pull", name)
    identity = place.inspect(name)["status"]["id"]
    place.ctl("save", "-o", str(tmp_path / "both.tar"), name)
    place.ctl("rmi", name)

    with tarfile.open(tmp_path / "both.tar") as both, tarfile.open(tmp_path / "docker.tar", "w") as docker:
        for member in both:
            if member.name not in ("index.json", "oci-layout"):
                docker.addfile(member, both.extractfile(member))
    place.ctl("load", str(tmp_path / "docker.tar"))

    assert place.inspect(name)["status"]["id"] == identity
    assert run_once(place, name) == "from the image\n"


def test_an_image_of_an_index_is_saved_with_its_own_platform(place: Place, tmp_path: Path) -> None:
    storage = place.registry.storage
    layer = layer_of([("which", b"one", "")])
    here = make_image(storage, "saved/index", [layer], tag="")
    there = make_image(storage, "saved/index", [layer], architecture="s390x", tag="")
    index = index_of(storage, "saved/index", {"s390x": there, host_architecture(): here})
    name = f"{place.registry.host}/saved/index:v1"
    place.ctl("pull", name)
    before, archive = place.inspect(name), tmp_path / "index.tar"

    place.ctl("save", "-o", str(archive), name)
    place.ctl("rmi", name)
    place.ctl("load", str(archive))

    assert place.inspect(name) == before
    # Pods name images by the digest that the registry's users see.
    assert place.status(f"{place.registry.host}/saved/index@{index}") is not None
    assert {index, here} <= set(place.ctr("content", "ls", "-q"))
    with tarfile.open(archive) as tar:
        members = tar.getnames()
    assert f"blobs/sha256/{here[7:]}" in members
    assert f"blobs/sha256/{there[7:]}" not in members


def test_damaged_content_is_not_saved(place: Place, tmp_path: Path) -> None:
    image = place.synthetic("saved/damaged")
    name = f"{place.registry.host}/saved/damaged:v1"
    place.ctl("pull", name)
    damage = "import sys\nf = open(sys.argv[1], 'r+b')\nf.seek(100)\nf.write(b'damage')"
    place.bed.run(["python3", "-c", damage, f"{CONTENT}/{image.layers[0][7:]}"])

    finished = place.ctl.run("save", "-o", str(tmp_path / "damaged.tar"), name)

    assert finished.returncode == 1
    assert f"{image.layers[0]} is damaged" in finished.stderr
    assert list(tmp_path.iterdir()) == []
    assert place.ctr("leases", "ls", "-q") == []
    place.ctl("rmi", name)


def test_a_save_that_nobody_reads_any_more_leaves_nothing(place: Place) -> None:
    place.synthetic("saved/left", layer_bytes=40_000_000)
    name = f"{place.registry.host}/saved/left:v1"
    place.ctl("pull", name)

    call = place.bed.host.SaveImage(host.SaveImageRequest(images=[name]))
    assert next(call).total_bytes > 20_000_000
    call.cancel()

    until(lambda: place.ctr("leases", "ls", "-q") == [], what="the lease ends")
    until(
        lambda: place.figure("sandboxd_rpcs_total", method="sandboxd.host.v1.Host/SaveImage", code="CANCELLED") >= 1,
        what="the call is counted",
    )
    place.ctl("rmi", name)


def test_what_is_not_there_cannot_be_saved(place: Place, tmp_path: Path) -> None:
    finished = place.ctl.run("save", "-o", str(tmp_path / "a.tar"), "nosuch")

    assert finished.returncode == 3
    assert "nosuch" in finished.stderr
    with pytest.raises(grpc.RpcError) as caught:
        list(place.bed.host.SaveImage(host.SaveImageRequest()))
    assert refused(caught.value)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_run_pulls_what_is_missing(place: Place) -> None:
    name = place.busybox("runs/missing")
    assert place.ctl.run("run", "--pull", "never", name).returncode == 3

    container = place.ctl("run", "-q", name, "--name", "missing", "--", "sleep", "1000").strip()

    assert container in place.ctl("ps", "-q")
    place.ctl("rm", "-f", "missing")


def test_prune_spares_what_is_used_or_pinned(place: Place) -> None:
    used = place.busybox("prune/used")
    unused = f"{place.registry.host}/prune/unused:v1"
    unused_image = place.synthetic("prune/unused")
    place.ctl("run", "-q", used, "--name", "user", "--", "sleep", "1000")
    place.ctl("stop", "user")
    place.ctl("pull", unused)
    layers = {line.split()[0] for line in place.ctr("snapshots", "ls")[1:]}

    finished = place.ctl.run("rmi", "--prune")

    assert finished.returncode == 0, finished.stderr
    assert unused in finished.stdout.splitlines()
    assert "unpacked layers" in finished.stderr and "0B" not in finished.stderr.split()
    left = json.loads(place.ctl("images", "-o", "json"))["images"]
    assert {(image["pinned"], used in image["repoTags"]) for image in left} == {(True, False), (False, True)}
    assert unused_image.layers[0] not in place.ctr("content", "ls", "-q")
    assert {line.split()[0] for line in place.ctr("snapshots", "ls")[1:]} < layers
    place.ctl("rm", "-f", "user")
    assert place.ctl("rmi", "--prune").splitlines() == [used]


def test_inspecti_shows_what_is_verbose(place: Place) -> None:
    name = place.busybox("inspected/busybox")
    place.ctl("pull", name)

    data = place.inspect(name)

    assert data["info"]["chainID"] in {line.split()[0] for line in place.ctr("snapshots", "ls")[1:]}
    assert "PATH" in json.dumps(data["info"]["imageSpec"]["config"])
    assert data["status"]["repoTags"] == [name]
    assert place.ctl("images", "-q", name).split() == [data["status"]["id"]]
    assert data["status"]["repoDigests"][0].partition("@")[2] in place.ctl("images", "--digests")


def test_a_pull_is_counted(place: Place) -> None:
    image = place.synthetic("counted/image", layers=2)
    name = f"{place.registry.host}/counted/image:v1"
    names: tuple[tuple[str, dict[str, str]], ...] = (
        ("sandboxd_image_pulls_started_total", {}),
        ("sandboxd_image_pulls_total", {"outcome": "succeeded"}),
        ("sandboxd_image_blobs_total", {"how": "fetched"}),
        ("sandboxd_image_fetched_bytes_total", {}),
        ("sandboxd_step_seconds_count", {"step": "image.content", "outcome": "ok"}),
        ("sandboxd_rpcs_total", {"method": "runtime.v1.ImageService/PullImage", "code": "OK"}),
    )
    before = [place.figure(figure, **labels) for figure, labels in names]

    place.bed.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=name)), timeout=60)

    grown = [place.figure(figure, **labels) - old for (figure, labels), old in zip(names, before, strict=True)]
    sizes = [len(place.registry.storage.read(digest)) for digest in (*image.layers, image.config)]
    assert grown == [1, 1, 3, sum(sizes), 1, 1]


def test_prometheus_finds_the_same_over_http(place: Place) -> None:
    status, text = place.bed.http_get("127.0.0.1", METRICS_PORT, "/metrics")

    assert status == 200
    names = {family.name for family in text_string_to_metric_families(text)}
    assert names == {family.name for family in text_string_to_metric_families(place.ctl("metrics"))}
    assert "sandboxd_image_pulls" in names
    assert place.bed.http_get("127.0.0.1", METRICS_PORT, "/")[0] == 404


def test_an_address_that_cannot_be_had_ends_the_start_with_its_name(place: Place) -> None:
    argv = [str(Path(sys.executable).parent / "sandboxd"), "serve", "--set", "metrics.address=192.0.2.1:9477"]
    base = place.bed.base / "other"
    for key, directory in (("root", "root"), ("state", "state")):
        argv += ["--set", f"daemon.{key}={base}/{directory}"]

    finished = place.bed.run(argv, check=False)

    assert finished.returncode == 1
    assert "192.0.2.1 port 9477" in finished.stderr

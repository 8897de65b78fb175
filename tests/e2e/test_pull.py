"""Pulling from a real registry: what is pulled, where from, and how it is unpacked."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.conftest import StartBed
from tests.images import host_architecture, index_of, layer_of, make_image, special
from tests.pods import (
    container_config,
    container_status,
    create_container,
    exited,
    pod_config,
    pod_info,
    refused,
    remove_pod,
    run_pod,
    start_container,
)
from tests.processes import until
from tests.pulling import QUICK, Code, Site, hosts_toml
from tests.registry_server import Storage, digest_of, start_registry
from tests.testbed import Testbed

pytestmark = pytest.mark.e2e

# What is pulled.


def test_an_image_by_tag_is_there_with_its_names_and_is_the_answer(site: Site) -> None:
    image = site.synthetic("plain/by-tag", layers=3)
    name = f"{site.registry.host}/plain/by-tag:v1"

    pulled = site.pull(name)

    found = site.status(name)
    assert found is not None
    assert (found.id, pulled) == (image.config, image.config)
    assert list(found.repo_tags) == [name]
    assert list(found.repo_digests) == [f"{site.registry.host}/plain/by-tag@{image.manifest_digest}"]
    assert site.ctr("leases", "ls", "-q") == []
    assert site.pull(name) == pulled


def test_an_image_by_digest_has_no_tag(site: Site) -> None:
    image = site.synthetic("plain/by-digest")
    by_digest = f"{site.registry.host}/plain/by-digest@{image.manifest_digest}"

    site.pull(by_digest)
    site.pull(f"{site.registry.host}/plain/by-digest:other@{image.manifest_digest}")

    found = site.status(by_digest)
    assert found is not None
    assert list(found.repo_tags) == []
    assert list(found.repo_digests) == [by_digest]


def test_a_tag_that_moves_leaves_the_old_image_its_digest(site: Site) -> None:
    first = site.synthetic("plain/moves", seed="first")
    name = f"{site.registry.host}/plain/moves:v1"
    site.pull(name)
    site.bed.run(["rm", "-rf", str(site.bed.base / "layouts" / "plain-moves")])
    second = site.synthetic("plain/moves", seed="second")

    assert site.pull(name) == second.config

    old = site.status(f"{site.registry.host}/plain/moves@{first.manifest_digest}")
    assert old is not None
    assert (old.id, list(old.repo_tags)) == (first.config, [])


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_layers_of_every_compression_are_unpacked(site: Site, compression: str) -> None:
    site.synthetic(f"compressed/{compression}", layers=2, compression=compression)

    site.pull(f"{site.registry.host}/compressed/{compression}:v1")

    assert site.status(f"{site.registry.host}/compressed/{compression}:v1") is not None


def test_dockers_own_media_types_are_read(site: Site) -> None:
    def as_docker(manifest: dict[str, Any]) -> None:
        manifest["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
        manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"

    kind = "application/vnd.docker.image.rootfs.diff.tar"
    make_image(
        site.registry.storage, "docker/types", [layer_of([("a", b"b", "")])], layer_type=kind, changes=as_docker
    )

    site.pull(f"{site.registry.host}/docker/types:v1")


def test_the_platform_is_chosen_from_an_index(site: Site) -> None:
    storage = site.registry.storage
    other = "s390x"
    layer = layer_of([("which", b"one", "")])
    here = make_image(storage, "indexes/both", [layer], tag="")
    there = make_image(storage, "indexes/both", [layer], architecture=other, tag="")
    index = index_of(storage, "indexes/both", {other: there, host_architecture(): here})
    name = f"{site.registry.host}/indexes/both:v1"

    pulled = site.pull(name)

    assert pulled == json.loads(storage.read(here))["config"]["digest"]
    found = site.status(name)
    assert found is not None
    assert list(found.repo_digests) == [f"{site.registry.host}/indexes/both@{index}"]
    assert there not in site.ctr("content", "ls", "-q")


def test_a_pulled_image_runs(site: Site) -> None:
    name = site.busybox("runs/busybox")
    site.pull(name)

    pod = pod_config()
    pod_id = run_pod(site.bed, pod)
    container = container_config("once", name, ["sh", "-c", "exit 7"])
    container_id = create_container(site.bed, pod_id, container, pod)
    start_container(site.bed, container_id)

    until(lambda: exited(site.bed, container_id), what="the container ends")
    assert container_status(site.bed, container_id).exit_code == 7
    remove_pod(site.bed, pod_id)


# Where it is pulled from.


def test_a_pause_image_that_is_configured_is_fetched_and_pinned(fresh_bed: StartBed) -> None:
    bed = fresh_bed(daemon=False)
    registry = start_registry(bed, 5000)
    name = f"{registry.host}/our/pause:1"
    bed.start_daemon(images=QUICK, runtime={"pause_image": name, "cgroup_parent": bed.cgroup_parent})
    with pytest.raises(grpc.RpcError) as error:
        run_pod(bed)
    code, words = refused(error.value)
    assert code is Code.UNAVAILABLE and name in words

    publish_pause(registry.storage, "our/pause", "1")
    made: list[str] = []
    until(lambda: runs(bed, made), what="it is fetched")
    (pod_id,) = made
    assert bed.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=name))).image.pinned
    assert pod_info(bed, pod_id)["runtimeSpec"]["process"]["args"] == ["/pause", "-P"]
    bed.restart_daemon()
    remove_pod(bed, pod_id)
    remove_pod(bed, run_pod(bed))


def test_a_pause_image_is_an_image_with_its_own_users_and_special_files(fresh_bed: StartBed) -> None:
    """Its user may have a name; where the OCI runtime would wait for a FIFO, the run ends and says why."""
    bed = fresh_bed(daemon=False)
    registry = start_registry(bed, 5000)
    publish_pause(registry.storage, "our/pause", "named", user="guard", passwd=b"guard:x:77:78::/:/bin/sh\n")
    publish_pause(registry.storage, "our/pause", "fifo", passwd=b"")
    for tag in ("named", "fifo"):
        name = f"{registry.host}/our/pause:{tag}"
        bed.start_daemon(images=QUICK, runtime={"pause_image": name, "cgroup_parent": bed.cgroup_parent})
        bed.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=name)), timeout=60)
        made: list[str] = []
        if tag == "named":
            until(lambda each=made: runs(bed, each), what="it is fetched")  # type: ignore[misc]
            user = pod_info(bed, made[0])["runtimeSpec"]["process"]["user"]
            assert (user["uid"], user["gid"]) == (77, 78)
            remove_pod(bed, made[0])
        else:
            until(lambda: "is a FIFO" in refusal(bed), what="it is fetched and refused")
            assert "the pause image" in refusal(bed) and "runtime.pause_image" in refusal(bed)
            assert not bed.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
        bed.stop_daemon()


def refusal(bed: Testbed) -> str:
    """Why no pod can be run."""
    with pytest.raises(grpc.RpcError) as error:
        run_pod(bed)
    code, words = refused(error.value)
    assert code in (Code.UNAVAILABLE, Code.FAILED_PRECONDITION), words
    return words


def publish_pause(
    storage: Storage, repository: str, tag: str, *, user: str = "", passwd: bytes | None = None
) -> None:
    """A pause image; an empty `passwd` makes a FIFO of it."""
    program = Path("/usr/bin/catatonit").read_bytes()
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo("pause")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
        if passwd is not None:
            entry = tarfile.TarInfo("etc/passwd")
            entry.type, entry.size = (tarfile.REGTYPE, len(passwd)) if passwd else (tarfile.FIFOTYPE, 0)
            tar.addfile(entry, io.BytesIO(passwd))
    config = {"Entrypoint": ["/pause", "-P"], "User": user}
    make_image(storage, repository, [layer.getvalue()], config=config, tag=tag)


def runs(bed: Testbed, made: list[str]) -> bool:
    """Whether a pod can be run, which is then in `made`."""
    try:
        made.append(run_pod(bed))
    except grpc.RpcError as error:
        assert refused(error)[0] is Code.UNAVAILABLE
        return False
    return True


def test_a_short_name_comes_from_the_mirror_of_docker_io(site: Site) -> None:
    site.synthetic("library/short")
    hosts_toml(site, "docker.io", f'[host."http://{site.proxy.host}"]\ncapabilities = ["pull", "resolve"]\n')

    site.pull("short:v1")

    found = site.status("short:v1")
    assert found is not None
    assert list(found.repo_tags) == ["docker.io/library/short:v1"]
    assert all("ns=docker.io" in request["path"] for request in site.proxy.requests())


def test_mirrors_are_asked_in_order_and_the_registry_last(site: Site) -> None:
    site.synthetic("mirrored/image")
    mirrors = f'[host."http://127.0.0.1:9"]\n[host."http://{site.proxy.host}"]\nheader = {{ x-test = "yes" }}\n'
    hosts_toml(site, "_default", f'server = "http://{site.registry.host}"\n{mirrors}')
    site.proxy.rules({"path": "/manifests/", "do": "status", "status": 404})

    site.pull("registry.test/mirrored/image:v1")

    asked = site.proxy.requests()
    assert [request["do"] for request in asked] == ["status", "", ""]
    assert all("x-test" in request["headers"] for request in asked)


def test_a_bad_hosts_toml_is_refused_with_the_key(site: Site) -> None:
    hosts_toml(site, "127.0.0.1_5000_", f'server = "http://{site.registry.host}"\nskip_verfy = true\n')

    site.refuses(f"{site.registry.host}/plain/x:v1", Code.INVALID_ARGUMENT, "skip_verfy", "hosts.toml")


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("HOST/does/not-exist:v1", Code.NOT_FOUND, "404"),
        ("HOST/plain/by-tag:absent", Code.NOT_FOUND, "404"),
        ("127.0.0.1:9/nobody/there:v1", Code.UNAVAILABLE, "127.0.0.1:9"),
        ("no-such-host.invalid/a/b:v1", Code.UNAVAILABLE, "no-such-host.invalid"),
    ],
)
def test_what_is_not_there_is_said_to_be_so(site: Site, name: str, code: Code, words: str) -> None:
    site.refuses(name.replace("HOST", site.registry.host), code, words)


@pytest.mark.parametrize("name", ["", "upper/Case", "a b"])
def test_what_is_no_name_is_refused(site: Site, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        site.pull(name)

    assert refused(caught.value)[0] is Code.INVALID_ARGUMENT


# How it is unpacked.


def unpacked(site: Site, name: str) -> list[Path]:
    """Files of this name in the snapshots' directories."""
    snapshots = "/var/lib/sandboxd/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
    return list(site.bed.path(snapshots).glob(f"*/fs/{name}"))


def test_entries_that_are_not_ours_to_write_are_unpacked_by_containerd(site: Site) -> None:
    layers = [layer_of([("below", b"x", "")]), special("device-of-a-layer", tarfile.CHRTYPE)]
    for order in (layers, layers[::-1]):
        make_image(site.registry.storage, "unpacked/device", order)
        name = f"{site.registry.host}/unpacked/device:v1"
        site.pull(name)

        (device,) = unpacked(site, "device-of-a-layer")
        assert device.is_char_device()
        assert os.major(device.stat().st_rdev) == 1
        site.remove(name)
    assert "left to containerd" in site.bed.log_file.read_text("utf-8")


@pytest.mark.parametrize("layers", [8, 45])
def test_every_layer_counts_however_many_there_are(site: Site, layers: int) -> None:
    """Each replaces a file of the one before, and deletes one; of very many, small ones share a snapshot."""
    layout = site.bed.base / "layouts" / "counted"
    with tarfile.open(site.bed.build_image("busybox")) as tar:
        tar.extractall(layout, filter="data")
    storage = site.registry.storage
    base = storage.read(storage.publish(layout, "unpacked/base", "v1"))
    blob = storage.read(json.loads(base)["layers"][0]["digest"])
    base_diff = json.loads(storage.read(json.loads(base)["config"]["digest"]))["rootfs"]["diff_ids"][0]
    steps = [
        layer_of([(f"made-{n}", b"x", ""), ("step", str(n).encode(), ""), (f".wh.made-{n - 1}", b"", "")])
        for n in range(1, layers)
    ]
    kind = json.loads(base)["layers"][0]["mediaType"]

    def typed(manifest: dict[str, Any]) -> None:
        manifest["layers"][0]["mediaType"] = kind

    diff_ids = [base_diff, *(digest_of(step) for step in steps)]
    repository = f"unpacked/counted-{layers}"
    make_image(storage, repository, [blob, *steps], diff_ids=diff_ids, changes=typed)
    name = f"{site.registry.host}/{repository}:v1"
    before = len(site.stored()["snapshots"])
    site.pull(name)

    snapshots = len(site.stored()["snapshots"]) - before
    assert snapshots in (layers, layers - 1) if layers < 20 else 1 < snapshots < layers / 4  # the base may be there
    last = layers - 1
    script = f'test "$(cat /step)" = {last} && test "$(echo /made-*)" = /made-{last}'
    pod = pod_config()
    pod_id = run_pod(site.bed, pod)
    container_id = create_container(site.bed, pod_id, container_config("once", name, ["sh", "-c", script]), pod)
    start_container(site.bed, container_id)
    until(lambda: exited(site.bed, container_id), what="the container ends")
    assert container_status(site.bed, container_id).exit_code == 0
    remove_pod(site.bed, pod_id)
    site.remove(name)


def test_an_image_of_many_layers_goes_on_from_those_that_are_unpacked(site: Site) -> None:
    """Another image with the same first layers, more of them, and a part of a shared snapshot."""
    layers = [layer_of([(f"grown-{n}", str(n).encode(), "")]) for n in range(60)]
    for number, count in enumerate((30, 37, 60)):
        make_image(site.registry.storage, f"unpacked/growing-{number}", layers[:count])
        site.pull(f"{site.registry.host}/unpacked/growing-{number}:v1")

    stored = site.stored()["snapshots"]
    assert len([path for path in unpacked(site, "grown-59") if path.read_text() == "59"]) == 1
    assert len(stored) == len(set(stored))
    # What the first image has is not unpacked again for the second, nor for the third.
    assert len(unpacked(site, "grown-3")) == 1
    for number in range(3):
        site.remove(f"{site.registry.host}/unpacked/growing-{number}:v1")

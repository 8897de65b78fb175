"""What images are there, what they take, and that what nothing refers to is gone: told by CRI, seen on the disk."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.images import layer_of, make_image
from tests.pods import container_config, container_status, pod_config, remove_pod, run_container, run_pod
from tests.processes import until
from tests.pulling import Site
from tests.registry_server import digest_of

pytestmark = pytest.mark.e2e

SNAPSHOTS = "/var/lib/sandboxd/containerd/io.containerd.snapshotter.v1.overlayfs"
CONTENT = "/var/lib/sandboxd/containerd/io.containerd.content.v1.content/blobs/sha256"
MIB = 1 << 20


@pytest.fixture
def busybox(site: Site) -> str:
    """A name of busybox in the registry."""
    return site.busybox("accounts/busybox")


def listed(site: Site, wanted: str = "") -> list[cri.Image]:
    request = cri.ListImagesRequest(filter=cri.ImageFilter(image=cri.ImageSpec(image=wanted)))
    return list(site.bed.images.ListImages(request).images)


def verbose(site: Site, name: str) -> dict[str, Any]:
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name), verbose=True)
    parsed: dict[str, Any] = json.loads(site.bed.images.ImageStatus(request).info["info"])
    return parsed


def image_filesystem(site: Site) -> cri.FilesystemUsage:
    (found,) = site.bed.images.ImageFsInfo(cri.ImageFsInfoRequest()).image_filesystems
    return found


def disk_usage(*roots: Path) -> tuple[int, int]:
    """(bytes, inodes) as du(1) counts them: blocks, each inode once."""
    seen: dict[tuple[int, int], int] = {}
    for root in roots:
        for directory, _, files in os.walk(root):
            for name in (".", *files):
                info = os.lstat(os.path.join(directory, name))
                seen[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(seen.values()), len(seen)


def committed_on_disk(site: Site) -> list[Path]:
    """The directories of committed snapshots: those that no container or unpacking writes to."""
    active = {line.split()[0] for line in site.ctr("snapshots", "ls")[1:] if line.split()[-1] == "Active"}
    written = {Path(directory) for key in active for directory in upper_directories(site, key)}
    all_ = site.bed.path(SNAPSHOTS).glob("snapshots/*/fs")
    return [directory for directory in all_ if inside(site, directory) not in written]


def inside(site: Site, outside: Path) -> Path:
    return Path(SNAPSHOTS) / outside.relative_to(site.bed.path(SNAPSHOTS))


def upper_directories(site: Site, key: str) -> list[str]:
    mounts = " ".join(site.ctr("snapshots", "mounts", "/x", key))
    options = mounts.replace(",", " ").split()
    return [option.removeprefix("upperdir=") for option in options if option.startswith("upperdir=")]


def near(told: int, real: int) -> bool:
    return abs(told - real) <= real // 100


# What is there.


def test_the_filter_of_a_list_is_a_name_a_digest_or_an_id(site: Site) -> None:
    one, other = site.synthetic("accounts/one"), site.synthetic("accounts/other")
    host = site.registry.host
    site.pull(f"{host}/accounts/one:v1")
    site.pull(f"{host}/accounts/other:v1")

    for wanted in (
        f"{host}/accounts/one:v1",
        f"{host}/accounts/one@{one.manifest_digest}",
        one.config,
        one.config.removeprefix("sha256:"),
    ):
        assert [image.id for image in listed(site, wanted)] == [one.config], wanted
    for unknown in (f"{host}/accounts/one:v2", f"{host}/accounts/one", "sha256:" + "0" * 64, "not a name", "UPPER"):
        assert listed(site, unknown) == [], unknown
    assert {one.config, other.config} <= {image.id for image in listed(site)}


def test_a_verbose_status_tells_the_chain_id_and_the_config(site: Site) -> None:
    layers = [layer_of([("a", b"a", "")]), layer_of([("b", b"b", "")])]
    config = {"Entrypoint": ["/a"], "Env": ["X=1"], "User": "7", "WorkingDir": "/w"}
    make_image(site.registry.storage, "accounts/verbose", layers, config=config)
    name = f"{site.registry.host}/accounts/verbose:v1"
    site.pull(name)

    info = verbose(site, name)

    # https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid
    chain_id = digest_of(f"{digest_of(layers[0])} {digest_of(layers[1])}".encode())
    assert info["chainID"] == chain_id
    assert {key: info["imageSpec"]["config"][key] for key in config} == config
    assert chain_id in [line.split()[0] for line in site.ctr("snapshots", "ls")[1:]]


@pytest.mark.parametrize(
    ("user", "uid", "username"),
    [
        ("", None, ""),
        ("0", 0, ""),
        ("1000", 1000, ""),
        ("1000:2000", 1000, ""),
        ("nobody", None, "nobody"),
        ("nobody:nogroup", None, "nobody"),
    ],
)
def test_the_user_of_an_image_is_a_number_or_a_name(site: Site, user: str, uid: int | None, username: str) -> None:
    """CRI: uid and username, at most one of them."""
    repository = f"accounts/user-{user.replace(':', '-') or 'none'}"
    make_image(site.registry.storage, repository, [layer_of([("a", b"a", "")])], config={"User": user})
    site.pull(f"{site.registry.host}/{repository}:v1")

    found = site.status(f"{site.registry.host}/{repository}:v1")

    assert found is not None
    assert (found.uid.value if found.HasField("uid") else None, found.username) == (uid, username)


def test_an_image_has_one_id_in_every_api(site: Site, busybox: str) -> None:
    """Pulled, loaded, listed, asked for, and of a container that runs from it."""
    pulled = site.pull(busybox)
    status = site.status(busybox)
    (loaded,) = site.bed.load_archive(site.bed.build_image("busybox"))
    pod = pod_config()
    pod_id = run_pod(site.bed, pod)
    container_id = run_container(site.bed, pod_id, container_config("one", busybox, ["sleep", "3600"]))
    container = container_status(site.bed, container_id)
    remove_pod(site.bed, pod_id)

    assert status is not None
    told = {
        "ImageStatus": status.id,
        "ImageStatus.spec": status.spec.image,
        "ListImages": listed(site, busybox)[0].id,
        "ListImages by id": listed(site, pulled)[0].id,
        "LoadImage": loaded.image_id,
        "ContainerStatus.image_id": container.image_id,
    }
    assert pulled.startswith("sha256:")
    assert told == dict.fromkeys(told, pulled)
    assert container.image.image == busybox
    found = site.status(container.image_ref)
    assert found is not None and found.id == pulled
    assert len([image for image in listed(site) if image.id == pulled]) == 1


# What goes.


@pytest.mark.parametrize("by", ["tag", "id", "digest"])
def test_removing_an_image_takes_all_its_names_and_all_that_it_held(site: Site, by: str) -> None:
    before = site.stored()
    image = site.synthetic(f"accounts/removed-{by}", layers=3)
    host = site.registry.host
    name = f"{host}/{image.repository}:v1"
    site.pull(name)
    site.ctr("images", "tag", name, f"{host}/accounts/another-name:{by}")
    until(lambda: site.status(f"{host}/accounts/another-name:{by}"), what="the name is seen")

    removed = {"tag": name, "id": image.config, "digest": f"{host}/{image.repository}@{image.manifest_digest}"}
    site.remove(removed[by])

    assert site.status(name) is None
    assert site.status(f"{host}/accounts/another-name:{by}") is None
    assert site.stored() == before
    site.remove(removed[by])  # gone is done


def test_layers_that_another_image_has_too_stay_with_it(site: Site) -> None:
    shared = layer_of([("shared", b"x" * 100_000, "")])
    for number in range(2):
        make_image(site.registry.storage, f"accounts/sharing-{number}", [shared, layer_of([(f"{number}", b"y", "")])])
    first, second = (f"{site.registry.host}/accounts/sharing-{number}:v1" for number in range(2))
    site.pull(first)
    alone = site.stored()
    site.pull(second)

    site.remove(second)

    assert site.stored() == alone
    assert digest_of(shared) in alone["content"]
    site.pull(second)
    site.remove(first)
    assert digest_of(shared) in site.stored()["content"]


def test_the_image_that_a_tag_left_is_freed_when_its_digest_goes(site: Site) -> None:
    before = site.stored()
    name = f"{site.registry.host}/accounts/moved:v1"
    old = make_image(site.registry.storage, "accounts/moved", [layer_of([("old", b"old", "")])])
    site.pull(name)
    make_image(site.registry.storage, "accounts/moved", [layer_of([("new", b"new", "")])])
    site.pull(name)
    both = site.stored()

    site.remove(f"{site.registry.host}/accounts/moved@{old}")

    left = site.stored()
    assert old in both["content"] and old not in left["content"]
    assert len(left["snapshots"]) == len(both["snapshots"]) - 1
    assert site.status(name) is not None
    site.remove(name)
    assert site.stored() == before


def test_nothing_of_a_pull_that_failed_is_left_on_the_disk(site: Site) -> None:
    """Neither in the stores nor behind their backs: the layer was being unpacked when its digest turned out wrong."""
    image = site.synthetic("accounts/failing", layer_bytes=6 * MIB)
    site.proxy.rules({"path": image.layers[0], "do": "corrupt"})
    blobs, files = site.bed.path(CONTENT), site.bed.path(SNAPSHOTS)
    before = (sorted(p.name for p in blobs.iterdir()), sorted(p.name for p in (files / "snapshots").iterdir()))

    site.refuses(f"{site.proxy.host}/accounts/failing:v1", grpc.StatusCode.INVALID_ARGUMENT, "digest")

    assert before == (
        sorted(p.name for p in blobs.iterdir()),
        sorted(p.name for p in (files / "snapshots").iterdir()),
    )


# What it takes.


def test_the_image_file_system_takes_what_du_finds(site: Site) -> None:
    """Within one percent, while images come and go."""
    name = f"{site.registry.host}/accounts/measured:v1"
    site.synthetic("accounts/measured", layers=3, layer_bytes=5 * MIB)

    def agrees() -> bool:
        told = image_filesystem(site)
        real_bytes, real_inodes = disk_usage(*committed_on_disk(site))
        return near(told.used_bytes.value, real_bytes) and near(told.inodes_used.value, real_inodes)

    site.pull(name)
    until(agrees, what="ImageFsInfo agrees with the disk after a pull")
    more = image_filesystem(site)
    assert more.used_bytes.value > 15 * MIB
    site.remove(name)
    assert agrees(), "a removal has been counted when it returns"

    less = image_filesystem(site)
    assert less.timestamp > more.timestamp
    assert more.used_bytes.value - less.used_bytes.value >= 15 * MIB
    assert less.fs_id.mountpoint == SNAPSHOTS


def test_images_of_very_many_layers_are_counted_as_well(site: Site) -> None:
    """Small layers share snapshots there."""
    image = site.synthetic("accounts/many", layers=40, layer_bytes=30_000)
    before = site.stored()
    site.pull(f"{site.registry.host}/accounts/many:v1")
    after = site.stored()

    assert set(image.layers) <= set(after["content"])
    assert 1 <= len(after["snapshots"]) - len(before["snapshots"]) < 10

    def agrees() -> bool:
        real_bytes, real_inodes = disk_usage(*committed_on_disk(site))
        told = image_filesystem(site)
        return near(told.used_bytes.value, real_bytes) and near(told.inodes_used.value, real_inodes)

    until(agrees, what="ImageFsInfo agrees with the disk")
    site.remove(f"{site.registry.host}/accounts/many:v1")
    assert site.stored() == before


def test_a_writable_layer_takes_what_du_finds_in_it(site: Site, busybox: str) -> None:
    """And no more than that: what is written to a volume or by others does not count."""
    site.pull(busybox)
    pod_id = run_pod(site.bed)
    write = "dd if=/dev/zero of=/file-$n bs=64k count=$((n * 8)) 2>/dev/null"
    script = f"for n in 1 2 3 4 5 6; do {write}; done; exec sleep 3600"
    busy = run_container(site.bed, pod_id, container_config("busy", busybox, ["sh", "-c", script]))
    idle = run_container(site.bed, pod_id, container_config("idle", busybox, ["sleep", "3600"]))

    def usage(container_id: str) -> cri.FilesystemUsage:
        request = cri.ContainerStatsRequest(container_id=container_id)
        return site.bed.runtime.ContainerStats(request).stats.writable_layer

    (upper,) = upper_directories(site, busy)
    on_disk = site.bed.path(upper)

    def agrees() -> bool:
        told = usage(busy)
        real_bytes, real_inodes = disk_usage(on_disk)
        return (
            real_bytes > 10 * MIB
            and near(told.used_bytes.value, real_bytes)
            and near(told.inodes_used.value, real_inodes)
        )

    until(agrees, what="the writable layer agrees with the disk")
    assert usage(idle).used_bytes.value < MIB
    assert usage(busy).fs_id.mountpoint == SNAPSHOTS
    assert stat.S_ISDIR(on_disk.stat().st_mode)
    remove_pod(site.bed, pod_id)

"""What `sandboxctl save` writes is read by the tools: the same manifest, config, layers and tree, by every way in."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandboxd.oci.image import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, digest
from tests.images import host_architecture
from tests.tools.source import CONFIG, SAYS, Layout, gzipped, uncompressed
from tests.tools.workshop import Workshop, different

pytestmark = [pytest.mark.tools, pytest.mark.e2e]

# How the image came here: the format and the compression that skopeo was asked to give it.
KINDS = {
    "oci gzip": ("oci", "gzip", OCI_MANIFEST),
    "oci zstd": ("oci", "zstd", OCI_MANIFEST),
    "docker": ("v2s2", "gzip", DOCKER_MANIFEST),
    "oci index": ("oci", "", OCI_INDEX),
    "docker list": ("v2s2", "", DOCKER_INDEX),
    "plain, loaded": ("", "", OCI_MANIFEST),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """An archive that `sandboxctl save` wrote. `diff_ids` are those of the image's config."""

    archive: Path
    name: str
    tag: str
    image_id: str
    media_type: str
    diff_ids: list[str]

    def place(self, transport: str) -> str:
        """What the tools call the image in the archive.

        They find only OCI manifests in an OCI layout. One in docker's format is saved as it is, to keep its digest,
        and they read the archive's other half.
        """
        if self.media_type in (DOCKER_MANIFEST, DOCKER_INDEX):
            transport = "docker-archive"
        return f"{transport}:{self.archive}:{self.tag if transport == 'oci-archive' else self.name}"


@pytest.fixture(scope="module")
def layouts(shop: Workshop) -> dict[str, Path]:
    made = {}
    plain = Layout(shop.new("source/plain"))
    plain.name(plain.image([uncompressed(each) for each in shop.source.layers]), "registry.example/plain:v1")
    made["plain"] = plain.root
    index = Layout(shop.new("source/index"))
    layers = [gzipped(each) for each in shop.source.layers]
    index.name(index.index({name: index.image(layers, name) for name in (host_architecture(), "s390x")}), "v1")
    return {**made, "index": index.root}


@pytest.fixture(scope="module", params=KINDS)
def saved(request: pytest.FixtureRequest, shop: Workshop, layouts: dict[str, Path]) -> Iterator[Saved]:
    kind = str(request.param)
    form, compression, media_type = KINDS[kind]
    words = kind.replace(",", "").replace(" ", "-")
    archive, name = shop.new(f"saved/{words}.tar"), shop.name(f"reading/{words}")
    if not form:
        packed = shop.new("plain.tar")
        shop.shell('tar -C "$1" -cf "$2" .', layouts["plain"], packed)
        (name,) = shop.ctl("load", str(packed)).splitlines()
    else:
        shop.forget()
        options = ["--dest-compress-format", compression] if compression else ["--all"]
        source = f"oci:{layouts['plain']}:registry.example/plain:v1" if compression else f"oci:{layouts['index']}:v1"
        shop.tool("skopeo", "copy", "--format", form, *options, source, f"docker://{name}")
        shop.pull(name)
    shop.ctl("save", "-o", str(archive), name)
    image_id = json.loads(shop.ctl("inspecti", name))["status"]["id"]
    yield Saved(
        archive=archive,
        name=name,
        tag=name.rpartition(":")[2],
        image_id=image_id,
        media_type=media_type,
        diff_ids=[digest(layer) for layer in shop.source.layers],
    )
    shop.remove(name)


def inside(archive: Path, path: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(path)
        assert file is not None
        return file.read()


def expected_config(found: dict[str, Any]) -> bool:
    return {key: found[key] for key in CONFIG} == CONFIG


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_skopeo_inspects_it(shop: Workshop, saved: Saved, transport: str) -> None:
    place = saved.place(transport)
    config = json.loads(shop.tool("skopeo", "inspect", "--config", "--raw", place))
    manifest = json.loads(shop.tool("skopeo", "inspect", "--raw", place))

    assert config["rootfs"]["diff_ids"] == saved.diff_ids
    assert expected_config(config["config"])
    if place.startswith("oci-archive"):
        assert manifest["mediaType"] == saved.media_type
        # The very bytes that the registry had.
        top = json.loads(inside(saved.archive, "index.json"))["manifests"][0]["digest"]
        assert digest(shop.tool("skopeo", "inspect", "--raw", place).encode()) == top
    else:
        assert manifest["config"]["digest"] == saved.image_id


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("to", ["oci", "dir", "docker-archive", "docker"])
def test_skopeo_copies_it_on(shop: Workshop, saved: Saved, transport: str, to: str) -> None:
    """Every blob is read and verified on the way. skopeo does not convert zstd to docker's format."""
    path = shop.new(f"copied/{saved.archive.stem}/{transport}-{to}")
    place = {
        "oci": f"oci:{path}:v1",
        "dir": f"dir:{path}",
        "docker-archive": f"docker-archive:{path}:registry.example/copied:v1",
        "docker": f"docker://{shop.name(f'copied/{saved.archive.stem}-{transport}')}",
    }[to]
    if to == "docker-archive" and "zstd" in saved.archive.name:
        transport = "docker-archive"
    shop.tool("skopeo", "copy", saved.place(transport), place)

    config = json.loads(shop.tool("skopeo", "inspect", "--config", "--raw", place))
    assert config["rootfs"]["diff_ids"] == saved.diff_ids
    assert expected_config(config["config"])


def test_podman_loads_it_sees_the_same_tree_and_runs_it(shop: Workshop, saved: Saved) -> None:
    shop.tool("podman", "load", "-i", saved.archive)
    try:
        (inspected,) = json.loads(shop.tool("podman", "image", "inspect", saved.name))
        assert f"sha256:{inspected['Id']}" == saved.image_id
        assert inspected["RootFS"]["Layers"] == saved.diff_ids
        assert expected_config(inspected["Config"])
        assert seen_by_podman(shop, saved.name) == {}
        options = ["--rm", "--network", "none", "--cgroup-parent", shop.bed.cgroup_parent]
        argv = ["podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs", "run", *options, saved.name]
        assert shop.tool(*argv) == f"{SAYS}\n"
    finally:
        shop.tool("podman", "rmi", "-f", saved.name)


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_podman_pulls_it(shop: Workshop, saved: Saved, transport: str) -> None:
    pulled = shop.tool("podman", "pull", "-q", saved.place(transport)).strip()
    try:
        assert f"sha256:{pulled}" == saved.image_id
        assert seen_by_podman(shop, pulled) == {}
    finally:
        shop.tool("podman", "rmi", "-f", pulled)


def seen_by_podman(shop: Workshop, image: str) -> dict[str, Any]:
    """How the tree that podman mounts differs from the one that went into the image."""
    root = shop.tool("podman", "image", "mount", image).strip()
    try:
        return different(shop.tree_in_bed(root), shop.source.both)
    finally:
        shop.tool("podman", "image", "unmount", image)


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_buildah_builds_on_it(shop: Workshop, saved: Saved, transport: str) -> None:
    working = shop.tool("buildah", "from", "-q", saved.place(transport)).strip()
    try:
        root = shop.tool("buildah", "mount", working).strip()
        assert different(shop.tree_in_bed(root), shop.source.both) == {}
        inspected = json.loads(shop.tool("buildah", "inspect", working))
        assert expected_config(inspected["OCIv1"]["config"])
    finally:
        shop.tool("buildah", "rm", working)


def test_umoci_unpacks_it(shop: Workshop, saved: Saved) -> None:
    """umoci reads neither docker's formats nor zstd nor indexes: skopeo takes those out of the archive for it."""
    layout = shop.new(f"unpacked/{saved.archive.stem}")
    if saved.media_type != OCI_MANIFEST or "zstd" in saved.archive.name:
        shop.tool("skopeo", "copy", "--format", "oci", saved.place("docker-archive"), f"oci:{layout}:{saved.tag}")
    else:
        with tarfile.open(saved.archive) as tar:
            tar.extractall(layout, filter="data")
    bundle = shop.new(f"unpacked/{saved.archive.stem}-bundle")
    shop.tool("umoci", "unpack", "--image", f"{layout}:{saved.tag}", bundle)

    assert different(shop.tree_in_bed(str(bundle / "rootfs")), shop.source.both) == {}


def test_an_archive_of_several_images_is_read_whole(shop: Workshop, layouts: dict[str, Path]) -> None:
    names = [shop.name(f"reading/several-{number}", f"v{number}") for number in (1, 2)]
    for name in names:
        shop.tool("skopeo", "copy", f"oci:{layouts['plain']}:registry.example/plain:v1", f"docker://{name}")
        shop.tool("skopeo", "copy", f"docker://{name}", f"docker://{name}-docker", "--format", "v2s2")
    for name in names:
        shop.pull(name)
        shop.pull(f"{name}-docker")
    every = sorted([*names, *(f"{name}-docker" for name in names)])
    archive = shop.new("several.tar")
    shop.ctl("save", "-o", str(archive), *every)

    shop.tool("podman", "load", "-i", archive)
    for name in every:
        assert seen_by_podman(shop, name) == {}
        shop.tool("skopeo", "inspect", f"docker-archive:{archive}:{name}")
        if name in names:  # see `Saved.place`
            shop.tool("skopeo", "inspect", f"oci-archive:{archive}:{name.rpartition(':')[2]}")
    shop.tool("podman", "rmi", "-f", *every)
    for name in every:
        shop.remove(name)

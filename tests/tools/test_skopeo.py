"""What skopeo writes is pulled and loaded: every destination, format and compression that it offers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from sandboxd.oci.image import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.images import host_architecture
from tests.tools.source import Layout, gzipped, packed_directory, uncompressed
from tests.tools.workshop import Workshop

pytestmark = [pytest.mark.tools, pytest.mark.e2e]

MANIFESTS = {"oci": OCI_MANIFEST, "v2s2": DOCKER_MANIFEST}
INDEXES = {"oci": OCI_INDEX, "v2s2": DOCKER_INDEX}
OCI, DOCKER = "application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"


@pytest.fixture(scope="module")
def layouts(shop: Workshop) -> dict[str, Path]:
    """Our own image as OCI layouts: with plain layers, with compressed ones, and as an index of two platforms."""
    made = {}
    for name, packed in (("plain", uncompressed), ("gzip", gzipped)):
        layout = Layout(shop.new(f"source/{name}"))
        layout.name(layout.image([packed(each) for each in shop.source.layers]), "v1")
        made[name] = layout.root
    layout = Layout(shop.new("source/index"))
    layers = [gzipped(each) for each in shop.source.layers]
    layout.name(layout.index({name: layout.image(layers, name) for name in (host_architecture(), "s390x")}), "v1")
    return {**made, "index": layout.root}


def raw(shop: Workshop, place: str) -> dict[str, Any]:
    """The manifest as skopeo sees it: so that a test tests what its name says."""
    parsed: dict[str, Any] = json.loads(shop.tool("skopeo", "inspect", "--raw", place))
    return parsed


def layer_types(manifest: dict[str, Any]) -> set[str]:
    return {layer["mediaType"] for layer in manifest["layers"]}


@pytest.mark.parametrize(
    ("form", "compression", "layers"),
    [
        ("oci", "gzip", f"{OCI}+gzip"),
        ("oci", "zstd", f"{OCI}+zstd"),
        ("oci", "zstd:chunked", f"{OCI}+zstd"),
        ("v2s2", "gzip", f"{DOCKER}.gzip"),
    ],
)
def test_what_it_pushes_is_pulled(
    shop: Workshop, layouts: dict[str, Path], form: str, compression: str, layers: str
) -> None:
    name = shop.name(f"skopeo/{form}-{compression.replace(':', '-')}")
    options = ["--format", form, "--dest-compress-format", compression]
    shop.forget()
    shop.tool("skopeo", "copy", *options, f"oci:{layouts['plain']}:v1", f"docker://{name}")
    manifest = raw(shop, f"docker://{name}")
    assert (manifest.get("mediaType"), layer_types(manifest)) == (MANIFESTS[form], {layers})

    shop.pulled(name, runs=True)


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_the_index_of_platforms_that_it_pushes_is_pulled(shop: Workshop, layouts: dict[str, Path], form: str) -> None:
    name = shop.name(f"skopeo/all-{form}")
    shop.tool("skopeo", "copy", "--all", "--format", form, f"oci:{layouts['index']}:v1", f"docker://{name}")
    assert raw(shop, f"docker://{name}")["mediaType"] == INDEXES[form]

    shop.pulled(name)


@pytest.mark.parametrize("kept", ["plain", "gzip"])
@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_the_archive_that_it_writes_is_loaded(
    shop: Workshop, layouts: dict[str, Path], transport: str, kept: str
) -> None:
    archive = shop.new(f"written/{transport}-{kept}")
    options = ["--dest-oci-accept-uncompressed-layers"] if kept == "plain" else []
    name = "registry.example/written:v1"
    shop.tool("skopeo", "copy", *options, f"oci:{layouts[kept]}:v1", f"{transport}:{archive}:{name}")

    shop.loaded(archive, runs=True)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "zstd:chunked"])
def test_the_layout_that_it_compresses_is_loaded(shop: Workshop, layouts: dict[str, Path], compression: str) -> None:
    archive = shop.new(f"compressed/{compression.replace(':', '-')}")
    options = ["--dest-compress-format", compression]
    shop.tool("skopeo", "copy", *options, f"oci:{layouts['plain']}:v1", f"oci:{archive}:v1")
    assert layer_types(raw(shop, f"oci:{archive}:v1")) == {f"{OCI}+{compression.partition(':')[0]}"}

    shop.loaded(archive)


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_the_archive_of_an_index_is_loaded(shop: Workshop, layouts: dict[str, Path], transport: str) -> None:
    archive = shop.new(f"indexed/{transport}")
    shop.tool("skopeo", "copy", "--all", f"oci:{layouts['index']}:v1", f"{transport}:{archive}:v1")

    shop.loaded(archive)


def test_one_platform_of_an_index_is_pulled_and_loaded(shop: Workshop, layouts: dict[str, Path]) -> None:
    name, archive = shop.name("skopeo/system"), shop.new("system")
    for place in (f"docker://{name}", f"docker-archive:{archive}:registry.example/system:v1"):
        shop.tool("skopeo", "copy", f"oci:{layouts['index']}:v1", place)

    shop.pulled(name)
    shop.loaded(archive)


def test_every_name_of_a_docker_archive_is_loaded(shop: Workshop, layouts: dict[str, Path]) -> None:
    names = [f"registry.example/several:{tag}" for tag in ("v1", "v2", "latest")]
    archive = shop.new("several.tar")
    more = [word for name in names[1:] for word in ("--additional-tag", name)]
    shop.tool("skopeo", "copy", *more, f"oci:{layouts['gzip']}:v1", f"docker-archive:{archive}:{names[0]}")

    assert shop.ctl("load", str(archive)).splitlines() == names

    shop.holds(names[2])
    shop.remove(names[0])


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_what_its_dir_holds_is_pulled_once_it_is_pushed(shop: Workshop, layouts: dict[str, Path], form: str) -> None:
    directory, name = shop.new(f"dir-{form}"), shop.name(f"skopeo/dir-{form}")
    shop.tool("skopeo", "copy", "--format", form, f"oci:{layouts['gzip']}:v1", f"dir:{directory}")
    shop.tool("skopeo", "copy", f"dir:{directory}", f"docker://{name}")

    shop.pulled(name)


def test_its_dir_is_no_archive_and_the_refusal_says_what_to_do(shop: Workshop, layouts: dict[str, Path]) -> None:
    directory = shop.new("dir-loaded")
    shop.tool("skopeo", "copy", f"oci:{layouts['gzip']}:v1", f"dir:{directory}")

    shop.refuses_archive(packed_directory(directory, shop.new("dir-loaded.tar")), "skopeo copy dir:")


def test_the_first_schema_is_refused_with_its_name(shop: Workshop, layouts: dict[str, Path]) -> None:
    directory = shop.new("v2s1")
    shop.tool("skopeo", "copy", "--format", "v2s1", f"oci:{layouts['gzip']}:v1", f"dir:{directory}")
    for blob in directory.iterdir():
        shop.registry.storage.blob(blob.read_bytes())
    shop.registry.storage.manifest("skopeo/v2s1", (directory / "manifest.json").read_bytes(), "v1")

    said = shop.refuses(shop.name("skopeo/v2s1"), grpc.StatusCode.INVALID_ARGUMENT)

    assert "schema 1" in said or "schemaVersion 1" in said


def test_encrypted_layers_are_refused_by_both_ways(shop: Workshop, layouts: dict[str, Path]) -> None:
    key, public = shop.new("keys/private.pem"), shop.new("keys/public.pem")
    shop.tool("openssl", "genrsa", "-out", key, "2048")
    shop.tool("openssl", "rsa", "-in", key, "-pubout", "-out", public)
    name, archive = shop.name("skopeo/encrypted"), shop.new("encrypted.tar")
    for place in (f"docker://{name}", f"oci-archive:{archive}:v1"):
        shop.tool("skopeo", "copy", "--encryption-key", f"jwe:{public}", f"oci:{layouts['gzip']}:v1", place)

    shop.refuses(name, grpc.StatusCode.INVALID_ARGUMENT, "encrypted")
    shop.refuses_archive(archive, "encrypted")


def test_what_it_decrypted_is_pulled(shop: Workshop, layouts: dict[str, Path]) -> None:
    key, public = shop.new("own/private.pem"), shop.new("own/public.pem")
    shop.tool("openssl", "genrsa", "-out", key, "2048")
    shop.tool("openssl", "rsa", "-in", key, "-pubout", "-out", public)
    sealed, name = shop.new("sealed"), shop.name("skopeo/decrypted")
    shop.tool("skopeo", "copy", "--encryption-key", f"jwe:{public}", f"oci:{layouts['gzip']}:v1", f"oci:{sealed}:v1")
    shop.tool("skopeo", "copy", "--decryption-key", key, f"oci:{sealed}:v1", f"docker://{name}")

    shop.pulled(name)

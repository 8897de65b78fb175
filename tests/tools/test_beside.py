"""What stands beside an image in an index or a layout spoils nothing: signatures, charts, attestations, strangers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sandboxd.oci.image import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from tests.images import host_architecture
from tests.tools.source import Layout, gzipped
from tests.tools.workshop import Workshop

pytestmark = [pytest.mark.tools, pytest.mark.e2e]

EMPTY = "application/vnd.oci.empty.v1+json"
UNKNOWN = {"platform": {"os": "unknown", "architecture": "unknown"}}


def artifact(layout: Layout, config_type: str, layer_type: str, **members: Any) -> dict[str, Any]:
    """A manifest that is no image: a config of some type, and one blob."""
    return layout.document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": layout.blob(config_type, b"{}"),
            "layers": [layout.blob(layer_type, b'{"of": "something else"}')],
            **members,
        }
    )


def signature(layout: Layout, image: dict[str, Any]) -> dict[str, Any]:
    return artifact(layout, OCI_CONFIG, "application/vnd.dev.cosign.simplesigning.v1+json")


def referrer(layout: Layout, image: dict[str, Any]) -> dict[str, Any]:
    return artifact(layout, EMPTY, "application/spdx+json", artifactType="application/spdx+json", subject=image)


def chart(layout: Layout, image: dict[str, Any]) -> dict[str, Any]:
    helm = "application/vnd.cncf.helm"
    return artifact(layout, f"{helm}.config.v1+json", f"{helm}.chart.content.v1.tar+gzip")


def attestation(layout: Layout, image: dict[str, Any]) -> dict[str, Any]:
    reference = {"vnd.docker.reference.digest": image["digest"], "vnd.docker.reference.type": "attestation-manifest"}
    return {**artifact(layout, OCI_CONFIG, "application/vnd.in-toto+json"), **UNKNOWN, "annotations": reference}


def foreign(layout: Layout, image: dict[str, Any]) -> dict[str, Any]:
    made = artifact(layout, OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar")
    return {**made, "platform": {"os": "windows", "architecture": "amd64", "os.version": "10.0.17763.1"}}


def other_digest(layout: Layout, image: dict[str, Any]) -> dict[str, Any]:
    return {**image, "digest": f"sha512:{'0' * 128}"}


def blob_without_a_manifest(layout: Layout, image: dict[str, Any]) -> dict[str, Any]:
    return layout.blob("application/octet-stream", b"just bytes")


BESIDE: dict[str, Callable[[Layout, dict[str, Any]], dict[str, Any]]] = {
    each.__name__.replace("_", " "): each
    for each in (signature, referrer, chart, attestation, foreign, other_digest, blob_without_a_manifest)
}


@pytest.mark.parametrize("what", BESIDE)
def test_a_layout_with_it_is_loaded(shop: Workshop, what: str) -> None:
    layout = Layout(shop.new(f"beside/{what}"))
    image = layout.image([gzipped(each) for each in shop.source.layers])
    layout.name(BESIDE[what](layout, image), "registry.example/other:v1")
    layout.name(image, "registry.example/good:v1")

    shop.loaded(layout.root)


@pytest.mark.parametrize("what", BESIDE)
def test_an_index_with_it_is_pulled_and_loaded(shop: Workshop, what: str) -> None:
    layout = Layout(shop.new(f"inside/{what}"))
    image = layout.image([gzipped(each) for each in shop.source.layers])
    platform = {"platform": {"os": "linux", "architecture": host_architecture()}}
    manifests = [BESIDE[what](layout, image), {**image, **platform}]
    layout.name(layout.document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}), "v1")
    repository = f"inside/{what.replace(' ', '-')}"
    shop.registry.storage.publish(layout.root, repository, "v1")
    shop.registry.storage.manifest(repository, shop.registry.storage.read(image["digest"]))

    shop.pulled(shop.name(repository))
    shop.loaded(layout.root)


def test_an_index_with_attestations_that_skopeo_copies_is_pulled(shop: Workshop) -> None:
    layout = Layout(shop.new("copied"))
    image = layout.image([gzipped(each) for each in shop.source.layers])
    platform = {"platform": {"os": "linux", "architecture": host_architecture()}}
    manifests = [{**image, **platform}, attestation(layout, image)]
    layout.name(layout.document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}), "v1")
    name, archive = shop.name("beside/copied"), shop.new("copied.tar")
    for place in (f"docker://{name}", f"oci-archive:{archive}:v1"):
        shop.tool("skopeo", "copy", "--all", f"oci:{layout.root}:v1", place)

    shop.pulled(name)
    shop.loaded(archive)


def test_a_signature_in_the_repository_is_nobodys_image(shop: Workshop) -> None:
    """cosign pushes it under a tag of its own; the image beside it is pulled as ever."""
    layout = Layout(shop.new("signed"))
    image = layout.image([gzipped(each) for each in shop.source.layers])
    layout.name(image, "v1")
    shop.registry.storage.publish(layout.root, "beside/signed", "v1")
    signatures = Layout(shop.new("signatures"))
    signatures.name(signature(signatures, image), "v1")
    shop.registry.storage.publish(signatures.root, "beside/signed", image["digest"].replace(":", "-") + ".sig")

    shop.pulled(shop.name("beside/signed"))

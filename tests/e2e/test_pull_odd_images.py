"""Images as the world has them are pulled: names mixed up, nulls, two manifests for one image."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from sandboxd.pb.host.v1 import host_pb2
from tests.images import host_architecture, layer_of, make_image, special
from tests.pods import (
    container_config,
    container_status,
    create_container,
    exited,
    pod_config,
    refused,
    remove_pod,
    run_pod,
    start_container,
)
from tests.processes import until
from tests.pulling import Site
from tests.registry_server import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Storage, digest_of

pytestmark = [pytest.mark.e2e, pytest.mark.images]

LAYER = layer_of([("file", b"content", "")])
PACKED = gzip.compress(LAYER, mtime=0)
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
Change = Callable[[dict[str, Any]], None]


def layer_type(name: str) -> Change:
    return lambda manifest: manifest["layers"][0].update(mediaType=name)


def config_type(name: str) -> Change:
    return lambda manifest: manifest["config"].update(mediaType=name)


ODD: dict[str, Change] = {
    "foreign": layer_type("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
    "nondistributable": layer_type("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
    "layer-octets": layer_type("application/octet-stream"),
    "layer-gzip": layer_type("application/gzip"),
    "layer-untyped": lambda manifest: manifest["layers"][0].pop("mediaType"),
    "layer-parameters": layer_type("application/vnd.oci.image.layer.v1.tar+gzip; charset=utf-8"),
    "config-octets": config_type("application/octet-stream"),
    "config-text": config_type("text/plain; charset=utf-8"),
    "config-untyped": lambda manifest: manifest["config"].pop("mediaType"),
    "unnamed": lambda manifest: manifest.pop("mediaType"),
    "unversioned": lambda manifest: manifest.pop("schemaVersion"),
    "nulls": lambda manifest: manifest.update(annotations=None, subject=None, manifests=None),
}


def names(site: Site, repository: str) -> str:
    return f"{site.registry.host}/{repository}:v1"


@pytest.mark.parametrize("case", ODD)
def test_an_odd_manifest_is_pulled(site: Site, case: str) -> None:
    gzipped = "application/vnd.oci.image.layer.v1.tar+gzip"
    packed: dict[str, Any] = {"layer_type": gzipped, "diff_ids": [digest_of(LAYER)]}
    make_image(site.registry.storage, f"odd/{case}", [PACKED], **packed, changes=ODD[case])

    # The registry itself will not serve what it does not know: as a mirror or a proxy would.
    name = names(site, f"odd/{case}")
    pulled = through_a_proxy(site, f"odd/{case}") if case in ("unnamed", "unversioned") else site.pull(name)
    assert pulled.startswith("sha256:")


def through_a_proxy(site: Site, repository: str, media_type: str = "application/json") -> str:
    """Pull with a manifest that a proxy serves as it is in the storage, by this name."""
    tags = site.registry.storage.root / "docker/registry/v2/repositories" / repository / "_manifests/tags"
    body = site.registry.storage.read((tags / "v1/current/link").read_text()).decode()
    site.proxy.rules({"path": "/manifests/", "do": "answer", "body": body, "type": media_type})
    return site.pull(f"{site.proxy.host}/{repository}:v1")


@pytest.mark.parametrize("media_type", ["text/plain", "text/html", DOCKER_MANIFEST, f"{OCI_MANIFEST}; charset=utf-8"])
def test_a_manifest_that_a_proxy_calls_by_another_name_is_pulled(site: Site, media_type: str) -> None:
    repository = "proxied/" + "".join(c for c in media_type if c.isalnum()).lower()
    make_image(site.registry.storage, repository, [LAYER])
    assert through_a_proxy(site, repository, media_type).startswith("sha256:")


def test_nulls_in_a_config_are_the_same_as_absent(site: Site) -> None:
    nulls = ("Env", "Cmd", "Entrypoint", "Labels", "Volumes", "ExposedPorts", "User", "OnBuild")
    make_image(site.registry.storage, "odd/config", [LAYER], config=dict.fromkeys(nulls))
    assert site.pull(names(site, "odd/config"))


def test_an_image_without_layers_may_say_so_with_null(site: Site) -> None:
    make_image(site.registry.storage, "odd/empty", [], changes=lambda manifest: manifest.update(layers=None))
    assert site.pull(names(site, "odd/empty"))


# Platforms.


def test_an_image_whose_config_is_wrong_about_the_machine_runs(site: Site) -> None:
    """It is made for this one in fact; the config is what a cross build left in it."""
    storage = site.registry.storage
    layout = site.bed.base / "layouts" / "wrong-machine"
    with tarfile.open(site.bed.build_image("busybox")) as tar:
        tar.extractall(layout, filter="data")
    (top,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads((layout / "blobs" / top["digest"].replace(":", "/")).read_text())
    config = json.loads((layout / "blobs" / manifest["config"]["digest"].replace(":", "/")).read_text())
    for blob in (layout / "blobs" / "sha256").iterdir():
        storage.blob(blob.read_bytes())
    data = json.dumps({**config, "architecture": "s390x"}).encode()
    manifest["config"] |= {"digest": storage.blob(data), "size": len(data)}
    storage.manifest("platform/runs", manifest, "v1")
    name = names(site, "platform/runs")
    site.pull(name)

    pod = pod_config()
    pod_id = run_pod(site.bed, pod)
    container_id = create_container(site.bed, pod_id, container_config("once", name, ["sh", "-c", "exit 7"]), pod)
    start_container(site.bed, container_id)

    until(lambda: exited(site.bed, container_id), what="the container ends")
    assert container_status(site.bed, container_id).exit_code == 7
    remove_pod(site.bed, pod_id)


def test_an_image_that_offers_nothing_else_is_pulled_and_can_be_seen(site: Site) -> None:
    make_image(site.registry.storage, "platform/foreign", [LAYER], architecture="s390x")
    pulled = site.pull(names(site, "platform/foreign"))
    found = site.status(names(site, "platform/foreign"))
    assert found is not None and found.id == pulled


def index(storage: Storage, repository: str, *entries: Any) -> str:
    return storage.manifest(
        repository, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}, "v1"
    )


def entry(storage: Storage, digest: str, architecture: str = "") -> dict[str, Any]:
    platform = {"platform": {"os": "linux", "architecture": architecture}} if architecture else {}
    return {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(storage.read(digest)), **platform}


def test_the_indexs_word_counts_and_not_the_configs(site: Site) -> None:
    storage = site.registry.storage
    mine = make_image(storage, "platform/word", [LAYER], architecture="s390x", tag="")
    index(storage, "platform/word", entry(storage, mine, host_architecture()))
    assert site.pull(names(site, "platform/word"))


def artifact(storage: Storage, repository: str) -> str:
    config = b"{}"
    kind = "application/vnd.cncf.helm.config.v1+json"
    described = {"mediaType": kind, "digest": storage.blob(config), "size": len(config)}
    return storage.manifest(
        repository, {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": []}
    )


def test_what_else_is_in_an_index_does_not_spoil_the_image(site: Site) -> None:
    storage = site.registry.storage
    mine = make_image(storage, "platform/beside", [LAYER], tag="")
    lost = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "1" * 64, "size": 7}
    unknown = {"mediaType": OCI_MANIFEST, "digest": "blake3:" + "1" * 64, "size": 7}
    entries = [entry(storage, artifact(storage, "platform/beside")), lost, unknown, entry(storage, mine)]
    index(storage, "platform/beside", *entries)
    assert site.pull(names(site, "platform/beside"))


# One image under two manifests.


def save(site: Site, *references: str) -> dict[str, bytes]:
    answers = site.bed.host.SaveImage(host_pb2.SaveImageRequest(images=references), timeout=60)
    data = b"".join(answer.chunk for answer in answers)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: file.read() for member in tar if (file := tar.extractfile(member)) is not None}


def load(site: Site, files: dict[str, bytes]) -> list[host_pb2.LoadedImage]:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    requests = iter([host_pb2.LoadImageRequest(chunk=output.getvalue())])
    return [answer.loaded for answer in site.bed.host.LoadImage(requests, timeout=60) if answer.HasField("loaded")]


def test_one_image_under_two_manifests_is_saved_and_comes_back(site: Site) -> None:
    """Pushed again with gzip: the config is the same, the manifest is not."""
    storage, diff_ids = site.registry.storage, [digest_of(LAYER)]
    gzipped = "application/vnd.oci.image.layer.v1.tar+gzip"
    config = {"Labels": {"the": "same"}}
    made = [
        make_image(storage, "twice/plain", [LAYER], config=config),
        make_image(storage, "twice/gzip", [PACKED], config=config, diff_ids=diff_ids, layer_type=gzipped),
    ]
    index(storage, "twice/index", entry(storage, made[1], host_architecture()))
    references = [names(site, f"twice/{each}") for each in ("plain", "gzip", "index")]
    (image_id,) = {site.pull(reference) for reference in references}

    found = site.status(image_id)
    assert found is not None and sorted(found.repo_tags) == sorted(references)
    assert len(found.repo_digests) == 3
    for reference, digest in zip(references, [*made, made[1]], strict=True):
        assert f"blobs/{digest.replace(':', '/')}" in save(site, reference)
    files = save(site, image_id)
    site.remove(image_id)
    assert site.status(image_id) is None
    loaded = load(site, files)
    assert {each.image_id for each in loaded} == {image_id}
    assert sorted(name for each in loaded for name in each.names) == sorted(references)


def test_a_tag_follows_the_registry_between_manifests_of_one_image(site: Site) -> None:
    storage, diff_ids = site.registry.storage, [digest_of(LAYER)]
    gzipped = "application/vnd.oci.image.layer.v1.tar+gzip"
    for layer, kind in ((LAYER, OCI_CONFIG), (PACKED, ""), (LAYER, OCI_CONFIG)):
        more: dict[str, Any] = {} if kind else {"diff_ids": diff_ids, "layer_type": gzipped}
        digest = make_image(storage, "moving/image", [layer], **more)
        site.pull(names(site, "moving/image"))
        assert f"blobs/{digest.replace(':', '/')}" in save(site, names(site, "moving/image"))


def test_a_pull_brings_back_what_somebody_removed_of_one_of_two_manifests(site: Site) -> None:
    """The image's files are still here, by the other one; what `save` says to do about it has to help."""
    storage, diff_ids = site.registry.storage, [digest_of(LAYER)]
    gzipped = "application/vnd.oci.image.layer.v1.tar+gzip"
    config = {"Labels": {"lost": "in part"}}
    make_image(storage, "lost/plain", [LAYER], config=config)
    make_image(storage, "lost/gzip", [PACKED], config=config, diff_ids=diff_ids, layer_type=gzipped)
    plain, packed = (names(site, f"lost/{each}") for each in ("plain", "gzip"))
    assert site.pull(plain) == site.pull(packed)
    site.ctr("content", "rm", digest_of(PACKED))

    assert save(site, plain)
    with pytest.raises(grpc.RpcError) as caught:
        save(site, packed)
    assert "pull it again" in refused(caught.value)[1]
    site.pull(packed)
    assert f"blobs/{digest_of(PACKED).replace(':', '/')}" in save(site, packed)


# HEAD.


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 429, 500, 501])
def test_a_second_pull_needs_no_head(site: Site, status: int) -> None:
    make_image(site.registry.storage, f"head/of{status}", [LAYER])
    name = f"{site.proxy.host}/head/of{status}:v1"
    pulled = site.pull(name)
    site.proxy.rules({"method": "HEAD", "do": "status", "status": status})

    assert site.pull(name) == pulled
    asked = [request["method"] for request in site.proxy.requests()]
    assert asked == ["HEAD", "GET"]


# Archives.


def test_what_is_beside_an_image_in_an_archive_is_passed_over_with_a_word(site: Site) -> None:
    storage = site.registry.storage
    make_image(storage, "archive/good", [LAYER])
    site.pull(names(site, "archive/good"))
    files = save(site, names(site, "archive/good"))
    chart = storage.read(artifact(storage, "archive/chart"))
    files[f"blobs/{digest_of(chart).replace(':', '/')}"] = chart
    listed = json.loads(files["index.json"])
    described = {"mediaType": OCI_MANIFEST, "digest": digest_of(chart), "size": len(chart)}
    listed["manifests"] = [described, {**described, "digest": "sha512:0"}, *listed["manifests"]]
    files["index.json"] = json.dumps(listed).encode()
    site.remove(names(site, "archive/good"))

    (loaded,) = load(site, files)

    assert list(loaded.names) == [names(site, "archive/good")]
    remarks = " ".join(loaded.remarks)
    assert "not a container image" in remarks and "sha512" in remarks


def test_an_image_that_cannot_be_unpacked_spoils_no_other_of_its_archive(site: Site) -> None:
    """A hard link to nothing shows only when containerd unpacks it; a layer may also be missing."""
    storage = site.registry.storage
    good = names(site, "archive/beside")
    make_image(storage, "archive/beside", [LAYER])
    site.pull(good)
    files = save(site, good)
    site.remove(good)
    listed = json.loads(files["index.json"])
    for name, layer in (("dangling", special("link", tarfile.LNKTYPE, "nothing")), ("missing", b"")):
        digest = make_image(storage, f"archive/{name}", [layer] if layer else [LAYER + b"\0"], tag="")
        manifest = json.loads(storage.read(digest))
        for part in (digest, manifest["config"]["digest"], *([digest_of(layer)] if layer else ())):
            files[f"blobs/{part.replace(':', '/')}"] = storage.read(part)
        annotations = {"io.containerd.image.name": names(site, f"archive/{name}")}
        listed["manifests"].insert(0, {**entry(storage, digest), "annotations": annotations})
    files["index.json"] = json.dumps(listed).encode()

    (loaded,) = load(site, files)

    assert list(loaded.names) == [good]
    remarks = "\n".join(loaded.remarks)
    assert "hard link to 'nothing'" in remarks and "the archive lacks" in remarks
    assert "/run/" not in remarks and "/var/" not in remarks
    assert site.status(names(site, "archive/dangling")) is None

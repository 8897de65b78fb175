"""Pulling from a real registry: every way in, every fault, and nothing left that should not be.

Everything is inside the bed: docker-registry, a token server and the fault-injecting proxy on its loopback.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import random
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.images.synthetic import Shape, build
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.conftest import StartBed
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
from tests.registry_server import (
    FAKES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    PASSWORD,
    USER,
    FaultProxy,
    RegistryServer,
    Storage,
    htpasswd,
    make_certificates,
    make_signing_key,
    start_program,
    start_proxy,
    start_registry,
)
from tests.testbed import ROOT, Testbed

pytestmark = pytest.mark.e2e

CERTS = "/etc/containerd/certs.d"
DOCKER_CONFIG = "/etc/sandboxd-test/docker.json"
PATIENT = {"docker_config": DOCKER_CONFIG}
QUICK = {**PATIENT, "progress_seconds": 6.0}  # tests that stop a pull in time must be faster
IDENTITY_TOKEN = "a refresh token"
LAYER_BYTES = 900_000
OWN = cri.AuthConfig(username=USER, password=PASSWORD)

Code = grpc.StatusCode


# Images.


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """An image in the anonymous registry's storage."""

    repository: str
    manifest_digest: str
    layers: tuple[str, ...]
    config: str


def layer_of(entries: Sequence[tuple[str, bytes, str]]) -> bytes:
    """A plain tar of (name, content, link target)."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content, target in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            if target:
                entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry, io.BytesIO(content))
    return output.getvalue()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_image(
    storage: Storage,
    repository: str,
    layers: Sequence[bytes],
    *,
    diff_ids: Sequence[str] = (),
    layer_type: str = "application/vnd.oci.image.layer.v1.tar",
    architecture: str = "",
    config: Mapping[str, Any] | None = None,
    changes: Callable[[dict[str, Any]], None] = lambda manifest: None,
    tag: str = "v1",
) -> str:
    """Publish an image of these layers, honest but for what is said; returns the manifest's digest."""
    document = json.dumps(
        {
            "os": "linux",
            "architecture": architecture or host_architecture(),
            "config": {"Labels": {"repository": repository}, **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids) or [sha256(layer) for layer in layers]},
        }
    ).encode()
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": storage.blob(document), "size": len(document)},
        "layers": [{"mediaType": layer_type, "digest": storage.blob(layer), "size": len(layer)} for layer in layers],
    }
    changes(manifest)
    return storage.manifest(repository, manifest, tag)


def host_architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}.get(os.uname().machine, "")


# The site.


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A bed with a daemon, a registry and a fault proxy before it."""

    bed: Testbed
    registry: RegistryServer
    proxy: FaultProxy

    def pull(self, name: str, auth: cri.AuthConfig | None = None, *, timeout: float = 60.0) -> str:
        """PullImage; returns the image id."""
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name), auth=auth)
        return str(self.bed.images.PullImage(request, timeout=timeout).image_ref)

    def refuses(self, name: str, code: Code, *words: str, auth: cri.AuthConfig | None = None) -> str:
        """PullImage fails with this code and these words, and nothing is left of it."""
        before = self.stored()
        with pytest.raises(grpc.RpcError) as caught:
            self.pull(name, auth)
        found, said = refused(caught.value)
        assert found is code, said
        for word in words:
            assert word in said
        assert self.status(name) is None
        assert self.stored() == before
        return said

    def status(self, name: str) -> cri.Image | None:
        answer = self.bed.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=name)))
        return answer.image if answer.HasField("image") else None

    def remove(self, name: str) -> None:
        self.bed.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)))

    def ctr(self, *arguments: str) -> list[str]:
        """Lines of containerd's own client."""
        socket = "/run/sandboxd/containerd/containerd.sock"
        return self.bed.run(["ctr", "-a", socket, "-n", "sandboxd", *arguments]).stdout.splitlines()

    def stored(self) -> dict[str, list[str]]:
        """Everything that a pull could leave in containerd."""
        return {
            "images": sorted(self.ctr("images", "ls", "-q")),
            "content": sorted(self.ctr("content", "ls", "-q")),
            "transfers": sorted(line.split()[0] for line in self.ctr("content", "active")[1:]),
            "snapshots": sorted(line.split()[0] for line in self.ctr("snapshots", "ls")[1:]),
            "leases": sorted(self.ctr("leases", "ls", "-q")),
        }

    def synthetic(
        self, repository: str, *, layers: int = 1, layer_bytes: int = LAYER_BYTES, **changes: Any
    ) -> Published:
        """Publish a synthetic image of its own content as REPOSITORY:v1."""
        layout = self.bed.base / "layouts" / repository.replace("/", "-")
        name = changes.pop("seed", repository)
        build(Shape(name=name, layers=layers, layer_bytes=layer_bytes, **changes), layout)
        digest = self.registry.storage.publish(layout, repository, "v1")
        manifest = json.loads(self.registry.storage.read(digest))
        return Published(
            repository=repository,
            manifest_digest=digest,
            layers=tuple(layer["digest"] for layer in manifest["layers"]),
            config=manifest["config"]["digest"],
        )


@pytest.fixture(scope="module")
def site(containerd_bin: Path | None) -> Iterator[Site]:
    """One bed for the tests of this module."""
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        # A name server that refuses at once, where the machine's own is out of reach and waited for.
        bed.write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        registry = start_registry(bed, 5000)
        proxy = start_proxy(bed, 5001, registry.host)
        bed.start_daemon(images=QUICK)
        yield Site(bed=bed, registry=registry, proxy=proxy)


@pytest.fixture(autouse=True)
def honest(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins with a proxy that changes nothing and a machine without credentials and mirrors."""
    if "site" in request.fixturenames:
        site: Site = request.getfixturevalue("site")
        site.proxy.rules()
        site.bed.run(["rm", "-rf", CERTS, DOCKER_CONFIG])
    yield


def blob_requests(proxy: FaultProxy, digest: str) -> list[dict[str, Any]]:
    return [request for request in proxy.requests() if request["path"].endswith(digest)]


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


def index_of(storage: Storage, repository: str, platforms: dict[str, str]) -> str:
    manifests = []
    for architecture, digest in platforms.items():
        data = storage.read(digest)
        platform = {"os": "linux", "architecture": architecture}
        manifests.append({"mediaType": OCI_MANIFEST, "digest": digest, "size": len(data), "platform": platform})
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return storage.manifest(repository, document, "v1")


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
    archive = ROOT / "build" / "images" / "busybox.tar"
    if not archive.is_file():
        site.bed.load_image("busybox")
    layout = site.bed.base / "layouts" / "busybox"
    with tarfile.open(archive) as tar:
        tar.extractall(layout, filter="data")
    site.registry.storage.publish(layout, "runs/busybox", "v1")
    name = f"{site.registry.host}/runs/busybox:v1"
    site.pull(name)

    pod = pod_config()
    pod_id = run_pod(site.bed, pod)
    container = container_config("once", name, ["sh", "-c", "exit 7"])
    container_id = create_container(site.bed, pod_id, container, pod)
    start_container(site.bed, container_id)

    until(lambda: exited(site.bed, container_id), within=20, what="the container ends")
    assert container_status(site.bed, container_id).exit_code == 7
    remove_pod(site.bed, pod_id)


# Where it is pulled from.


def hosts_toml(site: Site, directory: str, text: str) -> None:
    site.bed.write(f"{CERTS}/{directory}/hosts.toml", text)


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
    until(lambda: runs(bed, made), within=30, what="it is fetched")
    (pod_id,) = made
    assert bed.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=name))).image.pinned
    assert pod_info(bed, pod_id)["runtimeSpec"]["process"]["args"] == ["/pause", "-P"]
    bed.restart_daemon()
    remove_pod(bed, pod_id)
    remove_pod(bed, run_pod(bed))


def publish_pause(storage: Storage, repository: str, tag: str) -> None:
    program = Path("/usr/bin/catatonit").read_bytes()
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo("pause")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
    make_image(storage, repository, [layer.getvalue()], config={"Entrypoint": ["/pause", "-P"]}, tag=tag)


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


# Who pulls.


@pytest.fixture(scope="module")
def basic(site: Site) -> tuple[RegistryServer, FaultProxy]:
    """The same storage behind basic authentication, and a proxy before that."""
    registry = start_registry(site.bed, 5003, storage=site.registry.storage, auth=htpasswd(site.bed))
    return registry, start_proxy(site.bed, 5008, registry.host)


def test_basic_authentication_takes_every_form_of_credentials(
    site: Site, basic: tuple[RegistryServer, FaultProxy]
) -> None:
    site.synthetic("basic/image")
    name = f"{basic[0].host}/basic/image:v1"
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    forms: list[dict[str, str]] = [
        {"username": USER, "password": PASSWORD},
        {"auth": encoded},
        {"auth": encoded, "server_address": f"https://{basic[0].host}/v2/"},
    ]
    for form in forms:
        site.pull(name, cri.AuthConfig(**form))
        site.remove(name)


@pytest.mark.parametrize(
    "auth",
    [
        {},
        {"username": USER, "password": "wrong"},
        {"username": USER, "password": PASSWORD, "server_address": "another.test"},
    ],
    ids=["none", "wrong", "for another server"],
)
def test_credentials_that_are_missing_wrong_or_not_for_this_server_are_refused(
    site: Site, basic: tuple[RegistryServer, FaultProxy], auth: dict[str, str]
) -> None:
    site.synthetic("basic/refused")

    said = site.refuses(f"{basic[0].host}/basic/refused:v1", Code.UNAUTHENTICATED, "401", auth=cri.AuthConfig(**auth))

    assert PASSWORD not in said and "wrong" not in said


def test_an_image_that_is_here_is_not_given_to_who_may_not_pull_it(
    site: Site, basic: tuple[RegistryServer, FaultProxy]
) -> None:
    site.synthetic("basic/here")
    name = f"{basic[0].host}/basic/here:v1"
    site.pull(name, OWN)

    with pytest.raises(grpc.RpcError) as caught:
        site.pull(name)

    assert refused(caught.value)[0] is Code.UNAUTHENTICATED


def test_the_machines_own_credentials_are_used_when_the_request_has_none(
    site: Site, basic: tuple[RegistryServer, FaultProxy]
) -> None:
    site.synthetic("basic/config")
    name = f"{basic[0].host}/basic/config:v1"
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    site.bed.write(DOCKER_CONFIG, json.dumps({"auths": {basic[0].host: {"auth": encoded}}}))
    site.pull(name)
    site.remove(name)

    site.bed.write(DOCKER_CONFIG, json.dumps({"credHelpers": {basic[0].host: "absent"}}))
    site.refuses(name, Code.FAILED_PRECONDITION, "docker-credential-absent")


def test_a_redirect_takes_no_credentials_along(site: Site, basic: tuple[RegistryServer, FaultProxy]) -> None:
    site.synthetic("basic/redirect")
    front = basic[1]
    front.rules({"path": "/blobs/", "do": "redirect", "to": f"http://{site.proxy.host}"})

    site.pull(f"{front.host}/basic/redirect:v1", OWN)

    assert {request["authorization"] for request in front.requests()} == {"", "Basic"}
    blobs = [request for request in site.proxy.requests() if "/blobs/" in request["path"]]
    assert len(blobs) == 2
    assert {request["authorization"] for request in blobs} == {""}


@pytest.fixture(scope="module")
def tokens(site: Site) -> RegistryServer:
    """The same storage behind token authentication."""
    certificate, key = make_signing_key(site.bed.base / "tokens")
    argv = [sys.executable, str(FAKES / "token_server.py"), "--listen", "127.0.0.1:5005", "--key", str(key)]
    argv += ["--certificate", str(certificate), "--user", f"{USER}:{PASSWORD}"]
    start_program(site.bed, [*argv, "--identity-token", IDENTITY_TOKEN, "--log", str(site.bed.base / "tokens.log")])
    auth = {
        "realm": "http://127.0.0.1:5005/token",
        "service": "test registry",
        "issuer": "test-issuer",
        "rootcertbundle": str(certificate),
    }
    return start_registry(site.bed, 5004, storage=site.registry.storage, auth={"token": auth})


@pytest.mark.parametrize(
    ("repository", "auth"),
    [
        ("public/image", {}),
        ("private/image", {"username": USER, "password": PASSWORD}),
        ("private/image", {"identity_token": IDENTITY_TOKEN}),
    ],
    ids=["anonymous", "password", "identity token"],
)
def test_a_token_is_fetched_for_everybody_who_may_have_one(
    site: Site, tokens: RegistryServer, repository: str, auth: dict[str, str]
) -> None:
    site.synthetic(repository)
    name = f"{tokens.host}/{repository}:v1"

    site.pull(name, cri.AuthConfig(**auth))

    site.remove(name)


@pytest.mark.parametrize(
    "auth",
    [{}, {"username": USER, "password": "wrong"}, {"identity_token": "wrong"}, {"registry_token": "wrong"}],
    ids=["anonymous", "password", "identity token", "registry token"],
)
def test_no_token_is_an_error_that_says_so(site: Site, tokens: RegistryServer, auth: dict[str, str]) -> None:
    site.synthetic("private/refused")

    site.refuses(f"{tokens.host}/private/refused:v1", Code.UNAUTHENTICATED, auth=cri.AuthConfig(**auth))


@pytest.fixture(scope="module")
def tls(site: Site) -> tuple[RegistryServer, Path]:
    """The same storage over TLS, and the private authority of its certificate."""
    ca, certificate, key = make_certificates(site.bed.base / "tls")
    registry = start_registry(site.bed, 5006, storage=site.registry.storage, certificate=(certificate, key))
    return registry, ca


def test_a_private_authority_is_trusted_where_it_is_configured(site: Site, tls: tuple[RegistryServer, Path]) -> None:
    site.synthetic("tls/image")
    registry, ca = tls
    hosts_toml(site, "127.0.0.1_5006_", f'server = "https://{registry.host}"\nca = "{ca}"\n')

    site.pull(f"{registry.host}/tls/image:v1")


def test_an_unknown_authority_is_refused_and_skip_verify_is_not(site: Site, tls: tuple[RegistryServer, Path]) -> None:
    site.synthetic("tls/unknown")
    registry, _ = tls
    name = f"{registry.host}/tls/unknown:v1"
    hosts_toml(site, "127.0.0.1_5006_", f'server = "https://{registry.host}"\n')
    site.refuses(name, Code.FAILED_PRECONDITION, "certificate", "hosts.toml")

    hosts_toml(site, "127.0.0.1_5006_", f'server = "https://{registry.host}"\nskip_verify = true\n')
    site.pull(name)


def test_an_expired_certificate_is_refused_in_so_many_words(site: Site) -> None:
    ca, certificate, key = make_certificates(site.bed.base / "expired", expired=True)
    registry = start_registry(site.bed, 5007, storage=site.registry.storage, certificate=(certificate, key))
    hosts_toml(site, "127.0.0.1_5007_", f'server = "https://{registry.host}"\nca = "{ca}"\n')

    site.refuses(f"{registry.host}/tls/image:v1", Code.FAILED_PRECONDITION, "expired")


# Faults on the way.


def test_a_broken_connection_is_taken_up_where_it_stopped(site: Site) -> None:
    image = site.synthetic("faults/cut", layer_bytes=3_000_000)
    site.proxy.rules({"path": image.layers[0], "do": "cut", "after": 1_000_000, "times": 1})

    site.pull(f"{site.proxy.host}/faults/cut:v1")

    first, second = blob_requests(site.proxy, image.layers[0])
    assert (first["range"], second["do"]) == ("", "")
    start = int(second["range"].removeprefix("bytes=").partition("-")[0])
    assert 0 < start <= 1_000_000


def test_a_registry_without_ranges_is_read_from_the_beginning_again(site: Site) -> None:
    image = site.synthetic("faults/whole", layer_bytes=3_000_000)
    cut = {"path": image.layers[0], "do": "cut", "after": 1_000_000, "times": 1}
    site.proxy.rules(cut, {"path": image.layers[0], "do": "whole"})

    site.pull(f"{site.proxy.host}/faults/whole:v1")

    assert [request["do"] for request in blob_requests(site.proxy, image.layers[0])] == ["cut", "whole"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_registry_is_asked_again_when_it_says(site: Site, status: int) -> None:
    image = site.synthetic(f"faults/busy{status}")
    busy = {"do": "status", "status": status, "retry_after": "1", "times": 2}
    site.proxy.rules({"path": image.layers[0], **busy}, {"path": "/manifests/", **busy})

    site.pull(f"{site.proxy.host}/faults/busy{status}:v1")

    assert [request["do"] for request in blob_requests(site.proxy, image.layers[0])] == ["status", "status", ""]


def test_a_wrong_digest_of_a_large_layer_is_told_as_such_and_leaves_nothing(site: Site) -> None:
    """It is found by containerd, while the layer itself is still examined, and the layer is damaged too."""
    image = site.synthetic("faults/largedigest", layer_bytes=9_000_000)
    name = f"{site.proxy.host}/{image.repository}:v1"
    site.proxy.rules({"path": image.layers[0], "do": "corrupt"})

    site.refuses(name, Code.INVALID_ARGUMENT, image.layers[0], "digest")

    site.proxy.rules()
    site.pull(name)
    (line,) = [line for line in site.ctr("content", "ls") if line.startswith(image.layers[0])]
    assert "sandboxd.io/layer=checked" in line


FAULTS: dict[str, tuple[dict[str, Any], Code, tuple[str, ...]]] = {
    "a wrong digest of a layer": ({"path": "LAYER", "do": "corrupt"}, Code.INVALID_ARGUMENT, ("digest",)),
    "a wrong digest of the config": ({"path": "CONFIG", "do": "corrupt"}, Code.INVALID_ARGUMENT, ("wrong digest",)),
    "a wrong digest of the manifest": (
        {"path": "/manifests/", "do": "corrupt"},
        Code.INVALID_ARGUMENT,
        ("wrong digest",),
    ),
    "a truncated layer": ({"path": "LAYER", "do": "short", "after": 1000}, Code.INVALID_ARGUMENT, ("1000 bytes",)),
    "always too many requests": ({"path": "", "do": "status", "status": 429}, Code.RESOURCE_EXHAUSTED, ("429",)),
    "a wait that is too long": (
        {"path": "", "do": "status", "status": 429, "retry_after": "3600"},
        Code.RESOURCE_EXHAUSTED,
        ("3600",),
    ),
    "always an error": ({"path": "LAYER", "do": "status", "status": 500}, Code.UNAVAILABLE, ("500",)),
    "access denied": ({"path": "LAYER", "do": "status", "status": 403}, Code.UNAUTHENTICATED, ("denied",)),
    "a missing layer": ({"path": "LAYER", "do": "status", "status": 404}, Code.NOT_FOUND, ("LAYER",)),
    "a page of a web server": (
        {"path": "/manifests/", "do": "answer", "body": "<html>", "type": "text/html"},
        Code.INVALID_ARGUMENT,
        ("text/html",),
    ),
    "a manifest that is too large": (
        {"path": "/manifests/", "do": "answer", "body": "x" * (5 << 20), "type": OCI_MANIFEST},
        Code.INVALID_ARGUMENT,
        ("larger than",),
    ),
    "an endless redirect": ({"path": "", "do": "redirect", "to": "http://PROXY"}, Code.UNAVAILABLE, ("redirected",)),
    "silence instead of a manifest": (
        {"path": "/manifests/", "do": "stall", "after": 10},
        Code.DEADLINE_EXCEEDED,
        ("/manifests/",),
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_a_precise_error_and_leaves_nothing(site: Site, case: str) -> None:
    rule, code, words = FAULTS[case]
    image = site.synthetic("faults/" + "".join(c for c in case if c.isalnum()))
    replaced = {"LAYER": image.layers[0], "CONFIG": image.config, "PROXY": site.proxy.host}

    def filled(text: Any) -> Any:
        for key, value in replaced.items() if isinstance(text, str) else ():
            text = text.replace(key, value)
        return text

    site.proxy.rules({key: filled(value) for key, value in rule.items()})

    site.refuses(f"{site.proxy.host}/{image.repository}:v1", code, *(filled(word) for word in words))

    site.proxy.rules()
    site.pull(f"{site.proxy.host}/{image.repository}:v1")


@pytest.mark.parametrize(("do", "code"), [("stall", Code.DEADLINE_EXCEEDED), ("cut", Code.UNAVAILABLE)])
def test_what_a_silent_registry_gave_is_kept_unseen_for_the_next_attempt(site: Site, do: str, code: Code) -> None:
    image = site.synthetic(f"faults/silent-{do}", layers=2, layer_bytes=3_000_000)
    name = f"{site.proxy.host}/{image.repository}:v1"
    cut = [{"path": image.layers[1], "do": do, "after": 1_500_000, "times": 1}]
    site.proxy.rules(*cut, {"path": image.layers[1], "do": do, "after": 0})
    images = site.ctr("images", "ls", "-q")

    with pytest.raises(grpc.RpcError) as caught:
        site.pull(name)

    assert refused(caught.value)[0] is code
    assert site.status(name) is None
    assert site.ctr("images", "ls", "-q") == images
    site.proxy.rules()
    site.pull(name)
    assert blob_requests(site.proxy, image.layers[0]) == []
    (request,) = blob_requests(site.proxy, image.layers[1])
    assert request["range"].startswith("bytes=")
    stored = site.stored()
    assert (stored["leases"], stored["transfers"]) == ([], [])


def test_a_client_that_goes_away_stops_the_pull_and_the_next_one_goes_on(site: Site) -> None:
    image = site.synthetic("faults/cancel", layer_bytes=3_000_000)
    name = f"{site.proxy.host}/faults/cancel:v1"
    site.proxy.rules({"path": image.layers[0], "do": "stall", "after": 2_000_000, "times": 1})

    request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
    call = site.bed.images.PullImage.future(request, timeout=60)
    until(lambda: any("MB" in line for line in site.ctr("content", "active")), within=20, what="a part is stored")
    call.cancel()

    assert site.status(name) is None
    site.pull(name)
    first, second = blob_requests(site.proxy, image.layers[0])
    assert (first["do"], second["range"].startswith("bytes=")) == ("stall", True)


def test_a_pull_goes_on_after_the_daemon_was_killed(site: Site) -> None:
    image = site.synthetic("faults/killed", layer_bytes=3_000_000)
    name = f"{site.proxy.host}/faults/killed:v1"
    site.proxy.rules({"path": image.layers[0], "do": "stall", "after": 2_000_000, "times": 1})
    with ThreadPoolExecutor() as pool:
        doomed = pool.submit(site.pull, name)
        until(lambda: blob_requests(site.proxy, image.layers[0]), within=20, what="the layer is asked for")
        until(lambda: any("MB" in line for line in site.ctr("content", "active")), within=20, what="a part is stored")
        site.bed.restart_daemon(kill=True)
        with pytest.raises(grpc.RpcError):
            doomed.result()

    site.pull(name)

    _, second = blob_requests(site.proxy, image.layers[0])
    assert second["range"].startswith("bytes=")


def test_pulls_of_the_same_image_are_one(site: Site) -> None:
    image = site.synthetic("shared/same", layers=4)
    name = f"{site.proxy.host}/shared/same:v1"

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: site.pull(name), range(8)))

    assert ids == {image.config}
    for digest in (*image.layers, image.config):
        assert len(blob_requests(site.proxy, digest)) == 1


def test_layers_that_images_share_are_fetched_once(site: Site) -> None:
    shared = [layer_of([(f"file-{n}", bytes([n]) * 300_000, "")]) for n in range(4)]
    names = []
    for number in range(4):
        own = layer_of([("own", str(number).encode(), "")])
        make_image(site.registry.storage, f"shared/image-{number}", [*shared, own])
        names.append(f"{site.proxy.host}/shared/image-{number}:v1")

    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(site.pull, names))

    assert len(ids) == 4
    for layer in shared:
        assert len(blob_requests(site.proxy, sha256(layer))) == 1


# Images that are wrong.


def foreign(manifest: dict[str, Any]) -> None:
    manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


def artifact(manifest: dict[str, Any]) -> None:
    manifest["config"]["mediaType"] = "application/vnd.example.config.v1+json"


def unknown(manifest: dict[str, Any]) -> None:
    manifest["layers"][0]["mediaType"] = "application/vnd.example.layer.v1.tar"


def special(name: str, kind: bytes, linkname: str = "") -> bytes:
    """A plain tar with one entry that is neither a file nor a symbolic link."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.devmajor, entry.devminor = kind, linkname, 1, 3
        tar.addfile(entry)
    return output.getvalue()


GOOD = [("file", b"content", "")]
LARGE = ("large", random.Random(4).randbytes(5_000_000), "")  # examined as it comes, and stored meanwhile
WRONG: dict[str, tuple[list[tuple[str, bytes, str]], dict[str, Any], tuple[str, ...]]] = {
    "a name that climbs": ([("../../etc/passwd", b"x", "")], {}, ("climbs", "../../etc/passwd")),
    "a link that leads out": ([("a", b"", "/etc"), ("a/passwd", b"x", "")], {}, ("leads out", "/etc")),
    "a hard link that leads out": ([], {"layers": [special("a", tarfile.LNKTYPE, "../../etc/passwd")]}, ("climbs",)),
    "an unknown kind of layer": (GOOD, {"changes": unknown}, ("unsupported type", "vnd.example")),
    "a compressed layer that is said to be plain": (
        [],
        {"layers": [gzip.compress(layer_of(GOOD))], "diff_ids": [sha256(layer_of(GOOD))]},
        ("gzip", "its type says"),
    ),
    "a wrong diff id": (GOOD, {"diff_ids": ["sha256:" + "00" * 32]}, ("wrong digest", "00" * 32)),
    "a large layer with a wrong diff id": (
        [LARGE],
        {"diff_ids": ["sha256:" + "00" * 32]},
        ("wrong digest", "00" * 32),
    ),
    "a large layer that climbs at its end": ([LARGE, ("../../etc/passwd", b"x", "")], {}, ("climbs",)),
    "too few diff ids": ([*GOOD], {"diff_ids": ["sha256:" + "00" * 32] * 2}, ("2 diff_ids for 1 layers",)),
    "a layer that is no tar": ([], {"layers": [b"not a tar" * 500]}, ("damaged",)),
    "a layer that is no gzip": (
        GOOD,
        {"layers": [b"\x1f\x8b" + b"broken" * 500], "layer_type": "application/vnd.oci.image.layer.v1.tar+gzip"},
        ("damaged",),
    ),
    "a foreign layer": (GOOD, {"changes": foreign}, ("foreign",)),
    "an artifact that is no image": (GOOD, {"changes": artifact}, ("not a container image",)),
    "an image for another platform": (GOOD, {"architecture": "s390x"}, ("s390x",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_image_is_refused_and_leaves_nothing(site: Site, case: str) -> None:
    entries, changes, words = WRONG[case]
    repository = "wrong/" + "".join(c for c in case if c.isalnum())
    layers = changes.get("layers") or [layer_of(entries)]
    rest = {key: value for key, value in changes.items() if key != "layers"}
    make_image(site.registry.storage, repository, layers, **rest)

    site.refuses(f"{site.registry.host}/{repository}:v1", Code.INVALID_ARGUMENT, *words)


def test_an_index_without_our_platform_names_those_that_it_has(site: Site) -> None:
    storage = site.registry.storage
    there = make_image(storage, "wrong/index", [layer_of(GOOD)], architecture="s390x", tag="")
    index_of(storage, "wrong/index", {"s390x": there})

    site.refuses(f"{site.registry.host}/wrong/index:v1", Code.INVALID_ARGUMENT, "linux/s390x", host_architecture())


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


@pytest.mark.parametrize("where", ["content.v1.content", "snapshotter.v1.overlayfs"])
def test_a_full_disk_is_said_to_be_full_and_is_empty_again(fresh_bed: StartBed, where: str) -> None:
    """The content store's, or the one that layers are unpacked to."""
    bed = fresh_bed(daemon=False, network=False)
    store = f"/var/lib/sandboxd/containerd/io.containerd.{where}"
    bed.run(["mkdir", "-p", store])
    bed.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", store])
    site = Site(bed=bed, registry=start_registry(bed, 5000), proxy=start_proxy(bed, 5001, "127.0.0.1:5000"))
    bed.start_daemon(images=QUICK)
    site.synthetic("disk/large", layer_bytes=20_000_000)
    site.synthetic("disk/small")

    site.refuses(f"{site.registry.host}/disk/large:v1", Code.RESOURCE_EXHAUSTED, "no space")

    site.pull(f"{site.registry.host}/disk/small:v1")


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

    diff_ids = [base_diff, *(sha256(step) for step in steps)]
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
    until(lambda: exited(site.bed, container_id), within=20, what="the container ends")
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

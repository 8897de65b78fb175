"""Faults on the way: every one is told as what it is, and leaves nothing that should not be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.conftest import StartBed
from tests.images import layer_of, make_image
from tests.pods import refused
from tests.processes import until
from tests.pulling import QUICK, Code, Site, blob_requests
from tests.registry_server import OCI_MANIFEST, digest_of, start_proxy, start_registry

pytestmark = [pytest.mark.e2e, pytest.mark.images]


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
    until(lambda: any("MB" in line for line in site.ctr("content", "active")), what="a part is stored")
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
        until(lambda: blob_requests(site.proxy, image.layers[0]), what="the layer is asked for")
        until(lambda: any("MB" in line for line in site.ctr("content", "active")), what="a part is stored")
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
        assert len(blob_requests(site.proxy, digest_of(layer))) == 1


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

"""Each part of an image comes in once, verified and examined, and what keeps it is there before its name.

How a lease counts as written under is in test_fetch_lease.py.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import pytest
import structlog

from sandboxd.containerd.images import Image
from sandboxd.errors import (
    AccessDenied,
    Exhausted,
    InvalidRequest,
    NotFound,
    SandboxdError,
    Unclassified,
    Unsupported,
)
from sandboxd.images.fetch import CHECKED, Counters, Damaged, Fetch, Found, Hold, Shared, find
from sandboxd.images.store import ImageStore
from sandboxd.images.unpack import SMALL_BYTES, Memory
from sandboxd.jobs import Jobs
from sandboxd.model import Progress, Stage
from sandboxd.oci import image as oci
from sandboxd.oci.image import ImageConfig
from sandboxd.oci.selection import MAX_NESTING
from sandboxd.registry.client import Manifest as Served
from sandboxd.registry.client import Repository, first_cause
from tests.fakes.containerd import Containerd
from tests.fakes.points import Point
from tests.unit.images.parts import Parts, Registry, described, digest, encoded, image, layer

LARGE = layer("large", random.Random(0).randbytes(SMALL_BYTES))
SIZES = pytest.mark.parametrize("one", [layer("one"), LARGE], ids=["small", "large"])


class Pull:
    """One image on its way into containerd."""

    def __init__(self, shared: Shared, containerd: Containerd, registry: Registry) -> None:
        self.told: list[Progress] = []
        self.hold = Hold(lease=containerd.lease(), written=False)
        self._shared = shared
        self._containerd = containerd
        self._registry = cast(Repository, registry)
        self._fetch = Fetch(shared, self._registry, self.hold, 3, self.told.append)

    async def find(self, parts: Parts, media_type: str = "") -> Found:
        return await find(self._shared.store, self._registry, parts.served(media_type))

    async def config(self, parts: Parts) -> tuple[ImageConfig, bytes]:
        return await self._fetch.config(await self.find(parts))

    async def layers(self, parts: Parts) -> None:
        """The layers alone; raises the first cause of a failure, as a pull does."""
        found = await self.find(parts)
        try:
            await self._fetch.layers(found.manifest, oci.parse_config(parts.config))
        except BaseExceptionGroup as exc:
            raise first_cause(exc) from None

    async def whole(self, parts: Parts) -> Found:
        """Documents and layers together, as a pull does it."""
        found = await self.find(parts)
        config, data = await self._fetch.config(found)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fetch.keep_documents(found, config, data))
            group.create_task(self._fetch.layers(found.manifest, config))
        return found

    def stages(self, data: bytes) -> list[Stage]:
        """What was told of a layer, each stage once."""
        return list(dict.fromkeys(progress.stage for progress in self.told if progress.digest == digest(data)))


@pytest.fixture
async def shared(store: ImageStore) -> AsyncIterator[Shared]:
    with ThreadPoolExecutor(4) as executor:
        yield Shared(
            store=store,
            jobs=Jobs(),
            executor=executor,
            layers=asyncio.Semaphore(4),
            counters=Counters(),
            memory=Memory(),
        )


# What a reference leads to.


async def find_in(store: ImageStore, registry: Registry, parts: Parts, media_type: str = "") -> Found:
    return await find(store, cast(Repository, registry), parts.served(media_type))


@pytest.mark.parametrize("depth", [0, 1, MAX_NESTING])
async def test_the_names_point_at_the_topmost_document_and_the_way_from_it_leads_to_the_manifest(
    store: ImageStore, containerd: Containerd, depth: int
) -> None:
    parts = image(layer("one")).below(depth)
    found = await find_in(store, Registry(parts), parts)

    assert [data for _, data in found.chain] == [*parts.documents, parts.manifest]
    assert (found.target.digest, found.target.size) == (digest(parts.top), len(parts.top))
    assert found.manifest.config.digest == digest(parts.config)
    assert not containerd.blobs, "nothing is stored yet"


async def test_indexes_have_an_end(store: ImageStore) -> None:
    parts = image(layer("one")).below(MAX_NESTING + 1)

    with pytest.raises(InvalidRequest, match="nested more than 4 deep"):
        await find_in(store, Registry(parts), parts)


async def test_an_image_that_is_not_made_for_this_platform_says_for_which_it_is(store: ImageStore) -> None:
    parts = image(layer("one")).below(1, architecture="arm64")

    with pytest.raises(Unsupported, match=r"not made for linux/amd64 \(platforms: linux/arm64\)"):
        await find_in(store, Registry(parts), parts)


async def test_a_manifest_that_containerd_has_is_not_fetched(store: ImageStore, containerd: Containerd) -> None:
    parts = image(layer("one")).below(1)
    containerd.add(parts.manifest)

    assert (await find_in(store, Registry(), parts)).chain[-1][1] == parts.manifest


async def test_a_manifest_of_another_size_than_its_index_says_is_refused(store: ImageStore) -> None:
    parts = image(layer("one")).below(1)
    registry = Registry(parts)
    registry.blobs[digest(parts.manifest)] += b" "

    with pytest.raises(InvalidRequest, match=f"expected {len(parts.manifest)} bytes, found"):
        await find_in(store, registry, parts)


@pytest.mark.parametrize("what", ["manifest", "config", "layer"])
async def test_a_size_that_is_wrong_is_refused_also_where_containerd_has_the_content(
    shared: Shared, containerd: Containerd, what: str
) -> None:
    parts = image(layer("one"))
    document = json.loads(parts.manifest)
    for member in (document["config"],) if what == "config" else document["layers"] if what == "layer" else ():
        member["size"] += 1
    parts = replace(parts, manifest=encoded(document)).below(1)
    if what == "manifest":
        index = json.loads(parts.documents[0])
        index["manifests"][0]["size"] += 1
        parts = replace(parts, documents=(encoded(index),))
    for data in (*parts.layers, parts.config, parts.manifest):
        containerd.add(data)
    pull = Pull(shared, containerd, Registry(parts))
    with pytest.raises(InvalidRequest, match=r"expected \d+ bytes, found \d+"):
        await pull.layers(parts) if what == "layer" else await pull.config(parts)


@pytest.mark.parametrize(
    ("media_type", "words"), [("text/html", "served as text/html"), ("", "served as nothing in particular")]
)
async def test_a_document_that_is_none_says_what_the_registry_called_it(
    store: ImageStore, media_type: str, words: str
) -> None:
    page = Served(data=encoded({"errors": []}), digest="sha256:page", media_type=media_type)

    with pytest.raises(InvalidRequest, match=words):
        await find(store, cast(Repository, Registry()), page)


async def test_a_document_that_is_not_supported_is_not_called_malformed(store: ImageStore) -> None:
    old = Served(data=encoded({"schemaVersion": 1}), digest="sha256:old", media_type="")

    with pytest.raises(Unsupported, match="schema 1"):
        await find(store, cast(Repository, Registry()), old)


# The config.


async def test_the_config_is_fetched_unless_containerd_has_it(shared: Shared, containerd: Containerd) -> None:
    parts = image(layer("one"))
    registry = Registry(parts)
    _, data = await Pull(shared, containerd, registry).config(parts)
    assert data == parts.config
    assert (shared.counters.blobs_fetched, shared.counters.bytes_fetched) == (1, len(parts.config))

    containerd.add(parts.config)
    _, data = await Pull(shared, containerd, registry).config(parts)
    assert data == parts.config
    assert registry.asked == [(digest(parts.config), 0)]


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        (image(layer("one"), diff_ids=[]), InvalidRequest, "0 diff_ids for 1 layers"),
        (image(layer("one"), diff_ids=["x"]), InvalidRequest, "diff_ids"),
        (image(layer("one"), os="windows"), Unsupported, "only Windows"),
    ],
    ids=["too-few-layers", "odd-layers", "windows"],
)
async def test_a_config_that_does_not_fit_is_refused(
    shared: Shared, containerd: Containerd, parts: Parts, error: type[SandboxdError], words: str
) -> None:
    with pytest.raises(error, match=words):
        await Pull(shared, containerd, Registry(parts)).config(parts)


@pytest.mark.parametrize("architecture", ["arm64", "s390x"])
async def test_an_image_that_offers_nothing_else_is_taken_with_a_warning(
    shared: Shared, containerd: Containerd, architecture: str
) -> None:
    parts = image(layer("one"), architecture=architecture)
    with structlog.testing.capture_logs() as logged:
        await Pull(shared, containerd, Registry(parts)).config(parts)

    (entry,) = [entry for entry in logged if entry["log_level"] == "warning"]
    assert f"linux/{architecture}" in entry["reason"]


@pytest.mark.parametrize("architecture", ["arm64", "", "AMD64", "x86_64"])
async def test_the_indexs_word_counts_and_not_the_configs(
    shared: Shared, containerd: Containerd, architecture: str
) -> None:
    parts = image(layer("one"), architecture=architecture).below(1, architecture="amd64")
    with structlog.testing.capture_logs() as logged:
        await Pull(shared, containerd, Registry(parts)).config(parts)
    assert not [entry for entry in logged if entry["log_level"] == "warning"]


@pytest.mark.parametrize("what", ["a chart", "not there", "damaged", "unreadable"])
async def test_an_entry_beside_the_image_spoils_only_itself(store: ImageStore, what: str) -> None:
    """An index has a signature, a chart or what nobody knows before the image."""
    parts = image(layer("one"))
    chart = encoded(
        {**json.loads(parts.manifest), "config": described("application/vnd.cncf.helm.config.v1+json", b"")}
    )
    other = {
        "a chart": described(oci.OCI_MANIFEST, chart),
        "not there": described(oci.OCI_MANIFEST, b"absent"),
        "damaged": described(oci.OCI_MANIFEST, chart) | {"size": 1},
        "unreadable": described(oci.OCI_MANIFEST, b"") | {"digest": "sha512:" + "0" * 128},
    }[what]
    index = encoded({"schemaVersion": 2, "manifests": [other, described(oci.OCI_MANIFEST, parts.manifest)]})
    registry = Registry(parts)
    registry.blobs[digest(chart)] = chart
    found = await find_in(store, registry, replace(parts, documents=(index,)))

    assert found.chain[-1][1] == parts.manifest
    assert found.config == parts.config, "of entries that say nothing the config decides"


async def test_a_registry_that_refuses_an_entry_is_not_passed_over(store: ImageStore) -> None:
    """That says nothing about the image: another one must not come in its place."""
    parts = image(layer("one")).below(1)
    registry = Registry(parts)

    async def denied(name: str) -> Served:
        raise AccessDenied("not for you")

    registry.manifest = denied  # type: ignore[method-assign]
    with pytest.raises(AccessDenied):
        await find_in(store, registry, parts)


@pytest.mark.parametrize("media_type", [oci.DOCKER_MANIFEST, "text/plain", "application/json", "", oci.OCI_MANIFEST])
async def test_a_manifest_that_an_index_or_a_proxy_calls_by_another_name_is_kept_by_its_own(
    store: ImageStore, media_type: str
) -> None:
    parts = image(layer("one"))
    own = encoded({**json.loads(parts.manifest), "mediaType": oci.OCI_MANIFEST})
    parts = replace(parts, manifest=own)
    assert (await find_in(store, Registry(parts), parts, media_type)).target.media_type == oci.OCI_MANIFEST
    index = encoded({"schemaVersion": 2, "manifests": [described(media_type, own)]})
    found = await find_in(store, Registry(parts), replace(parts, documents=(index,)))
    assert [item.media_type for item, _ in found.chain] == [oci.OCI_INDEX, oci.OCI_MANIFEST]


FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


async def test_a_layer_that_is_not_distributable_comes_from_the_registry_that_has_it(
    shared: Shared, containerd: Containerd
) -> None:
    parts = image(layer("one"), compress=True, media_type=FOREIGN)
    await Pull(shared, containerd, Registry(parts)).whole(parts)
    assert parts.layers[0] in containerd.blobs.values()


async def test_a_layer_that_is_not_distributable_is_sought_nowhere_else(
    shared: Shared, containerd: Containerd
) -> None:
    """A manifest must not make this machine send requests to places of its choice."""
    parts = image(layer("one"), compress=True, media_type=FOREIGN)
    registry = Registry(parts)
    del registry.blobs[digest(parts.layers[0])]
    registry.missing = NotFound
    with pytest.raises(NotFound, match=r"not distributable.*push the image with all of its layers"):
        await Pull(shared, containerd, registry).layers(parts)


@pytest.mark.parametrize("media_type", ["application/octet-stream", "application/x-gzip", "", oci.DOCKER_LAYER])
@pytest.mark.parametrize("compress", [True, False])
async def test_a_layer_that_is_called_anything_is_looked_into(
    shared: Shared, containerd: Containerd, compress: bool, media_type: str
) -> None:
    parts = image(layer("one"), compress=compress, media_type="x/y")
    parts = replace(parts, manifest=parts.manifest.replace(b'"x/y"', f'"{media_type}"'.encode()))
    await Pull(shared, containerd, Registry(parts)).whole(parts)
    assert len(containerd.snapshots) == 1


async def test_a_config_with_another_digest_is_refused(shared: Shared, containerd: Containerd) -> None:
    parts = image(layer("one"))
    registry = Registry(parts)
    registry.wrong[digest(parts.config)] = parts.config.replace(b"amd64", b"arm64")

    with pytest.raises(InvalidRequest, match=f"wrong digest: expected {digest(parts.config)}"):
        await Pull(shared, containerd, registry).config(parts)


# Layers.


@SIZES
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
async def test_layers_are_stored_examined_and_unpacked(
    shared: Shared, containerd: Containerd, one: bytes, compress: bool
) -> None:
    parts = image(one, layer("two"), compress=compress)
    pull = Pull(shared, containerd, Registry(parts))
    await pull.layers(parts)

    for data in parts.layers:
        assert containerd.blobs[digest(data)] == data
        assert containerd.labels[digest(data)] == CHECKED
        assert pull.stages(data) == [Stage.WAIT, Stage.FETCH, Stage.UNPACK, Stage.DONE]
    chain = oci.chain_ids(oci.parse_config(parts.config).diff_ids)
    assert containerd.snapshots == {chain[0]: "", chain[1]: chain[0]}
    assert containerd.leases[pull.hold.lease] >= {*chain, *map(digest, parts.layers)}
    assert shared.counters.blobs_fetched == 2


async def test_a_layer_that_is_in_an_image_twice_is_fetched_once(shared: Shared, containerd: Containerd) -> None:
    parts = image(layer("one"), layer("two"), layer("one"))
    registry = Registry(parts)
    await Pull(shared, containerd, registry).layers(parts)

    assert sorted(registry.asked) == sorted((digest(data), 0) for data in parts.layers[:2])
    assert (shared.counters.blobs_fetched, shared.counters.blobs_reused) == (2, 0)
    assert len(containerd.snapshots) == 3


@SIZES
async def test_a_layer_is_refused_for_its_type_also_where_another_image_brought_it(
    shared: Shared, containerd: Containerd, one: bytes
) -> None:
    parts = image(one, compress=True)
    await Pull(shared, containerd, Registry(parts)).layers(parts)
    wrong = replace(parts, manifest=parts.manifest.replace(b"tar+gzip", b"tar"))
    assert wrong.manifest != parts.manifest

    with pytest.raises(InvalidRequest, match="its type says"):
        await Pull(shared, containerd, Registry(wrong)).layers(wrong)


@SIZES
async def test_a_layer_that_two_pulls_want_at_once_is_fetched_once(
    shared: Shared, containerd: Containerd, one: bytes
) -> None:
    parts = image(one)
    registry = Registry(parts)
    pulls = [Pull(shared, containerd, registry) for _ in range(2)]
    await asyncio.gather(*(pull.layers(parts) for pull in pulls))

    assert registry.asked == [(digest(one), 0)]
    assert (shared.counters.blobs_fetched, shared.counters.blobs_reused) == (1, 1)
    assert all(digest(one) in containerd.leases[pull.hold.lease] for pull in pulls)


@pytest.mark.parametrize(("labels", "checked"), [(CHECKED, False), ({}, True)], ids=["examined", "another-tools"])
async def test_a_layer_that_containerd_has_is_examined_unless_it_was(
    shared: Shared, containerd: Containerd, labels: dict[str, str], checked: bool
) -> None:
    parts = image(layer("one"))
    containerd.add(parts.layers[0], labels)
    registry = Registry(parts)
    pull = Pull(shared, containerd, registry)
    await pull.layers(parts)

    assert registry.asked == []
    assert Stage.EXISTS in pull.stages(parts.layers[0])
    assert (Stage.CHECK in pull.stages(parts.layers[0])) is checked
    assert containerd.labels[digest(parts.layers[0])] == CHECKED
    assert digest(parts.layers[0]) in containerd.leases[pull.hold.lease]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (image(b"this is no tar" * 100), "is damaged"),
        (
            image(layer("one"), diff_ids=["sha256:" + "0" * 64]),
            "wrong digest: expected sha256:000",
        ),
        (image(layer("one"), compress=True, media_type=oci.OCI_LAYER), r"is compressed \(gzip\)"),
    ],
    ids=["no-tar", "other-diff-id", "compressed"],
)
async def test_a_layer_of_another_tool_that_is_unfit_is_not_unpacked(
    shared: Shared, containerd: Containerd, parts: Parts, words: str
) -> None:
    (stored,) = parts.layers
    containerd.add(stored)

    with pytest.raises(InvalidRequest, match=words):
        await Pull(shared, containerd, Registry(parts)).layers(parts)
    assert not containerd.snapshots
    assert containerd.labels[digest(stored)] == {}


async def test_what_is_unpacked_is_neither_examined_nor_unpacked_again(
    shared: Shared, containerd: Containerd
) -> None:
    parts = image(layer("one"))
    (name,) = oci.chain_ids([digest(parts.layers[0])])
    containerd.snapshots[name] = ""
    containerd.add(parts.layers[0])
    pull = Pull(shared, containerd, Registry(parts))
    await pull.layers(parts)

    assert pull.stages(parts.layers[0]) == [Stage.WAIT, Stage.EXISTS, Stage.DONE]
    assert name in containerd.leases[pull.hold.lease]


@SIZES
async def test_a_layer_of_which_a_part_came_earlier_goes_on_from_there(
    shared: Shared, containerd: Containerd, one: bytes
) -> None:
    """What came before was not seen now, so it is examined as a whole."""
    parts, half = image(one), len(one) // 2
    containerd.parts[digest(one)] = bytearray(one[:half])
    shared.brought.add(digest(one))
    registry = Registry(parts)
    pull = Pull(shared, containerd, registry)
    await pull.layers(parts)

    assert registry.asked == [(digest(one), half)]
    assert shared.counters.blobs_resumed == 1
    assert Stage.CHECK in pull.stages(one)
    assert (containerd.blobs[digest(one)], containerd.labels[digest(one)]) == (one, CHECKED)


async def test_a_part_that_was_wrong_is_fetched_again_from_its_beginning(
    shared: Shared, containerd: Containerd
) -> None:
    """Also from the only server: it is not the one that was wrong."""
    parts = image(LARGE)
    containerd.parts[digest(LARGE)] = bytearray(b"x" * 100)
    registry = Registry(parts)
    registry.mirrors = 0
    await Pull(shared, containerd, registry).layers(parts)

    assert registry.asked == [(digest(LARGE), 100), (digest(LARGE), 0)]
    assert containerd.blobs[digest(LARGE)] == LARGE


@SIZES
async def test_wrong_bytes_are_fetched_again_while_there_is_another_server(
    shared: Shared, containerd: Containerd, one: bytes
) -> None:
    parts = image(one)
    registry = Registry(parts)
    registry.wrong[digest(one)] = one.replace(one[:4], b"evil")
    await Pull(shared, containerd, registry).layers(parts)

    assert registry.asked == [(digest(one), 0)] * 2
    assert containerd.labels[digest(one)] == CHECKED


@SIZES
async def test_wrong_bytes_of_the_only_server_are_refused_and_not_kept(
    shared: Shared, containerd: Containerd, one: bytes
) -> None:
    parts = image(one)
    registry = Registry(parts)
    registry.mirrors = 0
    registry.wrong[digest(one)] = one.replace(one[:4], b"evil")

    with pytest.raises(InvalidRequest, match=f"{digest(one)}: unexpected commit digest"):
        await Pull(shared, containerd, registry).layers(parts)
    assert not containerd.blobs and not containerd.parts and not containerd.snapshots


@SIZES
async def test_a_layer_that_is_what_its_digest_says_and_unfit_is_not_fetched_again(
    shared: Shared, containerd: Containerd, one: bytes
) -> None:
    parts = image(one, diff_ids=["sha256:" + "0" * 64])
    registry = Registry(parts)

    with pytest.raises(Damaged, match=r"the uncompressed layer .* has a wrong digest: expected sha256:000"):
        await Pull(shared, containerd, registry).layers(parts)
    assert registry.asked == [(digest(one), 0)]
    assert containerd.labels[digest(one)] == {}, "it counts as examined"
    assert not containerd.snapshots


async def test_a_layer_that_is_compressed_although_its_type_denies_it_is_refused(
    shared: Shared, containerd: Containerd
) -> None:
    parts = image(layer("one"), compress=True, media_type=oci.OCI_LAYER)

    with pytest.raises(InvalidRequest, match=r"is compressed \(gzip\), its type says that it is not"):
        await Pull(shared, containerd, Registry(parts)).layers(parts)


@pytest.mark.parametrize("point", ["ingest.write", "ingest.commit", "snapshots.unpack_layer"])
async def test_a_full_disk_is_reported_as_that(shared: Shared, containerd: Containerd, point: str) -> None:
    parts = image(layer("one"))
    containerd.points.fail(Point(point, 0), Unclassified("write /x: no space left on device"))

    with pytest.raises(Exhausted, match="no space is left on the disk"):
        await Pull(shared, containerd, Registry(parts)).layers(parts)


async def test_an_image_without_layers_has_no_layers_to_wait_for(shared: Shared, containerd: Containerd) -> None:
    parts = image()
    await Pull(shared, containerd, Registry(parts)).whole(parts)

    assert parts.manifest in containerd.blobs.values()


# Documents.


@pytest.mark.parametrize("depth", [0, 2])
async def test_a_name_keeps_every_part_once_the_lease_has_ended(
    shared: Shared, containerd: Containerd, depth: int
) -> None:
    parts = image(layer("one"), layer("two"), compress=True).below(depth)
    pull = Pull(shared, containerd, Registry(parts))
    found = await pull.whole(parts)
    snapshots = dict(containerd.snapshots)
    containerd.names["x"] = Image(name="x", target=replace(found.target))
    del containerd.leases[pull.hold.lease]
    containerd.collect()

    assert containerd.blobs == parts.blobs
    assert containerd.snapshots == snapshots and len(snapshots) == 2


async def test_documents_are_stored_after_the_first_bytes_of_a_layer(shared: Shared, containerd: Containerd) -> None:
    """containerd's transactions wait for each other, and the layers take longer."""
    parts = image(layer("one"))
    containerd.points.hang(Point("snapshots.list", 0))
    pulling = asyncio.create_task(Pull(shared, containerd, Registry(parts)).whole(parts))
    await containerd.points.hangs.wait()
    for _ in range(10):  # turns in which the documents could be written
        await asyncio.sleep(0)
    assert not containerd.blobs
    containerd.points.release()
    await pulling

    assert containerd.blobs == parts.blobs


async def test_a_manifest_that_is_gone_is_not_found(store: ImageStore) -> None:
    parts = image(layer("one")).below(1)

    with pytest.raises(NotFound, match="is not in the registry"):
        await find_in(store, Registry(), parts)

"""What a reference means, and how an image's user is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxd.containerd.images import Image
from sandboxd.errors import InvalidRequest, NotFound
from sandboxd.images.load import load
from sandboxd.images.store import ImageStore, find, user_of
from sandboxd.model import ImageRecord
from sandboxd.oci import image as oci
from sandboxd.oci.image import Descriptor
from tests.fakes.containerd import Containerd
from tests.unit.images.parts import Parts, archive, digest, image, layer


def record(image_id: str, *tags: str, digest: str = "sha256:" + "f" * 64, **more: Any) -> ImageRecord:
    digests = tuple(sorted({f"{tag.rpartition(':')[0]}@{digest}" for tag in tags}))
    values: dict[str, Any] = {
        "id": image_id,
        "names": (*tags, *digests),
        "repo_tags": tags,
        "repo_digests": digests,
        "size": 1,
        "username": "",
        "uid": None,
        "pinned": False,
        "chain_id": "",
        "config": {},
        "digest": digest,
    }
    return ImageRecord(**(values | more))


NGINX = record("sha256:" + "abc1" + "0" * 60, "docker.io/library/nginx:latest", "docker.io/library/nginx:1")
CAFE = record("sha256:" + "abc2" + "0" * 60, "docker.io/library/cafe:latest", digest="sha256:" + "e" * 64)
UNTAGGED = record("sha256:" + "cafe" + "0" * 60, digest="sha256:" + "d" * 64)
ALL = (NGINX, CAFE, UNTAGGED)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nginx", NGINX),
        ("nginx:1", NGINX),
        ("docker.io/library/nginx:latest", NGINX),
        (f"nginx@{NGINX.digest}", NGINX),
        (f"nginx:other@{NGINX.digest}", NGINX),
        (NGINX.id, NGINX),
        (NGINX.id[7:], NGINX),
        ("abc2", CAFE),
        ("sha256:abc2", CAFE),
        ("cafe", CAFE),
        ("sha256:cafe", UNTAGGED),
        ("cafe0", UNTAGGED),
        (UNTAGGED.digest, UNTAGGED),
    ],
)
def test_a_reference_is_a_name_before_it_is_an_id(text: str, expected: ImageRecord) -> None:
    """Names, ids, beginnings of ids, digests of manifests."""
    assert find(ALL, text) is expected


@pytest.mark.parametrize("text", ["nginx:2", "other", "abcd", "sha256:" + "9" * 64, f"cafe@{NGINX.digest}"])
def test_an_unknown_reference_is_not_found_and_says_what_to_do(text: str) -> None:
    """The message has the reference and the next step."""
    with pytest.raises(NotFound, match="sandboxctl load"):
        find(ALL, text)


def test_an_ambiguous_beginning_is_refused() -> None:
    """Picking one of them would run or remove the wrong image."""
    with pytest.raises(InvalidRequest, match="2 image ids"):
        find(ALL, "sha256:abc")


@pytest.mark.parametrize("text", ["", "UPPER", "a b", "sha256:xyz!", "../x"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    """It could never succeed."""
    with pytest.raises(InvalidRequest):
        find(ALL, text)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, ("", None)),
        ("", ("", None)),
        ("0", ("", 0)),
        ("1000:1000", ("", 1000)),
        ("www-data", ("www-data", None)),
        ("www-data:33", ("www-data", None)),
        ("²", ("²", None)),
    ],
)
def test_an_image_s_user_is_a_number_or_a_name(user: str | None, expected: tuple[str, int | None]) -> None:
    """The group is not part of it."""
    assert user_of({} if user is None else {"User": user}) == expected


# One image under two manifests.

PLAIN = image(layer("one"))
GZIP = replace(image(layer("one"), compress=True), config=PLAIN.config)


async def both(store: ImageStore, tmp_path: Path) -> ImageRecord:
    path = tmp_path / "images.tar"
    path.write_bytes(archive(("plain.test/x:1", PLAIN), ("gzip.test/x:1", GZIP)))
    assert PLAIN.config == GZIP.config and PLAIN.manifest != GZIP.manifest
    await load(store, path)
    (found,) = store.list()
    return found


async def test_an_image_under_two_manifests_is_one_that_is_found_by_everything_that_leads_to_it(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    found = await both(store, tmp_path)
    plain, packed = digest(PLAIN.manifest), digest(GZIP.manifest)

    assert found.repo_tags == ("gzip.test/x:1", "plain.test/x:1")
    assert found.repo_digests == (f"gzip.test/x@{packed}", f"plain.test/x@{plain}")
    for text in (*found.names, found.id, plain, packed):
        assert store.resolve(text) is found
    assert store.resolve_as("plain.test/x:1").digest == plain
    assert store.resolve_as("gzip.test/x:1").digest == packed
    assert store.resolve_as("gzip.test/x:1").size == len(GZIP.manifest) + len(GZIP.config) + len(GZIP.layers[0])


@pytest.mark.parametrize("lost", [PLAIN, GZIP], ids=["plain", "gzip"])
async def test_an_image_of_which_one_packing_is_gone_is_unpacked_from_the_other(
    store: ImageStore, containerd: Containerd, tmp_path: Path, lost: Parts
) -> None:
    found = await both(store, tmp_path)
    containerd.snapshots.clear()
    del containerd.blobs[digest(lost.layers[0])]

    await store.ensure_unpacked(found)

    assert found.chain_id in containerd.snapshots


async def test_a_name_is_whole_while_all_that_it_leads_to_is_here(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    """Whatever is left of another manifest of the same image."""
    await both(store, tmp_path)
    assert await store.is_whole("plain.test/x:1") and await store.is_whole("gzip.test/x:1")
    assert not await store.is_whole("other.test/x:1")
    for part in (GZIP.layers[0], GZIP.manifest):
        kept = containerd.blobs.pop(digest(part))
        assert await store.is_whole("plain.test/x:1") and not await store.is_whole("gzip.test/x:1")
        containerd.blobs[digest(part)] = kept


async def test_an_image_under_two_manifests_goes_as_one(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    await store.remove((await both(store, tmp_path)).id)
    assert not containerd.names and not containerd.blobs and not containerd.snapshots


async def test_one_image_that_cannot_be_read_hides_no_other(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    found = await both(store, tmp_path)
    junk = containerd.add(b"{")
    containerd.names["junk.test/x:1"] = Image(
        name="junk.test/x:1", target=Descriptor(media_type=oci.OCI_MANIFEST, digest=junk, size=1)
    )
    await store.look()
    assert store.list() == (found,)

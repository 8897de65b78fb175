"""Images that are wrong are refused, and nothing is left of them."""

from __future__ import annotations

import bz2
import gzip
import random
import tarfile
from typing import Any

import pytest

from tests.images import host_architecture, index_of, layer_of, make_image, special
from tests.pulling import Code, Site
from tests.registry_server import digest_of

pytestmark = [pytest.mark.e2e, pytest.mark.images]


def artifact(manifest: dict[str, Any]) -> None:
    manifest["config"]["mediaType"] = "application/vnd.example.config.v1+json"


def unknown(manifest: dict[str, Any]) -> None:
    manifest["layers"][0]["mediaType"] = "application/vnd.example.layer.v1.tar"


def encrypted(manifest: dict[str, Any]) -> None:
    manifest["layers"][0]["mediaType"] += "+encrypted"


def both(manifest: dict[str, Any]) -> None:
    manifest["manifests"] = []


GOOD = [("file", b"content", "")]


LARGE = ("large", random.Random(4).randbytes(5_000_000), "")  # examined as it comes, and stored meanwhile


WRONG: dict[str, tuple[list[tuple[str, bytes, str]], dict[str, Any], tuple[str, ...]]] = {
    "a whiteout of its own directory": ([("etc/.wh..", b"", "")], {}, ("delete a directory", "etc/.wh..")),
    "links in a circle": ([("a", b"", "a"), ("a/passwd", b"x", "")], {}, ("too many symbolic links", "a/passwd")),
    "a hard link to what is not there": (
        [],
        {"layers": [special("a", tarfile.LNKTYPE, "../../etc/passwd")]},
        ("layer 1 of 1", "sha256:", "'a' is a hard link to 'etc/passwd'"),
    ),
    "an old sparse file": ([], {"layers": [special("a", tarfile.GNUTYPE_SPARSE, "")]}, ("sparse", "'a'")),
    "a compression that nobody reads": ([], {"layers": [bz2.compress(layer_of(GOOD))]}, ("bzip2",)),
    "an unknown kind of layer": (GOOD, {"changes": unknown}, ("unsupported type", "vnd.example")),
    "a compressed layer that is said to be plain": (
        [],
        {"layers": [gzip.compress(layer_of(GOOD))], "diff_ids": [digest_of(layer_of(GOOD))]},
        ("gzip", "its type says"),
    ),
    "a wrong diff id": (GOOD, {"diff_ids": ["sha256:" + "00" * 32]}, ("wrong digest", "00" * 32)),
    "a large layer with a wrong diff id": (
        [LARGE],
        {"diff_ids": ["sha256:" + "00" * 32]},
        ("wrong digest", "00" * 32),
    ),
    "a large layer that deletes its root at its end": ([LARGE, (".wh..", b"", "")], {}, ("delete a directory",)),
    "too few diff ids": ([*GOOD], {"diff_ids": ["sha256:" + "00" * 32] * 2}, ("2 diff_ids for 1 layers",)),
    "a layer that is no tar": ([], {"layers": [b"not a tar" * 500]}, ("damaged",)),
    "a layer that is no gzip": (
        GOOD,
        {"layers": [b"\x1f\x8b" + b"broken" * 500], "layer_type": "application/vnd.oci.image.layer.v1.tar+gzip"},
        ("damaged",),
    ),
    "an encrypted layer": (GOOD, {"changes": encrypted}, ("is encrypted",)),
    "a manifest that is an index too": (GOOD, {"changes": both}, ("neither",)),
    "an artifact that is no image": (GOOD, {"changes": artifact}, ("not a container image",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_image_is_refused_and_leaves_nothing(site: Site, case: str) -> None:
    entries, changes, words = WRONG[case]
    repository = "wrong/" + "".join(c for c in case if c.isalnum())
    layers = changes.get("layers") or [layer_of(entries)]
    rest = {key: value for key, value in changes.items() if key != "layers"}
    make_image(site.registry.storage, repository, layers, **rest)

    site.refuses(f"{site.registry.host}/{repository}:v1", Code.INVALID_ARGUMENT, *words)


def test_what_leads_out_is_pulled_and_unpacked_inside(site: Site) -> None:
    """Names, links and hard links, as every other runtime takes them."""
    entries = [("../../etc/passwd", b"x", ""), ("var/run", b"", "/run"), ("var/run/pid", b"1", "")]
    make_image(site.registry.storage, "right/inside", [layer_of(entries)])
    site.pull(f"{site.registry.host}/right/inside:v1")


def test_an_index_without_our_platform_names_those_that_it_has(site: Site) -> None:
    storage = site.registry.storage
    there = make_image(storage, "wrong/index", [layer_of(GOOD)], architecture="s390x", tag="")
    index_of(storage, "wrong/index", {"s390x": there})

    site.refuses(f"{site.registry.host}/wrong/index:v1", Code.INVALID_ARGUMENT, "linux/s390x", host_architecture())

"""The manifest for a machine is found in one way, whoever looks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sandboxd.errors import InvalidRequest, NotFound, Unsupported
from sandboxd.oci import image
from sandboxd.oci.image import Descriptor, Platform
from sandboxd.oci.selection import MAX_DOCUMENTS, NotForHost, Selected, Wanted, drive, search
from tests.unit.images.parts import described, digest, encoded

HOST = Platform(os="linux", architecture="amd64")


class Place:
    """Documents by digest; `read` remembers what it was asked for."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []

    def add(self, kind: str, document: Any, platform: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
        data = document if isinstance(document, bytes) else encoded(document)
        self.blobs[digest(data)] = data
        return described(kind, data) | ({"platform": platform} if platform else {}) | more

    def manifest(
        self, built: Any = "amd64", says: str | None = None, os: Any = "linux", **more: Any
    ) -> dict[str, Any]:
        """An image whose config says `built`; its entry in an index says `says`, nothing for None."""
        config = self.add(image.OCI_CONFIG, {"os": os, "architecture": built, "rootfs": {}, **more})
        platform = (
            None if says is None else dict(zip(("os", "architecture", "variant"), says.split("/"), strict=False))
        )
        return self.add(image.OCI_MANIFEST, {"schemaVersion": 2, "config": config, "layers": []}, platform)

    def index(self, *entries: Any) -> dict[str, Any]:
        return self.add(image.OCI_INDEX, {"schemaVersion": 2, "manifests": list(entries)})

    def lose(self, entry: dict[str, Any]) -> dict[str, Any]:
        del self.blobs[entry["digest"]]
        return entry

    def read(self, wanted: Wanted) -> bytes:
        self.asked.append(wanted.descriptor.digest)
        try:
            return self.blobs[wanted.descriptor.digest]
        except KeyError:
            raise NotFound(f"{wanted.descriptor.digest} is not here") from None

    def find(self, entry: dict[str, Any], host: Platform = HOST) -> Selected:
        target = Descriptor(media_type=entry["mediaType"], digest=entry["digest"], size=entry["size"])
        return drive(search(target, host), self.read)

    def objection(self, entry: dict[str, Any]) -> str:
        found = self.find(entry)
        config = image.parse_config(self.blobs[found.manifest.config.digest])
        return found.objection(config.platform, HOST)


@pytest.fixture
def place() -> Place:
    return Place()


def found_is(selected: Selected, entry: dict[str, Any]) -> bool:
    return selected.chain[-1].digest == str(entry["digest"])


@pytest.mark.parametrize(
    ("built", "os"),
    [("arm64", "linux"), ("", ""), (None, None), ("X86_64", "LINUX"), ("amd64", "windows"), ("nonsense", "darwin")],
)
def test_the_index_s_word_counts_whatever_the_config_says(place: Place, built: Any, os: Any) -> None:
    """The config is not even read to choose."""
    mine = place.manifest(built, "linux/amd64", os)
    index = place.index(place.manifest("s390x", "linux/s390x"), mine)
    found = place.find(index)

    assert found_is(found, mine)
    assert found.manifest.config.digest not in place.asked
    assert place.objection(index) == ""


@pytest.mark.parametrize(
    ("built", "os", "word"),
    [
        ("amd64", "linux", ""),
        ("", "", ""),
        (None, None, ""),
        ("X86_64", "Linux", ""),
        ("386", "linux", ""),
        ("arm64", "linux", "linux/arm64"),
        ("amd64", "darwin", "darwin/amd64"),
        ("wasm", "wasip1", "wasip1/wasm"),
    ],
)
def test_a_manifest_alone_is_taken_with_a_word_if_it_is_for_another_machine(
    place: Place, built: Any, os: Any, word: str
) -> None:
    """An emulator may run it."""
    said = place.objection(place.manifest(built, os=os))
    assert (word in said) if word else not said


def test_what_only_windows_runs_is_refused(place: Place) -> None:
    with pytest.raises(Unsupported, match="only Windows"):
        place.objection(place.manifest("amd64", os="windows"))


def test_of_entries_that_say_nothing_the_config_decides(place: Place) -> None:
    other, mine = place.manifest("arm64"), place.manifest("amd64")
    assert found_is(place.find(place.index(other, mine)), mine)
    assert found_is(place.find(place.index(other, place.manifest("arm64", "linux/amd64"))), place.manifest("arm64"))


def test_the_only_entry_of_an_index_without_platforms_is_taken_with_a_word(place: Place) -> None:
    assert "linux/arm64" in place.objection(place.index(place.manifest("arm64")))
    with pytest.raises(NotForHost):
        place.find(place.index(place.manifest("arm64"), place.manifest("s390x")))


def test_an_index_that_says_it_is_for_another_machine_is_refused_naming_it(place: Place) -> None:
    with pytest.raises(NotForHost, match=r"not made for linux/amd64 \(platforms: linux/arm64\)"):
        place.find(place.index(place.manifest("amd64", "linux/arm64")))


def test_a_newer_variant_of_this_architecture_is_taken_with_a_word(place: Place) -> None:
    """What the processor can do in fact is not known."""
    older = place.manifest("amd64", "linux/amd64/v2")
    index = place.index(place.manifest("amd64", "linux/amd64/v3", created="3"), older)
    assert found_is(place.find(index), older)
    assert "linux/amd64/v2" in place.objection(index)


def test_windows_and_attestations_are_never_chosen(place: Place) -> None:
    mine = place.manifest("amd64", "linux/amd64")
    attestation = place.manifest("unknown", "unknown/unknown", created="a")
    index = place.index(place.manifest("amd64", "windows/amd64", "windows"), attestation, mine)
    assert found_is(place.find(index), mine)
    with pytest.raises(NotForHost):
        place.find(place.index(attestation))


BESIDES = [
    lambda place: place.add(image.OCI_MANIFEST, b"{"),
    lambda place: place.lose(place.manifest("amd64", created="lost")),
    lambda place: place.add(
        image.OCI_MANIFEST,
        {"schemaVersion": 2, "config": described("application/vnd.cncf.helm.config.v1+json", b"x"), "layers": []},
    ),
    lambda place: place.add(
        image.OCI_MANIFEST,
        {"schemaVersion": 2, "config": described(image.OCI_CONFIG, b"not an image's config"), "layers": []},
    ),
    lambda place: {"mediaType": image.OCI_MANIFEST, "digest": "sha512:" + "0" * 128, "size": 1},
    lambda place: None,
]


@pytest.mark.parametrize("other", BESIDES, ids=["damaged", "missing", "chart", "no config", "sha512", "null"])
def test_what_is_no_image_is_passed_over_with_a_word(place: Place, other: Any) -> None:
    mine = place.manifest("amd64")
    found = place.find(place.index(other(place), mine))

    assert found_is(found, mine)
    assert len(found.skipped) == 1


def test_what_is_for_this_machine_is_not_replaced_by_what_is_for_another(place: Place) -> None:
    """A fault of one is an error then, in its own words."""
    mine = place.lose(place.manifest("amd64", "linux/amd64"))
    with pytest.raises(NotFound, match=mine["digest"]):
        place.find(place.index(mine, place.manifest("arm64")))


def test_the_next_that_fits_is_taken_for_one_that_is_missing(place: Place) -> None:
    other = place.manifest("386", "linux/386")
    assert found_is(place.find(place.index(place.lose(place.manifest("amd64", "linux/amd64")), other)), other)


def test_an_index_in_an_index_is_followed(place: Place) -> None:
    mine = place.manifest("arm64", "linux/amd64")
    inner = place.index(mine)
    outer = place.index(place.index(place.manifest("s390x", "linux/s390x")), inner)
    found = place.find(outer)
    assert [item.digest for item in found.chain] == [entry["digest"] for entry in (outer, inner, mine)]
    assert place.objection(outer) == ""


def test_a_search_ends(place: Place) -> None:
    """However many entries an index has that lead nowhere."""
    entries = [place.manifest("arm64", created=str(number)) for number in range(3 * MAX_DOCUMENTS)]
    with pytest.raises(InvalidRequest):
        place.find(place.index(*entries))
    assert len(place.asked) == MAX_DOCUMENTS


def test_each_document_is_seen_once(place: Place) -> None:
    entry = place.manifest("arm64")
    place.blobs[entry["digest"]] = b"{"
    for _ in range(4):
        entry = place.index(*[entry] * 50)
    with pytest.raises(InvalidRequest):
        place.find(entry)
    assert len(place.asked) == len(set(place.asked)) == 5

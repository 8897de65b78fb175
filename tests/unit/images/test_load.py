"""Archives and the pause image come in whole or not at all, and names are given last."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from sandboxd.errors import Exhausted, InvalidRequest, NotReady, Unavailable, Unclassified, Unsupported
from sandboxd.images.load import PAUSE_NAME, Loaded, ensure_pause, full_names, load, pause_content
from sandboxd.images.store import MANAGED, PINNED, ImageStore
from sandboxd.model import Progress, Stage
from sandboxd.oci import image as oci
from sandboxd.oci.archive import ImageContent
from tests.fakes.containerd import HOST, Containerd
from tests.fakes.points import Point
from tests.unit.images.parts import Parts, archive, described, digest, encoded, image, layer

X = "docker.io/library/x:latest"
Y = "docker.io/library/y:latest"
ONE = image(layer("base"), layer("one"))
TWO = image(layer("base"), layer("two"))


def windows(parts: Parts) -> Parts:
    config = encoded({**json.loads(parts.config), "os": "windows"})
    manifest = encoded({**json.loads(parts.manifest), "config": described(oci.OCI_CONFIG, config)})
    return replace(parts, config=config, manifest=manifest)


# The header of a 64-bit ELF program (elf(5)), and one PT_LOAD segment: nothing that names a loader.
PROGRAM = struct.pack("<16s16xQ14x2H6x", b"\x7fELF\x02\x01", 64, 56, 1) + struct.pack("<I52x", 1)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "catatonit"
    path.write_bytes(PROGRAM)
    return path


def write(tmp_path: Path, *images: tuple[str, Parts]) -> Path:
    path = tmp_path / "images.tar"
    path.write_bytes(archive(*images))
    return path


def everything(containerd: Containerd) -> tuple[object, ...]:
    return dict(containerd.blobs), dict(containerd.snapshots), dict(containerd.names), dict(containerd.leases)


NOTHING: tuple[object, ...] = ({}, {}, {}, {})


# Archives.


async def test_every_image_of_an_archive_is_there_complete_and_unpacked(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    """Also once the lease has ended: what their names lead to is kept by labels."""
    loaded = await load(store, write(tmp_path, (X, ONE), (Y, TWO.below(2))))

    assert loaded == [
        Loaded(
            names=(name,),
            image_id=digest(parts.config),
            digest=digest(parts.manifest),
            size=len(parts.manifest) + len(parts.config) + sum(map(len, parts.layers)),
        )
        for name, parts in ((X, ONE), (Y, TWO))
    ]
    assert not containerd.leases
    assert containerd.blobs == ONE.blobs | TWO.below(2).blobs
    assert len(containerd.snapshots) == 3, "the lowest layer is that of both"
    assert [store.resolve(name).id for name in ("x", "y")] == [item.image_id for item in loaded]
    assert all(MANAGED.items() <= image.labels.items() for image in containerd.names.values())


async def test_the_same_archive_again_changes_nothing_and_answers_the_same(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    path = write(tmp_path, (X, ONE))
    first = await load(store, path)
    before = everything(containerd)

    assert await load(store, path) == first
    assert everything(containerd) == before


async def test_an_image_without_a_name_is_named_by_its_id(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    """containerd keeps only what has a name."""
    (loaded,) = await load(store, write(tmp_path, ("", ONE)))

    assert loaded.names == ()
    assert list(containerd.names) == [loaded.image_id]
    assert store.resolve(loaded.image_id).repo_tags == ()
    assert containerd.blobs == ONE.blobs


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (replace(ONE, layers=ONE.layers[:1]), "the archive lacks 'blobs/sha256/"),
        (image(b"this is no tar"), "is damaged"),
    ],
    ids=["missing", "no-tar"],
)
async def test_an_archive_of_nothing_but_a_wrong_image_is_refused_and_leaves_nothing(
    store: ImageStore, containerd: Containerd, tmp_path: Path, parts: Parts, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await load(store, write(tmp_path, (X, parts)))

    assert everything(containerd) == NOTHING


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
async def test_an_image_that_cannot_be_unpacked_spoils_no_other(
    store: ImageStore, containerd: Containerd, tmp_path: Path, first: bool
) -> None:
    """Such as one with a hard link to what is not there: only unpacking shows it."""
    containerd.points.fail(Point("snapshots.unpack_layer", 0 if first else 1), InvalidRequest("a hard link"))
    entries = [(X, image(layer("bad"))), (Y, image(layer("good")))]
    (loaded,) = await load(store, write(tmp_path, *(entries if first else reversed(entries))))

    assert loaded.names == (Y,)
    assert f"{X}: " in loaded.remarks[-1] and "a hard link" in loaded.remarks[-1]
    assert list(containerd.names) == [Y]


async def test_an_archive_of_nothing_that_can_be_unpacked_leaves_nothing(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    for number in range(2):
        containerd.points.fail(Point("snapshots.unpack_layer", number), InvalidRequest("a hard link"))
    with pytest.raises(InvalidRequest, match="a hard link"):
        await load(store, write(tmp_path, (X, image(layer("bad"))), (Y, image(layer("worse")))))

    assert everything(containerd) == NOTHING


async def test_a_full_disk_is_told_without_a_path_of_this_machine(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    containerd.points.fail(Point("snapshots.unpack_layer", 0), Unclassified("write /x: no space left on device"))
    with pytest.raises(Exhausted, match=r"^unpacking the image: no space is left on the disk; remove images"):
        await load(store, write(tmp_path, (X, ONE)))

    assert everything(containerd) == NOTHING


async def test_images_for_other_platforms_are_left_out_and_an_archive_of_nothing_else_is_refused(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    foreign = image(layer("foreign"), architecture="arm64").below(1, "arm64")
    with pytest.raises(InvalidRequest, match="no image for linux/amd64"):
        await load(store, write(tmp_path, (X, foreign)))
    assert everything(containerd) == NOTHING

    loaded = await load(store, write(tmp_path, (X, foreign), (Y, ONE)))
    assert [item.names for item in loaded] == [(Y,)]
    assert containerd.blobs == ONE.blobs


@pytest.mark.parametrize(
    "point",
    [
        Point("content.write", 0),
        Point("content.write", 3),
        Point("snapshots.unpack_layer", 1),
        Point("names.put", 0),
        Point("names.put", 1),
    ],
    ids=str,
)
async def test_an_import_that_fails_leaves_nothing(
    store: ImageStore, containerd: Containerd, tmp_path: Path, point: Point
) -> None:
    containerd.points.fail(point, Unavailable("containerd is away"))
    with pytest.raises(Unavailable):
        await load(store, write(tmp_path, (X, ONE), (Y, TWO)))

    assert everything(containerd) == NOTHING


async def test_a_name_that_had_moved_when_another_failed_is_put_back(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    await load(store, write(tmp_path, (X, ONE)))
    before = everything(containerd)
    containerd.points.reset()
    containerd.points.fail(Point("names.put", 1), Unavailable("containerd is away"))
    with pytest.raises(Unavailable):
        await load(store, write(tmp_path, (X, TWO), (Y, TWO)))

    assert everything(containerd) == before


async def test_nothing_is_named_before_it_is_unpacked(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    await load(store, write(tmp_path, (X, ONE), (Y, TWO)))

    names = [point.name for point in containerd.points.passed]
    last = max(number for number, name in enumerate(names) if name in ("content.write", "snapshots.unpack_layer"))
    assert last < names.index("names.put")


async def test_progress_goes_through_the_stages_and_each_ends_with_all_of_it(
    store: ImageStore, tmp_path: Path
) -> None:
    told: list[Progress] = []
    await load(store, write(tmp_path, (X, ONE), (Y, TWO)), told.append)

    stages = list(dict.fromkeys(progress.stage for progress in told))
    assert stages == [Stage.VERIFY, Stage.STORE, Stage.UNPACK]
    for stage in stages:
        done = [progress.done for progress in told if progress.stage is stage]
        assert done == sorted(done)
        assert done[-1] == next(progress.total for progress in reversed(told) if progress.stage is stage)


async def test_a_layer_that_images_share_is_written_once(
    store: ImageStore, containerd: Containerd, tmp_path: Path
) -> None:
    await load(store, write(tmp_path, (X, ONE), (Y, TWO)))

    assert containerd.points.count("content.write") == len(ONE.blobs | TWO.blobs)


# Names.


def named(*names: str) -> ImageContent:
    return replace(pause_content(PROGRAM, HOST), names=names)


TARGET = named().target.digest


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), ()),
        (("x",), (X,)),
        (("x", "library/x:latest", X), (X,)),
        (("x:1", "y"), ("docker.io/library/x:1", Y)),
        ((f"x:1@{TARGET}",), ("docker.io/library/x:1",)),
        ((f"x:1@sha256:{'0' * 64}",), ("docker.io/library/x:1",)),
        ((f"x@{TARGET}",), (f"docker.io/library/x@{TARGET}",)),
        ((f"x@sha256:{'0' * 64}",), ()),
    ],
)
def test_names_are_completed_and_a_digest_is_kept_only_where_it_is_this_images(
    names: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert full_names(named(*names)) == expected


def test_an_archive_does_not_decide_what_sandboxds_own_names_mean() -> None:
    with structlog.testing.capture_logs() as logged:
        assert full_names(named(PAUSE_NAME, "x")) == (X,)
    assert [(entry["log_level"], entry["name"]) for entry in logged] == [("warning", PAUSE_NAME)]


@pytest.mark.parametrize("odd", ["UPPER CASE", "x:", "", "x@sha256:1", "a" * 2000, "http://x/y"])
def test_what_cannot_be_a_name_is_left_out_with_a_word(odd: str) -> None:
    with structlog.testing.capture_logs() as logged:
        assert full_names(named(odd, "x")) == (X,)
    assert [entry["log_level"] for entry in logged] == ["warning"]


# What an archive holds besides.


def odd(parts: Parts, **changes: object) -> Parts:
    """The same image with a manifest that differs in these members."""
    return replace(parts, manifest=encoded({**json.loads(parts.manifest), **changes}))


SIGNATURE = image(layer("signature"), media_type="application/vnd.dev.cosign.simplesigning.v1+json")
CHART = odd(ONE, config=described("application/vnd.cncf.helm.config.v1+json", ONE.config))
ODD_LAYER = odd(ONE, layers=[{"mediaType": oci.OCI_LAYER, "digest": "sha512:" + "0" * 128, "size": 1}])
NO_CONFIG = odd(ONE, config=described(oci.OCI_CONFIG, b"not there"))
FOREIGN = image(layer("foreign"), architecture="arm64")
BESIDES = {
    "a signature": (SIGNATURE, "unsupported type"),
    "a chart": (CHART, "not a container image"),
    "an unknown digest": (ODD_LAYER, "sha512"),
    "no config": (NO_CONFIG, "lacks"),
    "a foreign image": (FOREIGN, "linux/arm64"),
    "a foreign index": (FOREIGN.below(1, "arm64"), "linux/arm64"),
    "no layer": (replace(ONE, layers=ONE.layers[:1]), "lacks"),
    "no tar": (image(b"this is no tar"), "is damaged"),
    "a broken manifest": (replace(ONE, manifest=b"{"), "not valid JSON"),
    "a windows image": (windows(ONE), "windows"),
}


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("what", BESIDES)
async def test_what_is_beside_a_good_image_is_passed_over_with_a_word(
    store: ImageStore, containerd: Containerd, tmp_path: Path, what: str, first: bool
) -> None:
    other, word = BESIDES[what]
    entries = [("o:1", other), (Y, TWO)] if first else [(Y, TWO), ("o:1", other)]
    (loaded,) = await load(store, write(tmp_path, *entries))

    assert loaded.names == (Y,)
    assert word in " ".join(loaded.remarks)
    assert containerd.blobs == TWO.blobs


async def test_an_image_for_another_machine_that_is_all_there_is_is_loaded_with_a_word(
    store: ImageStore, tmp_path: Path
) -> None:
    (loaded,) = await load(store, write(tmp_path, (X, FOREIGN)))

    assert loaded.names == (X,)
    assert "linux/arm64" in " ".join(loaded.remarks)
    assert store.resolve("x").id == loaded.image_id


async def test_a_windows_image_is_refused(store: ImageStore, containerd: Containerd, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="only Windows"):
        await load(store, write(tmp_path, (X, windows(ONE))))
    assert everything(containerd) == NOTHING


# The pause image.


def test_the_same_program_is_the_same_image_and_another_one_another() -> None:
    first, again, other = (pause_content(binary, HOST) for binary in (PROGRAM, PROGRAM, PROGRAM + b"\0"))

    assert first.target == again.target != other.target
    assert first.names == (PAUSE_NAME,)
    assert first.parsed.config["Entrypoint"] == ["/catatonit", "-P"]


async def test_the_pause_image_is_made_once_and_pinned(
    store: ImageStore, containerd: Containerd, program: Path
) -> None:
    record = await ensure_pause(store, str(program))
    assert record.pinned and record.repo_tags == (PAUSE_NAME,)
    assert record.chain_id in containerd.snapshots
    before, written = everything(containerd), containerd.points.count("content.write")

    assert await ensure_pause(store, str(program)) == record
    assert everything(containerd) == before
    assert containerd.points.count("content.write") == written


async def test_another_program_is_another_pause_image_under_the_same_name(
    store: ImageStore, containerd: Containerd, program: Path
) -> None:
    first = await ensure_pause(store, str(program))
    program.write_bytes(PROGRAM + b"\0")
    second = await ensure_pause(store, str(program))

    assert second.id != first.id
    assert store.resolve(PAUSE_NAME) == second
    assert first.chain_id not in containerd.snapshots, "nothing keeps the former one"


async def test_a_pause_image_that_has_lost_its_layer_or_its_pin_is_brought_again(
    store: ImageStore, containerd: Containerd, program: Path
) -> None:
    record = await ensure_pause(store, str(program))
    containerd.snapshots.clear()
    assert await ensure_pause(store, str(program)) == record
    assert record.chain_id in containerd.snapshots

    (name,) = containerd.names
    containerd.names[name] = replace(containerd.names[name], labels=MANAGED)
    assert (await ensure_pause(store, str(program))).pinned
    assert PINNED.items() <= containerd.names[name].labels.items()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"cannot be read \(No such file or directory\); install catatonit"),
        (b"#!/bin/sh\n", "must be a static ELF program.*; install catatonit or set runtime.pause_binary"),
    ],
    ids=["missing", "script"],
)
async def test_a_pause_program_that_cannot_be_used_says_what_to_do(
    store: ImageStore, containerd: Containerd, tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "program"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(NotReady, match=words):
        await ensure_pause(store, str(path))
    assert everything(containerd) == NOTHING

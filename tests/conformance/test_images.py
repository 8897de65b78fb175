"""The suite's images have the shape that its specs rely on, and a real registry takes them."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from deploy.images.build import Tree
from tests.conformance import images, push
from tests.conformance.images import Image
from tests.conftest import StartBed
from tests.registry_server import start_registry

LISTED = "bin/[\nbin/ls\nsbin/ip\nusr/bin/id\n"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Something that lists its names as busybox does."""
    file = tmp_path / "busybox"
    file.write_text(f"#!/bin/sh\nprintf '{LISTED}'\n", encoding="ascii")
    file.chmod(0o755)
    return file


def members(tree: Tree) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(tree.tar())) as tar:
        return {entry.name: entry for entry in tar.getmembers()}


def layout_of(directory: Path, *made: Image) -> list[dict[str, Any]]:
    (directory / "blobs" / "sha256").mkdir(parents=True)
    images.write(list(made), directory)
    index = json.loads((directory / "index.json").read_text(encoding="ascii"))
    return list(index["manifests"])


def blob(directory: Path, digest: str) -> Any:
    return json.loads((directory / "blobs" / digest.replace(":", "/")).read_bytes())


def test_each_applet_is_a_file_of_its_own_that_comes_after_its_target(program: Path) -> None:
    """A spec hides /bin/ls alone; an unpacker makes a hard link only to what is there already."""
    made = members(images.busybox_tree(program))
    assert made["bin/["].isreg()
    for name in ("bin/ls", "sbin/ip", "usr/bin/id"):
        assert made[name].islnk()
        assert made[name].linkname == "bin/["
        assert list(made).index(name) > list(made).index("bin/[")
    assert made["bin"].isdir()
    assert made["tmp"].mode == 0o1777


def test_tags_name_one_image_and_shared_layers_are_stored_once(tmp_path: Path) -> None:
    """Three tags of one image are three names of one manifest; the layer of two images is one blob."""
    base, other = Tree(), Tree()
    base.file("etc/one", b"1")
    other.file("etc/two", b"2")
    listed = layout_of(
        tmp_path,
        Image(repository="some/tags", tags=("1", "2", "3"), layers=(base,), config={"User": "1002"}),
        Image(repository="some/more", tags=("latest",), layers=(base, other), config={}),
    )
    names = [item["annotations"][push.REF_NAME] for item in listed]
    assert names == ["some/tags:1", "some/tags:2", "some/tags:3", "some/more:latest"]
    assert len({item["digest"] for item in listed}) == 2
    first, second = (blob(tmp_path, item["digest"]) for item in (listed[0], listed[3]))
    assert first["layers"] == second["layers"][:1]
    config = blob(tmp_path, first["config"]["digest"])
    assert config["config"] == {"User": "1002"}
    assert len(config["rootfs"]["diff_ids"]) == 1


def test_the_same_images_are_the_same_bytes(tmp_path: Path) -> None:
    """Digests do not change from one build to the next."""
    tree = Tree()
    tree.file("etc/one", b"1")
    image = Image(repository="some/image", tags=("1",), layers=(tree,), config={})
    assert layout_of(tmp_path / "a", image) == layout_of(tmp_path / "b", image)


@pytest.mark.root
def test_a_registry_takes_every_image(tmp_path: Path, fresh_bed: StartBed) -> None:
    """Blobs, manifests, an index and tags arrive; what one repository has is not sent again to another."""
    tree = Tree()
    tree.file("etc/one", b"1")
    layout = tmp_path / "layout"
    listed = layout_of(
        layout,
        Image(repository="some/tags", tags=("1", "2"), layers=(tree,), config={}),
        Image(repository="other/index", tags=("3.9",), layers=(tree,), config={}, has_index=True),
    )
    bed = fresh_bed(daemon=False, network=False)
    registry = start_registry(bed, 5000)
    bed.run([sys.executable, "-I", str(push.__file__), str(layout), registry.host])
    for item in listed:
        assert (
            registry.storage.read(item["digest"])
            == (layout / "blobs" / item["digest"].replace(":", "/")).read_bytes()
        )
    status, body = bed.http_get("127.0.0.1", registry.port, "/v2/some/tags/tags/list")
    assert (status, sorted(json.loads(body)["tags"])) == (200, ["1", "2"])
    status, body = bed.http_get("127.0.0.1", registry.port, "/v2/other/index/tags/list")
    assert (status, json.loads(body)["tags"]) == (200, ["3.9"])

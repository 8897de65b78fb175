"""What umoci makes is loaded, and pulled once it is published: new, repacked, inserted, configured, tagged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools import tree
from tests.tools.source import CONFIG, packed_directory
from tests.tools.workshop import Workshop

pytestmark = [pytest.mark.tools, pytest.mark.e2e]

SETTINGS = (
    *("--config.user", CONFIG["User"], "--config.workingdir", CONFIG["WorkingDir"]),
    *("--config.stopsignal", CONFIG["StopSignal"]),
    *(word for each in CONFIG["Env"] for word in ("--config.env", each)),
    *(word for each in CONFIG["Entrypoint"] for word in ("--config.entrypoint", each)),
    *(word for each in CONFIG["Cmd"] for word in ("--config.cmd", each)),
    *(word for each in CONFIG["ExposedPorts"] for word in ("--config.exposedports", each)),
    *(word for each in CONFIG["Volumes"] for word in ("--config.volume", each)),
    *(word for name, value in CONFIG["Labels"].items() for word in ("--config.label", f"{name}={value}")),
)


@pytest.fixture(scope="module")
def layout(shop: Workshop) -> Path:
    """`base` has the first layer, `v1` both; the tool made them of what it saw change in a bundle."""
    root, bundle = shop.new("layout"), shop.new("bundle")
    shop.tool("umoci", "init", "--layout", root)
    shop.tool("umoci", "new", "--image", f"{root}:base")
    shop.tool("umoci", "unpack", "--image", f"{root}:base", bundle)
    shop.work("make", str(bundle / "rootfs"))
    shop.tool("umoci", "repack", "--refresh-bundle", "--image", f"{root}:base", bundle)
    # Emptied in a layer before: see the test of a directory that became a file.
    (bundle / "rootfs/etc/becomes-file/inside").unlink()
    shop.tool("umoci", "repack", "--refresh-bundle", "--image", f"{root}:v1", bundle)
    shop.work("change", str(bundle / "rootfs"))
    shop.tool("umoci", "repack", "--image", f"{root}:v1", bundle)
    shop.tool("umoci", "config", *SETTINGS, "--image", f"{root}:v1")
    return root


def only(shop: Workshop, layout: Path, tag: str, name: str) -> Path:
    """A copy of the layout with this tag only and no blob that it does not need."""
    root = shop.new(name)
    shop.tool("cp", "-a", layout, root)
    for other in shop.tool("umoci", "ls", "--layout", root).split():
        if other != tag:
            shop.tool("umoci", "rm", "--image", f"{root}:{other}")
    shop.tool("umoci", "gc", "--layout", root)
    return root


def test_what_it_repacked_is_loaded(shop: Workshop, layout: Path) -> None:
    shop.loaded(only(shop, layout, "v1", "repacked"), runs=True, described=False)


def test_what_it_repacked_is_pulled(shop: Workshop, layout: Path) -> None:
    shop.registry.storage.publish(only(shop, layout, "v1", "published"), "umoci/repacked", "v1")

    shop.pulled(shop.name("umoci/repacked"), described=False)


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar"])
@pytest.mark.parametrize(
    "members",
    [".", "index.json oci-layout blobs", "blobs oci-layout index.json", "./blobs ./index.json ./oci-layout"],
)
def test_its_layout_is_loaded_however_it_was_packed(shop: Workshop, layout: Path, members: str, form: str) -> None:
    words = f"{form} {members}".replace("/", "")
    root, archive = only(shop, layout, "v1", f"packed/{words}"), shop.new(f"packed/{words}.tar")
    shop.shell(f'tar --format {form} -C "$1" -cf "$2" {members}', root, archive)

    shop.loaded(archive, described=False)


def test_every_tag_of_a_layout_is_loaded(shop: Workshop, layout: Path) -> None:
    """A bare tag is no name: the images are known by their ids."""
    tagged = shop.new("tagged")
    shop.tool("cp", "-a", layout, tagged)
    shop.tool("umoci", "tag", "--image", f"{tagged}:v1", "again")
    loaded = shop.bed.load_archive(packed_directory(tagged, shop.new("tagged.tar")))

    assert [list(image.names) for image in loaded] == [[], []]
    for image, shown, config in zip(loaded, (shop.source.first, shop.source.both), ({}, CONFIG), strict=True):
        shop.holds(image.image_id, shown=shown, config=config, described=False)
        shop.remove(image.image_id)


def test_what_it_inserted_and_removed_is_loaded(shop: Workshop, layout: Path) -> None:
    """A file, a directory over one, an opaque directory, a removal: a layer each."""
    root = only(shop, layout, "v1", "inserted")
    (more := shop.new("more")).mkdir()
    (more / "inserted").write_text("inserted")
    (more / "inserted").chmod(0o640)
    image = ["--image", f"{root}:v1"]
    shop.tool("umoci", "insert", *image, more / "inserted", "/etc/inserted")
    shop.tool("umoci", "insert", *image, more, "/srv/shared")
    shop.tool("umoci", "insert", *image, "--opaque", more, "/opt/app")
    shop.tool("umoci", "insert", *image, "--whiteout", "/etc/becomes-directory")
    unpacked = shop.new("inserted-bundle")
    shop.tool("umoci", "unpack", *image, unpacked)
    shown = tree.show(unpacked / "rootfs")
    assert "etc/inserted" in shown and "opt/app/inserted" in shown and "srv/shared/file" in shown
    assert "opt/app/new" not in shown and "etc/becomes-directory" not in shown

    shop.loaded(root, shown=shown, described=False)


def test_a_layer_that_it_added_verbatim_is_loaded(shop: Workshop, layout: Path) -> None:
    root, layer = only(shop, layout, "base", "verbatim"), shop.new("second.tar")
    layer.write_bytes(shop.source.layers[1])
    shop.tool("umoci", "raw", "add-layer", "--image", f"{root}:base", layer)
    shop.tool("umoci", "config", *SETTINGS, "--image", f"{root}:base")

    shop.loaded(root, described=False)


def test_an_image_without_history_is_loaded(shop: Workshop, layout: Path) -> None:
    root, bundle = only(shop, layout, "v1", "historyless"), shop.new("historyless-bundle")
    shop.tool("umoci", "unpack", "--image", f"{root}:v1", bundle)
    (bundle / "rootfs/etc/replaced").unlink()
    shop.tool("umoci", "repack", "--no-history", "--image", f"{root}:v1", bundle)

    shop.loaded(root, shown=tree.show(bundle / "rootfs"), described=False)


def test_a_directory_that_became_a_file_in_one_layer_is_refused_with_the_layer_and_the_entry(
    shop: Workshop, layout: Path
) -> None:
    """umoci then writes whiteouts below the file. containerd cannot unpack such a layer, podman and umoci can."""
    root, bundle = only(shop, layout, "base", "became"), shop.new("became-bundle")
    shop.tool("umoci", "unpack", "--image", f"{root}:base", bundle)
    (bundle / "rootfs/etc/becomes-file/inside").unlink()
    (bundle / "rootfs/etc/becomes-file").rmdir()
    (bundle / "rootfs/etc/becomes-file").write_text("a file")
    shop.tool("umoci", "repack", "--image", f"{root}:base", bundle)

    said = shop.refuses_archive(packed_directory(root, shop.new("became.tar")), "sha256:", "etc/becomes-file")

    assert "/var/lib" not in said


def test_an_image_without_layers_is_told_from_a_damaged_one(shop: Workshop) -> None:
    """It is what `umoci new` makes; nothing runs in it, but nothing is wrong with it either."""
    root = shop.new("empty")
    shop.tool("umoci", "init", "--layout", root)
    shop.tool("umoci", "new", "--image", f"{root}:v1")

    (image,) = shop.bed.load_archive(packed_directory(root, shop.new("empty.tar")))

    assert shop.status(image.image_id) is not None
    shop.remove(image.image_id)

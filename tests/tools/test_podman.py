"""What podman builds, commits, imports and saves is pulled and loaded, in every format that it offers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandboxd.oci.image import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.images import host_architecture
from tests.tools.source import CONFIG, packed_directory
from tests.tools.workshop import Workshop

pytestmark = [pytest.mark.tools, pytest.mark.e2e]

MANIFESTS = {"oci": OCI_MANIFEST, "docker": DOCKER_MANIFEST, "v2s2": DOCKER_MANIFEST}
INDEXES = {"oci": OCI_INDEX, "v2s2": DOCKER_INDEX}
CHANGES = [
    word
    for line in (
        f"USER {CONFIG['User']}",
        f"WORKDIR {CONFIG['WorkingDir']}",
        f"STOPSIGNAL {CONFIG['StopSignal']}",
        *(f"ENV {each}" for each in CONFIG["Env"]),
        "LABEL of=test-tools",
        "EXPOSE 8080/tcp",
        "VOLUME /data",
        f"ENTRYPOINT {json.dumps(CONFIG['Entrypoint'])}",
        f"CMD {json.dumps(CONFIG['Cmd'])}",
    )
    for word in ("--change", line)
]

IMPORTED = {**CONFIG, "StopSignal": "10"}  # an import writes the number of SIGUSR1


@pytest.fixture(scope="module")
def built(shop: Workshop) -> dict[str, str]:
    """The first layer's tree, imported; with everything else built on it, in each of podman's formats."""
    (tar := shop.new("first.tar")).write_bytes(shop.source.layers[0])
    shop.tool("podman", "import", *CHANGES, tar, "localhost/imported:v1")
    context = shop.new("context")
    context.mkdir()
    (context / "Containerfile").write_text(
        "FROM localhost/imported:v1\nUSER root\nCOPY more /etc/more\n"
        f"USER {CONFIG['User']}\nSTOPSIGNAL {CONFIG['StopSignal']}\n"
    )
    (context / "more").write_text("more")
    names = {"imported": "localhost/imported:v1"}
    for form in ("oci", "docker"):
        names[form] = f"localhost/built-{form}:v1"
        shop.tool("podman", "build", "--format", form, "-t", names[form], context)
    return names


def raw(shop: Workshop, name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(shop.tool("skopeo", "inspect", "--raw", f"docker://{name}"))
    return parsed


def tree_of(shop: Workshop, image: str) -> dict[str, Any]:
    """The tree as podman itself shows it."""
    root = shop.tool("podman", "image", "mount", image).strip()
    try:
        return shop.tree_in_bed(root)
    finally:
        shop.tool("podman", "image", "unmount", image)


def config_of(form: str) -> dict[str, Any]:
    return IMPORTED if form == "imported" else CONFIG


@pytest.mark.parametrize("form", ["imported", "oci", "docker"])
def test_what_it_makes_is_pulled(shop: Workshop, built: dict[str, str], form: str) -> None:
    name = shop.name(f"podman/{form}")
    shop.tool("podman", "push", built[form], name)
    if form != "imported":
        assert raw(shop, name)["mediaType"] == MANIFESTS[form]

    shop.pulled(name, shown=tree_of(shop, built[form]), config=config_of(form), runs=True)


@pytest.mark.parametrize("made", ["oci", "docker"])
@pytest.mark.parametrize("pushed", ["oci", "v2s2"])
def test_a_push_that_converts_the_format_is_pulled(
    shop: Workshop, built: dict[str, str], made: str, pushed: str
) -> None:
    name = shop.name(f"podman/{made}-to-{pushed}")
    shop.tool("podman", "push", "--format", pushed, built[made], name)
    assert raw(shop, name)["mediaType"] == MANIFESTS[pushed]

    shop.pulled(name, shown=tree_of(shop, built[made]))


@pytest.mark.parametrize("compression", ["gzip", "zstd", "zstd:chunked"])
def test_a_push_of_each_compression_is_pulled(shop: Workshop, built: dict[str, str], compression: str) -> None:
    name = shop.name(f"podman/{compression.replace(':', '-')}")
    shop.forget()
    shop.tool("podman", "push", "--compression-format", compression, built["oci"], name)
    assert {layer["mediaType"].rpartition("+")[2] for layer in raw(shop, name)["layers"]} == {
        compression.partition(":")[0]
    }

    shop.pulled(name, shown=tree_of(shop, built["oci"]))


@pytest.mark.parametrize("made", ["imported", "oci", "docker"])
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_a_saved_archive_is_loaded(shop: Workshop, built: dict[str, str], form: str, made: str) -> None:
    archive = shop.new(f"saved/{form}-{made}.tar")
    shop.tool("podman", "save", "--format", form, "-o", archive, built[made])

    shop.loaded(archive, shown=tree_of(shop, built[made]), config=config_of(made), runs=True)


def test_layers_saved_without_compression_are_loaded(shop: Workshop, built: dict[str, str]) -> None:
    archive = shop.new("saved/uncompressed.tar")
    shop.tool("podman", "save", "--uncompressed", "--format", "oci-archive", "-o", archive, built["oci"])

    shop.loaded(archive, shown=tree_of(shop, built["oci"]))


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
@pytest.mark.parametrize("program", ["gzip -n", "pigz", "zstd -q", "pzstd -q -p 2"])
def test_a_saved_archive_that_was_compressed_whole_is_loaded(
    shop: Workshop, built: dict[str, str], program: str, form: str
) -> None:
    archive = shop.new(f"piped/{form}-{program.replace(' ', '')}")
    plain = shop.new(f"{archive.relative_to(shop.place)}.plain")
    shop.tool("podman", "save", "--format", form, "-o", plain, built["docker"])
    shop.shell(f'{program} <"$1" >"$2"', plain, archive)

    shop.loaded(archive, shown=tree_of(shop, built["docker"]))


@pytest.mark.parametrize(("program", "name"), [("xz -1", "xz"), ("bzip2 -1", "bzip2")])
def test_an_archive_in_a_compression_that_is_not_understood_is_refused_with_its_name(
    shop: Workshop, built: dict[str, str], program: str, name: str
) -> None:
    archive, plain = shop.new(f"refused/{name}"), shop.new(f"refused/{name}.plain")
    shop.tool("podman", "save", "-o", plain, built["docker"])
    shop.shell(f'{program} <"$1" >"$2"', plain, archive)

    shop.refuses_archive(archive, name)


def test_a_directory_in_the_oci_format_is_a_layout_and_is_loaded(shop: Workshop, built: dict[str, str]) -> None:
    directory = shop.new("directory/oci")
    shop.tool("podman", "save", "--format", "oci-dir", "-o", directory, built["docker"])

    shop.loaded(directory, shown=tree_of(shop, built["docker"]))


@pytest.mark.parametrize("compress", ["", "--compress"])
def test_a_directory_in_dockers_format_is_loaded_once_it_is_converted(
    shop: Workshop, built: dict[str, str], compress: str
) -> None:
    """The refusal of the directory itself says how."""
    directory, archive = shop.new(f"directory/docker{compress}"), shop.new(f"directory/converted{compress}")
    options = [compress] if compress else []
    shop.tool("podman", "save", *options, "--format", "docker-dir", "-o", directory, built["docker"])
    shop.refuses_archive(packed_directory(directory, shop.new(f"{directory.name}.tar")), "skopeo copy dir:")
    shop.tool("skopeo", "copy", f"dir:{directory}", f"oci-archive:{archive}:registry.example/converted:v1")

    shop.loaded(archive, shown=tree_of(shop, built["docker"]))


def test_an_archive_of_several_images_is_loaded_whole(shop: Workshop, built: dict[str, str]) -> None:
    archive, names = shop.new("saved/several.tar"), sorted(built.values())
    shop.tool("podman", "save", "-m", "-o", archive, *names)

    assert sorted(name for image in shop.bed.load_archive(archive) for name in image.names) == names

    for form, name in built.items():
        shop.holds(name, shown=tree_of(shop, name), config=config_of(form))
    for name in names:
        shop.remove(name)


def test_an_archive_by_several_names_gives_them_all(shop: Workshop, built: dict[str, str]) -> None:
    archive, more = shop.new("saved/named.tar"), "registry.example/other:v2"
    shop.tool("podman", "tag", built["oci"], more)
    shop.tool("podman", "save", "-o", archive, built["oci"], more)
    shop.tool("podman", "untag", built["oci"], more)

    assert sorted(shop.ctl("load", str(archive)).splitlines()) == [built["oci"], more]

    shop.holds(more, shown=tree_of(shop, built["oci"]))
    shop.remove(more)


@pytest.mark.parametrize("form", ["oci", "docker"])
@pytest.mark.parametrize("squash", ["", "--squash"])
def test_a_commit_of_a_container_is_pulled(shop: Workshop, built: dict[str, str], form: str, squash: str) -> None:
    working = shop.tool("podman", "create", "--runtime", "runc", "--network", "none", built["docker"]).strip()
    root = shop.tool("podman", "mount", working).strip()
    shop.work("change", root)
    committed, name = f"localhost/committed{squash}-{form}:v1", shop.name(f"podman/committed{squash}-{form}")
    options = [squash] if squash else []
    shop.tool("podman", "commit", *options, "--pause=false", "--format", form, working, committed)
    shop.tool("podman", "rm", "-f", working)
    shop.tool("podman", "push", committed, name)

    shown = tree_of(shop, committed)
    assert "etc/gone" not in shown and shown["opt/app/new"]
    shop.pulled(name, shown=shown)


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_a_manifest_list_is_pulled(shop: Workshop, built: dict[str, str], form: str) -> None:
    listed, name = f"localhost/list-{form}", shop.name(f"podman/list-{form}")
    shop.tool("podman", "manifest", "create", listed)
    shop.tool("podman", "manifest", "add", "--arch", "s390x", listed, f"containers-storage:{built['imported']}")
    shop.tool("podman", "manifest", "add", listed, f"containers-storage:{built['docker']}")
    shop.forget()
    shop.tool("podman", "manifest", "push", "--all", "--format", form, listed, f"docker://{name}")
    manifests = raw(shop, name)
    assert manifests["mediaType"] == INDEXES[form]
    assert {each["platform"]["architecture"] for each in manifests["manifests"]} == {host_architecture(), "s390x"}

    shop.pulled(name, shown=tree_of(shop, built["docker"]))


def test_an_exported_root_file_system_is_no_image_archive(shop: Workshop, built: dict[str, str]) -> None:
    """`podman import` makes an image of it; loading it is refused."""
    working = shop.tool("podman", "create", "--runtime", "runc", "--network", "none", built["oci"]).strip()
    exported: Path = shop.new("exported.tar")
    shop.tool("podman", "export", "-o", exported, working)
    shop.tool("podman", "rm", "-f", working)

    assert "archive" in shop.refuses_archive(exported)

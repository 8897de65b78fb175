"""What buildah builds is pulled and loaded: each format of a commit, each destination of a push, manifest lists."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from sandboxd.oci.image import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.images import host_architecture
from tests.tools import tree
from tests.tools.source import CONFIG
from tests.tools.workshop import Workshop

pytestmark = [pytest.mark.tools, pytest.mark.e2e]

MANIFESTS = {"oci": OCI_MANIFEST, "docker": DOCKER_MANIFEST, "v2s2": DOCKER_MANIFEST}
INDEXES = {"oci": OCI_INDEX, "v2s2": DOCKER_INDEX}
SETTINGS = (
    *("--user", CONFIG["User"], "--workingdir", CONFIG["WorkingDir"], "--stop-signal", CONFIG["StopSignal"]),
    *("--entrypoint", json.dumps(CONFIG["Entrypoint"]), "--cmd", shlex.join(CONFIG["Cmd"])),
    *(word for each in CONFIG["Env"] for word in ("--env", each)),
    *(word for each in CONFIG["ExposedPorts"] for word in ("--port", each)),
    *(word for each in CONFIG["Volumes"] for word in ("--volume", each)),
    *(word for name, value in CONFIG["Labels"].items() for word in ("--label", f"{name}={value}")),
)


def build(shop: Workshop, name: str, form: str, *options: str) -> str:
    """An image of two layers, each made in a working container: the name of the second one, in buildah's storage."""
    base = shop.tool("buildah", "from", "scratch").strip()
    shop.work("make", shop.tool("buildah", "mount", base).strip())
    shop.tool("buildah", "config", *SETTINGS, base)
    shop.tool("buildah", "commit", "--format", form, "--rm", base, f"localhost/{name}:base")
    second = shop.tool("buildah", "from", f"localhost/{name}:base").strip()
    shop.work("change", shop.tool("buildah", "mount", second).strip())
    shop.tool("buildah", "commit", "--format", form, *options, "--rm", second, f"localhost/{name}:v1")
    return f"localhost/{name}:v1"


@pytest.fixture(scope="module")
def built(shop: Workshop) -> dict[str, str]:
    """The image in each of buildah's formats."""
    return {form: build(shop, f"built-{form}", form) for form in ("oci", "docker")}


def raw(shop: Workshop, name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(shop.tool("skopeo", "inspect", "--raw", f"docker://{name}"))
    return parsed


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_a_commit_of_each_format_is_pulled(shop: Workshop, built: dict[str, str], form: str) -> None:
    name = shop.name(f"buildah/{form}")
    shop.tool("buildah", "push", built[form], f"docker://{name}")
    assert raw(shop, name)["mediaType"] == MANIFESTS[form]

    shop.pulled(name, runs=True)


@pytest.mark.parametrize("committed", ["oci", "docker"])
@pytest.mark.parametrize("pushed", ["oci", "v2s2"])
def test_a_push_that_converts_the_format_is_pulled(
    shop: Workshop, built: dict[str, str], committed: str, pushed: str
) -> None:
    name = shop.name(f"buildah/{committed}-to-{pushed}")
    shop.tool("buildah", "push", "--format", pushed, built[committed], f"docker://{name}")
    assert raw(shop, name)["mediaType"] == MANIFESTS[pushed]

    shop.pulled(name)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "zstd:chunked"])
def test_a_push_of_each_compression_is_pulled(shop: Workshop, built: dict[str, str], compression: str) -> None:
    name = shop.name(f"buildah/{compression.replace(':', '-')}")
    shop.forget()
    shop.tool("buildah", "push", "--compression-format", compression, built["oci"], f"docker://{name}")
    assert {layer["mediaType"].rpartition("+")[2] for layer in raw(shop, name)["layers"]} == {
        compression.partition(":")[0]
    }

    shop.pulled(name)


@pytest.mark.parametrize("form", ["oci", "docker"])
@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_a_push_to_each_kind_of_archive_is_loaded(
    shop: Workshop, built: dict[str, str], transport: str, form: str
) -> None:
    archive = shop.new(f"pushed/{transport}-{form}")
    shop.tool("buildah", "push", built[form], f"{transport}:{archive}:registry.example/pushed:v1")

    shop.loaded(archive)


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_a_push_without_a_name_is_loaded(shop: Workshop, built: dict[str, str], transport: str) -> None:
    """It is known by its id then."""
    archive = shop.new(f"nameless/{transport}")
    shop.tool("buildah", "push", built["oci"], f"{transport}:{archive}")

    shop.loaded(archive)


def test_a_commit_straight_to_an_archive_with_plain_layers_is_loaded(shop: Workshop) -> None:
    archive = shop.new("straight.tar")
    working = shop.tool("buildah", "from", "scratch").strip()
    shop.work("make", shop.tool("buildah", "mount", working).strip())
    shop.tool("buildah", "config", *SETTINGS, working)
    shop.tool("buildah", "commit", "--disable-compression", working, f"oci-archive:{archive}:v1")

    shop.loaded(archive, shown=shop.source.first)


@pytest.mark.parametrize("option", ["--squash", "--omit-history"])
@pytest.mark.parametrize("form", ["oci", "docker"])
def test_a_commit_that_leaves_things_out_is_pulled(shop: Workshop, form: str, option: str) -> None:
    built, name = build(shop, f"less{option}-{form}", form, option), shop.name(f"buildah/less{option}-{form}")
    shop.tool("buildah", "push", built, f"docker://{name}")
    if option == "--squash":
        assert len(raw(shop, name)["layers"]) == 1

    shop.pulled(name)


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_a_commit_with_a_time_of_its_own_is_pulled(shop: Workshop, form: str) -> None:
    """Everything in its layer has that time."""
    built, name = (
        build(shop, f"timed-{form}", form, "--timestamp", str(tree.MADE)),
        shop.name(f"buildah/timed-{form}"),
    )
    shop.tool("buildah", "push", built, f"docker://{name}")
    expected = {path: [*row[:3], min(row[3], tree.MADE), *row[4:]] for path, row in shop.source.both.items()}

    shop.pulled(name, shown=expected)


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_a_manifest_list_is_pulled(shop: Workshop, built: dict[str, str], form: str) -> None:
    listed, name = f"localhost/list-{form}", shop.name(f"buildah/list-{form}")
    shop.tool("buildah", "manifest", "create", listed)
    other = shop.tool("buildah", "from", "--arch", "s390x", "scratch").strip()
    shop.tool("buildah", "config", "--arch", "s390x", other)
    shop.tool("buildah", "commit", "--rm", other, f"localhost/other-{form}")
    shop.tool("buildah", "manifest", "add", listed, f"localhost/other-{form}")
    shop.tool("buildah", "manifest", "add", listed, built["oci"])
    shop.forget()
    shop.tool("buildah", "manifest", "push", "--all", "--format", form, listed, f"docker://{name}")
    manifests = raw(shop, name)
    assert manifests["mediaType"] == INDEXES[form]
    assert {each["platform"]["architecture"] for each in manifests["manifests"]} == {host_architecture(), "s390x"}

    shop.pulled(name)


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_a_manifest_list_in_an_archive_is_loaded(shop: Workshop, built: dict[str, str], transport: str) -> None:
    listed, archive = f"localhost/list-in-{transport}", shop.new(f"list/{transport}")
    shop.tool("buildah", "manifest", "create", listed)
    shop.tool("buildah", "manifest", "add", listed, built["docker"])
    shop.tool("buildah", "manifest", "push", "--all", listed, f"{transport}:{archive}:v1")

    shop.loaded(archive)


@pytest.mark.parametrize("form", ["oci", "docker"])
@pytest.mark.parametrize("layers", ["true", "false"])
def test_a_build_from_a_containerfile_is_pulled(
    shop: Workshop, built: dict[str, str], tmp_path: Path, form: str, layers: str
) -> None:
    """COPY, RUN and an empty layer; the shell comes from the image itself."""
    (tmp_path / "Containerfile").write_text(
        f"FROM {built['oci']}\n"
        "USER root\n"
        'RUN ["/bin/busybox", "sh", "-c", "/bin/busybox rm /etc/replaced; echo run > /etc/run"]\n'
        "COPY --chown=5:6 copied /etc/copied\n"
        "ENV ADDED=yes\n"
        f"USER {CONFIG['User']}\n"
    )
    (tmp_path / "copied").write_text("copied")
    name = shop.name(f"buildah/file-{form}-{layers}")
    shop.tool("buildah", "bud", "--network=none", f"--layers={layers}", "--format", form, "-t", name, tmp_path)
    shop.tool("buildah", "push", name)

    shop.pull(name)
    assert shop.config_of(name)["Env"] == [*CONFIG["Env"], "ADDED=yes"]
    with_image = shop.container(name)
    shown = shop.tree_of_container(with_image)
    shop.remove_container(with_image)
    shop.remove(name)
    assert shown["etc/copied"][1:3] == [5, 6]
    assert "etc/replaced" not in shown
    assert set(shop.source.both) - {"etc/replaced"} | {"etc/run"} <= set(shown)  # RUN leaves places to mount at, too

"""Archives of both formats are read in place, and everything that does not fit is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest, SandboxdError, Unavailable
from sandboxd.model import Progress, Stage
from sandboxd.oci import archive, image, layers
from sandboxd.oci.archive import Archive, ImageContent
from sandboxd.oci.image import Platform

HOST = Platform(os="linux", architecture="amd64")


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def layer(name: str = "etc/hello", content: bytes = b"hello\n") -> bytes:
    return pack({name: content})


def pack(files: dict[str, bytes], links: dict[str, str] | None = None, kind: bytes = tarfile.SYMTYPE) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return output.getvalue()


def config(*layers: bytes, architecture: str = "amd64") -> bytes:
    return encoded(
        {
            "os": "linux",
            "architecture": architecture,
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(data) for data in layers]},
        }
    )


class Layout:
    """An OCI layout in the making: blobs, and what index.json lists."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": encoded({"imageLayoutVersion": "1.0.0"})}
        self.listed: list[dict[str, Any]] = []

    def blob(self, media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
        self.files[f"blobs/{sha256(data).replace(':', '/')}"] = data
        return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}

    def manifest(self, *layers: bytes, compress: bool = False, architecture: str = "amd64") -> dict[str, Any]:
        suffix = "+gzip" if compress else ""
        stored = [gzip.compress(data, mtime=0) if compress else data for data in layers]
        document = {
            "schemaVersion": 2,
            "config": self.blob(image.OCI_CONFIG, config(*layers, architecture=architecture)),
            "layers": [self.blob(image.OCI_LAYER + suffix, data) for data in stored],
        }
        platform = {"os": "linux", "architecture": architecture}
        return self.blob(image.OCI_MANIFEST, encoded(document), platform=platform)

    def add(self, descriptor: dict[str, Any], name: str = "", ref: str = "") -> None:
        annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": ref}
        self.listed.append(descriptor | {"annotations": {k: v for k, v in annotations.items() if v}})

    def tar(self) -> bytes:
        index = encoded({"schemaVersion": 2, "manifests": self.listed})
        return pack({**self.files, "index.json": index})


def simple(**options: Any) -> Layout:
    layout = Layout()
    layout.add(layout.manifest(layer(), layer("etc/more"), **options), name="docker.io/library/x:latest")
    return layout


def docker_save(
    layer_path: str = "{hex}/layer.tar", config_path: str = "{hex}.json", **item: Any
) -> dict[str, bytes]:
    data = layer()
    conf = config(data)
    at = layer_path.format(hex=sha256(data)[7:])
    conf_at = config_path.format(hex=sha256(conf)[7:])
    entry = {"Config": conf_at, "RepoTags": ["x:latest"], "Layers": [at]} | item
    return {conf_at: conf, at: data, "manifest.json": encoded([entry])}


def read(tmp_path: Path, data: bytes) -> tuple[ImageContent, ...]:
    path = tmp_path / "image.tar"
    path.write_bytes(data)
    with Archive(path) as archive:
        return archive.images(HOST)


@pytest.mark.parametrize("whole", [False, True], ids=["plain", "gzip-archive"])
@pytest.mark.parametrize("compress", [False, True], ids=["tar-layers", "gzip-layers"])
def test_an_oci_layout_is_read(tmp_path: Path, compress: bool, whole: bool) -> None:
    """Layers plain or compressed, the archive plain or compressed as a whole."""
    data = simple(compress=compress).tar()
    path = tmp_path / "image.tar"
    path.write_bytes(gzip.compress(data) if whole else data)
    seen: list[Progress] = []
    with Archive(path) as archive:
        (content,) = archive.images(HOST, seen.append)
        assert content.names == ("docker.io/library/x:latest",)
        assert content.parsed.diff_ids == (sha256(layer()), sha256(layer("etc/more")))
        for blob in (content.manifest, content.config, *content.layers):
            with blob.open() as file:
                assert sha256(file.read()) == blob.descriptor.digest
    assert {progress.stage for progress in seen} == {Stage.VERIFY}
    assert seen == sorted(seen, key=lambda progress: (progress.done, progress.total))
    assert seen[-1].done == seen[-1].total
    assert os.listdir(tmp_path) == ["image.tar"]


def test_docker_save_is_read_and_gets_a_manifest(tmp_path: Path) -> None:
    """The manifest is made from the parts, the same each time; the image id is docker's."""
    files = docker_save()
    (content,) = read(tmp_path, pack(files))
    assert content.names == ("x:latest",)
    assert content.config.descriptor.digest == sha256(config(layer()))
    assert [blob.descriptor.media_type for blob in content.layers] == [image.OCI_LAYER]
    (again,) = read(tmp_path, pack(files))
    assert again.manifest.descriptor == content.manifest.descriptor


def test_docker_save_links_layers_that_repeat(tmp_path: Path) -> None:
    """Old dockers store a layer once and link to it; links stay inside the archive."""
    files = docker_save(layer_path="one/layer.tar", Layers=["two/layer.tar"])
    (content,) = read(tmp_path, pack(files, {"two/layer.tar": "../one/layer.tar"}))
    assert content.layers[0].descriptor.digest == sha256(layer())


def test_an_untagged_image_has_no_names(tmp_path: Path) -> None:
    """RepoTags is null, or the annotation holds only a tag."""
    assert read(tmp_path, pack(docker_save(RepoTags=None)))[0].names == ()
    layout = Layout()
    layout.add(layout.manifest(layer()), ref="latest")
    assert read(tmp_path, layout.tar())[0].names == ()


def test_a_name_may_come_from_either_annotation(tmp_path: Path) -> None:
    """The one in full wins over the reference name."""
    layout = Layout()
    layout.add(layout.manifest(layer()), ref="r.test/a:1")
    assert read(tmp_path, layout.tar())[0].names == ("r.test/a:1",)
    layout = Layout()
    layout.add(layout.manifest(layer()), name="r.test/b:2", ref="2")
    assert read(tmp_path, layout.tar())[0].names == ("r.test/b:2",)


def test_names_come_from_manifest_json_where_the_index_has_none(tmp_path: Path) -> None:
    """An archive that is both formats is one image, not two."""
    layout = Layout()
    layout.add(layout.manifest(layer()))
    conf = sha256(config(layer()))[7:]
    entry = {"Config": f"blobs/sha256/{conf}", "RepoTags": ["x:1", "y:2"], "Layers": []}
    layout.files["manifest.json"] = encoded([entry])
    (content,) = read(tmp_path, layout.tar())
    assert content.names == ("x:1", "y:2")


def test_of_items_with_one_config_all_names_are_taken(tmp_path: Path) -> None:
    layout = Layout()
    manifest = layout.manifest(layer())
    layout.add(manifest)
    at = json.loads(layout.files[f"blobs/{manifest['digest'].replace(':', '/')}"])["config"]["digest"]
    items = [{"Config": f"blobs/{at.replace(':', '/')}", "RepoTags": [f"x:{n}"], "Layers": []} for n in (1, 2)]
    layout.files["manifest.json"] = encoded(items)
    (content,) = read(tmp_path, layout.tar())
    assert content.names == ("x:1", "x:2")


def test_several_names_for_one_image_are_one_image(tmp_path: Path) -> None:
    """An archive lists the manifest once for each name."""
    layout = Layout()
    manifest = layout.manifest(layer())
    for name in ("x:1", "x:2", "x:1"):
        layout.add(manifest, name=name)
    (content,) = read(tmp_path, layout.tar())
    assert content.names == ("x:1", "x:2")


def test_this_machine_s_platform_is_taken_from_an_index(tmp_path: Path) -> None:
    """Other platforms are left out, whether or not their blobs are there; so are attestations."""
    layout = Layout()
    mine = layout.manifest(layer())
    other = layout.manifest(layer("etc/arm"), architecture="arm64")
    del layout.files[f"blobs/{other['digest'].replace(':', '/')}"]
    unknown = mine | {"digest": sha256(b"attestation"), "platform": {"os": "unknown", "architecture": "unknown"}}
    index = encoded({"schemaVersion": 2, "mediaType": image.OCI_INDEX, "manifests": [other, unknown, mine]})
    layout.add(layout.blob(image.OCI_INDEX, index), name="x:1")
    (content,) = read(tmp_path, layout.tar())
    assert content.manifest.descriptor.digest == mine["digest"]
    assert content.target.digest == sha256(index)
    assert [blob.descriptor.size for blob in content.indexes] == [len(index)]


def test_a_name_points_at_what_the_archive_says_index_or_manifest(tmp_path: Path) -> None:
    """A digest by which a registry knows the image leads to it only if the index is kept."""
    layout = Layout()
    mine = layout.manifest(layer())
    inner = layout.blob(image.OCI_INDEX, encoded({"schemaVersion": 2, "manifests": [mine]}))
    outer = layout.blob(image.OCI_INDEX, encoded({"schemaVersion": 2, "manifests": [inner]}))
    layout.add(outer, name="x:index")
    layout.add(mine, name="x:manifest")
    by_index, by_manifest = read(tmp_path, layout.tar())
    assert by_index.names == ("x:index",)
    assert [blob.descriptor.digest for blob in by_index.indexes] == [outer["digest"], inner["digest"]]
    assert (by_manifest.names, by_manifest.indexes) == (("x:manifest",), ())
    assert by_manifest.target == by_manifest.manifest.descriptor


def test_an_archive_for_another_platform_is_refused_naming_both(tmp_path: Path) -> None:
    """By its descriptor in the index: the index's word counts."""
    with pytest.raises(InvalidRequest, match=r"no image for linux/amd64 .*linux/arm64"):
        read(tmp_path, simple(architecture="arm64").tar())


def remarks(tmp_path: Path, data: bytes) -> tuple[list[tuple[str, ...]], str]:
    """The names of each image, and what is remarked."""
    path = tmp_path / "image.tar"
    path.write_bytes(data)
    with Archive(path) as opened:
        return [content.names for content in opened.images(HOST)], "; ".join(opened.remarks)


def test_the_index_s_word_counts_whatever_the_config_says(tmp_path: Path) -> None:
    """The architecture in a config is often wrong."""
    layout = simple(architecture="arm64")
    layout.listed[0]["platform"] = {"os": "Linux", "architecture": "x86_64"}
    assert remarks(tmp_path, layout.tar()) == ([("docker.io/library/x:latest",)], "")


def test_an_image_that_only_its_config_says_is_for_another_platform_is_read_with_a_word(tmp_path: Path) -> None:
    """It is all there is, and an emulator may run it; in both formats."""
    layout = simple(architecture="arm64")
    del layout.listed[0]["platform"]
    foreign = docker_save()
    foreign["c.json"] = config(layer(), architecture="arm64")
    item = json.loads(foreign["manifest.json"])[0] | {"Config": "c.json"}
    for data in (layout.tar(), pack(foreign | {"manifest.json": encoded([item])})):
        (names,), words = remarks(tmp_path, data)
        assert names and "linux/arm64" in words
    both = [item | {"RepoTags": ["arm:1"]}, *json.loads(docker_save()["manifest.json"])]
    assert remarks(tmp_path, pack(foreign | {"manifest.json": encoded(both)}))[0] == [("x:latest",)]


@pytest.mark.parametrize(
    "item",
    [
        None,
        "x",
        {},
        {"Config": None, "RepoTags": None, "Layers": None},
        {"Config": "a", "RepoTags": "x"},
        {"Config": "a", "Layers": [1]},
        {"Config": "missing.json", "RepoTags": ["y:1"], "Layers": []},
        {"Config": "../../etc/shadow", "Layers": []},
    ],
)
def test_an_item_of_manifest_json_that_is_wrong_spoils_only_itself(tmp_path: Path, item: Any) -> None:
    files = docker_save()
    items = json.loads(files["manifest.json"])
    for listed in ([item, *items], [*items, item]):
        names, words = remarks(tmp_path, pack(files | {"manifest.json": encoded(listed)}))
        assert names == [("x:latest",)]
        assert words


def test_a_wrong_manifest_json_does_not_spoil_the_index_beside_it(tmp_path: Path) -> None:
    layout = simple()
    layout.files["manifest.json"] = b"{"
    names, words = remarks(tmp_path, layout.tar())
    assert names == [("docker.io/library/x:latest",)]
    assert "manifest.json" in words


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"mediaType": image.OCI_MANIFEST, "digest": "sha512:" + "0" * 128, "size": 3},
        {"mediaType": image.OCI_MANIFEST, "digest": sha256(b"absent"), "size": 6},
        {"mediaType": "application/vnd.example+json", "digest": sha256(b"absent"), "size": 6},
        {"mediaType": image.OCI_MANIFEST, "digest": sha256(b"absent"), "size": 6, "platform": {"os": 1}},
    ],
)
def test_an_entry_of_index_json_that_is_wrong_spoils_only_itself(tmp_path: Path, entry: Any) -> None:
    for before, after in (([entry], []), ([], [entry])):
        layout = simple()
        layout.listed = [*before, *layout.listed, *after]
        names, words = remarks(tmp_path, layout.tar())
        assert names == [("docker.io/library/x:latest",)]
        assert words


def test_of_an_index_the_entry_that_is_complete_is_read(tmp_path: Path) -> None:
    """Blobs of one entry may be missing: an artifact beside the image, or the better of two variants' manifest."""
    layout = Layout()
    mine = layout.manifest(layer())
    artifact = layout.blob(image.OCI_MANIFEST, encoded({"schemaVersion": 2, "config": None, "layers": []}))
    silent = {key: value for key, value in mine.items() if key != "platform"}
    index = encoded({"schemaVersion": 2, "manifests": [artifact, {**artifact, "digest": "md5:1"}, silent]})
    layout.add(layout.blob(image.OCI_INDEX, index), name="x:1")
    names, words = remarks(tmp_path, layout.tar())
    assert names == [("x:1",)]
    assert "md5" in words


def tampered(what: str) -> bytes:
    """A layout in which one blob is not what its digest says."""
    layout = simple()
    document = json.loads(layout.files[f"blobs/{layout.listed[0]['digest'].replace(':', '/')}"])
    victim = {
        "manifest": layout.listed[0]["digest"],
        "config": document["config"]["digest"],
        "layer": document["layers"][0]["digest"],
    }[what]
    path = f"blobs/{victim.replace(':', '/')}"
    other = layer("etc/evil") if what == "layer" else layout.files[path] + b" "
    layout.files[path] = other
    return layout.tar()


@pytest.mark.parametrize("what", ["manifest", "config", "layer"])
def test_a_wrong_digest_is_refused_naming_both(tmp_path: Path, what: str) -> None:
    """The message has the digest that was expected and the one that was computed."""
    with pytest.raises(InvalidRequest, match=r"expected sha256:[0-9a-f]{64}, computed sha256:[0-9a-f]{64}"):
        read(tmp_path, tampered(what))


def test_a_layer_that_is_not_the_config_s_is_refused(tmp_path: Path) -> None:
    """Its own digest is right, the uncompressed one is not."""
    layout = Layout()
    document = {
        "schemaVersion": 2,
        "config": layout.blob(image.OCI_CONFIG, config(layer("etc/other"))),
        "layers": [layout.blob(image.OCI_LAYER, layer())],
    }
    layout.add(layout.blob(image.OCI_MANIFEST, encoded(document)))
    with pytest.raises(InvalidRequest, match=r"uncompressed layer .* wrong digest"):
        read(tmp_path, layout.tar())


def test_a_layer_that_is_compressed_although_its_type_denies_it_is_refused_as_by_a_pull(tmp_path: Path) -> None:
    layout = Layout()
    document = {
        "schemaVersion": 2,
        "config": layout.blob(image.OCI_CONFIG, config(layer())),
        "layers": [layout.blob(image.OCI_LAYER, gzip.compress(layer(), mtime=0))],
    }
    layout.add(layout.blob(image.OCI_MANIFEST, encoded(document)))
    with pytest.raises(InvalidRequest, match=r"is compressed \(gzip\), its type says"):
        read(tmp_path, layout.tar())


@pytest.mark.parametrize("media_type", ["application/octet-stream", "", image.DOCKER_LAYER])
def test_a_layer_that_is_called_anything_is_looked_into_as_by_a_pull(tmp_path: Path, media_type: str) -> None:
    layout = Layout()
    document = {
        "schemaVersion": 2,
        "mediaType": "text/plain",
        "config": layout.blob("application/octet-stream", config(layer())),
        "layers": [layout.blob(media_type, gzip.compress(layer(), mtime=0))],
    }
    layout.add(layout.blob("application/json", encoded(document)))
    assert len(read(tmp_path, layout.tar())) == 1


def test_a_size_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """containerd would wait for bytes that never come."""
    layout = simple()
    layout.listed[0]["size"] += 1
    with pytest.raises(InvalidRequest, match=r"expected .* bytes, found"):
        read(tmp_path, layout.tar())


def test_docker_save_files_named_by_a_wrong_digest_are_refused(tmp_path: Path) -> None:
    """Config and blobs carry their digest in their path."""
    with pytest.raises(InvalidRequest, match=r"config .* wrong digest"):
        read(tmp_path, pack(docker_save(config_path="a" * 64 + ".json")))
    with pytest.raises(InvalidRequest, match=r"layer .* wrong digest"):
        read(tmp_path, pack(docker_save(layer_path="blobs/sha256/" + "a" * 64)))


@pytest.mark.parametrize(
    ("files", "links"),
    [
        ({"../x": b""}, {}),
        ({"/etc/x": b""}, {}),
        ({"a/../../x": b""}, {}),
        ({}, {"a": "/etc/passwd"}),
        ({}, {"a/b": "../../x"}),
    ],
)
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symlink", "hardlink"])
def test_an_archive_whose_entries_escape_is_refused(
    tmp_path: Path, files: dict[str, bytes], links: dict[str, str], kind: bytes
) -> None:
    """Nothing is extracted, but such an archive was made to hurt."""
    with pytest.raises(InvalidRequest, match="outside the archive"):
        read(tmp_path, pack(docker_save() | files, links, kind))


def test_an_archive_whose_parts_are_named_outside_it_is_refused(tmp_path: Path) -> None:
    """manifest.json names files by path."""
    with pytest.raises(InvalidRequest, match="outside the archive"):
        read(tmp_path, pack(docker_save(Config="../../etc/shadow")))


def test_a_layer_that_cannot_be_unpacked_is_refused_before_anything_is(tmp_path: Path) -> None:
    """Its digests are right, its entries are not."""
    layout = Layout()
    layout.add(layout.manifest(layer("etc/.wh...")), name="x")
    with pytest.raises(InvalidRequest, match="would delete a directory"):
        read(tmp_path, layout.tar())


def test_links_that_go_in_circles_are_refused(tmp_path: Path) -> None:
    """Following them is bounded."""
    files = docker_save(Layers=["a"])
    with pytest.raises(InvalidRequest, match="lacks 'a'"):
        read(tmp_path, pack(files, {"a": "b", "b": "a"}))


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_what_is_neither_file_nor_link_is_passed_over_unless_it_is_needed(tmp_path: Path, kind: bytes) -> None:
    """An image archive holds files."""
    names, words = remarks(tmp_path, pack(docker_save(), {"odd": ""}, kind))
    assert names == [("x:latest",)]
    assert "'odd' is not a file" in words
    with pytest.raises(InvalidRequest, match="'odd' is not a file"):
        read(tmp_path, pack(docker_save(Layers=["odd"]), {"odd": ""}, kind))


def test_an_index_that_lists_nothing_does_not_hide_docker_s_list(tmp_path: Path) -> None:
    for index in (b'{"schemaVersion": 2, "manifests": []}', b'{"schemaVersion": 2, "manifests": null}'):
        files = docker_save() | {"index.json": index}
        names, words = remarks(tmp_path, pack(files))
        assert names == [("x:latest",)]
        assert "lists nothing" in words


@pytest.mark.parametrize("what", ["config", "layer", "manifest"])
@pytest.mark.parametrize("change", ["missing", "damaged"])
def test_an_image_of_which_a_part_is_missing_or_damaged_spoils_no_other(
    tmp_path: Path, what: str, change: str
) -> None:
    layout = simple()
    other = layout.manifest(layer("other"), layer("etc/more"))
    layout.add(other, name="docker.io/library/y:latest")
    document = json.loads(layout.files[f"blobs/{other['digest'].replace(':', '/')}"])
    victim = {"manifest": other, "config": document["config"], "layer": document["layers"][0]}[what]
    path = f"blobs/{victim['digest'].replace(':', '/')}"
    layout.files[path] = layout.files[path] + b" "
    if change == "missing":
        del layout.files[path]
    names, words = remarks(tmp_path, layout.tar())
    assert names == [("docker.io/library/x:latest",)]
    assert words


def test_a_damaged_layer_that_images_share_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each of a thousand images could make us read the same bomb again."""
    bad = b"this is no tar" * 100
    files = {"bad": bad}
    items = []
    for number in range(5):
        files[f"{number}.json"] = config(bad)[:-1] + b',"number":%d}' % number
        items.append({"Config": f"{number}.json", "RepoTags": [f"x:{number}"], "Layers": ["bad"]})
    scanned: list[str] = []
    scan = layers.scan

    def counted(file: Any, what: str, **options: Any) -> layers.Scan:
        scanned.append(what)
        return scan(file, what, **options)

    monkeypatch.setattr(layers, "scan", counted)
    with pytest.raises(InvalidRequest, match="damaged"):
        read(tmp_path, pack(files | {"manifest.json": encoded(items)}))
    assert len(scanned) == 1


def test_of_what_is_wrong_damage_is_told_before_what_is_not_an_image(tmp_path: Path) -> None:
    chart = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": sha256(b"{}"), "size": 2}
    layout = Layout()
    described = layout.blob(image.OCI_MANIFEST, encoded({"schemaVersion": 2, "config": chart, "layers": []}))
    layout.add(described, name="chart:1")
    damaged = layout.manifest(b"this is no tar" * 100)
    layout.add(damaged, name="x:1")
    with pytest.raises(InvalidRequest, match="damaged"):
        read(tmp_path, layout.tar())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"index.json": b"[]"}, "JSON object"),
        ({"index.json": b"{"}, "not valid JSON"),
        ({"oci-layout": b"{}"}, "version None is not supported"),
    ],
)
def test_a_layout_with_broken_documents_is_refused(tmp_path: Path, change: dict[str, bytes], reason: str) -> None:
    """The message names the file."""
    layout = simple()
    index = encoded({"schemaVersion": 2, "manifests": layout.listed})
    with pytest.raises(InvalidRequest, match=reason):
        read(tmp_path, pack({**layout.files, "index.json": index, **change}))


def test_a_directory_of_skopeos_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """In its dir: transport manifest.json is the manifest itself."""
    files = {"version": b"Directory Transport Version: 1.1\n", "manifest.json": encoded({"schemaVersion": 2})}
    with pytest.raises(InvalidRequest, match="skopeo copy dir:"):
        read(tmp_path, pack(files))


@pytest.mark.parametrize("document", [{}, ["x"], [{}], [{"Config": 1}], [{"Config": "a", "RepoTags": "x"}], []])
def test_a_broken_manifest_json_is_refused(tmp_path: Path, document: Any) -> None:
    """Whatever its shape."""
    with pytest.raises(InvalidRequest, match=r"manifest\.json"):
        read(tmp_path, pack({"manifest.json": encoded(document)}))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    """The path within the archive is in the message."""
    layout = simple()
    del layout.files[f"blobs/{sha256(layer()).replace(':', '/')}"]
    with pytest.raises(InvalidRequest, match=f"lacks 'blobs/sha256/{sha256(layer())[7:]}'"):
        read(tmp_path, layout.tar())


@pytest.mark.parametrize("data", [b"", b"hello", bytes(10240), pack({"readme": b"x"}), b"\x1f\x8bxx"])
def test_what_is_no_image_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    """Anything can be handed to load."""
    with pytest.raises(InvalidRequest, match="archive"):
        read(tmp_path, data)


def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    """Anywhere: plain or compressed."""
    data = simple().tar()
    for cut in (data[: len(data) // 2], gzip.compress(data)[:-30]):
        with pytest.raises(InvalidRequest):
            read(tmp_path, cut)
    assert os.listdir(tmp_path) == ["image.tar"]


def test_an_entry_of_negative_size_is_refused(tmp_path: Path) -> None:
    """tarfile would go back and read the same entries for ever, whichever header says it."""
    for info in (tarfile.TarInfo("a"), tarfile.TarInfo("b")):
        info.size = -512 if info.name == "a" else 0
        info.pax_headers = {"size": "-1024"} if info.name == "b" else {}
        header = info.tobuf(tarfile.GNU_FORMAT if info.name == "a" else tarfile.PAX_FORMAT)
        with pytest.raises(InvalidRequest, match="negative"):
            read(tmp_path, header + bytes(4096))


def test_a_damaged_zstd_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="damaged"):
        read(tmp_path, b"\x28\xb5\x2f\xfd" + bytes(100))


def test_blobs_cannot_be_read_once_the_archive_is_closed(tmp_path: Path) -> None:
    """The file's number may belong to another file by then."""
    (content,) = read(tmp_path, simple().tar())
    with pytest.raises(ValueError, match="closed"):
        content.manifest.open()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.integers(0, 30000), st.integers(0, 255), st.booleans())
def test_a_flipped_byte_is_found_or_harmless(tmp_path: Path, at: int, value: int, save: bool) -> None:
    """Whatever byte changes: refused with our own error, or the blobs are still exactly the originals."""
    data = bytearray(pack(docker_save()) if save else simple().tar())
    originals = {sha256(layer()), sha256(layer("etc/more"))}
    data[at % len(data)] = value
    try:
        found = read(tmp_path, bytes(data))
    except SandboxdError:
        return
    for content in found:
        assert {blob.descriptor.digest for blob in content.layers} <= originals


def test_images_and_names_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each distinct image and each name is work for containerd."""
    layout = Layout()
    for number in range(3):
        manifest = layout.manifest(layer(f"etc/{number}"))
        for name in range(2):
            layout.add(manifest, name=f"x:{number}-{name}")
    assert len(read(tmp_path, layout.tar())) == 3
    for limit, most, reason in (("MAX_IMAGES", 2, "more than 2 images"), ("MAX_NAMES", 5, "more than 5 names")):
        with monkeypatch.context() as patched, pytest.raises(InvalidRequest, match=reason):
            patched.setattr(archive, limit, most)
            read(tmp_path, layout.tar())


def test_a_list_of_images_is_nothing_but_a_list(tmp_path: Path) -> None:
    """What follows it is no part of it, however it is put."""
    for data in (b'[],"images":[]', b'[]}{"a":[]', b'{"images":[]}'):
        with pytest.raises(InvalidRequest, match=r"manifest\.json"):
            read(tmp_path, pack({"manifest.json": data}))


def test_an_archive_can_be_stopped_while_it_is_read(tmp_path: Path) -> None:
    """At each entry, each document and each layer."""
    path = tmp_path / "image.tar"
    path.write_bytes(simple().tar())
    for most in range(0, 24, 3):
        answers = iter([False] * most + [True] * 100)
        with pytest.raises(Unavailable, match="stopped"), Archive(path, answers.__next__) as opened:
            opened.images(HOST)

"""Manifests, indexes and configs are read strictly, and platforms chosen as the format says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.oci import image
from sandboxd.oci.image import Index, Manifest, Platform

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
HOST = Platform(os="linux", architecture="amd64")


def descriptor(media_type: str, digest: str = A, size: Any = 10, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size, **more}


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": image.OCI_MANIFEST,
        "config": descriptor(image.OCI_CONFIG),
        "layers": [descriptor(image.OCI_LAYER + "+gzip", B), descriptor(image.OCI_LAYER, C)],
    } | changes


def config(**changes: Any) -> dict[str, Any]:
    return {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [A, B]},
        "config": {"Cmd": ["sh"]},
    } | changes


def encoded(document: Any) -> bytes:
    return json.dumps(document).encode()


def test_a_manifest_keeps_the_order_of_its_layers() -> None:
    """The lowest layer comes first."""
    parsed = image.parse_manifest(encoded(manifest()))
    assert isinstance(parsed, Manifest)
    assert [layer.digest for layer in parsed.layers] == [B, C]
    assert parsed.config.digest == A


def test_docker_schema_2_is_read_like_oci() -> None:
    """Both formats say the same in other media types."""
    parsed = image.parse_manifest(
        encoded(
            manifest(
                mediaType=image.DOCKER_MANIFEST,
                config=descriptor(image.DOCKER_CONFIG),
                layers=[descriptor(image.DOCKER_LAYER + ".gzip")],
            )
        )
    )
    assert isinstance(parsed, Manifest)
    assert parsed.media_type == image.DOCKER_MANIFEST


def test_an_index_keeps_platforms_and_annotations() -> None:
    """What is needed to choose and to name survives."""
    entry = descriptor(
        image.OCI_MANIFEST, annotations={"k": "v"}, platform={"os": "linux", "architecture": "arm", "variant": "v7"}
    )
    parsed = image.parse_manifest(encoded({"schemaVersion": 2, "manifests": [entry]}))
    assert isinstance(parsed, Index)
    assert parsed.media_type == image.OCI_INDEX
    assert str(parsed.manifests[0].platform) == "linux/arm/v7"
    assert parsed.manifests[0].annotations == {"k": "v"}


@pytest.mark.parametrize(
    ("document", "error", "reason"),
    [
        ([], InvalidRequest, "JSON object"),
        ({"schemaVersion": 1}, Unsupported, "schema 1"),
        ({"schemaVersion": 2}, InvalidRequest, "neither"),
        (manifest(manifests=[]), InvalidRequest, "neither"),
        (manifest(mediaType=image.OCI_INDEX), InvalidRequest, "does not match"),
        (manifest(config=None), InvalidRequest, "config: must be an object"),
        (manifest(config=descriptor("application/vnd.example")), Unsupported, "not a container image"),
        (manifest(layers={}), InvalidRequest, "layers must be a list"),
        (manifest(layers=[descriptor("application/x-foreign")]), Unsupported, "unsupported type"),
        (manifest(layers=[descriptor(image.OCI_LAYER, "sha256:../x")]), InvalidRequest, "digest"),
        (manifest(layers=[descriptor(image.OCI_LAYER, size=-1)]), InvalidRequest, "size"),
        (manifest(layers=[descriptor(image.OCI_LAYER, size="9")]), InvalidRequest, "size"),
        (manifest(layers=[descriptor(image.OCI_LAYER, size=True)]), InvalidRequest, "size"),
        (manifest(layers=[descriptor(image.OCI_LAYER)] * 501), Unsupported, "501 layers"),
        (manifest(config=descriptor(image.OCI_CONFIG, size=1 << 30)), InvalidRequest, "config is larger"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_reason(document: Any, error: type[Exception], reason: str) -> None:
    """The message names the member."""
    with pytest.raises(error, match=reason):
        image.parse_manifest(encoded(document))


INDEX = {"schemaVersion": 2, "manifests": [descriptor(image.OCI_MANIFEST)]}


@pytest.mark.parametrize(("document", "name"), [(manifest(), image.OCI_INDEX), (INDEX, image.DOCKER_MANIFEST)])
def test_a_manifest_is_not_an_index_whatever_says_so(document: dict[str, Any], name: str) -> None:
    """Otherwise two readers could see two images behind one digest."""
    without = {key: value for key, value in document.items() if key != "mediaType"}
    with pytest.raises(InvalidRequest, match=r"is listed as .* does not match"):
        image.parse_manifest(encoded(without), name)
    with pytest.raises(InvalidRequest, match=r"calls itself .* does not match"):
        image.parse_manifest(encoded({**document, "mediaType": name}))


NAMES = ["", image.OCI_MANIFEST, image.DOCKER_MANIFEST, "text/plain", "application/json", "application/vnd.x+json"]


@pytest.mark.parametrize("listed", [*NAMES, f"{image.DOCKER_MANIFEST.upper()} ; charset=utf-8"])
@pytest.mark.parametrize("own", [*NAMES, None, 5])
def test_a_manifest_is_one_whatever_it_is_called(own: Any, listed: str) -> None:
    """Registries, proxies and tools mix the names up; the document's own one is kept, if it is one."""
    parsed = image.parse_manifest(encoded(manifest(mediaType=own)), listed)
    assert isinstance(parsed, Manifest)
    kept = next((name for name in (own, image.plain_type(listed)) if name in image.MANIFESTS), image.OCI_MANIFEST)
    assert parsed.media_type == kept


@pytest.mark.parametrize("own", ["", image.OCI_INDEX, image.DOCKER_INDEX, "application/json"])
@pytest.mark.parametrize("listed", ["", image.OCI_INDEX, image.DOCKER_INDEX, "text/plain; charset=utf-8"])
def test_an_index_is_one_whatever_it_is_called(own: str, listed: str) -> None:
    assert isinstance(image.parse_manifest(encoded({**INDEX, "mediaType": own}), listed), Index)


@pytest.mark.parametrize("version", [None, 2, 2.0, "2"])
def test_a_manifest_may_leave_out_its_version(version: Any) -> None:
    assert isinstance(image.parse_manifest(encoded(manifest(schemaVersion=version))), Manifest)


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        None,
        "application/octet-stream",
        "application/json",
        "text/html",
        "application/vnd.oci.image.config.v1+json; charset=utf-8",
        "Application/VND.docker.container.image.v1+JSON",
        "application/vnd.docker.image.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
    ],
)
def test_a_config_of_a_wrong_type_is_one_if_its_content_is(media_type: str | None) -> None:
    parsed = image.parse_manifest(encoded(manifest(config=descriptor(media_type or ""))))
    assert isinstance(parsed, Manifest)
    parsed = image.parse_manifest(encoded(manifest(config={"mediaType": media_type, "digest": A, "size": 1})))
    assert isinstance(parsed, Manifest)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.cncf.helm.config.v1+json",
        "application/vnd.oci.empty.v1+json",
        "application/vnd.docker.plugin.v1+json",
        "application/vnd.wasm.config.v0+json",
    ],
)
def test_a_config_of_another_kind_is_no_image(media_type: str) -> None:
    """Charts, plugins, artifacts."""
    with pytest.raises(Unsupported, match="not a container image"):
        image.parse_manifest(encoded(manifest(config=descriptor(media_type))))


@pytest.mark.parametrize("member", ["annotations", "layers", "subject", "manifests", "fsLayers"])
def test_null_in_a_manifest_is_the_same_as_absent(member: str) -> None:
    """Go writes it for an empty list or map."""
    parsed = image.parse_manifest(encoded(manifest(**{member: None})))
    assert isinstance(parsed, Manifest)
    assert len(parsed.layers) == (0 if member == "layers" else 2)


def test_null_in_an_index_is_the_same_as_absent() -> None:
    entry = descriptor(image.OCI_MANIFEST, annotations=None, platform=None, urls=None)
    parsed = image.parse_manifest(encoded({"schemaVersion": 2, "manifests": [entry], "config": None, "layers": None}))
    assert isinstance(parsed, Index) and len(parsed.manifests) == 1
    for document, name in (({"manifests": None}, ""), ({}, image.OCI_INDEX)):
        parsed = image.parse_manifest(encoded({"schemaVersion": 2, **document}), name)
        assert isinstance(parsed, Index) and parsed.manifests == ()


@pytest.mark.parametrize("index", [[], [descriptor(image.OCI_MANIFEST)]])
@pytest.mark.parametrize("rest", [{"config": descriptor(image.OCI_CONFIG)}, {"layers": []}])
def test_what_is_both_a_manifest_and_an_index_is_refused(index: Any, rest: Any) -> None:
    """Each reader would take what it knows."""
    with pytest.raises(InvalidRequest, match="neither"):
        image.parse_manifest(encoded({"schemaVersion": 2, "manifests": index, **rest}))


GOOD_ENTRY = descriptor(image.OCI_MANIFEST)


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (None, "must be an object"),
        ("x", "must be an object"),
        ({}, "digest"),
        (GOOD_ENTRY | {"digest": "sha512:" + "0" * 128}, "digest must be sha256.*sha512"),
        (GOOD_ENTRY | {"digest": "blake3:" + "0" * 64}, "blake3"),
        (GOOD_ENTRY | {"size": None}, "size"),
        (GOOD_ENTRY | {"platform": "linux/amd64"}, "platform"),
        (GOOD_ENTRY | {"platform": {"os": 1}}, "os must be a string"),
    ],
)
def test_an_entry_of_an_index_that_cannot_be_read_spoils_only_itself(entry: Any, word: str) -> None:
    parsed = image.parse_manifest(encoded({"schemaVersion": 2, "manifests": [entry, GOOD_ENTRY, entry]}))
    assert isinstance(parsed, Index)
    assert [item.digest for item in parsed.manifests] == [A]
    assert len(parsed.skipped) == 2
    assert re.search(rf"manifests\[0\].*{word}", parsed.skipped[0])


def test_annotations_that_are_no_texts_are_left_out() -> None:
    entry = GOOD_ENTRY | {"annotations": {"a": "b", "c": None, "d": 5}}
    parsed = image.parse_manifest(encoded({"schemaVersion": 2, "manifests": [entry]}))
    assert isinstance(parsed, Index) and parsed.manifests[0].annotations == {"a": "b"}


@pytest.mark.parametrize(
    ("media_type", "read_as", "foreign"),
    [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", image.OCI_LAYER, True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", image.OCI_LAYER + "+gzip", True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", image.OCI_LAYER + "+zstd", True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", image.DOCKER_LAYER, True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", image.DOCKER_LAYER + ".gzip", True),
        ("Application/vnd.OCI.image.layer.v1.tar+gzip; x=y", image.OCI_LAYER + "+gzip", False),
        ("application/octet-stream", image.DOCKER_LAYER, False),
        ("application/x-gzip", image.DOCKER_LAYER, False),
        ("application/x-tar", image.DOCKER_LAYER, False),
        ("application/x-tar+zstd", image.DOCKER_LAYER, False),
        ("application/tar+zstd", image.DOCKER_LAYER, False),
        ("application/x-compressed-tar", image.DOCKER_LAYER, False),
        ("application/vnd.oci.image.layer.v1.tar.gzip", image.DOCKER_LAYER, False),
        ("application/vnd.docker.image.rootfs.diff.tar+gzip", image.DOCKER_LAYER, False),
        ("", image.DOCKER_LAYER, False),
    ],
)
def test_a_layer_is_read_as_what_it_is_called_or_looked_into(media_type: str, read_as: str, foreign: bool) -> None:
    """docker's plain type leaves it to the reader to see how a layer is packed."""
    parsed = image.parse_manifest(encoded(manifest(layers=[descriptor(media_type)])))
    assert isinstance(parsed, Manifest)
    assert (parsed.layers[0].media_type, parsed.layers[0].foreign) == (read_as, foreign)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.dev.cosign.simplesigning.v1+json",
        "application/vnd.in-toto+json",
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        "application/wasm",
    ],
)
def test_what_is_no_layer_of_files_is_refused(media_type: str) -> None:
    with pytest.raises(Unsupported, match=r"encrypted|unsupported type"):
        image.parse_manifest(encoded(manifest(layers=[descriptor(media_type)])))


def test_schema_1_is_refused_in_a_sentence() -> None:
    for document in ({"schemaVersion": 1}, {"schemaVersion": 2, "fsLayers": []}):
        with pytest.raises(Unsupported, match="schema 1 is not supported; push"):
            image.parse_manifest(encoded(document))


def test_a_manifest_that_is_too_large_is_not_parsed() -> None:
    """The limit is that of registries."""
    with pytest.raises(InvalidRequest, match="larger"):
        image.parse_manifest(b" " * (image.MAX_MANIFEST_BYTES + 1))


def test_a_member_that_is_given_twice_is_refused() -> None:
    """JSON readers differ in which of the two they take."""
    with pytest.raises(InvalidRequest, match="twice"):
        image.parse_manifest(b'{"schemaVersion":2,"layers":[],"layers":[]}')


def test_deep_nesting_is_refused_not_followed() -> None:
    """A parser's stack is not the caller's problem."""
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        image.parse_manifest(b"[" * 200_000)


def test_chain_ids_follow_the_image_specification() -> None:
    """The first is the diff id itself; each further one is the digest of "chain diff"."""
    assert image.chain_ids([A]) == (A,)
    assert image.chain_ids([A, B]) == (A, image.digest(f"{A} {B}".encode()))
    assert image.chain_ids([]) == ()


def test_a_config_keeps_what_is_set() -> None:
    """null and absent mean the same: not set."""
    parsed = image.parse_config(encoded(config(config={"Cmd": ["sh"], "Env": None, "User": "", "Other": 1})))
    assert parsed.config == {"Cmd": ["sh"], "User": ""}
    assert parsed.chain_id == image.chain_ids([A, B])[-1]
    assert parsed.platform == HOST


def test_null_in_a_list_is_an_empty_text_and_no_variable() -> None:
    """As Go reads it, in which most images were written and all other runtimes are."""
    inner = {
        "Entrypoint": [None],
        "Cmd": ["sh", None],
        "Env": [None, "A=1"],
        "Labels": {"a": None},
        "Volumes": {"/v": None},
    }
    parsed = image.parse_config(encoded(config(config=inner)))
    assert parsed.config == {
        "Entrypoint": [""],
        "Cmd": ["sh", ""],
        "Env": ["A=1"],
        "Labels": {"a": ""},
        "Volumes": {"/v": None},
    }


def test_a_config_may_leave_out_how_to_run() -> None:
    """Images of data have no config object."""
    assert image.parse_config(encoded(config(config=None))).config == {}


NULLS = ("Env", "Cmd", "Entrypoint", "Labels", "Volumes", "ExposedPorts", "User", "WorkingDir", "StopSignal")


def test_null_in_a_config_is_the_same_as_absent() -> None:
    """Go writes it for an empty list or map."""
    nulls = dict.fromkeys((*NULLS, "OnBuild", "Healthcheck"))
    parsed = image.parse_config(encoded(config(config=nulls, history=None, variant=None, created=None)))
    assert parsed.config == {}
    rootless: list[Any] = [None, {}, {"diff_ids": None}, {"type": None, "diff_ids": []}]
    for rootfs in rootless:
        assert image.parse_config(encoded(config(rootfs=rootfs))).diff_ids == ()
    assert image.parse_config(encoded(config(os=None, architecture=None))).platform == Platform(
        os="", architecture=""
    )


@pytest.mark.parametrize(
    ("inner", "read"),
    [
        ({"Cmd": "top"}, {"Cmd": ["top"]}),
        ({"Entrypoint": "/bin/app -x"}, {"Entrypoint": ["/bin/app -x"]}),
        ({"Cmd": ["a", None]}, {"Cmd": ["a", ""]}),
        ({"Env": ["A=1", None, "B=2"]}, {"Env": ["A=1", "B=2"]}),
        ({"Labels": {"a": None, "b": "c"}}, {"Labels": {"a": "", "b": "c"}}),
    ],
)
def test_what_old_tools_wrote_is_read_as_they_meant_it(inner: Any, read: Any) -> None:
    assert image.parse_config(encoded(config(config=inner))).config == read


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({}, "diff_ids"),
        (config(rootfs={"diff_ids": ["x"]}), "diff_ids"),
        (config(config=[]), "config must be an object"),
        (config(config={"Env": "A=1"}), "Env must be a list"),
        (config(config={"Cmd": [1]}), "Cmd must be a list of strings"),
        (config(config={"User": 0}), "User must be a string"),
        (config(config={"Volumes": []}), "Volumes must be an object"),
        (config(config={"Labels": {"a": 1}}), "Labels"),
        (config(config={"Cmd": ["a\0b"]}), "NUL"),
        (config(os=3), "os must be a string"),
    ],
)
def test_a_wrong_config_is_refused_with_the_reason(document: Any, reason: str) -> None:
    """The message names the member."""
    with pytest.raises(InvalidRequest, match=reason):
        image.parse_config(encoded(document))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([A, image.OCI_LAYER]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["schemaVersion", "config", "layers", "manifests", "mediaType", "digest", "size", "rootfs"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON | st.builds(lambda more: manifest(**more), st.dictionaries(st.sampled_from(["config", "layers"]), JSON)))
def test_any_json_is_understood_or_refused(document: Any) -> None:
    """Nothing but InvalidRequest is ever raised."""
    for parse in (image.parse_manifest, image.parse_config):
        try:
            parse(encoded(document))
        except InvalidRequest:
            pass

"""Manifests, indexes and configs are read strictly, and platforms chosen as the format says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.oci import image
from sandboxd.oci.image import Descriptor, Index, Manifest, Platform

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
        (manifest(mediaType="text/plain"), InvalidRequest, "does not match"),
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


def test_a_manifest_must_be_what_its_descriptor_calls_it() -> None:
    """Otherwise two readers could see two images behind one digest."""
    with pytest.raises(InvalidRequest, match="listed as"):
        image.parse_manifest(encoded(manifest()), image.DOCKER_MANIFEST)


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


def test_a_config_may_leave_out_how_to_run() -> None:
    """Images of data have no config object."""
    assert image.parse_config(encoded(config(config=None))).config == {}


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


@pytest.mark.parametrize(
    ("built_for", "host", "runs"),
    [
        (("linux", "amd64", ""), ("linux", "amd64", ""), True),
        (("", "", ""), ("linux", "amd64", ""), True),
        (("linux", "x86_64", ""), ("linux", "amd64", ""), True),
        (("linux", "arm64", ""), ("linux", "amd64", ""), False),
        (("windows", "amd64", ""), ("linux", "amd64", ""), False),
        (("unknown", "unknown", ""), ("linux", "amd64", ""), False),
        (("linux", "amd64", "v3"), ("linux", "amd64", ""), False),
        (("linux", "arm64", "v8"), ("linux", "arm64", ""), True),
        (("linux", "arm", "v6"), ("linux", "arm", "v7"), True),
        (("linux", "arm", "v7"), ("linux", "arm", "v6"), False),
    ],
)
def test_an_image_runs_where_its_platform_is_offered(
    built_for: tuple[str, str, str], host: tuple[str, str, str], runs: bool
) -> None:
    """Older variants run on newer ones, not the other way round."""
    words = ("os", "architecture", "variant")
    platforms = [Platform(**dict(zip(words, parts, strict=True))) for parts in (built_for, host)]
    assert image.runs_on(*platforms) is runs


def test_the_best_variant_is_chosen_and_no_platform_comes_last() -> None:
    """Equally good ones stay in the order of the index."""
    host = Platform(os="linux", architecture="arm", variant="v7")

    def entry(digest: str, variant: str | None) -> Descriptor:
        platform = None if variant is None else Platform(os="linux", architecture="arm", variant=variant)
        return Descriptor(media_type=image.OCI_MANIFEST, digest=digest, size=1, platform=platform)

    chosen = image.choose([entry("none", None), entry("v6", "v6"), entry("v7", "v7"), entry("v8", "v8")], host)
    assert [item.digest for item in chosen] == ["v7", "v6", "none"]


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

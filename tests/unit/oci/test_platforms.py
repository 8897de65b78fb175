"""Platforms are compared as containerd compares them, and chosen as the format says."""

from __future__ import annotations

import pytest

from sandboxd.errors import Unsupported
from sandboxd.oci import image, platforms
from sandboxd.oci.image import Descriptor, Platform

HOST = Platform(os="linux", architecture="amd64")


def entry(digest: str, architecture: str, variant: str = "", os: str = "linux", **more: str) -> Descriptor:
    platform = Platform(os=os, architecture=architecture, variant=variant) if architecture else None
    return Descriptor(
        media_type=more.pop("media_type", image.OCI_MANIFEST),
        digest=digest,
        size=1,
        platform=platform,
        annotations=more,
    )


def digests(items: tuple[Descriptor, ...]) -> list[str]:
    return [item.digest for item in items]


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
        (("Linux", "AMD64", ""), ("linux", "amd64", ""), True),
        (("linux", "x86-64", "v1"), ("linux", "amd64", ""), True),
        (("linux", "aarch64", ""), ("linux", "arm64", "v8"), True),
        (("linux", "arm64", "8"), ("linux", "arm64", "v8"), True),
        (("linux", "armhf", ""), ("linux", "arm", "v7"), True),
        (("linux", "armel", ""), ("linux", "arm", "v6"), True),
        (("linux", "i386", ""), ("linux", "amd64", ""), True),
        (("linux", "arm", "v7"), ("linux", "arm64", "v8"), True),
        (("linux", "amd64", ""), ("linux", "386", ""), False),
        (("linux", "amd64", "odd"), ("linux", "amd64", ""), False),
        (("linux", "", ""), ("linux", "amd64", ""), True),
    ],
)
def test_an_image_runs_where_its_platform_is_offered(
    built_for: tuple[str, str, str], host: tuple[str, str, str], runs: bool
) -> None:
    """Older variants run on newer ones, not the other way round."""
    words = ("os", "architecture", "variant")
    pair = [Platform(**dict(zip(words, parts, strict=True))) for parts in (built_for, host)]
    assert platforms.runs_on(*pair) is runs


def test_the_best_variant_is_chosen_and_no_platform_comes_last() -> None:
    """Equally good ones stay in the order of the index."""
    host = Platform(os="linux", architecture="arm", variant="v7")

    items = [entry("none", ""), entry("v6", "arm", "v6"), entry("v7", "arm", "v7"), entry("v8", "arm", "v8")]
    chosen = platforms.choose(items, host)
    assert [item.digest for item in chosen] == ["v7", "v6", "none"]


def test_what_a_newer_architecture_runs_too_comes_after_its_own() -> None:
    """A 386 image on amd64, arm on arm64: as containerd takes them."""
    items = [entry("silent", ""), entry("386", "386"), entry("amd64", "x86_64"), entry("s390x", "s390x")]
    assert digests(platforms.choose(items, HOST)) == ["amd64", "386", "silent"]


def test_what_describes_an_image_is_not_chosen_nor_what_is_no_image() -> None:
    items = [
        entry("attestation", "unknown", os="unknown"),
        entry("unnamed", "amd64", **{platforms.REFERENCE_ANNOTATION: "attestation-manifest"}),
        entry("artifact", "amd64", media_type="application/vnd.example.artifact+json"),
        entry("windows", "amd64", os="windows"),
        entry("image", "amd64", media_type="APPLICATION/vnd.oci.image.manifest.v1+json; a=b"),
        entry("undescribed", "amd64", media_type=""),
    ]
    assert digests(platforms.choose(items, HOST)) == ["image", "undescribed"]
    assert platforms.nearest(items, HOST) == ()


def test_of_newer_variants_the_oldest_is_the_nearest() -> None:
    items = [entry("v3", "amd64", "v3"), entry("arm", "arm64"), entry("v2", "amd64", "v2"), entry("v1", "amd64")]
    assert digests(platforms.nearest(items, HOST)) == ["v2", "v3"]


def test_an_image_for_another_machine_is_objected_to_and_one_for_windows_refused() -> None:
    assert platforms.objection(Platform(os="", architecture=""), HOST) == ""
    assert "linux/s390x" in platforms.objection(Platform(os="linux", architecture="s390x"), HOST)
    with pytest.raises(Unsupported, match="only Windows"):
        platforms.objection(Platform(os="Windows", architecture="amd64"), HOST)


def test_the_kernels_names_are_known() -> None:
    names = ("x86_64", "aarch64", "armv7l", "i686", "riscv64", "s390x")
    assert [platforms.normal_architecture(name) for name in names] == [
        "amd64",
        "arm64",
        "arm",
        "386",
        "riscv64",
        "s390x",
    ]

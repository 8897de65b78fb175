"""Layers that people compress with other programs than ours are pulled and loaded; a refusal says what they are."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from sandboxd.oci.image import DOCKER_LAYER, OCI_LAYER
from tests.tools.source import Layout, Packed, packed_directory
from tests.tools.workshop import Workshop

pytestmark = [pytest.mark.tools, pytest.mark.e2e]

GZIP, ZSTD = f"{OCI_LAYER}+gzip", f"{OCI_LAYER}+zstd"
SKIPPABLE = 0x184D2A50  # to 0x184D2A5F (RFC 8878, 3.1.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a layer is compressed: a shell command from stdin to stdout, and the type that the manifest gives."""

    command: str
    media_type: str


WAYS = {
    "gzip -n": Way(command="gzip -n", media_type=GZIP),
    "gzip -9": Way(command="gzip -9", media_type=GZIP),
    "gzip --rsyncable": Way(command="gzip --rsyncable", media_type=GZIP),
    "gzip in members": Way(command="split -b 300000 --filter 'gzip -1'", media_type=GZIP),
    "gzip with a name": Way(command="cat >layer.tar && gzip -N layer.tar && cat layer.tar.gz", media_type=GZIP),
    "pigz": Way(command="pigz -p 3", media_type=GZIP),
    "pigz --independent": Way(command="pigz -p 3 -b 128 --independent", media_type=GZIP),
    "zstd": Way(command="zstd -q", media_type=ZSTD),
    "zstd --long": Way(command="zstd -q -12 --long=27", media_type=ZSTD),
    "zstd --fast": Way(command="zstd -q --fast=5", media_type=ZSTD),
    "zstd --rsyncable": Way(command="zstd -q -T2 --rsyncable", media_type=ZSTD),
    "zstd --no-check": Way(command="zstd -q --no-check", media_type=ZSTD),
    "zstd of a known size": Way(command="cat >layer.tar && zstd -q -c layer.tar", media_type=ZSTD),
    "zstd in frames": Way(command="split -b 300000 --filter 'zstd -q -1'", media_type=ZSTD),
    "pzstd": Way(command="pzstd -q -p 3", media_type=ZSTD),
    "pzstd of one thread": Way(command="pzstd -q -p 1", media_type=ZSTD),
    "zstd of docker's type": Way(command="zstd -q", media_type="application/vnd.docker.image.rootfs.diff.tar.zstd"),
    "plain": Way(command="cat", media_type=OCI_LAYER),
}


def compressed(shop: Workshop, plain: bytes, command: str) -> bytes:
    """What the command, in an empty directory, makes of these bytes."""
    before, after = shop.place / "before", shop.place / "after"
    before.write_bytes(plain)
    script = f'cd "$(mktemp -d)" && {{ {command}; }} <"$1" >"$2"'
    shop.shell(script, before, after)
    return after.read_bytes()


def offered(shop: Workshop, name: str, layers: list[Packed]) -> tuple[str, Path]:
    """The image in the registry, and as an archive."""
    layout = Layout(shop.new(f"layouts/{name}"))
    layout.name(layout.image(layers), "v1")
    shop.registry.storage.publish(layout.root, f"compression/{name}", "v1")
    return shop.name(f"compression/{name}"), packed_directory(layout.root, shop.new(f"archives/{name}.tar"))


def repository(text: str) -> str:
    """A repository's name of a test's."""
    return "".join(each if each.isalnum() else "-" for each in text).strip("-").replace("---", "-").replace("--", "-")


@pytest.mark.parametrize("way", WAYS)
def test_layers_that_a_program_compressed_are_pulled_and_loaded(shop: Workshop, way: str) -> None:
    how = WAYS[way]
    layers = [
        Packed(plain=plain, data=compressed(shop, plain, how.command), media_type=how.media_type)
        for plain in shop.source.layers
    ]
    name, archive = offered(shop, repository(way), layers)

    shop.pulled(name)
    shop.loaded(archive)


@pytest.mark.parametrize("declared", [GZIP, ZSTD, DOCKER_LAYER, f"{DOCKER_LAYER}.gzip"])
@pytest.mark.parametrize("command", ["gzip -n", "zstd -q", "cat"])
def test_layers_are_what_their_bytes_say_whatever_the_manifest_calls_them(
    shop: Workshop, command: str, declared: str
) -> None:
    layers = [
        Packed(plain=plain, data=compressed(shop, plain, command), media_type=declared)
        for plain in shop.source.layers
    ]
    name, archive = offered(shop, repository(f"{command} as {declared.partition('vnd.')[2]}"), layers)

    shop.pulled(name)
    shop.loaded(archive)


@pytest.mark.parametrize(("command", "name"), [("gzip -n", "gzip"), ("zstd -q", "zstd")])
def test_oci_layers_that_deny_their_compression_are_refused(shop: Workshop, command: str, name: str) -> None:
    """containerd, which unpacks some of them, believes this one type."""
    layers = [
        Packed(plain=plain, data=compressed(shop, plain, command), media_type=OCI_LAYER)
        for plain in shop.source.layers
    ]
    image, archive = offered(shop, f"denied-{name}", layers)

    shop.refuses(image, grpc.StatusCode.INVALID_ARGUMENT, f"compressed ({name})")
    shop.refuses_archive(archive, f"compressed ({name})")


@pytest.mark.parametrize("magic", [SKIPPABLE, SKIPPABLE + 0xE, SKIPPABLE + 0xF], ids=hex)
@pytest.mark.parametrize("place", ["first", "between", "last"])
def test_skippable_frames_are_skipped_wherever_they_are(shop: Workshop, place: str, magic: int) -> None:
    """Seekable zstd has its table in one, the last; pzstd has one before each frame."""
    frame = struct.pack("<II", magic, 12) + b"what it says"
    layers = []
    for plain in shop.source.layers:
        half = len(plain) // 2
        one, two = compressed(shop, plain[:half], "zstd -q"), compressed(shop, plain[half:], "zstd -q")
        frames = {"first": [frame, one, two], "between": [one, frame, two], "last": [one, two, frame]}[place]
        layers.append(Packed(plain=plain, data=b"".join(frames), media_type=ZSTD))
    name, archive = offered(shop, f"skippable-{place}-{magic:x}", layers)

    shop.pulled(name)
    shop.loaded(archive)


@pytest.mark.parametrize("program", ["gzip -n", "zstd -q", "cat"])
def test_bytes_after_the_end_of_the_tar_are_no_matter(shop: Workshop, program: str) -> None:
    layers = []
    for plain in shop.source.layers:
        longer = plain + bytes(20_000) + b"behind the end"
        layers.append(Packed(plain=longer, data=compressed(shop, longer, program), media_type=GZIP))
    name, archive = offered(shop, repository(f"behind {program}"), layers)

    shop.pulled(name)
    shop.loaded(archive)


@pytest.mark.parametrize(("command", "name"), [("xz -1", "xz"), ("bzip2 -1", "bzip2"), ("xz --format=lzma", "lzma")])
def test_a_layer_in_a_compression_that_is_not_understood_is_refused_with_its_name(
    shop: Workshop, command: str, name: str
) -> None:
    layers = [
        Packed(plain=plain, data=compressed(shop, plain, command), media_type=f"{OCI_LAYER}+{name}")
        for plain in shop.source.layers
    ]
    image, archive = offered(shop, f"refused-{name}", layers)

    shop.refuses(image, grpc.StatusCode.INVALID_ARGUMENT, name)
    shop.refuses_archive(archive, name)

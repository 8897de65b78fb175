"""The documents of an image: descriptors, manifests, indexes and configs.

An image is a manifest that names one config and the layers, lowest first; an index names manifests for several
platforms. Both the OCI image format (https://github.com/opencontainers/image-spec) and docker's schema 2 are
read, and the members that they share are kept. Malformed documents raise InvalidRequest; well-formed ones with a
feature that sandboxd does not offer raise Unsupported.

What a document is, its content decides; it is exactly one thing, and no name that it has may deny that. Between
names of one kind nothing depends on which it has: registries, proxies and tools mix them up. Null is the same as
absent, as it is where Go wrote an empty list. In an index only what is wrong with all of it is an error; an entry
that cannot be read is left out, with a word.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.foreign_json import parse_object, shown

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

INDEXES = (OCI_INDEX, DOCKER_INDEX)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
OCI_FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar"

LAYERS = tuple(
    f"{base}{compression}"
    for base, compressions in (
        (OCI_LAYER, ("", "+gzip", "+zstd")),
        (DOCKER_LAYER, ("", ".gzip", ".zstd")),
    )
    for compression in compressions
)

# The layers that their owner marked as not for other registries, as what they are apart from that.
_FOREIGN = {
    layer.replace(base, foreign): layer
    for base, foreign in ((OCI_LAYER, OCI_FOREIGN_LAYER), (DOCKER_LAYER, DOCKER_FOREIGN_LAYER))
    for layer in LAYERS
    if layer.startswith(base)
}
# What says nothing about a document. Old tools and some registries know no other types.
UNSPECIFIC = ("", "application/octet-stream", "binary/octet-stream", "application/json", "text/plain", "text/html")
_TARS = ("tar", "x-tar", "gtar", "x-gtar")
_PACKED = (
    *_TARS,
    *(f"{tar}+{packed}" for tar in _TARS for packed in ("gzip", "zstd")),
    *("gzip", "x-gzip", "x-gunzip", "x-tgz", "x-gtar-compressed", "x-compressed", "x-compressed-tar"),
    *("zstd", "x-zstd"),
)
# Types of layers that are looked into to see what they are, as containerd does with this one.
_SNIFFED = DOCKER_LAYER
_LAYER_FAMILIES = (OCI_LAYER, OCI_FOREIGN_LAYER, DOCKER_LAYER, DOCKER_FOREIGN_LAYER)
_IMAGE_FAMILIES = ("application/vnd.oci.image.", "application/vnd.docker.")
_NO_IMAGE_FAMILY = "application/vnd.docker.plugin."

# Annotations of an entry in an archive's index.
NAME_ANNOTATION = "io.containerd.image.name"  # a name in full
REF_ANNOTATION = "org.opencontainers.image.ref.name"  # a name, or only its tag

MAX_MANIFEST_BYTES = 4 << 20  # what registries accept
MAX_CONFIG_BYTES = 8 << 20
MAX_LAYERS = 500  # overlayfs stacks no more
MAX_BLOB_BYTES = 512 << 30
MAX_MEMBERS = 10_000  # of a list or an object in a config, except for ports: images expose whole ranges of them
MAX_SKIPPED = 10  # words about entries that are left out; who needs more has other troubles
MAX_PLATFORM_CHARACTERS = 100  # of each part of a platform's name

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

# The members of the config that sandboxd uses, by their types.
_TEXTS = ("User", "WorkingDir", "StopSignal")
_LISTS = ("Env", "Entrypoint", "Cmd")
_MAPS = ("Volumes", "Labels", "ExposedPorts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The platform of an image, in Go's terms (linux, amd64)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Points at a blob. `size` is in bytes; `media_type` may be "" where a document is not described further."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    foreign: bool = False  # a layer that is marked as not distributable


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image for one platform; layers are lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Manifests, or further indexes, to choose from. `skipped` says which entries cannot be read, and why."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """An image's config blob: its platform, its layers, and how to run it.

    `config` is the format's inner object, reduced to those of these members that are set: Env, Entrypoint, Cmd,
    User, WorkingDir, StopSignal, Volumes, Labels, ExposedPorts.
    """

    platform: Platform
    diff_ids: tuple[str, ...]
    config: Mapping[str, Any]

    @property
    def chain_id(self) -> str:
        """The chain id of the topmost layer, which names the whole root file system; "" without layers."""
        return chain_ids(self.diff_ids)[-1] if self.diff_ids else ""


def digest(data: bytes) -> str:
    """The sha256 digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(text: object) -> bool:
    """Whether `text` is a sha256 digest, the only kind that is accepted."""
    return isinstance(text, str) and bool(_DIGEST.fullmatch(text))


def chain_ids(diff_ids: Iterable[str]) -> tuple[str, ...]:
    """For each layer, the id of the stack up to it (image-spec, config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)


def plain_type(media_type: object) -> str:
    """A media type without parameters, in lower case; "" for what is not text."""
    return media_type.partition(";")[0].strip().lower() if isinstance(media_type, str) else ""


def parse_manifest(data: bytes, media_type: str = "") -> Manifest | Index:
    """Parse a manifest or an index. `media_type` is the type in the descriptor that points at it, "" if unknown.

    Raises InvalidRequest for a document that is not exactly one of the two: one that could be read as both would
    name different images to different readers.
    """
    what = "image manifest"
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidRequest(f"{what}: larger than {MAX_MANIFEST_BYTES} bytes")
    document = parse_object(data, what)
    version = document.get("schemaVersion")
    if version == 1 or document.get("fsLayers") is not None:
        raise Unsupported(f"{what}: docker's schema 1 is not supported; push the image again with a newer tool")
    if version not in (None, 2, "2"):
        raise InvalidRequest(f"{what}: schemaVersion must be 2, not {shown(version)}")
    own, listed = plain_type(document.get("mediaType")), plain_type(media_type)
    kinds = INDEXES if _is_index(document, own or listed, what) else MANIFESTS
    for name, words in ((own, "calls itself"), (listed, "is listed as")):
        if name in (*INDEXES, *MANIFESTS) and name not in kinds:
            raise InvalidRequest(f"{what}: it {words} {shown(name)}, which does not match its content")
    kind = next((name for name in (own, listed) if name in kinds), kinds[0])
    if kinds is INDEXES:
        manifests, skipped = _entries(document, what)
        return Index(media_type=kind, manifests=manifests, skipped=skipped)
    config = _config(document, what)
    layers = tuple(_layer(layer, what) for layer in _descriptors(document, "layers", f"{what}: layers"))
    if len(layers) > MAX_LAYERS:
        raise Unsupported(f"{what}: {len(layers)} layers, at most {MAX_LAYERS} can be stacked")
    return Manifest(media_type=kind, config=config, layers=layers)


def _is_index(document: Mapping[str, Any], name: str, what: str) -> bool:
    """Whether a document is an index rather than a manifest; of one with null for everything its name decides."""
    wrong = InvalidRequest(f"{what}: neither a manifest (config, layers) nor an index (manifests)")
    is_index = document.get("manifests") is not None
    is_manifest = any(document.get(member) is not None for member in ("config", "layers"))
    if is_index and is_manifest:
        raise wrong
    if is_index or is_manifest:
        return is_index
    if "manifests" not in document and name not in INDEXES:
        raise wrong
    return True


def _config(document: Mapping[str, Any], what: str) -> Descriptor:
    """The config's descriptor. Whether it is an image's shows in the blob, unless its type is of another kind."""
    config = _descriptor(document.get("config"), f"{what}: config")
    name = plain_type(config.media_type)
    foreign = name.startswith("application/vnd.") and not name.startswith(_IMAGE_FAMILIES)
    if foreign or name.startswith(_NO_IMAGE_FAMILY):
        raise Unsupported(f"{what}: a config of type {shown(config.media_type)} is not a container image")
    if config.size > MAX_CONFIG_BYTES:
        raise InvalidRequest(f"{what}: the config is larger than {MAX_CONFIG_BYTES} bytes")
    return config


def _layer(layer: Descriptor, what: str) -> Descriptor:
    """The layer with a type that says how it is packed, or one to see for oneself."""
    name = plain_type(layer.media_type)
    if layer.size > MAX_BLOB_BYTES:
        raise InvalidRequest(f"{what}: layer {layer.digest} is larger than {MAX_BLOB_BYTES} bytes")
    if name in LAYERS:
        return replace(layer, media_type=name)
    if name in _FOREIGN:
        return replace(layer, media_type=_FOREIGN[name], foreign=True)
    if "encrypted" in name:
        raise Unsupported(f"{what}: layer {layer.digest} is encrypted, which is not supported")
    if name in UNSPECIFIC or name.removeprefix("application/") in _PACKED or name.startswith(_LAYER_FAMILIES):
        return replace(layer, media_type=_SNIFFED, foreign=name.startswith((OCI_FOREIGN_LAYER, DOCKER_FOREIGN_LAYER)))
    raise Unsupported(f"{what}: layer {layer.digest} has the unsupported type {shown(layer.media_type)}")


def parse_config(data: bytes) -> ImageConfig:
    """Parse an image's config blob. Raises InvalidRequest that names the invalid member."""
    what = "image config"
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidRequest(f"{what}: larger than {MAX_CONFIG_BYTES} bytes")
    document = parse_object(data, what)
    rootfs = document.get("rootfs", "")
    if rootfs is None:
        rootfs = {}
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else ""
    if diff_ids is None:
        diff_ids = []
    if not isinstance(diff_ids, list) or not all(is_digest(item) for item in diff_ids):
        raise InvalidRequest(f"{what}: rootfs.diff_ids must be a list of sha256 digests")
    if len(diff_ids) > MAX_LAYERS:
        raise Unsupported(f"{what}: {len(diff_ids)} layers, at most {MAX_LAYERS} can be stacked")
    inner = document.get("config")
    if inner is not None and not isinstance(inner, dict):
        raise InvalidRequest(f"{what}: config must be an object")
    return ImageConfig(
        platform=_platform(document, what),
        diff_ids=tuple(diff_ids),
        config=_run_config(inner or {}, what),
    )


def _run_config(inner: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The members that sandboxd uses, checked. Null means absent."""
    checked: dict[str, Any] = {}
    for name in (*_TEXTS, *_LISTS, *_MAPS):
        value = _without_nulls(name, inner.get(name))
        if value is None:
            continue
        if name in _LISTS and isinstance(value, list):
            value = ["" if item is None else item for item in value]  # null is Go's empty string
        if name in _TEXTS and not isinstance(value, str):
            raise InvalidRequest(f"{what}: config.{name} must be a string")
        if name in _LISTS and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise InvalidRequest(f"{what}: config.{name} must be a list of strings")
        if name in _MAPS and not isinstance(value, dict):
            raise InvalidRequest(f"{what}: config.{name} must be an object")
        if name not in (*_TEXTS, "ExposedPorts") and len(value) > MAX_MEMBERS:
            raise InvalidRequest(f"{what}: config.{name} has more than {MAX_MEMBERS} members")
        if "\0" in json.dumps(value, ensure_ascii=False).replace("\\u0000", "\0"):
            raise InvalidRequest(f"{what}: config.{name} holds a NUL character")
        checked[name] = value
    if "Labels" in checked:
        checked["Labels"] = {key: "" if value is None else value for key, value in checked["Labels"].items()}
    for label, value in checked.get("Labels", {}).items():
        if not isinstance(value, str):
            raise InvalidRequest(f"{what}: config.Labels[{shown(label)}] must be a string")
    return checked


def _without_nulls(name: str, value: Any) -> Any:
    """The member as Go's readers see it: null in it is "", and a command may be one word as a string (docker)."""
    if name in ("Entrypoint", "Cmd") and isinstance(value, str):
        return [value]
    if isinstance(value, list) and None in value:
        return [item or "" for item in value if item is not None or name != "Env"]
    if name == "Labels" and isinstance(value, dict) and None in value.values():
        return {label: "" if text is None else text for label, text in value.items()}
    return value


def _list(document: Mapping[str, Any], name: str, what: str) -> list[Any]:
    items = document.get(name)
    if items is None:
        return []
    if not isinstance(items, list):
        raise InvalidRequest(f"{what} must be a list")
    return items


def _descriptors(document: Mapping[str, Any], name: str, what: str) -> tuple[Descriptor, ...]:
    return tuple(_descriptor(item, f"{what}[{number}]") for number, item in enumerate(_list(document, name, what)))


def _entries(document: Mapping[str, Any], what: str) -> tuple[tuple[Descriptor, ...], tuple[str, ...]]:
    """The entries of an index that can be read, and for some of the others why they cannot."""
    found: list[Descriptor] = []
    skipped: list[str] = []
    for number, item in enumerate(_list(document, "manifests", f"{what}: manifests")):
        try:
            found.append(_descriptor(item, f"manifests[{number}]"))
        except InvalidRequest as exc:
            if len(skipped) < MAX_SKIPPED:
                skipped.append(str(exc))
    return tuple(found), tuple(skipped)


def _descriptor(item: object, what: str) -> Descriptor:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{what}: must be an object")
    media_type, size, blob = item.get("mediaType") or "", item.get("size"), item.get("digest")
    if not isinstance(media_type, str):
        raise InvalidRequest(f"{what}: mediaType must be a string")
    if not is_digest(blob):
        raise InvalidRequest(f"{what}: digest must be sha256:<64 hex digits>, not {shown(blob)}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise InvalidRequest(f"{what}: size must be a number of bytes, not {shown(size)}")
    annotations = item.get("annotations") or {}
    if not isinstance(annotations, dict):
        raise InvalidRequest(f"{what}: annotations must be an object of strings")
    platform = item.get("platform")
    if platform is not None and not isinstance(platform, dict):
        raise InvalidRequest(f"{what}: platform must be an object")
    return Descriptor(
        media_type=media_type,
        digest=str(blob),
        size=size,
        annotations={name: text for name, text in annotations.items() if isinstance(text, str)},
        platform=_platform(platform, what) if platform else None,
    )


def _platform(document: Mapping[str, Any], what: str) -> Platform:
    parts = {name: document.get(name) or "" for name in ("os", "architecture", "variant")}
    for name, value in parts.items():
        if not isinstance(value, str):
            raise InvalidRequest(f"{what}: {name} must be a string")
        if len(value) > MAX_PLATFORM_CHARACTERS:
            raise InvalidRequest(f"{what}: {name} has {len(value)} characters")
    return Platform(**parts)

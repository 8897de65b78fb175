"""The documents of an image: descriptors, manifests, indexes and configs, parsed strictly.

An image is a manifest that names one config and the layers, lowest first; an index names manifests for several
platforms. Both the OCI image format (https://github.com/opencontainers/image-spec) and docker's schema 2 are
read, and the members that they share are kept. Malformed documents raise InvalidRequest; well-formed ones with a
feature that sandboxd does not offer raise Unsupported.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)
LAYERS = tuple(
    f"{base}{compression}"
    for base, compressions in (
        (OCI_LAYER, ("", "+gzip", "+zstd")),
        (DOCKER_LAYER, ("", ".gzip", ".zstd")),
    )
    for compression in compressions
)

# Annotations of an entry in an archive's index.
NAME_ANNOTATION = "io.containerd.image.name"  # a name in full
REF_ANNOTATION = "org.opencontainers.image.ref.name"  # a name, or only its tag

MAX_MANIFEST_BYTES = 4 << 20  # what registries accept
MAX_CONFIG_BYTES = 8 << 20
MAX_LAYERS = 500  # overlayfs stacks no more
MAX_BLOB_BYTES = 512 << 30
MAX_MEMBERS = 10_000  # of a list or an object in a config, except for ports: images expose whole ranges of them
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
    """Points at a blob. `size` is in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image for one platform; layers are lowest first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Manifests, or further indexes, to choose from."""

    media_type: str
    manifests: tuple[Descriptor, ...]


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


def parse_manifest(data: bytes, media_type: str = "") -> Manifest | Index:
    """Parse a manifest or an index. `media_type` is the type in the descriptor that points at it, "" if unknown.

    Raises InvalidRequest for a document that is not exactly one of the two: one that could be read as both would
    name different images to different readers.
    """
    what = "image manifest"
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidRequest(f"{what}: larger than {MAX_MANIFEST_BYTES} bytes")
    document = parse_object(data, what)
    if document.get("schemaVersion") != 2:
        if document.get("schemaVersion") == 1:
            raise Unsupported(f"{what}: docker's schema 1 is not supported; save the image again with a newer tool")
        raise InvalidRequest(f"{what}: schemaVersion must be 2, not {shown(document.get('schemaVersion'))}")
    own_type = document.get("mediaType", "")
    if own_type and media_type and own_type != media_type:
        raise InvalidRequest(f"{what}: calls itself {shown(own_type)}, but is listed as {shown(media_type)}")
    is_index, is_manifest = "manifests" in document, "config" in document or "layers" in document
    if is_index == is_manifest:
        raise InvalidRequest(f"{what}: neither a manifest (config, layers) nor an index (manifests)")
    kind = own_type or media_type or (OCI_INDEX if is_index else OCI_MANIFEST)
    if kind not in (INDEXES if is_index else MANIFESTS):
        raise InvalidRequest(f"{what}: {shown(kind)} does not match its content")
    if is_index:
        manifests = _descriptors(document, "manifests", f"{what}: manifests")
        return Index(media_type=kind, manifests=manifests)
    config = _descriptor(document.get("config"), f"{what}: config")
    if config.media_type not in CONFIGS:
        raise Unsupported(f"{what}: a config of type {shown(config.media_type)} is not a container image")
    if config.size > MAX_CONFIG_BYTES:
        raise InvalidRequest(f"{what}: the config is larger than {MAX_CONFIG_BYTES} bytes")
    layers = _descriptors(document, "layers", f"{what}: layers")
    if len(layers) > MAX_LAYERS:
        raise Unsupported(f"{what}: {len(layers)} layers, at most {MAX_LAYERS} can be stacked")
    for layer in layers:
        if layer.media_type not in LAYERS:
            raise Unsupported(f"{what}: layer {layer.digest} has the unsupported type {shown(layer.media_type)}")
        if layer.size > MAX_BLOB_BYTES:
            raise InvalidRequest(f"{what}: layer {layer.digest} is larger than {MAX_BLOB_BYTES} bytes")
    return Manifest(media_type=kind, config=config, layers=layers)


def parse_config(data: bytes) -> ImageConfig:
    """Parse an image's config blob. Raises InvalidRequest that names the invalid member."""
    what = "image config"
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidRequest(f"{what}: larger than {MAX_CONFIG_BYTES} bytes")
    document = parse_object(data, what)
    rootfs = document.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if diff_ids is None and isinstance(rootfs, dict):
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
        value = inner.get(name)
        if value is None:
            continue
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
    for label, value in checked.get("Labels", {}).items():
        if not isinstance(value, str):
            raise InvalidRequest(f"{what}: config.Labels[{shown(label)}] must be a string")
    return checked


def normal_architecture(machine: str) -> str:
    """The kernel's name of a machine (uname -m) in Go's terms."""
    return {
        "x86_64": "amd64",
        "aarch64": "arm64",
        "armv7l": "arm",
        "armv6l": "arm",
        "i386": "386",
        "i686": "386",
    }.get(machine, machine)


def runs_on(image: Platform, host: Platform) -> bool:
    """Whether `host` can run what was built for `image`; members that an image leaves out are not held against it."""
    if (image.os or host.os) != host.os:
        return False
    if normal_architecture(image.architecture or host.architecture) != host.architecture:
        return False
    # arm64 has only v8 in practice, and arm runs its own and older variants; v1 is amd64's baseline.
    baseline = {"arm64": "v8", "arm": "v7", "amd64": "v1"}.get(host.architecture, "")
    return not image.variant or image.variant <= (host.variant or baseline)


def choose(manifests: Iterable[Descriptor], host: Platform) -> tuple[Descriptor, ...]:
    """Those of an index that `host` can run, best first; those without a platform come last."""
    fitting = [
        item
        for item in manifests
        if item.media_type in (*MANIFESTS, *INDEXES) and (item.platform is None or runs_on(item.platform, host))
    ]
    # Sorting is stable: equal ones stay in the order of the index, as the format requires.
    fitting.sort(key=lambda item: item.platform.variant if item.platform else "", reverse=True)
    fitting.sort(key=lambda item: item.platform is None)
    return tuple(fitting)


def _descriptors(document: Mapping[str, Any], name: str, what: str) -> tuple[Descriptor, ...]:
    items = document.get(name)
    if not isinstance(items, list):
        raise InvalidRequest(f"{what} must be a list")
    return tuple(_descriptor(item, f"{what}[{number}]") for number, item in enumerate(items))


def _descriptor(item: object, what: str) -> Descriptor:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{what}: must be an object")
    media_type, size, blob = item.get("mediaType"), item.get("size"), item.get("digest")
    if not isinstance(media_type, str) or not media_type:
        raise InvalidRequest(f"{what}: mediaType is missing")
    if not is_digest(blob):
        raise InvalidRequest(f"{what}: digest must be sha256:<64 hex digits>, not {shown(blob)}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise InvalidRequest(f"{what}: size must be a number of bytes, not {shown(size)}")
    annotations = item.get("annotations") or {}
    if not isinstance(annotations, dict) or not all(isinstance(v, str) for v in annotations.values()):
        raise InvalidRequest(f"{what}: annotations must be an object of strings")
    platform = item.get("platform")
    if platform is not None and not isinstance(platform, dict):
        raise InvalidRequest(f"{what}: platform must be an object")
    return Descriptor(
        media_type=media_type,
        digest=str(blob),
        size=size,
        annotations=annotations,
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

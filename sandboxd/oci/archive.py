"""Image archives on disk: an OCI layout or a `docker save`, as one tar, plain or compressed as a whole.

The archive is untrusted. Every byte is hashed and every layer is scanned (`oci.layers`) before it is handed out.
A part that is listed several times is read once, so that the work is linear in the archive's size.
`oci.archive_files` sets the limits.

    OCI layout    oci-layout, index.json, blobs/sha256/<hex>    image-spec, image-layout.md
    docker save   manifest.json: [{Config, RepoTags, Layers}]   no manifest blob; one is built from the parts
    both          what newer versions of docker write; the OCI part is read, names are taken from either
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sandboxd import foreign_json
from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.foreign_json import shown
from sandboxd.model import Progress, Report, Stage, unreported
from sandboxd.oci import image, layers
from sandboxd.oci.archive_files import Files, Opener, inside
from sandboxd.oci.image import (
    NAME_ANNOTATION,
    REF_ANNOTATION,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
)
from sandboxd.oci.layers import Stopped

MAX_IMAGES = 1_000
MAX_NAMES = 10_000  # of all images
MAX_NESTING = 4  # indexes in indexes

_HEX_IN_PATH = re.compile(r"(?:^|/)([0-9a-f]{64})(?:\.json)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Verified content; `open` reads it from its beginning, any number of times."""

    descriptor: Descriptor
    open: Opener


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageContent:
    """A complete image for one platform. `names` are as the archive spells them; layers are lowest first.

    `indexes` lead from the names' target down to the manifest; empty when the names point at the manifest itself.
    """

    names: tuple[str, ...]
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]
    parsed: ImageConfig
    indexes: tuple[Blob, ...] = ()

    @property
    def target(self) -> Descriptor:
        """The descriptor that the names point at."""
        return (*self.indexes, self.manifest)[0].descriptor

    @property
    def size(self) -> int:
        """Bytes of manifest, config and layers."""
        return sum(blob.descriptor.size for blob in (self.manifest, self.config, *self.layers))


class Archive:
    """An image archive, to be used in a `with` statement. All calls block."""

    def __init__(self, path: Path, stopped: Stopped = layers.never) -> None:
        """Every call raises Unavailable soon after `stopped` returns True."""
        self._files = Files(path, stopped)
        self._stopped = stopped
        # Keyed by offset in the file, since several paths may lead to one.
        self._scans: dict[int, layers.Scan] = {}
        self._configs: dict[int, tuple[ImageConfig, str]] = {}
        self._resolved: dict[str, _Resolved | None] = {}
        self._done = 0
        self._report: Report = unreported

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Open the file and read its list of entries. Raises as `images` does."""
        self._files.open()

    def close(self) -> None:
        """Close the file; blobs can no longer be read."""
        self._files.close()

    def images(self, host: Platform, report: Report = unreported) -> tuple[ImageContent, ...]:
        """Every image of the archive that `host` can run, verified to the last byte.

        Raises InvalidRequest for a digest that does not match, a missing part, an entry that points outside the
        archive, and when no image is for this platform; Unsupported for layers or formats that cannot be read here.
        """
        self._report = report
        if "index.json" in self._files:
            images = self._oci_images(host)
        elif "manifest.json" in self._files:
            images = self._docker_images(host)
        else:
            raise InvalidRequest(
                "not an image archive: it has neither an index.json (OCI layout) nor a manifest.json (docker save)"
            )
        self._verified(self._files.total)
        return images

    def _blob(self, descriptor: Descriptor, most: int) -> bytes:
        """A small blob, verified against its descriptor."""
        data = self._files.read(_blob_path(descriptor.digest), most)
        _check_digest("the blob", descriptor.digest, image.digest(data))
        _check_size(descriptor, len(data))
        return data

    def _scan(self, path: str) -> layers.Scan:
        """Hash and examine the layer at `path`. A layer that several images share is read once."""
        entry = self._files.find(path)
        scan = self._scans.get(entry.offset)
        if scan is None:
            with self._files.opener(entry)() as file:
                scan = layers.scan(file, f"the layer {shown(path)}", stopped=self._stopped)
            self._scans[entry.offset] = scan
            self._done += scan.size
            self._verified(self._done)
        return scan

    def _verified(self, done: int) -> None:
        self._report(Progress(stage=Stage.VERIFY, done=done, total=max(done, self._files.total)))

    # --- OCI layout --------------------------------------------------------------------------------------------

    def _oci_images(self, host: Platform) -> tuple[ImageContent, ...]:
        if "oci-layout" in self._files:
            layout = foreign_json.parse_object(self._files.read("oci-layout", 4096), "oci-layout")
            version = layout.get("imageLayoutVersion")
            if not (isinstance(version, str) and version.startswith("1.")):
                raise Unsupported(f"oci-layout: version {shown(version)} is not supported")
        top = image.parse_manifest(self._files.read("index.json", image.MAX_MANIFEST_BYTES), image.OCI_INDEX)
        if not isinstance(top, Index):
            raise InvalidRequest("index.json: must be an image index")
        docker_names = self._docker_names()
        names_of = _Names()
        for descriptor in top.manifests:
            resolved = self._resolve(descriptor, host, MAX_NESTING)
            if resolved is not None:
                _, manifest = resolved
                names_of.add(descriptor.digest, _names(descriptor) or docker_names.get(manifest.config.digest, ()))
        if not names_of.images:
            platforms = sorted({str(item.platform) for item in top.manifests if item.platform})
            listed = ", ".join(platforms[:10]) or "none named"
            raise InvalidRequest(f"the archive holds no image for {host} (platforms: {listed})")
        images = []
        for digest, names in names_of.images.items():
            resolved = self._resolved[digest]
            assert resolved is not None
            images.append(self._oci_image(tuple(names), *resolved, host))
        return tuple(images)

    def _resolve(self, descriptor: Descriptor, host: Platform, depth: int) -> _Resolved | None:
        """The descriptors from `descriptor` down to a manifest for `host`, and that manifest; None without one.

        A document that several indexes list is parsed once.
        """
        if not image.choose((descriptor,), host):
            return None
        if descriptor.digest not in self._resolved:
            self._resolved[descriptor.digest] = self._looked_up(descriptor, host, depth)
        return self._resolved[descriptor.digest]

    def _looked_up(self, descriptor: Descriptor, host: Platform, depth: int) -> _Resolved | None:
        if _blob_path(descriptor.digest) not in self._files and depth < MAX_NESTING:
            # An archive for one platform keeps the whole index and omits the other platforms' blobs.
            return None
        data = self._blob(descriptor, image.MAX_MANIFEST_BYTES)
        document = image.parse_manifest(data, descriptor.media_type)
        if isinstance(document, Manifest):
            return (descriptor,), document
        if depth == 0:
            raise InvalidRequest(f"indexes are nested more than {MAX_NESTING} deep")
        for candidate in image.choose(document.manifests, host):
            if (resolved := self._resolve(candidate, host, depth - 1)) is not None:
                chain, manifest = resolved
                return (descriptor, *chain), manifest
        return None

    def _oci_image(
        self, names: tuple[str, ...], chain: tuple[Descriptor, ...], manifest: Manifest, host: Platform
    ) -> ImageContent:
        path = _blob_path(manifest.config.digest)
        parsed, digest = self._config(path, len(manifest.layers), host)
        _check_digest("the blob", manifest.config.digest, digest)
        _check_size(manifest.config, self._files.find(path).size)
        blobs = []
        for layer, diff_id in zip(manifest.layers, parsed.diff_ids, strict=True):
            path = _blob_path(layer.digest)
            scan = self._scan(path)
            _check_digest("the layer", layer.digest, scan.digest)
            _check_size(layer, scan.size)
            _check_digest(f"the uncompressed layer {layer.digest}", diff_id, scan.diff_id)
            blobs.append(Blob(descriptor=layer, open=self._files.opener(self._files.find(path))))
        return ImageContent(
            names=names,
            manifest=self._small(chain[-1]),
            config=self._small(manifest.config),
            layers=tuple(blobs),
            parsed=parsed,
            indexes=tuple(self._small(index) for index in chain[:-1]),
        )

    def _small(self, descriptor: Descriptor) -> Blob:
        return Blob(descriptor=descriptor, open=self._files.opener(self._files.find(_blob_path(descriptor.digest))))

    def _config(self, path: str, layer_count: int, host: Platform) -> tuple[ImageConfig, str]:
        """The config at `path` and its digest. A config that several images share is read once."""
        entry = self._files.find(path)
        config = self._configs.get(entry.offset)
        if config is None:
            data = self._files.read(path, image.MAX_CONFIG_BYTES)
            config = self._configs[entry.offset] = image.parse_config(data), image.digest(data)
        parsed, _ = config
        if len(parsed.diff_ids) != layer_count:
            raise InvalidRequest(f"image config: {len(parsed.diff_ids)} diff_ids for {layer_count} layers")
        if not image.runs_on(parsed.platform, host):
            raise InvalidRequest(f"the image is for {parsed.platform}, this machine is {host}")
        return config

    # --- docker save -------------------------------------------------------------------------------------------

    def _docker_list(self) -> list[dict[str, Any]]:
        data = self._files.read("manifest.json", image.MAX_MANIFEST_BYTES)
        items = foreign_json.parse(data, "manifest.json")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise InvalidRequest("manifest.json: must be a list of images")
        for item in items:
            tags = item.get("RepoTags") or []
            paths = item.get("Layers") or []
            for member, values in (("RepoTags", tags), ("Layers", paths), ("Config", [item.get("Config")])):
                if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                    raise InvalidRequest(f"manifest.json: {member} is missing or not made of strings")
        return items

    def _docker_names(self) -> dict[str, tuple[str, ...]]:
        """Config digest to names, of an archive in both formats."""
        if "manifest.json" not in self._files:
            return {}
        return {
            f"sha256:{match[1]}": tuple(item.get("RepoTags") or ())
            for item in self._docker_list()
            if (match := _HEX_IN_PATH.search(item["Config"]))
        }

    def _docker_images(self, host: Platform) -> tuple[ImageContent, ...]:
        # Items with the same config and layers but different names are one image.
        names_of = _Names()
        parts: dict[str, tuple[str, tuple[str, ...]]] = {}
        for item in self._docker_list():
            paths = item.get("Layers") or ()
            if len(paths) > image.MAX_LAYERS:
                raise Unsupported(f"manifest.json: {len(paths)} layers, at most {image.MAX_LAYERS} can be stacked")
            key = "\0".join((item["Config"], *paths))
            parts[key] = (item["Config"], tuple(paths))
            names_of.add(key, item.get("RepoTags") or ())
        if not parts:
            raise InvalidRequest("manifest.json: the archive holds no image")
        images = [self._docker_image(*parts[key], tuple(names), host) for key, names in names_of.images.items()]
        # Different paths may be links to the same files, and so give the same image.
        merged = _Names()
        for content in images:
            merged.add(content.target.digest, content.names)
        by_digest = {content.target.digest: content for content in images}
        return tuple(replace(by_digest[digest], names=tuple(names)) for digest, names in merged.images.items())

    def _docker_image(
        self, config_at: str, layers_at: tuple[str, ...], names: tuple[str, ...], host: Platform
    ) -> ImageContent:
        config_path = inside(config_at, "", config_at)
        paths = [inside(path, "", path) for path in layers_at]
        parsed, digest = self._config(config_path, len(paths), host)
        entry = self._files.find(config_path)
        config = Descriptor(media_type=image.OCI_CONFIG, digest=digest, size=entry.size)
        _check_path("the config", config_path, config.digest)
        blobs = []
        for path, diff_id in zip(paths, parsed.diff_ids, strict=True):
            scan = self._scan(path)
            _check_digest(f"the layer {shown(path)}", diff_id, scan.diff_id)
            if path.startswith("blobs/"):
                _check_path("the layer", path, scan.digest)
            suffix = f"+{scan.compression}" if scan.compression else ""
            descriptor = Descriptor(media_type=image.OCI_LAYER + suffix, digest=scan.digest, size=scan.size)
            blobs.append(Blob(descriptor=descriptor, open=self._files.opener(self._files.find(path))))
        return ImageContent(
            names=names,
            manifest=manifest_blob(config, [blob.descriptor for blob in blobs]),
            config=Blob(descriptor=config, open=self._files.opener(entry)),
            layers=tuple(blobs),
            parsed=parsed,
        )


_Resolved = tuple[tuple[Descriptor, ...], Manifest]


class _Names:
    """The images of an archive and all their names, in the order of the archive."""

    def __init__(self) -> None:
        self.images: dict[str, dict[str, None]] = {}
        self._count = 0

    def add(self, key: str, names: Iterable[str]) -> None:
        image_names = self.images.setdefault(key, {})
        if len(self.images) > MAX_IMAGES:
            raise InvalidRequest(f"the archive has more than {MAX_IMAGES} images")
        before = len(image_names)
        image_names.update(dict.fromkeys(names))
        self._count += len(image_names) - before
        if self._count > MAX_NAMES:
            raise InvalidRequest(f"the archive has more than {MAX_NAMES} names")


def manifest_blob(config: Descriptor, layer_list: list[Descriptor]) -> Blob:
    """An OCI manifest for parts that came without one. The same parts give the same bytes."""
    document = {
        "schemaVersion": 2,
        "mediaType": image.OCI_MANIFEST,
        "config": {"mediaType": config.media_type, "digest": config.digest, "size": config.size},
        "layers": [
            {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size} for layer in layer_list
        ],
    }
    data = json.dumps(document, separators=(",", ":")).encode()
    descriptor = Descriptor(media_type=image.OCI_MANIFEST, digest=image.digest(data), size=len(data))
    return Blob(descriptor=descriptor, open=lambda: io.BytesIO(data))


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"


def _check_digest(what: str, expected: str, computed: str) -> None:
    if computed != expected:
        raise InvalidRequest(f"{what} has a wrong digest: expected {expected}, computed {computed}")


def _check_size(descriptor: Descriptor, size: int) -> None:
    if size != descriptor.size:
        raise InvalidRequest(f"{descriptor.digest}: expected {descriptor.size} bytes, found {size}")


def _check_path(what: str, path: str, computed: str) -> None:
    """Where docker save names a file by its digest, the digest must match."""
    if match := _HEX_IN_PATH.search(path):
        _check_digest(f"{what} {shown(path)}", f"sha256:{match[1]}", computed)


def _names(descriptor: Descriptor) -> tuple[str, ...]:
    """The names in the annotations: a full name, or a ref name that cannot be just a tag."""
    if name := descriptor.annotations.get(NAME_ANNOTATION):
        return (name,)
    ref = descriptor.annotations.get(REF_ANNOTATION, "")
    return (ref,) if "/" in ref or ":" in ref else ()

"""Image archives on disk: an OCI layout or a `docker save`, as one tar, plain or compressed as a whole.

What an archive holds beside images that can be run here is passed over, with a word: signatures, charts, images for
other machines, entries that cannot be read, images of which a part is missing or damaged. An error is what leaves no
image, and what makes the whole archive suspect: an entry that points outside, or more of something than a limit.

The archive is untrusted. Every byte is hashed and every layer is scanned (`oci.layers`) before it is handed out.
A part that is listed several times is read once, whatever was found, so that the work is linear in the archive's
size.
`oci.archive_files` sets the limits.

    OCI layout    oci-layout, index.json, blobs/sha256/<hex>    image-spec, image-layout.md
    docker save   manifest.json: [{Config, RepoTags, Layers}]   no manifest blob; one is built from the parts
    both          what newer versions of docker write; the OCI part is read, names are taken from either
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sandboxd import foreign_json
from sandboxd.errors import InvalidRequest, NotFound, Unsupported
from sandboxd.foreign_json import shown
from sandboxd.model import Progress, Report, Stage, unreported
from sandboxd.oci import image, layers, platforms
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
from sandboxd.oci.selection import Known, NotForHost, Selected, Wanted, drive, search

MAX_IMAGES = 1_000
MAX_NAMES = 10_000  # of all images
MAX_REMARKS = 20

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
        self._scans: dict[int, layers.Scan | InvalidRequest] = {}
        self._configs: dict[int, tuple[ImageConfig, str]] = {}
        self._known = Known()
        self.remarks: list[str] = []  # what `images` passed over and why, and what may not run here
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
        """Every image of the archive that `host` can run, verified to the last byte; `remarks` tells of the rest.

        Images for another machine are given when there is nothing else, and nothing but their config says so. Raises
        InvalidRequest for an entry that points outside the archive, and when there is no image: none for this
        platform, or a digest does not match, or a part is missing; Unsupported for layers or formats that cannot be
        read here.
        """
        self._report = report
        for word in self._files.passed_over:
            self._remark(word)
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
            try:
                with self._files.opener(entry)() as file:
                    scan = layers.scan(file, f"the layer {shown(path)}", stopped=self._stopped)
            except InvalidRequest as exc:
                scan = exc.with_traceback(None)
            self._scans[entry.offset] = scan
            self._done += entry.size
            self._verified(self._done)
        if isinstance(scan, InvalidRequest):
            raise type(scan)(str(scan))
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
        if not (top.manifests or top.skipped) and "manifest.json" in self._files:
            self._remark("index.json: it lists nothing, manifest.json is read")
            return self._docker_images(host)
        docker_names = self._docker_names()
        for word in top.skipped:
            self._remark(f"index.json: {word}")
        offers = _Offers(host)
        for descriptor in top.manifests:
            if not platforms.choose((descriptor,), host):
                offers.elsewhere(descriptor)
                if platforms.is_other_kind(descriptor):
                    self._remark(f"{descriptor.digest}: {shown(descriptor.media_type)} is not an image")
                continue
            try:
                found = drive(search(descriptor, host, self._known), self._seen)
                parsed = self._config_of(found.manifest)
                words = found.objection(parsed.platform, host)
            except (InvalidRequest, NotFound) as exc:
                offers.failed.append(exc)
                self._remark(f"{descriptor.digest}: {exc}")
                continue
            for word in found.skipped:
                self._remark(word)
            names = _names(descriptor) or docker_names.get(found.manifest.config.digest, ())
            offers.add(descriptor.digest, names, found, words)
        return self._made(offers, self._oci_image)

    def _made(
        self, offers: _Offers, make: Callable[[tuple[str, ...], Any], ImageContent]
    ) -> tuple[ImageContent, ...]:
        """The images that are offered, whole; what is wrong with one of them spoils no other."""
        for word in offers.passed_over():
            self._remark(word)
        images = []
        for names, offer in offers.chosen():
            try:
                images.append(make(names, offer))
            except InvalidRequest as exc:
                offers.failed.append(exc)
                self._remark(f"{', '.join(names) or 'an image without a name'}: {exc}")
        if not images:
            raise offers.nothing()
        return tuple(images)

    def _remark(self, word: str) -> None:
        if len(self.remarks) < MAX_REMARKS and word not in self.remarks:
            self.remarks.append(word)

    def _seen(self, wanted: Wanted) -> bytes:
        return self._blob(wanted.descriptor, wanted.most)

    def _config_of(self, manifest: Manifest) -> ImageConfig:
        path = _blob_path(manifest.config.digest)
        parsed, digest = self._config(path, len(manifest.layers))
        _check_digest("the blob", manifest.config.digest, digest)
        _check_size(manifest.config, self._files.find(path).size)
        return parsed

    def _oci_image(self, names: tuple[str, ...], found: Selected) -> ImageContent:
        manifest, chain = found.manifest, found.chain
        parsed = self._config_of(manifest)
        blobs = []
        for layer, diff_id in zip(manifest.layers, parsed.diff_ids, strict=True):
            path = _blob_path(layer.digest)
            scan = self._scan(path)
            _check_digest("the layer", layer.digest, scan.digest)
            _check_size(layer, scan.size)
            _check_digest(f"the uncompressed layer {layer.digest}", diff_id, scan.diff_id)
            if scan.compression and layer.media_type == image.OCI_LAYER:
                # containerd takes this type at its word, as with a pull.
                raise InvalidRequest(
                    f"layer {layer.digest} is compressed ({scan.compression}), its type says that it is not"
                )
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

    def _config(self, path: str, layer_count: int) -> tuple[ImageConfig, str]:
        """The config at `path` and its digest. A config that several images share is read once."""
        entry = self._files.find(path)
        config = self._configs.get(entry.offset)
        if config is None:
            data = self._files.read(path, image.MAX_CONFIG_BYTES)
            config = self._configs[entry.offset] = image.parse_config(data), image.digest(data)
        parsed, _ = config
        if len(parsed.diff_ids) != layer_count:
            raise InvalidRequest(f"image config: {len(parsed.diff_ids)} diff_ids for {layer_count} layers")
        return config

    # --- docker save -------------------------------------------------------------------------------------------

    def _docker_list(self) -> list[dict[str, Any]]:
        data = self._files.read("manifest.json", image.MAX_MANIFEST_BYTES)
        items = foreign_json.parse(data, "manifest.json")
        if isinstance(items, dict) and "schemaVersion" in items:
            raise Unsupported(
                "not an image archive but a directory of skopeo's dir: transport; convert it with"
                " `skopeo copy dir:DIRECTORY oci-archive:FILE:NAME` and load FILE"
            )
        if not isinstance(items, list):
            raise InvalidRequest("manifest.json: must be a list of images")
        good = []
        for number, item in enumerate(items):
            if word := _wrong_item(item):
                self._remark(f"manifest.json[{number}]: {word}")
            else:
                good.append(item)
        if items and not good:
            raise InvalidRequest(f"manifest.json: {_wrong_item(items[0])}")
        return good

    def _docker_names(self) -> dict[str, tuple[str, ...]]:
        """Config digest to names, of an archive in both formats."""
        if "manifest.json" not in self._files:
            return {}
        try:
            items = self._docker_list()
        except InvalidRequest as exc:
            self._remark(str(exc))
            return {}
        names: dict[str, tuple[str, ...]] = {}
        for item in items:
            if match := _HEX_IN_PATH.search(item["Config"]):
                config = f"sha256:{match[1]}"  # several items may have it, packed in several ways
                names[config] = (*names.get(config, ()), *(item.get("RepoTags") or ()))
        return names

    def _docker_images(self, host: Platform) -> tuple[ImageContent, ...]:
        items = self._docker_list()
        if not items:
            raise InvalidRequest("manifest.json: the archive holds no image")
        offers = _Offers(host)
        for item in items:
            # Items with the same config and layers but different names are one image.
            paths = tuple(item.get("Layers") or ())
            key = "\0".join((item["Config"], *paths))
            try:
                if len(paths) > image.MAX_LAYERS:
                    raise Unsupported(
                        f"manifest.json: {len(paths)} layers, at most {image.MAX_LAYERS} can be stacked"
                    )
                inner = [inside(path, "", path) for path in (item["Config"], *paths)]
                parsed, digest = self._config(inner[0], len(paths))
                _check_path("the config", inner[0], digest)
                words = platforms.objection(parsed.platform, host)
            except InvalidRequest as exc:
                offers.failed.append(exc)
                self._remark(f"{shown(item['Config'])}: {exc}")
                continue
            offers.add(key, item.get("RepoTags") or (), inner, words)
        images = self._made(offers, self._docker_image)
        # Different paths may be links to the same files, and so give the same image.
        merged = _Names()
        for content in images:
            merged.add(content.target.digest, content.names)
        by_digest = {content.target.digest: content for content in images}
        return tuple(replace(by_digest[digest], names=tuple(names)) for digest, names in merged.images.items())

    def _docker_image(self, names: tuple[str, ...], inner: list[str]) -> ImageContent:
        config_path, *paths = inner
        parsed, digest = self._config(config_path, len(paths))
        entry = self._files.find(config_path)
        config = Descriptor(media_type=image.OCI_CONFIG, digest=digest, size=entry.size)
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


class _Offers:
    """The images that an archive offers, before their layers are read: those to take, and why not the others."""

    def __init__(self, host: Platform) -> None:
        self._host = host
        self._names = _Names()
        self._offers: dict[str, Any] = {}
        self._objections: dict[str, str] = {}
        self._platforms: set[str] = set()
        self.failed: list[InvalidRequest | NotFound] = []

    def add(self, key: str, names: Iterable[str], offer: Any, objection: str) -> None:
        """An image; with an `objection` in words it is taken only when there is none without."""
        self._names.add(key, names)
        self._offers[key] = offer
        if objection:
            self._objections[key] = objection

    def elsewhere(self, descriptor: Descriptor) -> None:
        """An entry that is for another machine, or describes another one."""
        if descriptor.platform is not None:
            self._platforms.add(str(descriptor.platform))

    def chosen(self) -> list[tuple[tuple[str, ...], Any]]:
        """The names of each image to take, and what was offered."""
        fitting = [key for key in self._offers if key not in self._objections] or list(self._offers)
        return [(tuple(self._names.images[key]), self._offers[key]) for key in fitting]

    def passed_over(self) -> list[str]:
        """What is not taken because it is for another machine, in words; or what is, for want of another."""
        listed = ", ".join(sorted(self._platforms)[:MAX_REMARKS])
        elsewhere = [f"entries for other platforms: {listed}"] if listed else []
        named = [
            f"{', '.join(self._names.images[key]) or 'an image without a name'}: {words}"
            for key, words in self._objections.items()
        ]
        return [*named, *elsewhere]

    def nothing(self) -> InvalidRequest | NotFound:
        """The error for an archive that offers nothing."""
        if damaged := [failure for failure in self.failed if not isinstance(failure, Unsupported)]:
            return damaged[0]
        first = self.failed[0] if self.failed else None
        listed = ", ".join(sorted(self._platforms)[:MAX_REMARKS]) or "none named"
        reason = f": {first}" if first else f" (platforms: {listed})"
        kind = InvalidRequest if first is None or isinstance(first, NotForHost) else Unsupported
        return kind(f"the archive holds no image for {self._host}{reason}")


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


def _wrong_item(item: object) -> str:
    """What is wrong with an item of docker's manifest.json, in words; "" if nothing is."""
    if not isinstance(item, dict):
        return "must be an object"
    tags, paths = item.get("RepoTags") or [], item.get("Layers") or []
    for member, values in (("RepoTags", tags), ("Layers", paths), ("Config", [item.get("Config")])):
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            return f"{member} is missing or not made of strings"
    return ""


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

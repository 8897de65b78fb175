"""Image archives on disk: an OCI layout or a `docker save`, as one tar, plain or gzip-compressed as a whole.

The archive comes from a stranger and is never extracted: its entries are an index into the file, and blobs are
read in place. Every byte that is handed out was hashed before; every layer was scanned (`oci.layers`). An archive
that is compressed as a whole is decompressed once into a file without a name, since blobs are needed more than
once and in no particular order.

    OCI layout    oci-layout, index.json, blobs/sha256/<hex>    image-spec, image-layout.md
    docker save   manifest.json: [{Config, RepoTags, Layers}]   no manifest blob; ours is made from the parts
    both          what newer dockers write; the OCI part is read, names are taken from either
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import posixpath
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from sandboxd.errors import Exhausted, InvalidRequest, Unsupported
from sandboxd.oci import image, layers
from sandboxd.oci.image import Descriptor, ImageConfig, Index, Manifest, Platform

MOST_ENTRIES = 100_000
MOST_LINKS = 10  # followed from one entry to another
MOST_NESTING = 4  # indexes in indexes

NAME_ANNOTATION = "io.containerd.image.name"  # a name in full
REF_ANNOTATION = "org.opencontainers.image.ref.name"  # a name, or only its tag

_HEX_IN_PATH = re.compile(r"(?:^|/)([0-9a-f]{64})(?:\.json)?$")

Progress = Callable[[int, int], None]  # bytes done, bytes altogether
Opener = Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Content that was verified, and how to read it (again) from its beginning."""

    descriptor: Descriptor
    open: Opener


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageContent:
    """A complete image for one platform. `names` are as the archive spells them; layers from the lowest up.

    `indexes` lead from what the names point at down to the manifest; empty when they point at the manifest itself.
    """

    names: tuple[str, ...]
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]
    parsed: ImageConfig
    indexes: tuple[Blob, ...] = ()

    @property
    def target(self) -> Descriptor:
        """What the names point at."""
        return (*self.indexes, self.manifest)[0].descriptor

    @property
    def size(self) -> int:
        """Bytes of manifest, config and layers."""
        return sum(blob.descriptor.size for blob in (self.manifest, self.config, *self.layers))


class Archive:
    """An archive that is open for reading; use it in a `with` statement. All calls block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._entries: dict[str, _Entry] = {}
        self._scans: dict[str, layers.Scan] = {}
        self._done = self._total = 0
        self._progress: Progress = lambda done, total: None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Open the file and read what it holds. Raises as `images` does."""
        try:
            self._file = self._open()
            self._read_entries(self._file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; blobs can no longer be read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def images(self, host: Platform, progress: Progress | None = None) -> tuple[ImageContent, ...]:
        """Every image of the archive that `host` can run, verified to the last byte.

        Raises InvalidRequest for a digest that does not fit, a part that is missing or an entry that escapes, and
        when no image is for this platform; Unsupported for layers or formats that cannot be read here.
        """
        if progress is not None:
            self._progress = progress
        if "index.json" in self._entries:
            found = self._oci_images(host)
        elif "manifest.json" in self._entries:
            found = self._docker_images(host)
        else:
            raise InvalidRequest(
                "not an image archive: it has neither an index.json (OCI layout) nor a manifest.json (docker save)"
            )
        self._progress(self._total, self._total)
        merged: dict[str, ImageContent] = {}
        for content in found:
            digest = content.target.digest
            earlier = merged.get(digest)
            names = dict.fromkeys((*(earlier.names if earlier else ()), *content.names))
            merged[digest] = replace(content, names=tuple(names))
        return tuple(merged.values())

    # Files in the archive.

    def _open(self) -> BinaryIO:
        with ExitStack() as stack:
            file = stack.enter_context(self._path.open("rb"))
            compression = layers.compression_of(file)
            if not compression:
                stack.pop_all()
                return file
            try:
                with layers.decompressed(file, compression, "the archive") as plain:
                    return _spool(plain, self._path.parent)
            except (zlib.error, EOFError, gzip.BadGzipFile) as exc:
                raise InvalidRequest(f"the archive is damaged: {exc}") from exc

    def _read_entries(self, file: BinaryIO) -> None:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=layers.BoundedTarInfo) as tar:
                for member in tar:
                    if len(self._entries) >= MOST_ENTRIES:
                        raise InvalidRequest(f"the archive has more than {MOST_ENTRIES} entries")
                    self._add_entry(member, length)
        except (tarfile.TarError, EOFError, ValueError) as exc:
            raise InvalidRequest(f"not an image archive: {exc}") from exc
        self._total = sum(entry.size for entry in self._entries.values())

    def _add_entry(self, member: tarfile.TarInfo, length: int) -> None:
        layers.check_size(member)
        path = _inside(member.name, "", member.name)
        if member.isdir():
            return
        if member.issym() or member.islnk():
            base = posixpath.dirname(path) if member.issym() else ""
            self._entries[path] = _Entry(link=_inside(member.linkname, base, member.name))
        elif member.isreg() and not member.issparse():
            if member.offset_data + member.size > length:
                raise InvalidRequest(f"the archive is cut off in the middle of {member.name!r}")
            self._entries[path] = _Entry(offset=member.offset_data, size=member.size)
        else:
            raise InvalidRequest(f"the archive's entry {member.name!r} is neither a file, a directory nor a link")

    def _find(self, path: str) -> _Entry:
        """The file at `path`, links followed within the archive."""
        at = path
        for _ in range(MOST_LINKS):
            entry = self._entries.get(at)
            if entry is None:
                break
            if not entry.link:
                return entry
            at = entry.link
        raise InvalidRequest(f"the archive lacks {path!r}")

    def _opener(self, entry: _Entry) -> Opener:
        def opened() -> BinaryIO:
            if self._file is None:
                raise ValueError("the archive is closed")
            section = _Section(self._file, entry.offset, entry.size)
            return cast(BinaryIO, io.BufferedReader(section, buffer_size=layers.CHUNK))

        return opened

    def _read(self, path: str, most: int) -> bytes:
        entry = self._find(path)
        if entry.size > most:
            raise InvalidRequest(f"{path} in the archive is larger than {most} bytes")
        with self._opener(entry)() as file:
            return file.read()

    def _blob(self, descriptor: Descriptor, most: int) -> bytes:
        """A small blob, verified against its descriptor."""
        data = self._read(_blob_path(descriptor.digest), most)
        _check_digest("the blob", descriptor.digest, image.digest(data))
        _check_size(descriptor, len(data))
        return data

    def _scan(self, path: str) -> layers.Scan:
        """Hash and examine the layer at `path`, once however many images share it."""
        scan = self._scans.get(path)
        if scan is None:
            with self._opener(self._find(path))() as file:
                scan = layers.scan(file, f"the layer {path}")
            self._scans[path] = scan
            self._done += scan.size
            self._progress(self._done, max(self._done, self._total))
        return scan

    # OCI layout.

    def _oci_images(self, host: Platform) -> list[ImageContent]:
        if "oci-layout" in self._entries:
            layout = image.parse_object(self._read("oci-layout", 4096), "oci-layout")
            if not str(layout.get("imageLayoutVersion", "")).startswith("1."):
                raise Unsupported(f"oci-layout: version {layout.get('imageLayoutVersion')!r} is not supported")
        top = image.parse_manifest(self._read("index.json", image.MOST_MANIFEST_BYTES), image.OCI_INDEX)
        if not isinstance(top, Index):
            raise InvalidRequest("index.json: must be an image index")
        docker_names = self._docker_names()
        found = []
        for descriptor in top.manifests:
            chosen = self._resolve(descriptor, host, MOST_NESTING)
            if chosen is not None:
                chain, manifest = chosen
                names = _names(descriptor) or docker_names.get(manifest.config.digest, ())
                found.append(self._oci_image(names, chain, manifest, host))
        if not found:
            there = ", ".join(sorted({str(item.platform) for item in top.manifests if item.platform})) or "none named"
            raise InvalidRequest(f"the archive holds no image for {host} (platforms: {there})")
        return found

    def _resolve(
        self, descriptor: Descriptor, host: Platform, depth: int
    ) -> tuple[tuple[Descriptor, ...], Manifest] | None:
        """The manifest for `host` that `descriptor` is or leads to, and the way there; None when it has none here."""
        if not image.choose((descriptor,), host):
            return None
        if _blob_path(descriptor.digest) not in self._entries and depth < MOST_NESTING:
            # Archives of one platform keep the whole index and leave the other platforms' blobs out.
            return None
        data = self._blob(descriptor, image.MOST_MANIFEST_BYTES)
        document = image.parse_manifest(data, descriptor.media_type)
        if isinstance(document, Manifest):
            return (descriptor,), document
        if depth == 0:
            raise InvalidRequest(f"indexes are nested more than {MOST_NESTING} deep")
        for candidate in image.choose(document.manifests, host):
            if (found := self._resolve(candidate, host, depth - 1)) is not None:
                chain, manifest = found
                return (descriptor, *chain), manifest
        return None

    def _oci_image(
        self, names: tuple[str, ...], chain: tuple[Descriptor, ...], manifest: Manifest, host: Platform
    ) -> ImageContent:
        parsed = self._config(self._blob(manifest.config, image.MOST_CONFIG_BYTES), len(manifest.layers), host)
        blobs = []
        for layer, diff_id in zip(manifest.layers, parsed.diff_ids, strict=True):
            path = _blob_path(layer.digest)
            scan = self._scan(path)
            _check_digest("the layer", layer.digest, scan.digest)
            _check_size(layer, scan.size)
            _check_digest(f"the uncompressed layer {layer.digest}", diff_id, scan.diff_id)
            blobs.append(Blob(descriptor=layer, open=self._opener(self._find(path))))
        return ImageContent(
            names=names,
            manifest=self._small(chain[-1]),
            config=self._small(manifest.config),
            layers=tuple(blobs),
            parsed=parsed,
            indexes=tuple(self._small(index) for index in chain[:-1]),
        )

    def _small(self, descriptor: Descriptor) -> Blob:
        return Blob(descriptor=descriptor, open=self._opener(self._find(_blob_path(descriptor.digest))))

    def _config(self, data: bytes, layer_count: int, host: Platform) -> ImageConfig:
        parsed = image.parse_config(data)
        if len(parsed.diff_ids) != layer_count:
            raise InvalidRequest(f"image config: {len(parsed.diff_ids)} diff_ids for {layer_count} layers")
        if not image.runs_on(parsed.platform, host):
            raise InvalidRequest(f"the image is for {parsed.platform}, this machine is {host}")
        return parsed

    # docker save.

    def _docker_list(self) -> list[dict[str, Any]]:
        data = self._read("manifest.json", image.MOST_MANIFEST_BYTES)
        # The helper for objects checks what JSON itself leaves open; here the top is a list.
        wrapped = image.parse_object(b'{"images":' + data + b"}", "manifest.json")
        items = wrapped.get("images")
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
        """For an archive that is both: config digest to names."""
        if "manifest.json" not in self._entries:
            return {}
        return {
            f"sha256:{found[1]}": tuple(item.get("RepoTags") or ())
            for item in self._docker_list()
            if (found := _HEX_IN_PATH.search(item["Config"]))
        }

    def _docker_images(self, host: Platform) -> list[ImageContent]:
        found = [self._docker_image(item, host) for item in self._docker_list()]
        if not found:
            raise InvalidRequest("manifest.json: the archive holds no image")
        return found

    def _docker_image(self, item: dict[str, Any], host: Platform) -> ImageContent:
        config_path = _inside(item["Config"], "", item["Config"])
        config_data = self._read(config_path, image.MOST_CONFIG_BYTES)
        config = Descriptor(media_type=image.OCI_CONFIG, digest=image.digest(config_data), size=len(config_data))
        _check_path("the config", config_path, config.digest)
        paths = [_inside(path, "", path) for path in item.get("Layers") or ()]
        parsed = self._config(config_data, len(paths), host)
        blobs = []
        for path, diff_id in zip(paths, parsed.diff_ids, strict=True):
            scan = self._scan(path)
            _check_digest(f"the layer {path}", diff_id, scan.diff_id)
            if path.startswith("blobs/"):
                _check_path("the layer", path, scan.digest)
            suffix = f"+{scan.compression}" if scan.compression else ""
            descriptor = Descriptor(media_type=image.OCI_LAYER + suffix, digest=scan.digest, size=scan.size)
            blobs.append(Blob(descriptor=descriptor, open=self._opener(self._find(path))))
        return ImageContent(
            names=tuple(item.get("RepoTags") or ()),
            manifest=manifest_blob(config, [blob.descriptor for blob in blobs]),
            config=Blob(descriptor=config, open=lambda: io.BytesIO(config_data)),
            layers=tuple(blobs),
            parsed=parsed,
        )


def manifest_blob(config: Descriptor, layer_list: list[Descriptor]) -> Blob:
    """An OCI manifest for parts that came without one; the same parts give the same bytes."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A file of the archive, or a link to one (`link` is its path then)."""

    offset: int = 0
    size: int = 0
    link: str = ""


class _Section(io.RawIOBase):
    """Part of a file as a file of its own. Reads at positions, so that several can be used at once."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self._size - self._at))
        # Asking for the number each time fails once the file is closed, rather than read a stranger's.
        data = os.pread(self._file.fileno(), wanted, self._offset + self._at)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _spool(plain: BinaryIO, directory: Path) -> BinaryIO:
    """Decompress into a nameless file; it vanishes when it is closed."""
    output = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - it is the result
    try:
        while data := plain.read(layers.CHUNK):
            output.write(data)
        output.flush()
    except BaseException as exc:
        output.close()
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Exhausted(f"no space left in {directory} to decompress the archive") from exc
        raise
    return cast(BinaryIO, output)


def _inside(name: str, base: str, entry: str) -> str:
    """The path that `name`, seen from `base`, has in the archive. Raises InvalidRequest when it leaves it."""
    path = posixpath.normpath(posixpath.join(base, name))
    if name.startswith("/") or path == ".." or path.startswith("../") or "\0" in name:
        raise InvalidRequest(f"the archive's entry {entry!r} points outside the archive")
    return path


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"


def _check_digest(what: str, expected: str, computed: str) -> None:
    if computed != expected:
        raise InvalidRequest(f"{what} has a wrong digest: expected {expected}, computed {computed}")


def _check_size(descriptor: Descriptor, size: int) -> None:
    if size != descriptor.size:
        raise InvalidRequest(f"{descriptor.digest}: expected {descriptor.size} bytes, found {size}")


def _check_path(what: str, path: str, computed: str) -> None:
    """docker save names some files by their digest; then it must fit."""
    if found := _HEX_IN_PATH.search(path):
        _check_digest(f"{what} {path}", f"sha256:{found[1]}", computed)


def _names(descriptor: Descriptor) -> tuple[str, ...]:
    """The names that annotations give: in full, or what cannot be a mere tag."""
    if name := descriptor.annotations.get(NAME_ANNOTATION):
        return (name,)
    ref = descriptor.annotations.get(REF_ANNOTATION, "")
    return (ref,) if "/" in ref or ":" in ref else ()

"""Builds images of a given shape for tests and benchmarks of pulling: OCI layouts, as directories.

    python deploy/images/synthetic.py [--out DIR] [--bytes N] [--layers N] [--compression gzip|zstd|none] NAME

NAME is `one-layer` (500 MB in one layer), `many-layers` (100 layers of 200 kB) or a name of your own. The same
arguments give the same bytes: content comes from a seeded generator, times are zero, owners are root. About two
thirds of the content cannot be compressed, as in images of programs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import os
import random
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

OUT = Path(__file__).resolve().parents[2] / "build" / "synthetic"
EPOCH = "1970-01-01T00:00:00Z"
MAX_FILE_BYTES = 4 << 20
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"

_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_TEXT = b"The quick brown fox jumps over the lazy dog. " * 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The shape of an image. `layer_bytes` is the total size of the files in each layer."""

    name: str
    layers: int
    layer_bytes: int
    compression: str = "gzip"


SHAPES = (
    Shape(name="one-layer", layers=1, layer_bytes=500_000_000),
    Shape(name="many-layers", layers=100, layer_bytes=200_000),
)


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


class _Output(io.RawIOBase):
    """The output of the tar: hashes it, compresses it, hashes the result and writes it."""

    def __init__(self, file: BinaryIO, compressor: _Compressor) -> None:
        self._file, self._compressor = file, compressor
        self._plain, self._packed = hashlib.sha256(), hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._plain.update(data)
        self._pass_on(self._compressor.compress(bytes(data)))
        return len(data)

    def finish(self) -> tuple[str, str]:
        """(digest, diff id)"""
        self._pass_on(self._compressor.flush())
        return f"sha256:{self._packed.hexdigest()}", f"sha256:{self._plain.hexdigest()}"

    def _pass_on(self, data: bytes) -> None:
        self._packed.update(data)
        self.size += len(data)
        self._file.write(data)


def build(shape: Shape, out: Path) -> str:
    """Write the image as an OCI layout to the directory `out`; return the manifest's digest."""
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    layers, diff_ids = [], []
    for number in range(shape.layers):
        descriptor, diff_id = _layer(shape, number, blobs)
        layers.append(descriptor)
        diff_ids.append(diff_id)
    machine = os.uname().machine
    config = {
        "architecture": _GO_NAMES.get(machine, machine),
        "os": "linux",
        "created": EPOCH,
        "config": {"Cmd": ["/layer-0/file-0"], "Labels": {"shape": shape.name}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _blob(blobs, "application/vnd.oci.image.config.v1+json", config),
        "layers": layers,
    }
    top = _blob(blobs, manifest["mediaType"], manifest)
    (out / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="utf-8")
    (out / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}), encoding="utf-8")
    return str(top["digest"])


def _layer(shape: Shape, number: int, blobs: Path) -> tuple[dict[str, Any], str]:
    suffix = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}[shape.compression]
    unnamed = blobs / f".layer-{number}"
    with unnamed.open("wb") as file:
        output = _Output(file, _compressor(shape.compression))
        with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as tar:
            directory = tarfile.TarInfo(f"layer-{number}")
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory)
            for index, content in enumerate(_contents(shape, number)):
                entry = tarfile.TarInfo(f"layer-{number}/file-{index}")
                entry.size, entry.mode = len(content), 0o644
                tar.addfile(entry, io.BytesIO(content))
        digest, diff_id = output.finish()
    unnamed.rename(blobs / digest.removeprefix("sha256:"))
    return {"mediaType": LAYER_TYPE + suffix, "digest": digest, "size": output.size}, diff_id


def _contents(shape: Shape, number: int) -> Iterator[bytes]:
    """The layer's files: at least four, of at most `MAX_FILE_BYTES` each."""
    source = random.Random(f"{shape.name} {number}")
    most = min(MAX_FILE_BYTES, max(1, shape.layer_bytes // 4))
    left = shape.layer_bytes
    while left > 0:
        size = min(most, left)
        dense = size * 2 // 3
        text = _TEXT * ((size - dense) // len(_TEXT) + 1)
        yield source.randbytes(dense) + text[: size - dense]
        left -= size


def _compressor(name: str) -> _Compressor:
    if name == "gzip":
        return zlib.compressobj(1, zlib.DEFLATED, 31)
    if name == "zstd":
        try:
            module = importlib.import_module("compression.zstd")
        except ModuleNotFoundError:
            module = importlib.import_module("backports.zstd")
        compressor: _Compressor = module.ZstdCompressor(level=3)
        return compressor
    return _Plain()


def _blob(blobs: Path, media_type: object, document: object) -> dict[str, Any]:
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Build an image of a given shape as an OCI layout.")
    parser.add_argument("--out", type=Path, default=OUT, help="directory above the layouts (default: %(default)s)")
    parser.add_argument("--bytes", type=int, help="bytes of files in each layer")
    parser.add_argument("--layers", type=int, help="number of layers")
    parser.add_argument("--compression", choices=("gzip", "zstd", "none"), default="gzip")
    parser.add_argument("name", help=f"{', '.join(shape.name for shape in SHAPES)} or a name of your own")
    arguments = parser.parse_args()
    preset = next(
        (s for s in SHAPES if s.name == arguments.name), Shape(name=arguments.name, layers=1, layer_bytes=1)
    )
    shape = Shape(
        name=arguments.name,
        layers=arguments.layers or preset.layers,
        layer_bytes=arguments.bytes or preset.layer_bytes,
        compression=arguments.compression,
    )
    layout = arguments.out / shape.name
    print(f"{layout} {build(shape, layout)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

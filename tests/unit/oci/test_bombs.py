"""What a stranger's bytes cost: a table of bombs, each with what it may take.

A bomb is built in two sizes, N and 4 N, and read by a process of its own, which tells what became of it and what that
took: processor time (which other work on the machine does not change much), the growth of its memory's peak, and the
bytes that it wrote. Time has to grow about linearly; memory and disk have bounds. `pytest -s` prints the table.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

ROOT = Path(__file__).resolve().parents[3]
MEMORY = 48  # MiB that reading anything may take, where a bomb does not say otherwise
GROWTH = 9  # times the processor time for four times the size; linear is 4, quadratic 16
NOTHING = 0.15  # seconds of processor time below which growth says nothing

READER = """
import io, json, resource, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from sandboxd.errors import SandboxdError
from sandboxd.oci import image, layers
from sandboxd.oci.archive import Archive
from sandboxd.oci.recording import Recording, merged
if sys.argv[2] in ("token", "explanation"):  # what they need takes longer to import than most bombs to read
    from sandboxd.registry import auth, refusals

def figure(name, path="/proc/self/status"):
    return next(int(line.split()[1]) for line in open(path) if line.startswith(name))

def layer(path):
    with open(path, "rb") as file:
        return f"{layers.scan(file).entries} entries"

def record(path):
    with open(path, "rb") as file:
        recording = Recording(4 << 20)
        layers.scan(file, "layer", recording)
        return recording.unfit or f"{len(recording.entries)} entries"

def merge(path):
    recordings = []
    for one in sorted(Path(path).iterdir()):
        recordings.append(Recording(32 << 20))
        with open(one, "rb") as file:
            layers.scan(file, "layer", recordings[-1])
    found = merged([each.entries for each in recordings], lowest=True)
    return f"{len(found)} entries"

def archive(path):
    with Archive(Path(path)) as opened:
        found = opened.images(image.Platform(os="linux", architecture="amd64"))
        return f"{len(found)} images, {sum(len(each.names) for each in found)} names"

def manifest(path):
    return type(image.parse_manifest(Path(path).read_bytes())).__name__

def config(path):
    return type(image.parse_config(Path(path).read_bytes())).__name__

def token(path):
    return auth.parse_token(Path(path).read_bytes(), "the realm")

def explanation(path):
    return refusals.explanation(Path(path).read_bytes())

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
read = globals()[sys.argv[2]]
for path in sys.argv[3:]:
    memory, written, began = figure("VmHWM"), figure("wchar", "/proc/self/io"), time.process_time()
    try:
        outcome = "ok: " + read(path)
    except SandboxdError as exc:
        outcome = f"{type(exc).__name__}: {exc}"
    except Exception as exc:
        outcome = f"FAILED {type(exc).__name__}: {str(exc)[:200]}"
    taken = time.process_time() - began
    memory, written = figure("VmHWM") - memory, figure("wchar", "/proc/self/io") - written
    print(json.dumps([outcome, taken, memory / 1024, written / 1048576]), flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What became of one file and what that took: seconds, MiB, MiB."""

    outcome: str
    seconds: float
    memory: float
    written: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bomb:
    """`build` of a size makes the bytes (or several files of them) that `read` is given.

    `outcome` is what is allowed to become of the larger one; `memory` and `written` are MiB.
    """

    read: str
    build: Callable[[int], bytes | list[bytes]]
    size: int
    outcome: str
    memory: float = MEMORY
    written: float = 1


# What bombs are made of.


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info.tobuf(tarfile.GNU_FORMAT)


def numbered(kind: bytes, link: str = "") -> Callable[[int], bytes]:
    """Headers that differ in an eight-digit name only; made fast."""
    block = bytearray(header("0" * 8, kind, link=link))
    plain = sum(block) - sum(block[148:156]) + 8 * 32 - sum(b"0" * 8)

    def made(number: int) -> bytes:
        block[:8] = b"%08d" % number
        block[148:156] = b"%06o\0 " % (plain + sum(block[:8]))
        return bytes(block)

    return made


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body)
    while length != len(str(length)) + len(body):
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def extended(data: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("x", kind, len(data)) + padded(data)


def pax(**values: str) -> bytes:
    return extended(b"".join(record(key.replace("__", "."), value) for key, value in values.items()))


def tar(*parts: bytes | Iterable[bytes]) -> bytes:
    return b"".join(part if isinstance(part, bytes) else b"".join(part) for part in parts) + bytes(1024)


def packed(parts: Iterable[bytes]) -> bytes:
    """The same through gzip, piece by piece: what is large is never whole in memory."""
    output = io.BytesIO()
    with gzip.GzipFile(fileobj=output, mode="wb", compresslevel=6, mtime=0) as file:
        for part in parts:
            file.write(part)
        file.write(bytes(1024))
    return output.getvalue()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encoded(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def archived(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    entries = [header(name, size=len(data)) + padded(data) for name, data in files.items()]
    return tar(entries, [header(name, tarfile.SYMTYPE, link=target) for name, target in (links or {}).items()])


def document(*layers: bytes) -> bytes:
    diff_ids = [sha256(data) for data in layers]
    return encoded({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}})


# Layers.


def name_of_many_parts(size: int) -> bytes:
    return tar(header("l", tarfile.SYMTYPE, link="x"), pax(path="a/" * size + "x"), header("y"))


def names_of_many_parts(size: int) -> bytes:
    long = pax(path="a/" * 2000 + "x") + header("y")
    return tar(header("l", tarfile.SYMTYPE, link="x"), [long] * size)


def chains_of_links(size: int) -> bytes:
    """Forty links, each by way of a thousand directories, and names that go through all of them."""
    links = [pax(linkpath="x/../" * 800 + f"l{n + 1}") + header(f"l{n}", tarfile.SYMTYPE) for n in range(39)]
    return tar(links, [header(f"l0/{number}/file") for number in range(size)])


def many_links(size: int) -> bytes:
    made = numbered(tarfile.SYMTYPE, "x" * 99)
    return packed(made(number) for number in range(size))


def links_of_long_names(size: int) -> bytes:
    def parts() -> Iterable[bytes]:
        for number in range(size):
            name = f"{number:06}" + f"/{'a' * 250}" * 6
            yield pax(path=name, linkpath=f"{number:06}" + "x" * 4000) + header("l", tarfile.SYMTYPE)

    return packed(parts())


def global_headers(size: int) -> bytes:
    def parts() -> Iterable[bytes]:
        for number in range(size):
            yield extended(record(f"SCHILY.x{number}", "a" * 1_000_000), tarfile.XGLTYPE) + header(f"f{number}")

    return packed(parts())


def global_keys(size: int) -> bytes:
    """One global header of very many keys, which each entry after it would have."""
    keys = b"".join(record(f"SCHILY.{number}", "a") for number in range(size))
    return tar(extended(keys, tarfile.XGLTYPE), map(numbered(tarfile.REGTYPE), range(size)))


def extended_headers(kind: bytes) -> Callable[[int], bytes]:
    return lambda size: tar(extended(record("comment", "a"), kind) * size, header("y"))


def large_extended_headers(size: int) -> bytes:
    """Each entry with a megabyte of attributes."""
    one = extended(b"".join(record(f"SCHILY.xattr.user.{n}", "a" * 1000) for n in range(950)))
    return packed(one + header(f"f{number}") for number in range(size))


def keys_of_a_header(size: int) -> bytes:
    return tar(extended(b"".join(record(f"k{number}", "v") for number in range(size))), header("y"))


def sparse_map_of_the_old_format(size: int) -> bytes:
    block = bytearray(header("s", tarfile.GNUTYPE_SPARSE))
    block[482] = 1
    block[483:495] = b"%011o\0" % 4096
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    more = b"%011o\0%011o\0" % (1, 1) * 21 + b"\1" + bytes(7)
    return packed([bytes(block), *[more] * size, bytes(512)])


def sparse_map(size: int) -> bytes:
    digits = "1," * size + "1"
    return tar(pax(GNU__sparse__map=digits, GNU__sparse__size="1"), header("y"))


def sparse_map_without_an_end(size: int) -> bytes:
    values = {"GNU__sparse__major": "1", "GNU__sparse__minor": "0", "GNU__sparse__realsize": "1"}
    return tar(pax(**values), header("y", size=size * 512), b"9" * 512 * size)


def sparse_and_huge(size: int) -> bytes:
    return tar(pax(GNU__sparse__map="0,1", GNU__sparse__size=str(size << 40)), header("y", size=512), bytes(512))


def number(key: str, digits: str) -> Callable[[int], bytes]:
    return lambda size: tar(pax(**{key: digits * size}), header("y"))


def empty_members(pack: Callable[[bytes], bytes]) -> Callable[[int], bytes]:
    return lambda size: pack(tar(header("a"))) + pack(b"") * size


def zeros_in_zstd(size: int) -> bytes:
    compressor = zstd.ZstdCompressor()
    chunk = bytes(1 << 20)
    output = [compressor.compress(header("a", size=size << 20))]
    output += [compressor.compress(chunk) for _ in range(size)]
    return b"".join([*output, compressor.compress(bytes(1024)), compressor.flush()])


def entries(size: int) -> bytes:
    return packed(map(numbered(tarfile.REGTYPE), range(size)))


def directories(size: int) -> bytes:
    return packed(pax(path=f"{n:05}/" + "a/" * 1000 + "f") + header("y") for n in range(size))


# Small layers held in memory.


def whiteouts_over_files(size: int) -> list[bytes]:
    """Every layer deletes what none of those below it has, but all of it is looked through."""

    def layer(prefix: str) -> bytes:
        return tar(header(f"{prefix}{number}") for number in range(size))

    return [layer("a"), layer(".wh.b"), layer(".wh.c")]


# Archives.


def archive_of_zeros(size: int) -> bytes:
    zeros = bytes(1 << 20)
    return packed([header("x", size=size << 20), *[zeros] * size])


def archive_of_large_headers(size: int) -> bytes:
    one = extended(record("comment", "a" * 1_000_000))
    return tar(one + header(f"f{number}") for number in range(size))


def archive_of_long_names(size: int) -> bytes:
    return tar(pax(path=f"{number:06}" + "/aaaaaaaa" * 450) + header("f") for number in range(size))


def fan_of_indexes(size: int) -> bytes:
    """An index that names the same index very often, which does the same, and so on: none leads to an image."""
    files: dict[str, bytes] = {}
    kind = "application/vnd.oci.image.index.v1+json"
    data = encoded({"schemaVersion": 2, "mediaType": kind, "manifests": []})
    for _ in range(4):
        files[f"blobs/{sha256(data).replace(':', '/')}"] = data
        item = {"mediaType": kind, "digest": sha256(data), "size": len(data)}
        data = encoded({"schemaVersion": 2, "mediaType": kind, "manifests": [item] * size})
    return archived({**files, "index.json": data})


def images_that_share_a_config(size: int) -> bytes:
    layer = tar(header("f"))
    labels = {f"label-{number}": "x" * 100 for number in range(1000)}
    config = encoded({**json.loads(document(layer)), "config": {"Labels": labels}})
    items = [{"Config": "c.json", "RepoTags": [f"x:{number}"], "Layers": ["l.tar"]} for number in range(size)]
    return archived({"c.json": config, "l.tar": layer, "manifest.json": encoded(items)})


def a_layer_by_many_paths(size: int) -> bytes:
    layer = tar(header("f", size=1 << 20), bytes(1 << 20))
    config = document(*[layer] * size)
    links = {f"{number}/layer.tar": "../l.tar" for number in range(size)}
    items = [{"Config": "c.json", "RepoTags": ["x:1"], "Layers": [*links]}]
    return archived({"c.json": config, "l.tar": layer, "manifest.json": encoded(items)}, links)


def an_image_of_many_layers(size: int) -> bytes:
    layer = tar(header("f"))
    items = [{"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["l.tar"] * size}]
    return archived({"c.json": document(*[layer] * size), "l.tar": layer, "manifest.json": encoded(items)})


def names_of_an_image(size: int) -> bytes:
    layer = tar(header("f"))
    config = document(layer)
    blobs = {sha256(data): data for data in (layer, config)}
    kinds = "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar"
    one, other = (
        {"mediaType": kind, "digest": sha256(data), "size": len(data)}
        for kind, data in zip(kinds, (config, layer), strict=True)
    )
    manifest = encoded({"schemaVersion": 2, "config": one, "layers": [other]})
    blobs[sha256(manifest)] = manifest
    target = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": sha256(manifest),
        "size": len(manifest),
    }
    listed = [target | {"annotations": {"io.containerd.image.name": f"r/{number}"}} for number in range(size)]
    files = {f"blobs/{digest.replace(':', '/')}": data for digest, data in blobs.items()}
    return archived({**files, "index.json": encoded({"schemaVersion": 2, "manifests": listed})})


# JSON.


def deep(size: int) -> bytes:
    return b'{"schemaVersion":2,"a":' + b'{"a":' * size + b"1" + b"}" * size + b"}"


def descriptor(**members: Any) -> Callable[[int], bytes]:
    def build(size: int) -> bytes:
        item = {"mediaType": "m", "digest": f"sha256:{'0' * 64}", "size": 1}
        item |= {key: value * size if isinstance(value, str) else value for key, value in members.items()}
        text = encoded({"schemaVersion": 2, "manifests": [item]})
        # A number of as many digits as Python does not like to write.
        return re.sub(rb'"NUMBER([0-9]+)(?:NUMBER[0-9]+)*"', lambda found: found[1] * size, text)

    return build


def long_list(size: int) -> bytes:
    return encoded({"rootfs": {"type": "layers", "diff_ids": [f"sha256:{'0' * 64}"] * size}})


def volumes(size: int) -> bytes:
    return encoded({"rootfs": {"diff_ids": []}, "config": {"Volumes": {f"/v{number}": {} for number in range(size)}}})


def text(value: bytes) -> Callable[[int], bytes]:
    return lambda size: value


BOMBS = {
    "a name of many parts beside a link": Bomb(
        read="layer", build=name_of_many_parts, size=4000, outcome="InvalidRequest: .* more than 4095 bytes"
    ),
    "names of 2,000 parts beside a link": Bomb(read="layer", build=names_of_many_parts, size=250, outcome="ok"),
    "names through chains of links": Bomb(
        read="layer",
        build=chains_of_links,
        size=60,
        outcome="InvalidRequest: .* more symbolic links than can be foll",
    ),
    "many links": Bomb(read="layer", build=many_links, size=8_000, outcome="ok", memory=80),
    "links with long names and targets": Bomb(
        read="layer",
        build=links_of_long_names,
        size=6000,
        outcome="InvalidRequest: .* than can be examined",
        memory=200,
    ),
    "global headers": Bomb(
        read="layer", build=global_headers, size=60, outcome="InvalidRequest: .* bytes of global headers"
    ),
    "a global header of many keys": Bomb(read="layer", build=global_keys, size=2000, outcome="ok"),
    "consecutive extended headers": Bomb(
        read="layer", build=extended_headers(tarfile.XHDTYPE), size=2000, outcome="ok"
    ),
    "consecutive long names": Bomb(
        read="layer", build=extended_headers(tarfile.GNUTYPE_LONGNAME), size=2000, outcome="ok"
    ),
    "consecutive global headers": Bomb(
        read="layer", build=extended_headers(tarfile.XGLTYPE), size=2000, outcome="ok"
    ),
    "extended headers of a megabyte": Bomb(read="layer", build=large_extended_headers, size=20, outcome="ok"),
    "an extended header of many keys": Bomb(read="layer", build=keys_of_a_header, size=18_000, outcome="ok"),
    "a sparse map of GNU's old format": Bomb(
        read="layer",
        build=sparse_map_of_the_old_format,
        size=15_000,
        outcome="InvalidRequest: .* a sparse file in GNU tar's old format",
        memory=16,
    ),
    "a sparse map of pax 0.1": Bomb(read="layer", build=sparse_map, size=120_000, outcome="ok", memory=32),
    "a sparse map of pax 1.0 without an end": Bomb(
        read="layer", build=sparse_map_without_an_end, size=10_000, outcome="ok"
    ),
    "a sparse file of terabytes": Bomb(
        read="layer", build=sparse_and_huge, size=1, outcome="InvalidRequest: .* when unpacked"
    ),
    "a size of many digits": Bomb(
        read="layer", build=number("size", "9"), size=5000, outcome="InvalidRequest: .* not a number"
    ),
    "an owner of many digits": Bomb(
        read="layer", build=number("uid", "9"), size=200_000, outcome="InvalidRequest: .* not a number"
    ),
    "a time of many digits": Bomb(
        read="layer", build=number("mtime", "9"), size=200_000, outcome="InvalidRequest: .* not a time"
    ),
    "empty members of gzip": Bomb(read="layer", build=empty_members(gzip.compress), size=12_000, outcome="ok"),
    "empty frames of zstd": Bomb(read="layer", build=empty_members(zstd.compress), size=8_000, outcome="ok"),
    "zeros in zstd": Bomb(
        read="layer", build=zeros_in_zstd, size=100, outcome="InvalidRequest: .* its own size when unpacked"
    ),
    "entries": Bomb(read="layer", build=entries, size=6_000, outcome="ok"),
    "directories without entries": Bomb(
        read="layer", build=directories, size=60, outcome="InvalidRequest: .* names with too many directories"
    ),
    "recorded entries with large headers": Bomb(
        read="record",
        build=large_extended_headers,
        size=30,
        outcome="ok: it is too large or sparse to be held in memory",
    ),
    "recorded whiteouts over files": Bomb(
        read="merge", build=whiteouts_over_files, size=700, outcome="ok", memory=100
    ),
    "an archive of zeros": Bomb(
        read="archive",
        build=archive_of_zeros,
        size=80,
        outcome="InvalidRequest: .* its own size .* decompress it before",
        written=110,
    ),
    "an archive of large headers": Bomb(
        read="archive", build=archive_of_large_headers, size=30, outcome="InvalidRequest: not an image archive"
    ),
    "an archive of long names": Bomb(
        read="archive",
        build=archive_of_long_names,
        size=2500,
        outcome="InvalidRequest: the archive's names",
        memory=90,
    ),
    "indexes that name one index often": Bomb(
        read="archive", build=fan_of_indexes, size=6, outcome="InvalidRequest: the archive holds no image"
    ),
    "indexes that name one index 4,000 times": Bomb(
        read="archive", build=fan_of_indexes, size=1000, outcome="InvalidRequest: the archive holds no image"
    ),
    "images that share a config": Bomb(
        read="archive", build=images_that_share_a_config, size=500, outcome="ok: 1 images, 2000 names"
    ),
    "a layer by many paths": Bomb(
        read="archive", build=a_layer_by_many_paths, size=100, outcome="ok: 1 images", memory=60
    ),
    "an image of many layers": Bomb(
        read="archive", build=an_image_of_many_layers, size=2000, outcome="Unsupported: .* layers, at most 500"
    ),
    "an image of many names": Bomb(
        read="archive", build=names_of_an_image, size=2000, outcome="ok: 1 images, 8000 names", memory=64
    ),
    "JSON of great depth": Bomb(
        read="manifest", build=deep, size=50_000, outcome="InvalidRequest: image manifest: not valid JSON: nested"
    ),
    "a size of many digits in JSON": Bomb(
        read="manifest", build=descriptor(size="NUMBER9"), size=100_000, outcome="InvalidRequest: .* digits"
    ),
    "a long media type": Bomb(read="manifest", build=descriptor(mediaType="m"), size=900_000, outcome="ok: Index"),
    "a long digest": Bomb(read="manifest", build=descriptor(digest="d"), size=900_000, outcome="ok: Index"),
    "a config of many layers": Bomb(
        read="config", build=long_list, size=20_000, outcome="Unsupported: .* at most 500"
    ),
    "a config of many volumes": Bomb(
        read="config", build=volumes, size=50_000, outcome="InvalidRequest: .* more than 10000 members", memory=100
    ),
    "NaN": Bomb(
        read="config", build=text(b'{"rootfs": {"diff_ids": []}, "x": NaN}'), size=1, outcome="InvalidRequest: .*NaN"
    ),
    "half a character": Bomb(
        read="config",
        build=text(rb'{"rootfs": {"diff_ids": []}, "config": {"User": "\udc00"}}'),
        size=1,
        outcome="InvalidRequest: .*surrogate",
    ),
    "a token of great depth": Bomb(
        read="token", build=deep, size=50_000, outcome="AccessDenied: the realm did not answer with a token"
    ),
    "a registry's explanation of great depth": Bomb(read="explanation", build=deep, size=3000, outcome="ok: $"),
}


@functools.cache
def header_of_the_table() -> None:
    print(f"\n{'bomb':44} {'bytes':>10} {'seconds':>8} {'MiB':>5} {'disk':>5}  outcome")


def cost(read: str, paths: list[Path], package: Path = ROOT) -> list[Cost]:
    done = subprocess.run(
        [sys.executable, "-c", READER, str(package), read, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        cwd=package,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(paths), f"it ended with {done.returncode}: {done.stderr[-500:]}"
    return [Cost(outcome=o, seconds=s, memory=m, written=w) for o, s, m, w in found]


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_what_it_weighs(name: str, tmp_path: Path) -> None:
    bomb = BOMBS[name]
    paths, weights = [], []
    for size in (bomb.size, 4 * bomb.size):
        path, built = tmp_path / str(size), bomb.build(size)
        if isinstance(built, bytes):
            path.write_bytes(built)
        else:
            path.mkdir()
            for position, data in enumerate(built):
                (path / str(position)).write_bytes(data)
        paths.append(path)
        weights.append(len(built) if isinstance(built, bytes) else sum(map(len, built)))
    small, large = cost(bomb.read, paths)
    header_of_the_table()
    for weight, each in zip(weights, (small, large), strict=True):
        figures = f"{weight:>10} {each.seconds:>8.3f} {each.memory:>5.0f} {each.written:>5.0f}"
        print(f"{name:44} {figures}  {each.outcome[:60]}")

    assert re.match(bomb.outcome, large.outcome), large.outcome
    assert not small.outcome.startswith("FAILED"), small.outcome
    assert small.memory + large.memory <= bomb.memory
    assert large.written <= bomb.written
    assert large.seconds <= max(NOTHING, GROWTH * small.seconds)

"""An archive's files are found in place, and what the archive may hold is bounded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backports import zstd

from sandboxd.errors import InvalidRequest, Unavailable
from sandboxd.oci import archive_files
from sandboxd.oci.archive_files import Files
from sandboxd.oci.compression import Allowance


def pack(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return output.getvalue()


@contextmanager
def opened(tmp_path: Path, data: bytes) -> Iterator[Files]:
    path = tmp_path / "archive"
    path.write_bytes(data)
    files = Files(path)
    files.open()
    try:
        yield files
    finally:
        files.close()


def total(tmp_path: Path, data: bytes) -> int:
    with opened(tmp_path, data) as files:
        return files.total


@pytest.mark.parametrize("packed", [bytes, gzip.compress, zstd.compress])
def test_files_are_read_in_place(tmp_path: Path, packed: object) -> None:
    assert callable(packed)
    with opened(tmp_path, packed(pack({"a/b": b"hello", "c": b"x"}, {"l": "a/b"}))) as files:
        assert "a/b" in files and "nothing" not in files
        assert files.total == 6
        assert files.read("l", 10) == b"hello"
        with files.opener(files.find("l"))() as file:
            assert file.read() == b"hello"
    assert os.listdir(tmp_path) == ["archive"]


@pytest.mark.parametrize("packer", [gzip.compress, zstd.compress])
def test_an_archive_that_unpacks_to_too_much_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packer: object
) -> None:
    assert callable(packer)
    monkeypatch.setattr(archive_files, "SPOOLED", Allowance(free=1 << 20, factor=100, most=1 << 40))
    with pytest.raises(InvalidRequest, match=r"more than 1 MiB and 100 times its own size.*decompress it before"):
        total(tmp_path, packer(pack({"a": bytes(8 << 20)})))
    assert os.listdir(tmp_path) == ["archive"]
    assert total(tmp_path, packer(pack({"a": os.urandom(2 << 20)}))) == 2 << 20


@pytest.mark.parametrize("packer", [gzip.compress, zstd.compress])
def test_a_damaged_compression_is_refused(tmp_path: Path, packer: object) -> None:
    assert callable(packer)
    whole = packer(pack({"a": os.urandom(100_000)}))
    for data in (whole[:-1000], whole[:6] + b"\xff" * 5000 + whole[5006:]):
        with pytest.raises(InvalidRequest, match="damaged"):
            total(tmp_path, data)


def test_entries_names_and_documents_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack({str(number): b"12345" for number in range(11)})
    assert total(tmp_path, data) == 55
    with monkeypatch.context() as patched, pytest.raises(InvalidRequest, match="more than 10 entries"):
        patched.setattr(archive_files, "MAX_ENTRIES", 10)
        total(tmp_path, data)
    with monkeypatch.context() as patched, pytest.raises(InvalidRequest, match="names take more than 10 bytes"):
        patched.setattr(archive_files, "MAX_NAME_BYTES", 10)
        total(tmp_path, data)
    monkeypatch.setattr(archive_files, "MAX_DOCUMENT_BYTES", 10)
    with opened(tmp_path, data) as files:
        files.read("1", 5)
        files.read("2", 5)
        with pytest.raises(InvalidRequest, match="manifests and configs of more than 10 bytes"):
            files.read("3", 5)


def test_a_chain_of_links_ends(tmp_path: Path) -> None:
    links = {"a": "b", "b": "a", **{f"l{n}": f"l{n + 1}" for n in range(50)}}
    with opened(tmp_path, pack({"f": b""}, links)) as files:
        for path in ("a", "l0"):
            with pytest.raises(InvalidRequest, match="lacks"):
                files.find(path)


def test_opening_can_be_stopped(tmp_path: Path) -> None:
    """While it is decompressed, and while its entries are read."""
    path = tmp_path / "archive"
    for data in (gzip.compress(pack({"a": b"x"})), pack({"a": b"x"})):
        path.write_bytes(data)
        with pytest.raises(Unavailable, match="stopped"):
            Files(path, lambda: True).open()
    assert os.listdir(tmp_path) == ["archive"]


PACKERS: dict[str, Callable[[bytes], bytes]] = {"bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("again", [bytes, gzip.compress], ids=["plain", "within-gzip"])
@pytest.mark.parametrize("name", PACKERS)
def test_the_compression_that_is_not_read_is_named(
    tmp_path: Path, name: str, again: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "archive"
    path.write_bytes(again(PACKERS[name](pack({"a": b"x"}))))
    with pytest.raises(InvalidRequest, match=f"the archive is compressed with {name}.*decompress it"):
        Files(path).open()

"""The archive that a checkpoint becomes: a tar in the form that checkpointctl and other runtimes' tools read.

    checkpoint/        CRIU's images: memory, open files, the process tree
    config.dump        what container it was (JSON)
    spec.dump          its OCI runtime spec (JSON)
    rootfs-diff.tar    what it changed of its image's files, as an image layer: whiteouts mark what it deleted
    container.log      its log file, as far as it had come
    dump.log           CRIU's own account, and stats-dump, its figures

Source: the package `metadata` of https://github.com/checkpoint-restore/checkpointctl.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import stat
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from sandboxd import steps, trees
from sandboxd.errors import TimedOut
from sandboxd.model import ContainerRecord
from sandboxd.trees import Descent, Event

IMAGES = "checkpoint"
CHANGES = "rootfs-diff.tar"
LOG = "container.log"
DUMP_LOG = "dump.log"
STATISTICS = "stats-dump"

_NEVER = "0001-01-01T00:00:00Z"


def config_dump(record: ContainerRecord, runtime: str, at: int) -> dict[str, Any]:
    """What config.dump says of a container that was checkpointed at `at` (unix nanoseconds)."""
    image = record.config.image
    return {
        "id": record.id,
        "name": record.config.metadata.name,
        "rootfsImage": record.image_id,
        "rootfsImageRef": record.image_ref,
        "rootfsImageName": image.user_specified_image or image.image,
        "runtime": runtime,
        "createdTime": rfc3339(record.created_at),
        "checkpointedTime": rfc3339(at),
        "restoredTime": _NEVER,
        "restored": False,
    }


def rfc3339(at: int) -> str:
    """A time in unix nanoseconds as JSON has it."""
    seconds, nanoseconds = divmod(at, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def has_file(path: Path) -> bool:
    """Whether a regular file is there; a log's directory may be others' to write, who could have put a link there."""
    return path.is_file() and not path.is_symlink()


def write(
    target: Path,
    unfinished: Path,
    *,
    files: Mapping[str, Path],
    documents: Mapping[str, Any],
    deadline: float,
    cut_off: Callable[[], bool] = lambda: False,
) -> None:
    """Write the archive to `target`, by way of `unfinished` in the same directory: there is all of it or nothing.

    `files` are files and directories by their names in the archive, `documents` become JSON. Blocks for as long as
    the disk takes. Raises OSError, and TimedOut at `deadline` (of `time.monotonic`) or when `cut_off` says so;
    `unfinished` is gone then.
    """

    def check(what: str) -> None:
        if cut_off() or time.monotonic() > deadline:
            raise TimedOut(f"packing {what}: the time given for the checkpoint is over")

    try:
        # The directory is the client's choice: what others may have put there is neither opened nor cut.
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name, path in files.items():
                    _add_tree(archive, name, path, check)
                for name, document in documents.items():
                    _add_document(archive, name, document)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(unfinished, target)
        steps.act("file", str(target), size=size)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _add_tree(archive: tarfile.TarFile, name: str, path: Path, check: Callable[[str], None]) -> None:
    """A file, or a directory and what is in it."""
    if not path.is_dir():
        _add(archive, name, str(path), None, check)
        return
    at = Descent(os.open(path, trees.DIRECTORY))
    try:
        archive.addfile(_directory(name, os.fstat(at.fd)))
        names = [name]
        for event, each in trees.walk(at):
            check(names[-1])
            if event is Event.LEFT:
                names.pop()
                continue
            inside = f"{names[-1]}/{each}"
            if event is Event.FILE:
                _add(archive, inside, each, at.fd, check)
            else:
                names.append(inside)
                archive.addfile(_directory(inside, os.fstat(at.fd)))
    finally:
        at.close()


def _add(archive: tarfile.TarFile, name: str, path: str, dir_fd: int | None, check: Callable[[str], None]) -> None:
    """A file or a link; owned by root. Nothing else is packed."""
    info = os.lstat(path, dir_fd=dir_fd)
    if stat.S_ISLNK(info.st_mode):
        link = _entry(name, info)
        link.type, link.linkname = tarfile.SYMTYPE, os.readlink(path, dir_fd=dir_fd)
        archive.addfile(link)
    elif stat.S_ISREG(info.st_mode):
        with open(trees.open_file(path, dir_fd), "rb") as file:
            # The size is that of this moment: a log grows while it is read.
            entry = _entry(name, os.fstat(file.fileno()))
            entry.size = os.fstat(file.fileno()).st_size
            archive.addfile(entry, _Hurried(file, name, check))


def _directory(name: str, info: os.stat_result) -> tarfile.TarInfo:
    entry = _entry(name, info)
    entry.type = tarfile.DIRTYPE
    return entry


def _entry(name: str, info: os.stat_result) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = stat.S_IMODE(info.st_mode), int(info.st_mtime)
    return entry


def _add_document(archive: tarfile.TarFile, name: str, document: Any) -> None:
    data = json.dumps(document).encode()
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
    archive.addfile(info, io.BytesIO(data))


class _Hurried(io.RawIOBase):
    """A file that can be read as long as `check` does not raise."""

    def __init__(self, file: IO[bytes], name: str, check: Callable[[str], None]) -> None:
        self._file = file
        self._name = name
        self._check = check

    def read(self, size: int = -1) -> bytes:
        self._check(self._name)
        return self._file.read(size)

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
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sandboxd.errors import TimedOut
from sandboxd.logs.regular import open_regular
from sandboxd.model import ContainerRecord

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
    target: Path, unfinished: Path, *, files: Mapping[str, Path], documents: Mapping[str, Any], deadline: float
) -> None:
    """Write the archive to `target`, by way of `unfinished` in the same directory: there is all of it or nothing.

    `files` are files and directories by their names in the archive, `documents` become JSON. Blocks for as long as
    the disk takes. Raises OSError, and TimedOut at `deadline` (of `time.monotonic`); `unfinished` is gone then.
    """
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name, path in files.items():
                    for inside, each in _below(name, path):
                        _add(archive, inside, each, deadline)
                for name, document in documents.items():
                    _add_document(archive, name, document)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _below(name: str, path: Path) -> Iterator[tuple[str, Path]]:
    yield name, path
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            yield from _below(f"{name}/{entry.name}", entry)


def _add(archive: tarfile.TarFile, name: str, path: Path, deadline: float) -> None:
    """A file, a directory or a link; root's, as whoever unpacks it needs no more of the owner."""
    if not path.is_file() or path.is_symlink():
        archive.addfile(_owned(archive.gettarinfo(path, arcname=name)))
        return
    with open(open_regular(str(path), os.O_RDONLY), "rb") as file:
        # The size is that of this moment: a log grows while it is read.
        info = _owned(archive.gettarinfo(arcname=name, fileobj=file))
        archive.addfile(info, _Hurried(file, deadline, f"packing {name}"))


def _add_document(archive: tarfile.TarFile, name: str, document: Any) -> None:
    data = json.dumps(document).encode()
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
    archive.addfile(info, io.BytesIO(data))


def _owned(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


class _Hurried(io.RawIOBase):
    """A file that can be read until a moment of `time.monotonic`; raises TimedOut after it."""

    def __init__(
        self, file: IO[bytes], deadline: float, what: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = file
        self._deadline = deadline
        self._what = what
        self._clock = clock

    def read(self, size: int = -1) -> bytes:
        if self._clock() > self._deadline:
            raise TimedOut(f"{self._what}: the time given for the checkpoint is over")
        return self._file.read(size)

"""The CNI configuration directory: which network is in force right now.

Rules:
1. What is on disk decides; nothing has to be restarted or notified. The directory's signature is compared on
   each call (a few stat calls) and the files are read only if it has changed.
2. Files are written in place by people and by installers. While the file that the configuration in force came
   from exists but is broken, that configuration stays in force and the problem is reported: a half-written file
   must neither take the network away nor move new pods to the next file's network.
3. A removed file is no longer in force; an empty or missing directory means no network.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator

from sandboxd.cni.conf import SUFFIXES, Choice, NetworkConfig, Problem, choose

_Signature = tuple[tuple[str, int, int, int, int], ...]

_MAX_FILE_BYTES = 1 << 20

# Timestamps come from the kernel's tick (10 ms at most), so a second write within one tick can leave the
# signature unchanged. Until a file is older than this, its signature proves nothing.
_SETTLED_NS = 100_000_000


class ConfDir:
    """The configurations in one directory. Synchronous: it touches a handful of small local files."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.reads = 0  # how often the files were read
        self._seen: _Signature | None = None
        self._choice = Choice(config=None)
        self._good: NetworkConfig | None = None

    def current(self) -> Choice:
        """The configuration in force and every problem found. Never raises for what is in the directory."""
        try:
            signature = tuple(self._sign())
        except OSError as exc:
            self._seen, self._good = None, None
            text = "no such directory" if isinstance(exc, FileNotFoundError) else f"cannot be listed: {exc.strerror}"
            missing = isinstance(exc, FileNotFoundError)
            self._choice = Choice(config=None, problems=(Problem(path=self.path, text=text),), empty=missing)
            return self._choice
        if signature != self._seen:
            # The signature is taken before the files are read: a write in between shows as a difference next time.
            youngest = max((max(entry[1], entry[2]) for entry in signature), default=0)
            self._seen = signature if abs(time.time_ns() - youngest) > _SETTLED_NS else None
            self._choice = self._read([entry[0] for entry in signature])
        return self._choice

    def _sign(self) -> Iterator[tuple[str, int, int, int, int]]:
        """(path, mtime, ctime, size, inode) of every file that counts, drop-in directories included."""
        with os.scandir(self.path) as entries:
            listing = sorted(entries, key=lambda entry: entry.name)
        for entry in listing:
            try:
                if entry.is_dir():
                    with os.scandir(entry.path) as inner:
                        nested = sorted(item.path for item in inner if item.name.endswith(".conf"))
                elif entry.name.endswith(SUFFIXES):
                    nested = [entry.path]
                else:
                    continue
            except OSError:  # just removed, or no permission: either way nothing that we could read
                continue
            for path in nested:
                try:
                    now = os.stat(path)
                except OSError:  # a dangling link: listed, so that reading it reports the error
                    yield path, 0, 0, 0, 0
                else:
                    yield path, now.st_mtime_ns, now.st_ctime_ns, now.st_size, now.st_ino

    def _read(self, paths: list[str]) -> Choice:
        self.reads += 1
        files: dict[str, bytes | OSError] = {}
        drop_ins: dict[str, dict[str, bytes | OSError]] = {}
        for path in paths:
            directory, _ = os.path.split(path)
            in_place = files
            if directory != self.path.rstrip("/"):
                in_place = drop_ins.setdefault(os.path.basename(directory), {})
            try:
                in_place[path] = _content(path)
            except OSError as exc:
                in_place[path] = exc
        choice = choose(files, drop_ins)
        problems = choice.problems
        broken = {problem.path for problem in problems}
        if self._good is not None and self._good.source in broken:
            kept = Problem(
                path=self._good.source,
                text=f"broken; network {self._good.name!r} as last read from it stays in force",
            )
            read = [choice.config] if choice.config else []
            after = (Problem(path=each.source, text=f"network {each.name!r} comes after it") for each in read)
            return Choice(config=self._good, problems=(*problems, kept), others=(*after, *choice.others))
        self._good = choice.config
        if not files:
            problems = (Problem(path=self.path, text="contains no .conf, .conflist or .json file"), *problems)
        return Choice(config=choice.config, problems=problems, others=choice.others, empty=not files)


def _content(path: str) -> bytes:
    # O_NONBLOCK: opening a FIFO that was left here must not block the daemon.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"larger than {_MAX_FILE_BYTES} bytes")
    return data

"""Why containerd did not unpack a layer, in words about the layer.

Its diff service has one code for all that can go wrong, and its message names directories of this machine. What the
layer is to blame for is told apart by the system's words for it; a full or broken disk is not among them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SHOWN = 500  # characters of containerd's words; they can hold names of 4,095 bytes

# What the system calls say when a layer asks for what cannot be.
_SYSTEM = (
    "no such file or directory",
    "file exists",
    "not a directory",
    "is a directory",
    "directory not empty",
    "file name too long",
    "too many levels of symbolic links",
    "too many links",
    "invalid argument",
    "operation not permitted",
    "numerical result out of range",
    "argument list too long",
    "invalid cross-device link",
)
# What containerd's own readers say.
_READERS = (
    "archive/tar: ",
    "unhandled tar header type",
    "invalid whiteout name",
    "failed to get root path: too many links",
    "gzip: ",
    "flate: ",
    "magic number mismatch",
    "unexpected eof",
    "invalid checksum",
    "out of range: invalid archive",
)
_TEMPORARY = re.compile(r"(?:/[^\s:\"]*)?/containerd-mount\d+(/|(?=[\s:\"]|$))")
_CALLBACK = re.compile(r"mount callback failed on [^:]*: ")
# Some file systems keep no large attributes, and call that a lack of space. The disk may be full, too.
_TOO_LARGE = re.compile(r"failed to setxattr .*: no space left on device$", re.DOTALL)
_MISSING = re.compile(r"link (\S+) (\S+): no such file or directory")


def blamed(message: str, directories: Sequence[str]) -> str:
    """What a layer is to blame for, of containerd's `message` about unpacking it into one of `directories`.

    Returns words without those directories; "" when the fault is another's.
    """
    words = _TEMPORARY.sub("", _CALLBACK.sub("", message)).removesuffix(": unknown")
    inside = words != message
    for directory in directories:
        inside = inside or directory in words
        words = words.replace(f"{directory}/", "").replace(directory, "/")
    words = words.removesuffix(": unknown")
    lower = words.lower()
    by_reader = any(text in lower for text in _READERS)
    by_system = any(lower.endswith(text) for text in _SYSTEM)
    if inside and _TOO_LARGE.search(lower):
        return f"{_shortened(words)}: the attribute is larger than this file system keeps, unless the disk is full"
    if not (by_reader or (by_system and (inside or lower.startswith("failed to convert whiteout")))):
        return ""
    if found := _MISSING.search(words):
        return f"the entry {found[2]!r} is a hard link to {found[1]!r}, which this layer does not hold before it"
    return _shortened(words)


def _shortened(words: str) -> str:
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}..."

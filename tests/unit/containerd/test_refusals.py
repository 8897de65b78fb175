"""What containerd says of a layer becomes words about the layer, without the machine's directories."""

from __future__ import annotations

import pytest

from sandboxd.containerd.refusals import SHOWN, blamed

UPPER = "/var/lib/c/snapshots/12/fs"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            f"link {UPPER}/nowhere {UPPER}/a/x: no such file or directory: unknown",
            "the entry 'a/x' is a hard link to 'nowhere', which this layer does not hold before it",
        ),
        (
            "mount callback failed on /var/lib/c/tmpmounts/containerd-mount77: link"
            " /var/lib/c/tmpmounts/containerd-mount77/n /var/lib/c/tmpmounts/containerd-mount77/x:"
            " no such file or directory: unknown",
            "the entry 'x' is a hard link to 'n', which this layer does not hold before it",
        ),
        ("unhandled tar header type 83: unknown", "unhandled tar header type 83"),
        ("archive/tar: invalid tar header", "archive/tar: invalid tar header"),
        (f"mkparent {UPPER}/a: not a directory", "mkparent a: not a directory"),
        (f"open {UPPER}/{'n' * 256}: file name too long", f"open {'n' * 256}: file name too long"),
        (
            'failed to convert whiteout file "a/.wh.b": file exists',
            'failed to convert whiteout file "a/.wh.b": file exists',
        ),
        ("failed to get root path: too many links", "failed to get root path: too many links"),
        (f"symlink  {UPPER}/l: no such file or directory", "symlink  l: no such file or directory"),
        (
            "mount callback failed on /var/lib/c/tmpmounts/containerd-mount77: failed to setxattr"
            ' "/var/lib/c/tmpmounts/containerd-mount77/a" for key "user.x": no space left on device',
            'failed to setxattr "a" for key "user.x": no space left on device: the attribute is larger than this file'
            " system keeps, unless the disk is full",
        ),
        # What another is to blame for.
        (f"write {UPPER}/x: no space left on device", ""),
        (f"write {UPPER}/x: input/output error", ""),
        (f"open {UPPER}/x: read-only file system", ""),
        ("open /etc/containerd/certs.d: no such file or directory", ""),
        ("failed to mount /somewhere: invalid argument", ""),
        ("content sha256:abc: not found", ""),
        ("context canceled", ""),
    ],
)
def test_the_layer_is_blamed_for_what_it_asks_for_and_for_nothing_else(message: str, words: str) -> None:
    assert blamed(message, [UPPER]) == words


def test_words_are_short_whatever_the_names_are() -> None:
    words = blamed(f"mkdir {UPPER}/{'x' * 4000}: file name too long", [UPPER])
    assert len(words) < SHOWN + 10

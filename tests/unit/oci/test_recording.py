"""Several small layers are made into one only where nobody can tell the difference."""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Sequence

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from sandboxd.oci import layers
from sandboxd.oci.recording import Entry, Recording, merged, replay

Row = tuple[str, str, str]  # kind, path, content or target


def entry(row: Row) -> Entry:
    kind, path, what = row
    info = tarfile.TarInfo(path)
    if kind == "dir":
        info.type, info.mode = tarfile.DIRTYPE, int(what or "755", 8)
    elif kind == "link":
        info.type, info.linkname = tarfile.SYMTYPE, what
    elif kind == "hard":
        info.type, info.linkname = tarfile.LNKTYPE, what
    info.size = len(what) if kind == "file" else 0
    return Entry(info=info, path=path, target=what if kind == "hard" else "", data=what.encode())


def layer(*rows: Row) -> list[Entry]:
    return [entry(row) for row in rows]


# The overlay file system, as far as it matters here (https://docs.kernel.org/filesystems/overlayfs.html).

Tree = dict[str, tuple[str, str]]  # path to (kind, what), of a directory that holds one layer


def directory(entries: Sequence[Entry]) -> tuple[Tree, set[str]]:
    """What a layer's directory holds, whiteouts included, and which of its directories are opaque."""
    tree: Tree = {}
    opaque: set[str] = set()
    for one in entries:
        parent, name = posixpath.split(one.path)
        if name == ".wh..wh..opq":
            opaque.add(parent)
        elif name.startswith(".wh."):
            tree[posixpath.join(parent, name[4:])] = ("whiteout", "")
        elif one.info.isdir():
            tree[one.path] = ("dir", oct(one.info.mode))
        else:
            tree[one.path] = ("other", one.data.decode() + one.info.linkname)
    return tree, opaque


def view(stack: Sequence[Sequence[Entry]]) -> Tree:
    """What is seen of a stack of layers, the lowest first."""
    shown: Tree = {}
    dirs = [directory(entries) for entries in reversed(stack)]
    look(dirs, "", shown)
    return shown


def look(dirs: Sequence[tuple[Tree, set[str]]], path: str, shown: Tree) -> None:
    """`dirs` are those that make the directory `path`, the uppermost first."""
    names: dict[str, None] = {}
    visible = []
    for tree, opaque in dirs:
        visible.append((tree, opaque))
        for candidate in tree:
            if posixpath.dirname(candidate) == path and candidate != path:
                names[candidate] = None
        if path in opaque:
            break
    for name in names:
        found = [(tree, opaque) for tree, opaque in visible if name in tree]
        kind, what = found[0][0][name]
        if kind == "whiteout":
            continue
        shown[name] = (kind, what)
        if kind == "dir":
            below = []
            for tree, opaque in visible:
                if name not in tree:
                    continue
                if tree[name][0] != "dir":
                    break
                below.append((tree, opaque))
            look(below, name, shown)


BASE = layer(("dir", "a", ""), ("file", "a/x", "base"), ("file", "a/y", "base"), ("dir", "b", ""), ("file", "c", ""))


def test_later_layers_replace_delete_and_add() -> None:
    first = layer(("dir", "a", ""), ("file", "a/x", "1"), ("file", "a/z", "1"))
    second = layer(("dir", "a", "700"), ("file", "a/x", "2"), ("file", "a/.wh.z", ""), ("file", "a/.wh.y", ""))

    one = merged([first, second], lowest=False)

    assert one is not None
    assert view([BASE, one]) == view([BASE, first, second])
    assert [e.path for e in one] == ["a", "a/x", "a/.wh.z", "a/.wh.y"]
    assert one[0].info.mode == 0o700


def test_what_the_lowest_delete_is_not_there_and_no_whiteout_is_left() -> None:
    one = merged([BASE, layer(("dir", "a", ""), ("file", "a/.wh.x", ""), ("file", ".wh.b", ""))], lowest=True)

    assert one is not None
    assert [e.path for e in one] == ["a", "a/y", "c"]


@pytest.mark.parametrize(
    "second",
    [
        layer(("hard", "d", "c")),
        layer(("file", ".wh..wh.plnk", "")),
        layer(("file", "a", "a file in a directory's place")),
        layer(("dir", "c", "")),
        layer(("file", "unknown/x", "whose directory is described below")),
        layer(("dir", "a", ""), ("file", "a/.wh.n", ""), ("file", "a/n", "both")),
    ],
)
def test_what_leaves_traces_is_not_merged(second: list[Entry]) -> None:
    assert merged([BASE, second], lowest=False) is None


def test_what_was_deleted_comes_back_in_a_layer_of_its_own() -> None:
    """A directory that replaces a deleted one must not show what the deleted one held."""
    first, second = layer(("file", ".wh.a", "")), layer(("dir", "a", ""))

    assert merged([first, second], lowest=False) is None


PATHS = ("a", "b", "a/x", "a/b", "a/b/y", "c")
WHITEOUTS = (".wh.a", "a/.wh.b", "a/b/.wh.y", ".wh.c", "a/.wh..wh..opq")
rows = st.one_of(
    st.tuples(st.just("dir"), st.sampled_from(PATHS), st.sampled_from(["755", "700"])),
    st.tuples(st.just("file"), st.sampled_from(PATHS), st.sampled_from(["1", "2", "3"])),
    st.tuples(st.just("link"), st.sampled_from(PATHS), st.just("c")),
    st.tuples(
        st.just("file"), st.sampled_from([".wh.a", "a/.wh.b", "a/b/.wh.y", ".wh.c", "a/.wh..wh..opq"]), st.just("")
    ),
)


def proper(listed: list[Row]) -> list[Entry]:
    """A layer as an honest tool writes it: parents first, each name once, nothing below what is no directory."""
    kinds: dict[str, str] = {}
    kept: list[Row] = []
    for row in sorted(listed, key=lambda row: row[1].count("/")):
        kind, path, _ = row
        parent, name = posixpath.split(path)
        if parent and kinds.get(parent) != "dir":
            if parent in kinds:
                continue
            grand = posixpath.dirname(parent)
            if grand and kinds.get(grand) != "dir":
                continue
            kinds[parent] = "dir"
            kept.append(("dir", parent, "755"))
        target = posixpath.join(parent, name[4:]) if name.startswith(".wh.") and ".wh..wh." not in name else path
        if target in kinds:
            continue
        kinds[target] = kind if target == path else "whiteout"
        kept.append(row)
    return layer(*kept)


@given(st.lists(rows, max_size=6), st.lists(st.lists(rows, max_size=5), min_size=1, max_size=4), st.booleans())
@settings(max_examples=600, deadline=None)
def test_one_layer_shows_what_several_showed(base: list[Row], above: list[list[Row]], lowest: bool) -> None:
    below = [] if lowest else [proper([row for row in base if ".wh." not in row[1]])]
    stack = [proper(listed) for listed in above]

    one = merged(stack, lowest=lowest)

    event("merged" if one is not None else "left apart")
    if one is not None:
        assert view([*below, one]) == view([*below, *stack])
        assert not lowest or not any(".wh." in e.path for e in one)


def tar(*rows: Row) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for one in layer(*rows):
            archive.addfile(one.info, io.BytesIO(one.data))
    return output.getvalue()


class Seen:
    """A visitor that tells what it saw."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, bytes]] = []
        self.finished = False

    def visit(self, entry: tarfile.TarInfo, path: str, target: str, read: layers.Read) -> None:
        pieces = []
        while piece := read(7):
            pieces.append(bytes(piece))
        self.entries.append((path, target, b"".join(pieces)))

    def finish(self) -> None:
        self.finished = True


def test_a_replay_shows_what_the_scan_showed() -> None:
    data = tar(("dir", "a", ""), ("file", "a/x", "x" * 2000), ("hard", "h", "a/x"), ("link", "s", "a"))
    directly, again, recording = Seen(), Seen(), Recording(1 << 20)

    layers.scan(io.BytesIO(data), "layer", directly)
    layers.scan(io.BytesIO(data), "layer", recording)
    replay(recording.entries, again)

    assert again.entries == directly.entries
    assert directly.finished and again.finished
    assert recording.held >= 2000


def test_what_is_too_large_is_not_held() -> None:
    recording = Recording(5000)

    layers.scan(io.BytesIO(tar(("file", "a", "x"), ("file", "b", "x" * 6000))), "layer", recording)

    assert recording.unfit
    assert recording.entries == []

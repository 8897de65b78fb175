"""Files are read out of layers as the kernel would show them, and never from outside the root."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd import trees
from sandboxd.containerd.rootfs import MAX_BYTES, Entry, looking, read, tree
from sandboxd.containerd.snapshots import Mount
from sandboxd.errors import NotReady
from sandboxd.trees import Event
from tests.deep import DEEP, deep_path, nest

__all__ = ["deep_path"]  # a fixture


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Three empty layers, the uppermost first, beside a secret that is in none of them."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "passwd").write_bytes(b"secret")
    made = [tmp_path / name for name in ("upper", "middle", "lower")]
    for directory in made:
        directory.mkdir()
    return made


def overlay(layers: Sequence[Path], *, writable: bool = True) -> list[Mount]:
    upper = [f"upperdir={layers[0]}", "workdir=/w"] if writable else []
    lower = layers[1:] if writable else layers
    options = ("index=off", *upper, "lowerdir=" + ":".join(str(directory) for directory in lower))
    return [Mount(type="overlay", source="overlay", options=options)]


def put(layer: Path, path: str, content: bytes = b"x") -> None:
    (layer / path).parent.mkdir(parents=True, exist_ok=True)
    (layer / path).write_bytes(content)


def link(layer: Path, path: str, target: str) -> None:
    (layer / path).parent.mkdir(parents=True, exist_ok=True)
    (layer / path).symlink_to(target)


def whiteout(layer: Path, path: str) -> None:
    (layer / path).parent.mkdir(parents=True, exist_ok=True)
    os.mknod(layer / path, stat.S_IFCHR, os.makedev(0, 0))


@pytest.fixture
def opaque(monkeypatch: pytest.MonkeyPatch) -> set[tuple[Path, str]]:
    """(directory, attribute) pairs that carry an opaque mark; real ones need a file system that has them."""
    marked: set[tuple[Path, str]] = set()

    def getxattr(fd: int, name: str) -> bytes:
        if (Path(os.readlink(f"/proc/self/fd/{fd}")), name) in marked:
            return b"y"
        raise OSError(61, "No data available")

    monkeypatch.setattr(os, "getxattr", getxattr)
    return marked


@pytest.mark.parametrize("path", ["etc/passwd", "/etc/passwd", "etc//passwd"])
def test_a_bind_mount_is_read_directly(layers: list[Path], path: str) -> None:
    put(layers[0], "etc/passwd", b"root")

    assert read([Mount(type="bind", source=str(layers[0]))], path) == b"root"


@pytest.mark.parametrize("writable", [True, False])
def test_the_uppermost_layer_that_has_the_file_wins(layers: list[Path], writable: bool) -> None:
    mounts = overlay(layers, writable=writable)
    seen = [read(mounts, "etc/passwd")]
    for layer, content in zip(reversed(layers), (b"lower", b"middle", b"upper"), strict=True):
        put(layer, "etc/passwd", content)
        seen.append(read(mounts, "etc/passwd"))

    assert seen == [None, b"lower", b"middle", b"upper"]


def test_a_whiteout_hides_what_is_below_and_nothing_above(layers: list[Path]) -> None:
    put(layers[2], "etc/passwd", b"lower")
    whiteout(layers[1], "etc/passwd")
    assert read(overlay(layers), "etc/passwd") is None

    put(layers[0], "etc/passwd", b"upper")
    assert read(overlay(layers), "etc/passwd") == b"upper"


def test_a_directory_that_was_deleted_takes_its_files_along(layers: list[Path]) -> None:
    put(layers[2], "etc/passwd")
    whiteout(layers[1], "etc")

    assert read(overlay(layers), "etc/passwd") is None


@pytest.mark.parametrize("attribute", ["trusted.overlay.opaque", "user.overlay.opaque"])
def test_an_opaque_directory_hides_what_is_below(
    layers: list[Path], opaque: set[tuple[Path, str]], attribute: str
) -> None:
    put(layers[2], "a/b/passwd", b"lower")
    put(layers[1], "a/b/group", b"middle")
    assert read(overlay(layers), "a/b/passwd") == b"lower"

    for directory in ("a/b", "a"):
        opaque.clear()
        opaque.add((layers[1] / directory, attribute))
        assert read(overlay(layers), "a/b/passwd") is None
        assert read(overlay(layers), "a/b/group") == b"middle"


def test_an_opaque_layer_above_that_does_not_have_the_file_counts_too(
    layers: list[Path], opaque: set[tuple[Path, str]]
) -> None:
    put(layers[1], "etc/passwd")
    (layers[0] / "etc").mkdir()
    opaque.add((layers[0] / "etc", "trusted.overlay.opaque"))

    assert read(overlay(layers), "etc/passwd") is None


def test_a_file_in_place_of_a_directory_hides_what_is_below(layers: list[Path]) -> None:
    put(layers[2], "etc/passwd")
    put(layers[1], "etc")

    assert read(overlay(layers), "etc/passwd") is None


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("etc/passwd", "shadowed"),
        ("etc/passwd", "/etc/shadowed"),
        ("etc/passwd", "../etc/./shadowed"),
        ("etc/passwd", "../../../../etc/shadowed"),
        ("etc/passwd", "//etc//shadowed"),
    ],
)
def test_a_link_is_followed_inside_the_root_even_to_another_layer(layers: list[Path], path: str, target: str) -> None:
    link(layers[0], path, target)
    put(layers[2], "etc/shadowed", b"found")

    assert read(overlay(layers), path) == b"found"


def test_a_linked_directory_is_followed_and_dot_dot_means_its_targets_parent(layers: list[Path]) -> None:
    link(layers[0], "etc", "usr/share/etc")
    put(layers[1], "usr/share/etc/passwd", b"found")
    put(layers[1], "usr/share/group", b"beside")
    link(layers[0], "x", "etc/../group")

    assert read(overlay(layers), "etc/passwd") == b"found"
    assert read(overlay(layers), "x") == b"beside"


@pytest.mark.parametrize("up", ["", "../../../../../../.."])
def test_a_link_to_a_place_outside_stays_inside(layers: list[Path], up: str) -> None:
    outside = layers[0].parent / "outside"
    link(layers[0], "etc/passwd", f"{up}{outside}/passwd")
    link(layers[1], "lib", f"{up}{outside}")

    assert read(overlay(layers), "etc/passwd") is None
    assert read(overlay(layers), "lib/passwd") is None


def test_a_lower_layers_link_in_place_of_a_directory_is_never_followed(layers: list[Path]) -> None:
    """The upper layer made a directory of it, so it is gone; opening it would leave the root."""
    (layers[0] / "etc").mkdir()
    link(layers[1], "etc", str(layers[0].parent / "outside"))
    link(layers[2], "etc", "../outside")

    assert read(overlay(layers), "etc/passwd") is None


@pytest.mark.parametrize("target", ["passwd", "./passwd", "/etc/group", "missing", "a" * 300, "x/" * 100])
def test_a_link_that_leads_nowhere_is_no_file(layers: list[Path], target: str) -> None:
    link(layers[0], "etc/passwd", target)
    link(layers[0], "etc/group", "/etc/passwd")

    assert read(overlay(layers), "etc/passwd") is None


@pytest.mark.parametrize("target", [".", "..", "/", "/etc", "group/..", "/etc/directory"])
def test_a_link_to_a_directory_is_no_file(layers: list[Path], target: str) -> None:
    link(layers[0], "etc/passwd", target)
    put(layers[0], "etc/group")
    (layers[0] / "etc" / "directory").mkdir()

    assert read(overlay(layers), "etc/passwd") is None


def test_forty_links_are_followed_and_no_more(layers: list[Path]) -> None:
    put(layers[0], "0", b"found")
    for i in range(41):
        link(layers[0], str(i + 1), str(i))

    assert read(overlay(layers), "40") == b"found"
    assert read(overlay(layers), "41") is None


def test_what_is_no_regular_file_is_none_and_is_not_opened(layers: list[Path]) -> None:
    os.mkfifo(layers[0] / "fifo")
    (layers[0] / "directory").mkdir()

    assert [read(overlay(layers), path) for path in ("fifo", "directory", "", "/", "fifo/x")] == [None] * 5


def test_a_file_that_is_unreasonably_large_is_refused(layers: list[Path]) -> None:
    for size in (MAX_BYTES, MAX_BYTES + 1):
        with (layers[0] / "passwd").open("wb") as file:
            file.truncate(size)
        if size == MAX_BYTES:
            assert len(read(overlay(layers), "passwd") or b"") == size

    with pytest.raises(NotReady, match=f"passwd in the image is larger than {MAX_BYTES} bytes"):
        read(overlay(layers), "passwd")


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ([], "of 0 mounts"),
        ([Mount(type="bind", source="/a")] * 2, "of 2 mounts"),
        ([Mount(type="ext4", source="/dev/x")], "of type 'ext4'"),
    ],
)
def test_a_root_that_cannot_be_read_this_way_is_refused(mounts: list[Mount], expected: str) -> None:
    with pytest.raises(NotReady, match=expected):
        read(mounts, "etc/passwd")


@given(target=st.lists(st.sampled_from(["..", ".", "etc", "lib", "passwd", "up", ""]), max_size=8).map("/".join))
def test_no_link_whatsoever_reads_the_secret_outside(tmp_path_factory: pytest.TempPathFactory, target: str) -> None:
    base = tmp_path_factory.mktemp("root")
    (base / "passwd").write_bytes(b"secret")
    layers = [base / "a", base / "b"]
    for layer in layers:
        layer.mkdir()
    if target:
        link(layers[0], "etc/passwd", target)
    link(layers[1], "lib", "..")
    link(layers[1], "up", str(base))
    put(layers[1], "passwd", b"inside")

    assert read(overlay(layers), "etc/passwd") in (None, b"inside")


def shown(mounts: Sequence[Mount], path: str) -> dict[str, Path]:
    """What a tree shows, each with the file that it found."""
    found: dict[str, Path] = {}
    at: list[str] = []
    for event, name, fd, info in tree(mounts, path):
        here = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if event is Event.LEFT:
            assert at.pop() == "/".join([*at[-1:], name]).removeprefix("/")
            continue
        relative = "/".join([*at[-1:], name]).removeprefix("/")
        found[relative] = here if event is Event.ENTERED else here / name
        assert os.path.samestat(info, found[relative].lstat())
        if event is Event.ENTERED:
            assert relative == "" or relative.rpartition("/")[0] in found, "parents first"
            at.append(relative)
    return found


def names(mounts: Sequence[Mount], path: str) -> list[str]:
    return sorted(shown(mounts, path))


def test_a_tree_is_what_all_layers_show_together_parents_first(layers: list[Path]) -> None:
    upper, middle, lower = layers
    put(lower, "data/a/low")
    put(middle, "data/a/mid")
    put(upper, "data/top")
    put(lower, "data/top", b"hidden")

    found = shown(overlay(layers), "/data")

    assert sorted(found) == ["", "a", "a/low", "a/mid", "top"]
    assert found["top"] == upper / "data/top"


def test_a_tree_deeper_than_any_path_and_any_stack_is_shown_by_all_layers(deep_path: Path) -> None:
    layers = [deep_path / name for name in ("upper", "middle", "lower")]
    for layer, depth in zip(layers, (DEEP, 700, DEEP), strict=True):
        (layer / "data").mkdir(parents=True)
        nest(layer / "data", depth)
    events = [event for event, *_ in tree(overlay(layers), "data")]
    assert events == [Event.ENTERED] * (DEEP + 1) + [Event.LEFT] * (DEEP + 1)


@pytest.mark.parametrize("what", ["tree", "path"])
def test_the_work_is_linear_in_the_depth(layers: list[Path], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    depths = {"tree": (100, 400), "path": (50, 200)}[what]
    counted = []
    for i, depth in enumerate(depths):
        calls = [0]
        real = os.stat

        def stat_once(*args: Any, calls: list[int] = calls, real: Any = real, **kwargs: Any) -> os.stat_result:
            calls[0] += 1
            found: os.stat_result = real(*args, **kwargs)
            return found

        made = [layer / str(i) for layer in layers]
        for layer in made:
            (layer / "data").mkdir(parents=True)
            nest(layer / "data", depth)
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", stat_once)
            found = list(tree(overlay(made), "data" + ("/deep" * depth if what == "path" else "")))
        assert found
        counted.append(calls[0])
    assert counted[1] < 6 * counted[0]


def test_a_path_of_unreasonably_many_parts_leads_nowhere(layers: list[Path]) -> None:
    """40 links of 2,000 parts each are what an image may have, and lookups in every layer what that would cost."""
    (layers[2] / "d").mkdir()
    link(layers[2], "up", "d/../" * 700)
    assert names(overlay(layers), "up/up") == ["", "d", "up"]
    assert names(overlay(layers), "/".join(["up"] * 30)) == []
    assert names(overlay(layers), "a\0b") == []


def test_only_the_layers_that_show_a_tree_are_kept_open(layers: list[Path]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    put(layers[2], "data/file")
    walking = tree(overlay(layers), "data")
    next(walking)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    assert len(list(walking)) == 2
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_becomes_something_else_before_it_is_opened_is_refused(
    layers: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(layers[0], "etc/passwd")
    real = trees.open_file

    def exchanged(name: str, dir_fd: int) -> int:
        (layers[0] / "etc/passwd").unlink()
        os.mkfifo(layers[0] / "etc/passwd")
        return real(name, dir_fd)

    monkeypatch.setattr(trees, "open_file", exchanged)
    with pytest.raises(NotReady, match="not a regular file"):
        read(overlay(layers), "etc/passwd")


def test_a_tree_leaves_out_what_was_deleted_above(layers: list[Path]) -> None:
    upper, middle, lower = layers
    put(lower, "data/gone/x")
    put(lower, "data/kept")
    whiteout(middle, "data/gone")
    put(upper, "data/new")

    assert names(overlay(layers), "data") == ["", "kept", "new"]


def test_a_tree_leaves_out_what_an_opaque_directory_hides(layers: list[Path], opaque: set[tuple[Path, str]]) -> None:
    _, middle, lower = layers
    put(lower, "data/sub/old")
    put(middle, "data/sub/new")
    opaque.add((middle / "data/sub", "trusted.overlay.opaque"))

    assert names(overlay(layers), "data") == ["", "sub", "sub/new"]


def test_a_tree_is_found_through_links_inside_the_root_and_its_own_links_are_entries(layers: list[Path]) -> None:
    _, _, lower = layers
    put(lower, "srv/data/file")
    link(lower, "data", "/../srv/data")
    link(lower, "srv/data/out", "../../../outside")

    assert names(overlay(layers), "data") == ["", "file", "out"]


@pytest.mark.parametrize("path", ["none", "file", "file/below", "out", "loop"])
def test_where_there_is_no_directory_there_is_no_tree(layers: list[Path], path: str) -> None:
    _, _, lower = layers
    put(lower, "file")
    link(lower, "out", "/outside")
    link(lower, "loop", "loop")

    assert names(overlay(layers), path) == []


def test_entries_are_looked_up_one_by_one_and_links_are_not_followed(layers: list[Path]) -> None:
    put(layers[2], "etc/passwd")
    put(layers[2], "etc/group")
    os.mkfifo(layers[2] / "pipe")
    link(layers[1], "etc/hop", "/pipe")
    link(layers[1], "there", "etc")
    whiteout(layers[0], "etc/group")
    with looking(overlay(layers)) as look:
        found = {name: look(name.split("/")) for name in ("etc", "pipe", "etc/passwd", "etc/hop", "there")}
        assert {name: stat.S_IFMT(entry.mode) for name, entry in found.items() if entry} == {
            "etc": stat.S_IFDIR,
            "pipe": stat.S_IFIFO,
            "etc/passwd": stat.S_IFREG,
            "etc/hop": stat.S_IFLNK,
            "there": stat.S_IFLNK,
        }
        assert found["etc/hop"] == Entry(found["there"].mode, "/pipe") if found["there"] else False
        assert [look(name.split("/")) for name in ("etc/group", "there/passwd", "pipe/x", "none")] == [None] * 4
        root = look([])
        assert root is not None and stat.S_ISDIR(root.mode)


def test_a_layer_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="cannot be read"), looking([Mount(type="bind", source=f"{tmp_path}/none")]):
        pass

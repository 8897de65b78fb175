"""The list of mounts is read as the kernel writes it, and a path leads where it leads in the kernel."""

from __future__ import annotations

import pytest

from sandboxd.mountinfo import Mount, holding, parse, visible


def listed(*mounts: tuple[int, int, str]) -> list[Mount]:
    """A list of (id, parent, point)."""
    lines = (f"{number} {parent} 0:{number} / {point} rw - tmpfs none rw\n" for number, parent, point in mounts)
    return parse("".join(lines).encode())


def test_every_field_of_a_line_is_read() -> None:
    line = b"36 35 98:0 /sub /mnt/a rw,noatime master:1 propagate_from:2 unbindable - ext3 /dev/sda rw,barrier=1\n"
    assert parse(line) == [
        Mount(
            id=36,
            parent=35,
            root="/sub",
            point="/mnt/a",
            options=("rw", "noatime"),
            propagation=("master:1", "propagate_from:2", "unbindable"),
            fstype="ext3",
            source="/dev/sda",
            super_options=("rw", "barrier=1"),
        )
    ]


@pytest.mark.parametrize(
    ("fields", "shared", "slave"),
    [("", False, False), (" shared:4", True, False), (" master:4", False, True), (" shared:4 master:5", True, True)],
)
def test_optional_fields_tell_how_a_mount_propagates(fields: str, shared: bool, slave: bool) -> None:
    (mount,) = parse(f"2 1 0:2 / /a rw{fields} - tmpfs none rw\n".encode())
    assert (mount.shared, mount.slave) == (shared, slave)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (rb"/a\040b", "/a b"),
        (rb"/a\011b\012c\134d\043e", "/a\tb\nc\\d#e"),
        (rb"/a\134040b", r"/a\040b"),
        ("/ä\r\v\f\x1c\x85\u2028b".encode(), "/ä\r\v\f\x1c\x85\u2028b"),
        (b"/\xff\xe4", "/\udcff\udce4"),
    ],
    ids=["a space", "all that is escaped", "an escaped backslash", "line ends of Python", "not UTF-8"],
)
def test_a_name_is_what_the_directory_is_called(written: bytes, meant: str) -> None:
    (mount,) = parse(b"2 1 0:2 %b %b rw - tmpfs %b rw\n" % (written, written, written))
    assert (mount.root, mount.point, mount.source) == (meant, meant, meant)


def test_options_are_separated_before_they_are_unescaped() -> None:
    (mount,) = parse(rb"2 1 0:2 / /a rw - overlay overlay rw,lowerdir=/a\054b:/c,upperdir=/d" + b"\n")
    assert mount.super_options == ("rw", "lowerdir=/a,b:/c", "upperdir=/d")


def test_a_source_may_be_empty_and_a_file_system_may_forget_to_escape() -> None:
    first, second = parse(b"2 1 0:2 / /a rw - tmpfs  rw\n3 1 0:3 / /b rw - odd none rw,name=a b\n")
    assert (first.source, first.super_options) == ("", ("rw",))
    assert second.super_options == ("rw", "name=a b")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"2",
        b"x 1 0:2 / /a rw - tmpfs none rw",
        b"2 1 0:2 / /a rw",
        b"2 1 0:2 / /a - tmpfs none rw",
        b"2 1 0:2 - ",
    ],
)
def test_a_line_that_is_no_mount_spoils_only_itself(line: bytes) -> None:
    whole = b"1 0 0:1 / / rw - ext4 none rw\n"
    assert [mount.id for mount in parse(line + b"\n" + whole)] == [1]


def test_a_path_leads_into_the_deepest_mount_above_it() -> None:
    mounts = listed((1, 0, "/"), (2, 1, "/run"), (3, 2, "/run/netns"), (4, 1, "/running"))
    found = {
        path: mount.id
        for path in ("/", "/etc", "/run", "/run/a", "/run/netns", "/run/netns/a/b", "/running/a")
        if (mount := holding(mounts, path))
    }
    assert found == {
        "/": 1,
        "/etc": 1,
        "/run": 2,
        "/run/a": 2,
        "/run/netns": 3,
        "/run/netns/a/b": 3,
        "/running/a": 4,
    }


@pytest.mark.parametrize(
    ("path", "expected"), [("/", 1), ("/run", 2), ("/run/netns", 3), ("/run/a", None), ("/etc", None), ("/ru", None)]
)
def test_only_a_mount_point_is_one(path: str, expected: int | None) -> None:
    found = visible(listed((1, 0, "/"), (2, 1, "/run"), (3, 2, "/run/netns")), path)
    assert (found.id if found else None) == expected


def test_of_mounts_on_one_another_the_last_is_on_top() -> None:
    """The order of the list does not tell: a mount that was moved keeps its number."""
    for mounts in (((2, 1, "/a"), (3, 2, "/a"), (4, 3, "/a")), ((4, 1, "/a"), (2, 4, "/a"), (3, 2, "/a"))):
        found = visible(listed((1, 0, "/"), *mounts), "/a")
        assert found is not None and found.id == mounts[-1][0]


def test_a_mount_hidden_under_another_is_not_there() -> None:
    mounts = listed((1, 0, "/"), (2, 1, "/run"), (3, 2, "/run/netns"), (4, 2, "/run"))
    assert visible(mounts, "/run/netns") is None
    inside = holding(mounts, "/run/netns")
    assert inside is not None and inside.id == 4


def test_a_mount_above_a_hidden_one_is_there() -> None:
    mounts = listed((1, 0, "/"), (2, 1, "/run"), (3, 2, "/run/netns"), (4, 2, "/run"), (5, 4, "/run/netns"))
    found = visible(mounts, "/run/netns")
    assert found is not None and found.id == 5


def test_what_was_mounted_over_the_root_is_not_entered() -> None:
    mounts = listed((1, 0, "/"), (2, 1, "/a"), (3, 1, "/"), (4, 3, "/b"))
    assert [bool(visible(mounts, path)) for path in ("/a", "/b")] == [True, False]
    root = visible(mounts, "/")
    assert root is not None and root.id == 1


def test_the_first_file_system_is_its_own_parent() -> None:
    mounts = listed((1, 1, "/"), (2, 1, "/a"))
    assert [mount.id for path in ("/", "/a") if (mount := visible(mounts, path))] == [1, 2]


def test_a_process_whose_root_is_not_a_mount_point_sees_what_is_below_it() -> None:
    """chroot(2) into a directory: the mount that holds it is not listed."""
    mounts = listed((2, 1, "/a"), (3, 2, "/a/b"))
    assert [mount.id for path in ("/a", "/a/b/c") if (mount := holding(mounts, path))] == [2, 3]
    assert holding(mounts, "/") is None
    assert holding(mounts, "/c") is None

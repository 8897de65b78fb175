"""Names are followed through links at a cost that is theirs, and links are remembered up to a bound.

What is let through and what is not: tests/unit/oci/test_layers.py, over whole layers.
"""

from __future__ import annotations

import pytest

from sandboxd.errors import InvalidRequest
from sandboxd.oci import links
from sandboxd.oci.links import Links


def test_names_go_where_links_lead() -> None:
    found = Links("layer")
    assert found.place("lib", symlink="usr/lib") == "lib"
    assert found.place("lib/x") == "usr/lib/x"
    assert found.place("lib/../lib/y/z") == "usr/lib/y/z"
    assert found.place("usr/lib/up", symlink="..") == "usr/lib/up"
    assert found.place("./lib//up/z") == "usr/z"
    assert found.target("/lib/x") == "usr/lib/x"


def test_a_link_that_was_replaced_is_followed_no_more() -> None:
    """The directory before is remembered, and with it what was followed."""
    found = Links("layer")
    found.place("a", symlink="b")
    assert found.place("a/x") == "b/x"
    found.place("a")  # a file now
    assert found.place("a/x") == "a/x"
    found.place("a", symlink="c")
    assert found.place("a/x") == "c/x"


def test_a_directory_takes_a_link_s_place() -> None:
    found = Links("layer")
    found.place("a", symlink="b")
    assert found.place("a") == "a"
    assert found.place("a/x") == "a/x"


@pytest.mark.parametrize(
    ("made", "name", "path"),
    [
        ([], "../x", "x"),
        ([], "a/../../x", "x"),
        ([], "/../x", "x"),
        ([], "..", ""),
        ([], "/", ""),
        ([], "./", ""),
        ([("var/run", "/run")], "var/run/x", "run/x"),
        ([("a", "../../etc")], "a/passwd", "etc/passwd"),
        ([("d/a", "../..")], "d/a/passwd", "passwd"),
        ([("a", "/b"), ("b", "/c/d")], "a/x", "c/d/x"),
        ([("a", "/")], "a/x", "x"),
        ([("l", "d/e")], "l/../x", "x"),  # a name is cleaned as text
        ([("l", "d/e"), ("m", "l/../z")], "m/x", "d/z/x"),  # a target is not
        ([("lib64", "usr/lib64"), ("usr/lib64", "lib")], "lib64/x", "usr/lib/x"),
        ([("a", "b/c"), ("b", "/e/f"), ("e/f/c", "../g")], "a/x", "e/g/x"),
        ([("a", "not/yet")], "a/b/x", "not/yet/b/x"),
        ([(".hidden", "shown")], ".hidden/x", "shown/x"),
    ],
)
def test_a_link_that_leads_out_leads_inside_the_root(made: list[tuple[str, str]], name: str, path: str) -> None:
    """Where containerd's own walk ends: tests/root/test_same_tree.py."""
    found = Links("layer")
    for link, target in made:
        found.place(link, symlink=target)
    assert found.place(name) == path


def test_the_target_of_a_hard_link_stays_inside_too() -> None:
    found = Links("layer")
    found.place("e", symlink="/d")
    for name, path in (("e/a", "d/a"), ("/e/a", "d/a"), ("../../a", "a"), ("..", ""), ("x/..", ""), ("e", "e")):
        assert found.target(name) == path


def test_links_that_go_in_circles_are_an_error() -> None:
    found = Links("layer")
    found.place("a", symlink="b")
    found.place("b", symlink="a")
    found.place("c", symlink="c/c")
    for name in ("a/x", "c/x"):
        with pytest.raises(InvalidRequest, match="too many symbolic links"):
            found.place(name)


def test_a_deep_name_takes_steps_for_its_parts_only() -> None:
    """Beside a link, which makes every name be followed."""
    found = Links("layer")
    found.place("l", symlink="x")
    name = "a/" * 2000 + "b"
    for _ in range(200):
        assert found.place(name) == name
    assert found._steps == 0


def test_the_steps_on_links_are_counted_over_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "FREE_STEPS", 10_000)
    found = Links("layer")
    for number in range(39):
        found.place(f"l{number}", symlink="x/../" * 400 + f"l{number + 1}")
    with pytest.raises(InvalidRequest, match="more symbolic links than can be followed"):
        for number in range(100):
            found.place(f"l0/d{number}/file")
    assert found._steps < 20_000 + 64 * 200


def test_ordinary_layers_stay_below_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even without those that are free: each entry through two links, each directory another."""
    monkeypatch.setattr(links, "FREE_STEPS", 0)
    found = Links("layer")
    for number in range(100):
        found.place(f"filler-{number}")
    found.place("lib", symlink="usr/lib")
    found.place("usr/lib/current", symlink="../share/versions/1.0.0/lib")
    for number in range(5000):
        found.place(f"lib/current/d{number}/file")


def test_what_is_remembered_of_links_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names, their targets and the directories on the way."""
    monkeypatch.setattr(links, "MAX_BYTES", 1 << 20)
    for name, target in (("{}", "x" * 4000), ("{}" + "x" * 240, "y"), ("{}/" + "a/" * 1000 + "b", "y")):
        found = Links("layer")
        with pytest.raises(InvalidRequest, match="more symbolic links than can be examined"):
            for number in range(3000):
                found.place(name.format(number), symlink=target)


def test_a_link_that_is_made_again_takes_no_more_nodes() -> None:
    found = Links("layer")
    for _ in range(3):
        found.place("a/b/c", symlink="x")
    nodes, todo = 0, [found._root]
    while todo:
        node = todo.pop()
        nodes += 1
        todo += node.below.values()
    assert nodes == 4


def test_a_path_that_grows_ends_where_the_kernel_s_do() -> None:
    """The name is walked again after each link, so its length counts each time."""
    found = Links("layer")
    found.place("l", symlink="/l/" + "x" * 2000)
    with pytest.raises(InvalidRequest, match="a path that is too long"):
        found.place("l/" + "y/" * 1000 + "z")


def test_messages_are_short_whatever_the_names_are() -> None:
    found = Links("layer")
    found.place("l", symlink="/l/" + "x" * 4000)
    with pytest.raises(InvalidRequest) as caught:
        found.place("l/" + "y/" * 2000 + "z")
    assert len(str(caught.value)) < 500

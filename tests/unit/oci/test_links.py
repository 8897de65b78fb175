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


def test_a_directory_in_a_link_s_place_leads_both_ways() -> None:
    found = Links("layer")
    found.place("a", symlink="b")
    assert found.place("a", directory=True) == "a"
    assert found.place("a/x") == "a/x"  # where the directory replaced the link; it is checked through the link too
    found.place("b/l", symlink="/etc")
    with pytest.raises(InvalidRequest, match="leads out"):
        found.place("a/l/passwd")


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
        todo += (node.below or {}).values()
    assert nodes == 4


def test_messages_are_short_whatever_the_names_are() -> None:
    found = Links("layer")
    found.place("l", symlink="/" + "x" * 4000)
    with pytest.raises(InvalidRequest) as caught:
        found.place("l/" + "y/" * 2000 + "z")
    assert len(str(caught.value)) < 500

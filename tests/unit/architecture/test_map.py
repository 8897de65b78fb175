"""The map at the head of the package, the layers of `.importlinter` and the directories agree."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile

import pytest

import sandboxd
from tests.unit.architecture.source import MODULES, PACKAGE
from tests.unit.architecture.test_contracts import rows
from tests.unit.architecture.test_purity import PURE

DESCRIPTION = 29  # the column at which what is said of a line's modules begins


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of the map: modules of one layer, or, below them, what is said of one of them or of what is in it."""

    names: tuple[str, ...]  # as on the map: a directory's ends with a slash
    pure: bool
    layer: tuple[str, ...]  # the names of the layer that it heads or is below


def lines(text: str) -> list[Line]:
    """The map in a docstring: what is indented, up to the first paragraph after it."""
    start = text.index("\n    ") + 1
    read: list[Line] = []
    for line in takewhile(bool, text[start:].splitlines()):
        heads_a_layer = not line.startswith(" " * 8)
        words = line[:DESCRIPTION].split()
        names = [word for word in words if word != "P"]
        if heads_a_layer and len(names) > 1:  # each is described below
            names = line.split()
        if names:
            layer = tuple(names) if heads_a_layer else read[-1].layer
            read.append(Line(names=tuple(names), pure="P" in words, layer=layer))
    return read


assert sandboxd.__doc__
LINES = lines(sandboxd.__doc__)
LAYERS = [line for line in LINES if line.names == line.layer]


def bare(name: str) -> str:
    return name.removesuffix("/")


def children(room: str) -> set[str]:
    """The names in a directory of the package as the map writes them; "" is the package itself."""
    paths = [path for path in (PACKAGE / room).iterdir() if path.name != "__init__.py"]
    rooms = {f"{path.name}/" for path in paths if any(path.glob("**/*.py"))}
    return rooms | {path.stem for path in paths if path.suffix == ".py"}


def test_every_module_and_every_room_is_on_the_map_and_nothing_else() -> None:
    named = [name for layer in LAYERS for name in layer.names]

    assert sorted(named) == sorted(children(""))


def test_the_layers_of_the_map_are_those_of_the_contract() -> None:
    contract = [{name.removeprefix("sandboxd.") for name in row} for row in rows("layers")]

    assert [{bare(name) for name in layer.names} for layer in LAYERS] == contract


def test_what_is_said_below_a_layer_is_of_its_modules_or_of_what_is_in_them() -> None:
    strangers = [
        name
        for line in LINES
        for name in line.names
        if name not in line.layer and not any(name in children(bare(room)) for room in line.layer if "/" in room)
    ]

    assert strangers == []


def test_of_modules_that_share_a_line_each_is_described() -> None:
    described = {name for line in LINES for name in line.names if line.names != line.layer}

    assert {name for layer in LAYERS if len(layer.names) > 1 for name in layer.names} - described == set()


def test_the_map_marks_what_is_pure() -> None:
    """All modules of the top that are, and of the rooms what it names on a line of its own."""
    marked = {
        name if name in MODULES else f"{bare(room)}.{name}"
        for line in LINES
        for name in line.names
        for room in line.layer
        if line.pure
    }

    assert marked <= PURE
    assert {name for name in PURE if "." not in name} <= marked


SHARED = ("jobs", "config", "private", "remembered")


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("    steps                    the one instrument", Line(names=("steps",), pure=False, layer=("steps",))),
        ("    model               P    records", Line(names=("model",), pure=True, layer=("model",))),
        ("    netns  cgroups/", Line(names=("netns", "cgroups/"), pure=False, layer=("netns", "cgroups/"))),
        (
            "    jobs  config  private  remembered",
            Line(names=SHARED, pure=False, layer=SHARED),
        ),
    ],
)
def test_a_line_of_the_map_is_read(line: str, read: Line) -> None:
    assert lines(f"The map.\n\n{line}\n                             and more of it\n\nThe end.") == [read]


def test_a_line_about_one_of_a_layer_belongs_to_it() -> None:
    layer, inner = lines(
        "The map.\n\n    api/                     the edge\n        views withheld  P    messages\n\n"
    )

    assert inner == Line(names=("views", "withheld"), pure=True, layer=layer.names)


@pytest.mark.parametrize("room", ["pods", "containers", "images", "machine", "usage"])
def test_the_head_of_a_room_names_each_of_its_modules(room: str) -> None:
    head = (PACKAGE / room / "__init__.py").read_text()

    assert {name for name in children(room) if not re.search(rf"\b{name}\b", head)} == set()

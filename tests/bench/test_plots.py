"""The plots of the benchmarks are well-formed SVG that shows what it was given."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from tests.bench import plots
from tests.bench.stats import Ratio

SVG = "{http://www.w3.org/2000/svg}"


def texts(document: str) -> list[str]:
    return [str(element.text) for element in ElementTree.fromstring(document).iter(f"{SVG}text")]


def places(document: str, element: str, attribute: str) -> list[float]:
    return [float(found.attrib[attribute]) for found in ElementTree.fromstring(document).iter(f"{SVG}{element}")]


def is_interval(line: ElementTree.Element) -> bool:
    return line.attrib["y1"] == line.attrib["y2"]


def bar(label: str, value: float, bound: float | None = None) -> plots.Bar:
    return plots.Bar(label=label, ratio=Ratio(value=value, low=value * 0.9, high=value * 1.1), bound=bound)


def test_every_ratio_has_its_label_and_the_smaller_one_is_further_left() -> None:
    drawn = plots.ratios("Ours", [bar("run", 0.5, 0.75), bar("a < b & c", 2.0)])

    assert {"Ours", "run", "a < b & c"} <= set(texts(drawn))
    smaller, larger = places(drawn, "circle", "cx")
    assert smaller < larger


def test_ratios_that_no_axis_can_show_are_put_at_its_end() -> None:
    drawn = plots.ratios("Odd", [bar("infinite", math.inf), bar("nothing", 0.0)])

    infinite, nothing = places(drawn, "circle", "cx")
    assert nothing < infinite <= plots.WIDTH


def test_a_ratio_without_an_interval_is_a_dot_only() -> None:
    drawn = plots.ratios("Few", [plots.Bar(label="run", ratio=Ratio(value=0.7))])

    assert len(places(drawn, "circle", "cx")) == 1
    assert not [element for element in ElementTree.fromstring(drawn).iter(f"{SVG}line") if is_interval(element)]


def test_a_distribution_rises_and_names_every_series() -> None:
    drawn = plots.distributions("Times", {"sandboxd": [3.0, 1.0, 2.0], "plugin": [5.0]}, "milliseconds")

    assert {"Times", "sandboxd", "plugin", "milliseconds"} <= set(texts(drawn))
    assert len(list(ElementTree.fromstring(drawn).iter(f"{SVG}path"))) == 2


@pytest.mark.parametrize("points", [[], [(0.0, 0.0)], [(1.0, 5.0), (1.0, 6.0)]])
def test_little_to_show_is_shown(points: list[tuple[float, float]]) -> None:
    assert "x" in texts(plots.lines("Little", {"x": points}, across="pods", up="MB"))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 500.0, [0.0, 100.0, 200.0, 300.0, 400.0, 500.0]),
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (37.0, 71.0, [40.0, 50.0, 60.0, 70.0]),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, expected: list[float]) -> None:
    assert plots.ticks(low, high) == expected
